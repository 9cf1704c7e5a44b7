//! The time of timelines.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::timeline::Micros;

/// Never goes back: the system's time at the start, and what has passed since. Times of different coordinators differ by as
/// much as their clocks did when they started, and have drifted since.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    began: Instant,
    began_at: Micros,
}

impl Default for Clock {
    fn default() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { began: Instant::now(), began_at: u64::try_from(since.as_micros()).unwrap_or(u64::MAX) }
    }
}

impl Clock {
    pub(super) fn now(&self) -> Micros {
        self.began_at.saturating_add(u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}
