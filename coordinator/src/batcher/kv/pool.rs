//! One pool of blocks: who is free, who is held, who is cached.

use std::collections::BTreeMap;

use foggara_proto::step::BlockId;

use super::cost::kept_until;
use super::evict::{Cached, Eviction};
use super::hash::BlockHash;

/// What is known of a block's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::batcher) struct Name {
    pub(in crate::batcher) hash: BlockHash,
    /// What it continues.
    pub(in crate::batcher) parent: BlockHash,
    /// Its first position.
    pub(in crate::batcher) position: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct Block {
    /// Sequences that hold it.
    holders: u32,
    /// Sequences that have held it under its name.
    uses: u64,
    name: Option<Name>,
}

/// Blocks that a new sequence finds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::batcher) struct Prefix {
    /// In order, from the beginning.
    pub(in crate::batcher) blocks: Vec<BlockId>,
    /// How many of them nobody holds: whoever takes them takes memory.
    pub(in crate::batcher) revived: usize,
}

/// A pool. Every block is in one of three states:
/// - **free**: nobody holds it and nothing is known of it;
/// - **live**: sequences hold it. Only one that holds it alone writes to it;
/// - **cached**: nobody holds it, but it is called by its content and can be found, until its memory is wanted.
///
/// A live block is called by its content as soon as that is known for certain; of blocks with the same content the first is.
#[derive(Debug)]
pub(in crate::batcher) struct Pool {
    /// The number of its first block.
    first: BlockId,
    blocks: Vec<Block>,
    /// Last freed, first granted: the memory that was touched stays the memory that is used.
    free: Vec<BlockId>,
    live: usize,
    eviction: Eviction,
    by_hash: BTreeMap<BlockHash, BlockId>,
}

impl Pool {
    /// Of the `count` blocks from `first` on, all free.
    pub(super) fn new(first: BlockId, count: u32) -> Self {
        Self {
            first,
            blocks: vec![Block::default(); count as usize],
            free: (first..first + count).rev().collect(),
            live: 0,
            eviction: Eviction::default(),
            by_hash: BTreeMap::new(),
        }
    }

    /// Blocks that nobody holds and nothing is known of.
    pub(in crate::batcher) fn free(&self) -> usize {
        self.free.len()
    }

    /// Blocks that sequences hold.
    pub(in crate::batcher) fn live(&self) -> usize {
        self.live
    }

    /// Blocks that nobody holds but that can be found.
    pub(in crate::batcher) fn cached(&self) -> usize {
        self.eviction.len()
    }

    /// Blocks that can be taken.
    pub(in crate::batcher) fn available(&self) -> usize {
        self.free() + self.cached()
    }

    /// How many sequences hold a block.
    pub(in crate::batcher) fn holders(&self, block: BlockId) -> u32 {
        self.blocks[self.index(block)].holders
    }

    /// The longest run of blocks that are called by `hashes`, from the first on.
    pub(in crate::batcher) fn find(&self, hashes: &[BlockHash]) -> Prefix {
        let blocks: Vec<BlockId> = hashes.iter().map_while(|hash| self.by_hash.get(hash)).copied().collect();
        let revived = blocks.iter().filter(|block| self.holders(**block) == 0).count();
        Prefix { blocks, revived }
    }

    /// One more sequence holds each of `blocks`, which are live or cached.
    pub(in crate::batcher) fn share(&mut self, blocks: &[BlockId]) {
        for block in blocks {
            let index = self.index(*block);
            let state = &mut self.blocks[index];
            if state.holders == 0 {
                let name = state.name.expect("a block that nobody holds is found by its name");
                self.eviction.remove(name.hash);
                self.live += 1;
            }
            state.holders += 1;
            state.uses += 1;
        }
    }

    /// Takes `count` blocks to write to, or none if there are not as many: free ones, then the cached ones worth least.
    pub(in crate::batcher) fn take(&mut self, count: usize) -> Option<Vec<BlockId>> {
        if self.available() < count {
            return None;
        }
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            let block = self.free.pop().or_else(|| self.evict()).expect("counted above");
            let index = self.index(block);
            self.blocks[index] = Block { holders: 1, uses: 1, name: None };
            taken.push(block);
        }
        self.live += count;
        Some(taken)
    }

    /// One more sequence holds each of `blocks`, of which nothing is known: what a batcher finds when it begins.
    pub(in crate::batcher) fn adopt(&mut self, blocks: &[BlockId]) {
        for block in blocks {
            let index = self.index(*block);
            if self.blocks[index].holders == 0 {
                self.free.retain(|free| free != block);
                self.live += 1;
            }
            self.blocks[index].holders += 1;
            self.blocks[index].uses += 1;
        }
    }

    /// Makes the cached block that goes first nobody's.
    fn evict(&mut self) -> Option<BlockId> {
        let (hash, block) = self.eviction.pop()?;
        self.by_hash.remove(&hash);
        Some(block)
    }

    /// A sequence that held `blocks` lets them go with the plan numbered `plan`: what nobody else holds is cached if it has a
    /// name, else free.
    pub(in crate::batcher) fn release(&mut self, blocks: &[BlockId], plan: u64) {
        for &block in blocks.iter().rev() {
            let index = self.index(block);
            let state = &mut self.blocks[index];
            state.holders -= 1;
            if state.holders > 0 {
                continue;
            }
            self.live -= 1;
            match state.name {
                Some(Name { hash, parent, position }) => {
                    let kept_until = kept_until(plan, state.uses, position);
                    self.eviction.insert(hash, Cached { block, parent, kept_until });
                }
                None => self.free.push(block),
            }
        }
    }

    /// The content of a live block has been computed, and nobody writes to it any more.
    pub(in crate::batcher) fn name(&mut self, block: BlockId, name: Name) {
        let index = self.index(block);
        debug_assert!(self.blocks[index].holders > 0, "block {block} is nobody's");
        if self.blocks[index].name.is_none() && !self.by_hash.contains_key(&name.hash) {
            self.by_hash.insert(name.hash, block);
            self.blocks[index].name = Some(name);
        }
    }

    /// Checks that every block is in one state and can be found if it should, and that `held` are the blocks that sequences
    /// hold, each as often as it is held.
    ///
    /// # Errors
    /// What does not add up.
    pub(in crate::batcher) fn audit(&self, held: &BTreeMap<BlockId, u32>) -> Result<(), String> {
        let total = self.blocks.len();
        let (free, live, cached) = (self.free(), self.live(), self.cached());
        if free + live + cached != total {
            return Err(format!("{free} free, {live} live and {cached} cached blocks of {total}"));
        }
        let mut idle: Vec<BlockId> =
            self.free.iter().copied().chain(self.eviction.blocks().map(|b| b.1)).collect();
        idle.sort_unstable();
        idle.dedup();
        if idle.len() != free + cached {
            return Err(format!("{free} free and {cached} cached blocks are only {}", idle.len()));
        }
        for (index, block) in self.blocks.iter().enumerate() {
            let id = self.first + index as BlockId;
            let holders = held.get(&id).copied().unwrap_or(0);
            if block.holders != holders {
                return Err(format!("block {id} has {} holders instead of {holders}", block.holders));
            }
            if (holders == 0) != idle.binary_search(&id).is_ok() {
                return Err(format!("block {id} with {holders} holders is in two states, or in none"));
            }
        }
        let named = self
            .by_hash
            .iter()
            .all(|(hash, block)| self.blocks[self.index(*block)].name.is_some_and(|name| name.hash == *hash));
        let found = self.eviction.blocks().all(|(hash, block)| self.by_hash.get(&hash) == Some(&block));
        if !named || !found {
            return Err("the index of cached blocks does not fit the blocks".into());
        }
        Ok(())
    }

    fn index(&self, block: BlockId) -> usize {
        (block - self.first) as usize
    }
}
