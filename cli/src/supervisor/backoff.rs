//! When to start a process again: pure.

use std::time::Duration;

/// First pause, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A process that ran this long had started well.
const HEALTHY: Duration = Duration::from_secs(10);
/// Starts in a row that end early before the process is given up.
const MOST_FAILURES: u32 = 8;

/// Counts starts that did not go well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// After a process has ended that `ran` for so long: how long to wait before the next start, or `None` to give up.
    pub(super) fn after(&mut self, ran: Duration) -> Option<Duration> {
        self.failures = if ran >= HEALTHY { 1 } else { self.failures + 1 };
        if self.failures > MOST_FAILURES {
            return None;
        }
        Some((PAUSE.0 * 2u32.pow(self.failures - 1)).min(PAUSE.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_a_good_run_forgives() {
        let mut backoff = Backoff::default();
        let early = Duration::from_millis(10);
        let pauses: Vec<_> = (0..9).map(|_| backoff.after(early).map(|pause| pause.as_millis())).collect();
        let expected = [100, 200, 400, 800, 1600, 3200, 5000, 5000].map(Some);
        assert_eq!(pauses[..8], expected);
        assert_eq!(pauses[8], None);
        assert_eq!(backoff.after(HEALTHY), Some(PAUSE.0));
    }
}
