//! How far away the leader is: the time that a plan and its report travel, measured on the plans themselves.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use foggara_proto::step::StepTiming;

/// A leader that waited this long for a plan began with it as soon as it came.
const WAITED: Duration = Duration::from_micros(100);
/// One measurement moves the estimate by no more than this and as much again: a pause of this process is no distance.
const MOST_GROWTH: Duration = Duration::from_millis(2);

/// Estimates the round trip between this driver and its leader.
#[derive(Debug, Default)]
pub(super) struct RoundTrip {
    /// When the plans on their way were sent, oldest first.
    sent: VecDeque<Instant>,
    estimate: Duration,
}

impl RoundTrip {
    /// A plan is sent.
    pub(super) fn sent(&mut self, now: Instant) {
        self.sent.push_back(now);
    }

    /// The oldest plan on its way has been reported. Returns the estimate.
    pub(super) fn reported(&mut self, now: Instant, timing: &StepTiming) -> Duration {
        let Some(sent) = self.sent.pop_front() else { return self.estimate };
        let micros = |micros: u32| Duration::from_micros(u64::from(micros));
        let step = micros(timing.compute_us) + micros(timing.sample_us);
        // This includes the time that the plan lay at the leader behind others, if any did.
        let travelled = now.saturating_duration_since(sent).saturating_sub(step);
        self.estimate = if micros(timing.wait_us) > WAITED {
            (self.estimate * 3 + travelled.min(self.estimate * 2 + MOST_GROWTH)) / 4
        } else {
            self.estimate.min(travelled)
        };
        self.estimate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: StepTiming =
        StepTiming { rows: 1, wait_us: 0, compute_us: 9_000, collective_us: 0, sample_us: 1_000 };

    /// Sends a plan and reports it after `travelled` and its step.
    fn step(trip: &mut RoundTrip, wait_us: u32, travelled: u64) -> u128 {
        let now = Instant::now();
        trip.sent(now);
        let back = now + Duration::from_micros(10_000 + travelled);
        trip.reported(back, &StepTiming { wait_us, ..STEP }).as_micros()
    }

    #[test]
    fn plans_that_were_waited_for_tell_the_distance() {
        let mut trip = RoundTrip::default();
        let last = (0..40).map(|_| step(&mut trip, 500, 40_000)).last();
        assert!(last.is_some_and(|micros| (39_000..=40_000).contains(&micros)), "{last:?}");
        let paused = step(&mut trip, 500, 5_000_000);
        assert!(paused < 60_000, "one pause counts for little: {paused}");
    }

    #[test]
    fn plans_that_lay_at_the_leader_only_bound_it() {
        let mut trip = RoundTrip::default();
        assert_eq!(step(&mut trip, 0, 40_000), 0, "it may all be waiting");
        for _ in 0..40 {
            step(&mut trip, 500, 40_000);
        }
        assert!(step(&mut trip, 0, 60_000) > 39_000);
        assert_eq!(step(&mut trip, 0, 7_000), 7_000);
    }

    #[test]
    fn a_report_without_a_plan_changes_nothing() {
        assert_eq!(RoundTrip::default().reported(Instant::now(), &STEP), Duration::ZERO);
    }
}
