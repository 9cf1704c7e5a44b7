//! Sums over two ranks through shared memory.

use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use foggara_kernels::collective::{Collective, CollectiveError, shm};

use super::FEWEST;
use crate::bound::{Bound, Work};
use crate::report::{Measure, Unit};

const RANKS: usize = 2;
/// Elements of a small sum: a token's activations.
const SMALL: usize = 576;
/// Of a large one: those of a prompt's chunk.
const LARGE: usize = 256 * 1024;
/// Sums between two looks at the clock.
const TIMES: [(usize, u32); 2] = [(SMALL, 500), (LARGE, 10)];
/// Looks.
const LOOKS: usize = 3 * FEWEST;
/// Times that a large sum's elements go through memory: each rank reads two vectors and writes two.
const PASSES: usize = 4;

/// Seconds of a sum, look by look, of each size.
type Found = Vec<Vec<f64>>;

pub(super) fn run() -> Result<Vec<Measure>> {
    let name = format!("foggara-bench-{}", std::process::id());
    let rank = |rank: usize| -> Result<Found, CollectiveError> {
        let mut group = shm::connect(&shm::ShmConfig::new(name.as_str(), rank, RANKS))?;
        TIMES.into_iter().map(|(len, times)| seconds(&mut *group, len, times)).collect()
    };
    let found = std::thread::scope(|scope| {
        let other = scope.spawn(|| rank(1));
        let found = rank(0);
        other.join().map_err(|_| anyhow!("a rank panicked"))??;
        anyhow::Ok(found?)
    })?;
    let [small, large] = &found[..] else { return Err(anyhow!("two sizes were measured")) };
    let micros: Vec<f64> = small.iter().map(|seconds| seconds * 1e6).collect();
    let bytes = (LARGE * 4) as f64;
    let rates: Vec<f64> = large.iter().map(|seconds| bytes / 1e9 / seconds).collect();
    let work = Work { bytes: (RANKS * PASSES) as f64 * bytes, ..Work::default() };
    Ok(vec![
        Measure::of("all-reduce-small", &format!("sum of {SMALL} over 2 ranks"), Unit::Micros, &micros)
            .context("no sample")?
            .bound(Some(Bound::Handover))
            .note("two threads; the limit: one sees what the other has written"),
        Measure::of("all-reduce-large", &format!("sum of {LARGE} over 2 ranks"), Unit::Gigabytes, &rates)
            .context("no sample")?
            .bound(Some(Bound::of(bytes / 1e9, work)))
            .note("of one rank's; each reads and writes it twice"),
    ])
}

fn seconds(group: &mut dyn Collective, len: usize, times: u32) -> Result<Vec<f64>, CollectiveError> {
    let mut data = vec![0.0f32; len];
    (0..LOOKS)
        .map(|_| {
            group.barrier()?;
            let started = Instant::now();
            for _ in 0..times {
                group.all_reduce(&mut data)?;
            }
            Ok(started.elapsed().as_secs_f64() / f64::from(times))
        })
        .collect()
}
