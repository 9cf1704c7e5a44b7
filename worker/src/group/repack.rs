//! Panels of weights that are used where they lie in their files: made beside the rank that computes with them, on a thread that
//! takes little of a core that others want.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use foggara_kernels::ThreadPool;

use crate::capabilities::memory_left;
use crate::weights::Mapped;

/// Its priority: where a rank wants the same core, about a tenth of it. With much less, large models would not have been repacked in
/// an hour of load.
const NICE: i32 = 10;

/// What makes them.
pub(super) struct Repacker {
    /// Whose they are.
    pub(super) group: u64,
    pub(super) rank: u32,
    pub(super) mapped: Vec<Mapped>,
    /// Bytes that the cache may still come to take.
    pub(super) reserve: u64,
    /// The rank is let go.
    pub(super) cancelled: Arc<AtomicBool>,
}

impl Repacker {
    /// Bytes that there are to make.
    pub(super) fn bytes(&self) -> usize {
        self.mapped.iter().map(Mapped::bytes).sum()
    }

    /// Makes one after the other, as long as there is memory and the rank is there.
    pub(super) fn run(self) {
        // Without it they are made all the same, in others' way.
        rustix::process::nice(NICE).ok();
        let (started, pool) = (Instant::now(), ThreadPool::new(1));
        let (group, rank, bytes) = (self.group, self.rank, self.bytes());
        for (i, mapped) in self.mapped.iter().enumerate() {
            if self.cancelled.load(Ordering::SeqCst) {
                return;
            }
            let left = memory_left();
            if !fits(mapped.bytes(), self.reserve, left) {
                Mapped::end(&self.mapped, i);
                tracing::info!(
                    group,
                    rank,
                    left_bytes = left,
                    cache_bytes = self.reserve,
                    "some weights stay as they lie in their files, which is slower: there is no memory for panels of them"
                );
                return;
            }
            match mapped.repack(&pool) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    Mapped::end(&self.mapped, i);
                    tracing::error!(group, rank, %error, "weights stay as they lie in their files");
                    return;
                }
            }
        }
        Mapped::end(&self.mapped, self.mapped.len());
        tracing::info!(group, rank, bytes, seconds = started.elapsed().as_secs_f64(), "weights repacked");
    }
}

/// Whether so many bytes can be had beside what the cache may take, of what is left; 0 left: nobody knows.
fn fits(bytes: usize, reserve: u64, left: u64) -> bool {
    left == 0 || left.saturating_sub(reserve) >= bytes as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_comes_first() {
        for (bytes, reserve, left, fitting) in
            [(10, 5, 15, true), (10, 5, 14, false), (0, 5, 3, true), (1, 5, 3, false), (9, 9, 0, true)]
        {
            assert_eq!(fits(bytes, reserve, left), fitting, "{bytes} {reserve} {left}");
        }
    }
}
