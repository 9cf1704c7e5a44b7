//! What the machine allows: rates that are measured before anything else, and again after it.
//!
//! Machines change their speed while they are used, by half and more for seconds at a time. What is measured between two looks at
//! the limits is set beside the better of them.

mod handover;

use foggara_kernels::cpu::measure;
use serde::{Deserialize, Serialize};

/// Rates of the machine, each the best of several short measurements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MachineLimits {
    /// Before: one entry for one thread, one for two, and one for the threads of the cluster if those are more.
    pub(crate) rates: Vec<Rates>,
    /// The same after everything else.
    #[serde(default)]
    pub(crate) after: Vec<Rates>,
}

/// What some threads together can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rates {
    pub(crate) threads: usize,
    pub(crate) read_bytes_per_second: u64,
    /// Of f32. A fused multiply-add counts as two.
    pub(crate) flops: u64,
    /// Of bytes, by the fastest instructions there are for them. A multiply-add counts as two; 0 in records of old.
    #[serde(default)]
    pub(crate) int8_ops: u64,
    /// How long it takes one thread to see what another has written; only of more than one thread.
    #[serde(default)]
    pub(crate) handover_nanos: Option<u64>,
}

impl MachineLimits {
    /// Measures for one thread, for two, and for `threads`: no more threads than there are cores.
    pub(crate) fn measure(threads: usize, quick: bool) -> Self {
        Self { rates: measure_rates(threads, quick), after: Vec::new() }
    }

    /// Measures all of it again.
    pub(crate) fn measure_after(&mut self, threads: usize, quick: bool) {
        self.after = measure_rates(threads, quick);
    }

    /// The higher rates of `threads` threads, or of all cores where those are fewer.
    pub(crate) fn of(&self, threads: usize) -> Option<Rates> {
        let pick =
            |rates: &[Rates]| rates.iter().find(|rates| rates.threads >= threads).or(rates.last()).cloned();
        match (pick(&self.rates), pick(&self.after)) {
            (Some(before), Some(after)) => Some(before.higher(&after)),
            (before, after) => before.or(after),
        }
    }
}

impl Rates {
    fn higher(&self, other: &Self) -> Self {
        Self {
            threads: self.threads,
            read_bytes_per_second: self.read_bytes_per_second.max(other.read_bytes_per_second),
            flops: self.flops.max(other.flops),
            int8_ops: self.int8_ops.max(other.int8_ops),
            handover_nanos: [self.handover_nanos, other.handover_nanos].into_iter().flatten().min(),
        }
    }
}

fn measure_rates(threads: usize, quick: bool) -> Vec<Rates> {
    let (times, millis) = if quick { (2, 60) } else { (4, 120) };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut counts: Vec<usize> = [1, 2, threads].map(|count| count.clamp(1, cores)).to_vec();
    counts.sort_unstable();
    counts.dedup();
    let best = |rate: &dyn Fn() -> u64| (0..times).map(|_| rate()).max().unwrap_or(0).max(1);
    let rates = counts.into_iter().map(|threads| Rates {
        threads,
        read_bytes_per_second: best(&|| measure::read_bandwidth(threads, millis)),
        flops: best(&|| measure::widest_fma_rate(threads, millis)),
        int8_ops: best(&|| measure::int8_rate(threads, millis / 2)),
        handover_nanos: (threads > 1).then(handover::nanos),
    });
    rates.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(threads: usize, read: u64, handover_nanos: Option<u64>) -> Rates {
        Rates { threads, read_bytes_per_second: read, flops: 1, int8_ops: 10 * read, handover_nanos }
    }

    #[test]
    fn rates_are_of_the_threads_asked_for() {
        let all = [1, 2, 8].map(|threads| rates(threads, 1, None)).to_vec();
        let limits = MachineLimits { rates: all, after: vec![] };
        let found = |threads| limits.of(threads).map(|rates| rates.threads);
        assert_eq!((found(1), found(2), found(8), found(16)), (Some(1), Some(2), Some(8), Some(8)));
    }

    #[test]
    fn the_better_of_both_looks_counts_rate_by_rate() {
        let (mut before, mut after) = (rates(2, 5, Some(90)), rates(2, 7, Some(120)));
        (before.flops, after.flops) = (9, 4);
        let limits = MachineLimits { rates: vec![before], after: vec![after] };
        let best = Rates { flops: 9, ..rates(2, 7, Some(90)) };
        assert_eq!(limits.of(2), Some(best));
    }

    #[test]
    fn records_of_old_can_be_read() {
        let text = r#"{"rates":[{"threads":2,"read_bytes_per_second":3,"flops":4}]}"#;
        let limits: MachineLimits = serde_json::from_str(text).expect("it was written like this");
        assert_eq!((limits.rates[0].int8_ops, limits.after.len()), (0, 0));
    }
}
