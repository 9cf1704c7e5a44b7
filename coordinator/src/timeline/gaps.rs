//! The times between one token of a sequence and the next.

use super::{Micros, Step};

/// The longest gaps that are kept.
pub const SLOWEST: usize = 8;
/// A gap over this is a stall: a reader notices.
pub const STALL_US: u64 = 250_000;

/// A token that came late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowToken {
    /// Of the answer, from 0.
    pub index: u64,
    /// When it came.
    pub at: Micros,
    /// How long after the one before, in microseconds.
    pub gap_us: u64,
    /// The sequence was preempted in between.
    pub preempted: bool,
    /// The step that sampled it.
    pub step: Step,
}

/// Gaps, and where their time went. Times are in microseconds. Gaps with a preemption in them are only among the slowest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Gaps {
    /// How many.
    pub count: u64,
    /// Together.
    pub total_us: u64,
    /// Of them, those whose step read prompts, too.
    pub beside_prefill: u64,
    /// Their time.
    pub beside_prefill_us: u64,
    /// Sums over the steps: plans that came late.
    pub wait_us: u64,
    /// Forward passes, collectives included.
    pub compute_us: u64,
    /// Of them, collectives.
    pub collective_us: u64,
    /// Sampling.
    pub sample_us: u64,
    /// Gaps over [`STALL_US`].
    pub stalls: u64,
    /// Their time.
    pub stalls_us: u64,
    slowest: Vec<SlowToken>,
}

impl Gaps {
    /// One more.
    pub fn push(&mut self, token: SlowToken) {
        self.keep(token);
        if token.preempted {
            return;
        }
        let step = &token.step;
        self.count += 1;
        self.total_us += token.gap_us;
        if step.prefill_rows > 0 {
            self.beside_prefill += 1;
            self.beside_prefill_us += token.gap_us;
        }
        if token.gap_us > STALL_US {
            self.stalls += 1;
            self.stalls_us += token.gap_us;
        }
        self.wait_us += u64::from(step.wait_us);
        self.compute_us += u64::from(step.compute_us);
        self.collective_us += u64::from(step.collective_us);
        self.sample_us += u64::from(step.sample_us);
    }

    /// More tokens of the same step: they came with the one before.
    pub fn together(&mut self, tokens: u64) {
        self.count += tokens;
    }

    /// Longest first; of equals the earlier.
    fn keep(&mut self, token: SlowToken) {
        if self.slowest.len() == SLOWEST
            && self.slowest.last().is_some_and(|last| last.gap_us >= token.gap_us)
        {
            return;
        }
        let place = self.slowest.partition_point(|other| other.gap_us >= token.gap_us);
        self.slowest.insert(place, token);
        self.slowest.truncate(SLOWEST);
    }

    /// The longest gaps, longest first.
    pub fn slowest(&self) -> &[SlowToken] {
        &self.slowest
    }
}
