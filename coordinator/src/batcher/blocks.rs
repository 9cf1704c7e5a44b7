//! The pool of KV blocks, as the batcher accounts for it.

use foggara_proto::step::BlockId;

/// Free blocks of a group. The same block index is valid in every rank's cache.
///
/// Last freed, first granted: the memory that was touched stays the memory that is used.
#[derive(Debug)]
pub(super) struct BlockPool {
    free: Vec<BlockId>,
}

impl BlockPool {
    /// A pool of blocks `0..count`, all free.
    pub(super) fn new(count: u32) -> Self {
        Self { free: (0..count).rev().collect() }
    }

    /// How many blocks are free.
    pub(super) fn free(&self) -> u32 {
        u32::try_from(self.free.len()).expect("a pool has at most u32::MAX blocks")
    }

    /// Takes `count` blocks, or none if there are not as many.
    pub(super) fn take(&mut self, count: usize) -> Option<Vec<BlockId>> {
        let rest = self.free.len().checked_sub(count)?;
        let mut blocks = self.free.split_off(rest);
        blocks.reverse();
        Some(blocks)
    }

    /// Gives blocks back.
    pub(super) fn give_back(&mut self, blocks: Vec<BlockId>) {
        self.free.extend(blocks.into_iter().rev());
    }
}
