//! The kernels by themselves, in this process: products, attention, quantizing, and sums over ranks.
//!
//! What they work on is larger than the processor's caches, as a model's weights are, unless a step finds it there too.

mod attention;
mod products;
mod quantize;
mod sums;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use foggara_kernels::ThreadPool;

use crate::bound::{Bound, Work};
use crate::report::{Measure, Unit};

/// What is read over and over is at least so large.
const BEYOND_CACHES: usize = 64 << 20;
/// Samples of a figure, whatever time they take.
const FEWEST: usize = 3;

/// How kernels are measured.
pub(crate) struct Bench {
    /// The threads of the cluster's workers together, in one process.
    pool: ThreadPool,
    /// For each figure.
    budget: Duration,
}

impl Bench {
    /// With `threads` threads, or as many as there are cores.
    pub(crate) fn new(threads: usize, quick: bool) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let budget = Duration::from_millis(if quick { 40 } else { 100 });
        Self { pool: ThreadPool::new(threads.clamp(1, cores)), budget }
    }

    /// Measures all of them: a few seconds.
    pub(crate) fn run(&self) -> Result<Vec<Measure>> {
        let mut measures = products::run(self)?;
        measures.extend(attention::run(self)?);
        measures.extend(quantize::run(self)?);
        measures.extend(sums::run()?);
        Ok(measures)
    }

    /// Seconds of each call, until the time for a figure is up. The first is not counted.
    fn seconds(&self, mut call: impl FnMut()) -> Vec<f64> {
        call();
        let (all, mut samples) = (Instant::now(), Vec::new());
        while samples.len() < FEWEST || all.elapsed() < self.budget {
            let started = Instant::now();
            call();
            samples.push(started.elapsed().as_secs_f64());
        }
        samples
    }
}

/// A rate: `units` (of `unit`) each time, of which `seconds` says how long they took, bounded by the work they are.
fn rate(key: &str, what: &str, unit: Unit, units: f64, work: Work, seconds: &[f64]) -> Result<Measure> {
    let rates: Vec<f64> = seconds.iter().map(|seconds| units / seconds).collect();
    let measure = Measure::of(key, what, unit, &rates).context("no sample")?;
    Ok(measure.bound(Some(Bound::of(units, work))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_has_samples_whatever_time_they_take() {
        let bench = Bench { pool: ThreadPool::new(1), budget: Duration::ZERO };
        let mut calls = 0;
        assert_eq!(bench.seconds(|| calls += 1).len(), FEWEST);
        assert_eq!(calls, FEWEST + 1);
    }

    #[test]
    fn rates_are_units_over_seconds() {
        let work = Work { bytes: 100.0, ..Work::default() };
        let measure = rate("k", "what", Unit::GigaOps, 6.0, work, &[1.0, 2.0, 3.0]).expect("three samples");
        assert_eq!((measure.value, measure.spread), (3.0, Some((2.0, 6.0))));
        assert_eq!(measure.bound, Some(Bound::of(6.0, work)));
    }
}
