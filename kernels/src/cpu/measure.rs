//! Quick measurements of what this machine gives: reported when a worker joins, and the denominators of benchmarks.

mod caches;
mod int8;
mod memory;

use std::hint::black_box;
use std::io::Read;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use super::lanes::{Lanes, PanelLanes};
use super::lines::{Lines, advise_huge};
use super::prefetch::prefetch;
use super::{simd, simd_panels};
pub use caches::{Caches, caches};

/// What each thread reads over and over: larger than the cache it may have to itself.
const BUFFER_BYTES: usize = 64 << 20;
/// What all threads together read at most: with many, their caches are shared.
const BUFFERS_BYTES: usize = 512 << 20;
/// What each thread reads of the last-level cache at most.
const CACHED_BYTES: usize = 32 << 20;

/// Bytes read per second by `threads` threads together, each its own 64 MB over and over, measured for about `millis`: what
/// weights of a small model are read with, be that from memory or from a large cache. Lines are asked for ahead, as products do.
pub fn read_bandwidth(threads: usize, millis: u64) -> u64 {
    let count = threads.max(1);
    reading(count, BUFFER_BYTES.min(BUFFERS_BYTES / count), millis)
}

/// The same of memory that no cache holds.
pub fn memory_bandwidth(threads: usize, millis: u64) -> u64 {
    match memory::bandwidth(threads.max(1), millis) {
        0 => read_bandwidth(threads, millis),
        measured => measured,
    }
}

/// The same of what the last of `caches` hold, were every core to read as much; 0 if there are none.
pub fn cache_bandwidth(caches: &Caches, threads: usize, millis: u64) -> u64 {
    if caches.last == 0 {
        return 0;
    }
    let (count, cores) = (threads.max(1), caches.cores.max(threads).max(1));
    // All cores together half of what these hold, but more than the caches before them.
    let each = (caches.last / 2 / cores as u64).max(caches.before * 2);
    reading(count, usize::try_from(each).map_or(CACHED_BYTES, |each| each.min(CACHED_BYTES)), millis)
}

/// Of `count` threads, each of which reads `bytes` over and over.
fn reading(count: usize, bytes: usize, millis: u64) -> u64 {
    rate((0..count).map(|i| buffer(bytes, i)).collect(), millis, |buffer| {
        black_box(sum(buffer));
        size_of_val(&buffer[..]) as u64
    })
}

/// In huge pages, as weights are; written, so that every page is one of its own and not the shared page of zeros.
fn buffer(bytes: usize, number: usize) -> Vec<f32> {
    let mut buffer = vec![0.0f32; bytes / size_of::<f32>()];
    advise_huge(&mut buffer);
    buffer.fill(number as f32 + 1.0);
    buffer
}

/// Float operations per second of `threads` threads together (a fused multiply-add is two) in lanes of eight, which most ops are
/// written for, measured for about `millis`.
pub fn fma_rate(threads: usize, millis: u64) -> u64 {
    let inputs = vec![vec![0.5f32; 8]; threads.max(1)];
    rate(inputs, millis, |input| {
        black_box(chains(input));
        (CHAIN_ROUNDS * CHAINS * 8 * 2) as u64
    })
}

/// The same in the widest lanes that this machine has: no op can be faster.
pub fn widest_fma_rate(threads: usize, millis: u64) -> u64 {
    let inputs = vec![0.5f32; threads.max(1)];
    rate(inputs, millis, |input| {
        let mut done = [0];
        wide_chains(black_box(*input), &mut done);
        done[0]
    })
}

/// Operations per second of `threads` threads together on bytes (a product and its sum are two), by the fastest instructions that
/// this machine has for them, each measured for about `millis`.
pub fn int8_rate(threads: usize, millis: u64) -> u64 {
    let of = |form: int8::Form| rate(vec![int8::lines(); threads.max(1)], millis, |lines| form(lines));
    int8::forms().into_iter().map(of).max().unwrap_or(0)
}

/// Reads the next `bytes` of `from` into new memory of the kind that weights are kept in; what is returned holds it.
///
/// # Errors
/// If they cannot be read.
pub fn read_to_memory(from: &mut dyn Read, bytes: usize) -> std::io::Result<impl Sized + use<>> {
    let mut memory = Lines::zeroed(bytes);
    // In pieces: the system looks at no more of the memory than it fills.
    for piece in memory.bytes_mut()[..bytes].chunks_mut(PIECE_BYTES) {
        from.read_exact(piece)?;
    }
    Ok(memory)
}

/// What is read at once.
const PIECE_BYTES: usize = 1 << 20;

/// Parts of a measurement, of which the best counts: another process may take the core in the others, or be about to start on the
/// same machine and measure as well.
const PARTS: u32 = 10;

/// Runs `work` on each input in a thread of its own until the time is up; returns the sum of what it returned, per second. All begin
/// each part together: a thread that reads while the others wait is faster than any of them ever is beside the others.
fn rate<T: Send>(inputs: Vec<T>, millis: u64, work: impl Fn(&T) -> u64 + Sync) -> u64 {
    let wanted = Duration::from_millis(millis) / PARTS;
    let together = Barrier::new(inputs.len());
    std::thread::scope(|scope| {
        let threads: Vec<_> = inputs
            .into_iter()
            .map(|input| {
                let (work, together) = (&work, &together);
                scope.spawn(move || {
                    let part = |_| {
                        together.wait();
                        let (started, mut done) = (Instant::now(), 0);
                        while done == 0 || started.elapsed() < wanted {
                            done += work(&input);
                        }
                        done as f64 / started.elapsed().as_secs_f64()
                    };
                    (0..PARTS).map(part).collect::<Vec<_>>()
                })
            })
            .collect();
        best_of_all(threads.into_iter().map(|thread| thread.join().expect("the measurement does not panic")))
    })
}

/// Of what each thread did in each part, the best that all did together in one.
fn best_of_all(threads: impl Iterator<Item = Vec<f64>>) -> u64 {
    let mut parts = vec![0.0; PARTS as usize];
    for thread in threads {
        parts.iter_mut().zip(thread).for_each(|(sum, rate)| *sum += rate);
    }
    parts.into_iter().fold(0.0, f64::max) as u64
}

simd! { fn sum(x: &[f32]) -> f32 => sum_body }

#[inline(always)]
fn sum_body<L: Lanes>(x: &[f32]) -> f32 {
    let mut sums = [L::splat(0.0); 8];
    for (i, chunk) in x.chunks_exact(64).enumerate() {
        prefetch(x.get((i + AHEAD) * 64..(i + AHEAD + 1) * 64).unwrap_or_default());
        for (sum, lanes) in sums.iter_mut().zip(chunk.as_chunks::<8>().0) {
            *sum = sum.add(L::load(lanes));
        }
    }
    sums.into_iter().fold(L::splat(0.0), L::add).sum()
}

/// How far ahead lines are asked for, in 64 numbers: 4 KiB.
const AHEAD: usize = 16;

const CHAINS: usize = 10;
const CHAIN_ROUNDS: usize = 20_000;

simd! { fn chains(x: &[f32]) -> f32 => chains_body }

#[inline(always)]
fn chains_body<L: Lanes>(x: &[f32]) -> f32 {
    let factor = L::splat(x[0]);
    let mut chains = [factor; CHAINS];
    for _ in 0..CHAIN_ROUNDS {
        for chain in &mut chains {
            *chain = chain.fma(factor, factor);
        }
    }
    chains.into_iter().fold(L::splat(0.0), L::add).sum()
}

simd_panels! { fn wide_chains(x: f32, done: &mut [u64; 1]) => wide_chains_body }

/// Says in `done` how many operations it did.
#[inline(always)]
fn wide_chains_body<L: PanelLanes<P>, const P: usize>(x: f32, done: &mut [u64; 1]) {
    let factor = L::splat(x);
    let mut chains = [factor; CHAINS];
    for _ in 0..CHAIN_ROUNDS {
        for chain in &mut chains {
            *chain = chain.fma(factor, factor);
        }
    }
    let mut lanes = [0.0; 8];
    chains.into_iter().fold(L::splat(0.0), L::add).store(0, &mut lanes);
    black_box(lanes);
    done[0] = (CHAIN_ROUNDS * CHAINS * 8 * P * 2) as u64;
}

#[cfg(test)]
mod tests {
    #[test]
    fn measurements_are_of_this_world() {
        assert!(super::read_bandwidth(2, 5) > 100_000_000);
        assert!(super::memory_bandwidth(2, 5) > 100_000_000);
        let caches = super::Caches { last: 4 << 20, before: 1 << 20, cores: 2 };
        assert!(super::cache_bandwidth(&caches, 2, 5) > 100_000_000);
        assert_eq!(super::cache_bandwidth(&super::Caches::default(), 2, 5), 0, "not known");
        assert!(super::fma_rate(2, 5) > 100_000_000);
        assert!(super::widest_fma_rate(2, 5) > 100_000_000);
        assert!(super::int8_rate(2, 5) > 100_000_000);
    }
}
