//! What sequences that wait for a group wait for.

use super::Micros;
use crate::batcher::HeldUp;

/// How long whoever was next was held up, by cause, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// The group had all the sequences it may.
    pub places_us: u64,
    /// There were not enough KV blocks.
    pub memory_us: u64,
    /// Prompts that had come before were to be read first.
    pub prompts_us: u64,
}

impl Held {
    fn of(&mut self, cause: HeldUp) -> &mut u64 {
        match cause {
            HeldUp::Places => &mut self.places_us,
            HeldUp::Memory => &mut self.memory_us,
            HeldUp::Prompts => &mut self.prompts_us,
        }
    }

    /// What lies between `earlier` and this.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        Self {
            places_us: self.places_us.saturating_sub(earlier.places_us),
            memory_us: self.memory_us.saturating_sub(earlier.memory_us),
            prompts_us: self.prompts_us.saturating_sub(earlier.prompts_us),
        }
    }

    pub(super) fn add(&mut self, more: &Self) {
        self.places_us += more.places_us;
        self.memory_us += more.memory_us;
        self.prompts_us += more.prompts_us;
    }
}

/// Adds up why a group lets nobody in. A sequence that waits takes the sums when it comes and when it enters, so it costs
/// nothing how many wait.
#[derive(Debug, Default)]
pub struct HeldTimes {
    sums: Held,
    cause: Option<HeldUp>,
    since: Micros,
}

impl HeldTimes {
    /// From `now` on, whoever is next is held up by `cause`; `None`: nobody is.
    pub fn turn(&mut self, now: Micros, cause: Option<HeldUp>) {
        self.sums = self.at(now);
        (self.cause, self.since) = (cause, now);
    }

    /// The sums up to `now`.
    pub fn at(&self, now: Micros) -> Held {
        let mut sums = self.sums;
        if let Some(cause) = self.cause {
            *sums.of(cause) += now.saturating_sub(self.since);
        }
        sums
    }
}
