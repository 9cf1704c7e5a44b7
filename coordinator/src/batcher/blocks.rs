//! The pools of KV blocks, as the batcher accounts for them.

use foggara_proto::step::BlockId;

/// Free blocks of a group: one pool for each data-parallel index, whose ids follow those of the pool before. The same block
/// index is valid in the cache of every rank of that index.
///
/// Last freed, first granted: the memory that was touched stays the memory that is used.
#[derive(Debug)]
pub(super) struct BlockPools {
    free: Vec<Vec<BlockId>>,
}

impl BlockPools {
    /// `pools` pools of `count` blocks, all free.
    pub(super) fn new(pools: u32, count: u32) -> Self {
        Self { free: (0..pools).map(|pool| (pool * count..(pool + 1) * count).rev().collect()).collect() }
    }

    /// How many blocks of `pool` are free.
    pub(super) fn free(&self, pool: usize) -> usize {
        self.free[pool].len()
    }

    /// How many blocks are free in all pools together.
    pub(super) fn all_free(&self) -> u32 {
        let free: usize = self.free.iter().map(Vec::len).sum();
        u32::try_from(free).expect("block ids are 32 bits")
    }

    /// The indices of the pools.
    pub(super) fn indices(&self) -> std::ops::Range<usize> {
        0..self.free.len()
    }

    /// Takes `count` blocks of `pool`, or none if there are not as many.
    pub(super) fn take(&mut self, pool: usize, count: usize) -> Option<Vec<BlockId>> {
        let free = &mut self.free[pool];
        let rest = free.len().checked_sub(count)?;
        let mut blocks = free.split_off(rest);
        blocks.reverse();
        Some(blocks)
    }

    /// Gives blocks back to `pool`.
    pub(super) fn give_back(&mut self, pool: usize, blocks: Vec<BlockId>) {
        self.free[pool].extend(blocks.into_iter().rev());
    }
}
