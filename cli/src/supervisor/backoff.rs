//! When to start a process again: pure.

use std::time::Duration;

/// The longest pause before a start.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// First pause, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), LONGEST_PAUSE);
/// A process that ran this long had started well.
const HEALTHY: Duration = Duration::from_secs(10);
/// A process that was killed after this long was killed by somebody: nothing is wrong with it.
const STARTED: Duration = Duration::from_secs(1);
/// Starts in a row that end early before the process is given up.
const MOST_FAILURES: u32 = 8;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// By itself.
    Exited,
    /// By a signal from outside, or a crash.
    Killed,
}

/// Counts starts that did not go well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// After a process has ended that `ran` for so long: how long to wait before the next start, or `None` to give up.
    /// One that is killed again and again is started again and again.
    pub(super) fn after(&mut self, ran: Duration, end: End) -> Option<Duration> {
        let good = ran >= HEALTHY || (end == End::Killed && ran >= STARTED);
        self.failures = if good { 1 } else { self.failures + 1 };
        if self.failures > MOST_FAILURES {
            if end == End::Exited {
                return None;
            }
            self.failures = MOST_FAILURES;
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
        let pause = |backoff: &mut Backoff, end| backoff.after(early, end).map(|pause| pause.as_millis());
        let pauses: Vec<_> = (0..9).map(|_| pause(&mut backoff, End::Exited)).collect();
        let expected = [100, 200, 400, 800, 1600, 3200, 5000, 5000].map(Some);
        assert_eq!(pauses[..8], expected);
        assert_eq!(pauses[8], None);
        assert_eq!(backoff.after(HEALTHY, End::Exited), Some(PAUSE.0));
    }

    #[test]
    fn what_is_killed_is_always_started_again() {
        let mut backoff = Backoff::default();
        for _ in 0..100 {
            assert_eq!(backoff.after(STARTED, End::Killed), Some(PAUSE.0));
        }
        // Killed before it was up: it may be at fault itself.
        let pauses: Vec<_> = (0..20).map(|_| backoff.after(Duration::ZERO, End::Killed)).collect();
        assert_eq!((pauses[0], pauses[19]), (Some(PAUSE.0 * 2), Some(PAUSE.1)));
    }
}
