//! How many plans to have on their way, so that the leader never waits for the network.

use std::collections::VecDeque;

use super::cost::Work;

/// Plans that may always be in flight: the one being executed and the next.
pub const LEAST_PLANS_AHEAD: usize = 2;
/// Plans that may ever be in flight: what an arrival or a cancellation may have to wait for.
pub const MOST_PLANS_AHEAD: usize = 8;

/// The plans in flight as far as their time is concerned.
///
/// While a report travels back and the next plan out, the leader lives on the plans behind the one it reported. They last
/// for a round trip if there are D = ⌈round trip / step⌉ + 1 plans in flight; with steps of different lengths it is the sum of
/// their times that counts.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Oldest first, each with its expected microseconds.
    steps: VecDeque<(Work, f64)>,
    round_trip_us: f64,
}

impl Ahead {
    /// Sets the time from sending a plan to its report, without the step itself.
    pub(super) fn set_round_trip(&mut self, micros: u32) {
        self.round_trip_us = f64::from(micros);
    }

    /// Whether another plan should be sent.
    pub(super) fn has_room(&self) -> bool {
        let behind: f64 = self.steps.iter().skip(1).map(|(_, micros)| micros).sum();
        self.steps.len() < LEAST_PLANS_AHEAD
            || self.steps.len() < MOST_PLANS_AHEAD && behind < self.round_trip_us
    }

    /// A plan has been made.
    pub(super) fn planned(&mut self, work: Work, micros: f64) {
        self.steps.push_back((work, micros));
    }

    /// The oldest has been reported; returns what it was to do.
    pub(super) fn reported(&mut self) -> Work {
        self.steps.pop_front().map(|(work, _)| work).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depth(round_trip: u32, step: f64) -> usize {
        let mut ahead = Ahead::default();
        ahead.set_round_trip(round_trip);
        let mut depth = 0;
        while ahead.has_room() {
            ahead.planned(Work::default(), step);
            depth += 1;
        }
        depth
    }

    #[test]
    fn plans_last_for_a_round_trip_behind_the_one_being_executed() {
        for (round_trip, step, expected) in
            [(0, 1e3, 2), (900, 1e3, 2), (1_000, 1e3, 2), (1_001, 1e3, 3), (40_000, 1e4, 5), (40_000, 1e3, 8)]
        {
            assert_eq!(depth(round_trip, step), expected, "{round_trip} us over steps of {step} us");
        }
    }

    #[test]
    fn a_long_step_counts_for_its_time() {
        let mut ahead = Ahead::default();
        ahead.set_round_trip(10_000);
        ahead.planned(Work::default(), 1_000.0);
        ahead.planned(Work::default(), 9_000.0);
        assert!(ahead.has_room());
        ahead.planned(Work::default(), 1_000.0);
        assert!(!ahead.has_room());
        ahead.reported();
        assert!(ahead.has_room(), "the long one is being executed");
    }
}
