//! Which cached block goes when its memory is wanted.

use std::collections::{BTreeMap, BTreeSet};

use foggara_proto::step::BlockId;

use super::hash::BlockHash;

/// A cached block, in what decides when it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cached {
    pub(super) block: BlockId,
    /// What it continues.
    pub(super) parent: BlockHash,
    /// See [`super::cost::kept_until`].
    pub(super) kept_until: u64,
}

/// The cached blocks of a pool.
///
/// One that another cached block continues stays at least as long as that one: without it, nobody would find the other. Of
/// those that none continues the one goes that is worth least; of equals the one with the smallest number.
#[derive(Debug, Default)]
pub(super) struct Eviction {
    cached: BTreeMap<BlockHash, Cached>,
    /// Those that no other continues, in the order in which they go.
    leaves: BTreeSet<(u64, BlockId, BlockHash)>,
    /// How many cached blocks continue a hash, whether it is cached or not.
    continued: BTreeMap<BlockHash, usize>,
}

impl Eviction {
    /// How many blocks are cached.
    pub(super) fn len(&self) -> usize {
        self.cached.len()
    }

    /// Nobody holds the block called `hash` any more.
    pub(super) fn insert(&mut self, hash: BlockHash, cached: Cached) {
        let earlier = self.cached.insert(hash, cached);
        debug_assert!(earlier.is_none(), "{hash:?} cached twice");
        let siblings = self.continued.entry(cached.parent).or_default();
        *siblings += 1;
        if *siblings == 1
            && let Some(parent) = self.cached.get(&cached.parent)
        {
            self.leaves.remove(&(parent.kept_until, parent.block, cached.parent));
        }
        if !self.continued.contains_key(&hash) {
            self.leaves.insert((cached.kept_until, cached.block, hash));
        }
    }

    /// Somebody wants the block called `hash` as it is.
    pub(super) fn remove(&mut self, hash: BlockHash) {
        let Some(cached) = self.cached.remove(&hash) else { return };
        self.leaves.remove(&(cached.kept_until, cached.block, hash));
        if let Some(siblings) = self.continued.get_mut(&cached.parent) {
            *siblings -= 1;
            if *siblings == 0 {
                self.continued.remove(&cached.parent);
                if let Some(parent) = self.cached.get(&cached.parent) {
                    self.leaves.insert((parent.kept_until, parent.block, cached.parent));
                }
            }
        }
    }

    /// Takes out the block that goes first.
    pub(super) fn pop(&mut self) -> Option<(BlockHash, BlockId)> {
        // There is a leaf as long as anything is cached: a block continues those before it only.
        let (_, block, hash) = self.leaves.first().copied()?;
        self.remove(hash);
        Some((hash, block))
    }

    /// The cached blocks.
    pub(super) fn blocks(&self) -> impl Iterator<Item = (BlockHash, BlockId)> {
        self.cached.iter().map(|(hash, cached)| (*hash, cached.block))
    }
}
