//! What is probably in a group's cache: the blocks of the sequences that were sent there.

use std::collections::BTreeMap;

use crate::batcher::BlockHash;

/// The names of as many blocks as the group has, least recently used forgotten first. Approximate: the group may have evicted
/// what is here, and have what other front doors sent.
#[derive(Debug)]
pub struct PrefixIndex {
    limit: usize,
    used: BTreeMap<BlockHash, u64>,
    by_use: BTreeMap<u64, BlockHash>,
    clock: u64,
}

impl PrefixIndex {
    /// An empty index of `limit` blocks.
    pub fn new(limit: usize) -> Self {
        Self { limit, used: BTreeMap::new(), by_use: BTreeMap::new(), clock: 0 }
    }

    /// How many of `hashes`, from the first on, are known.
    pub fn matched(&self, hashes: &[BlockHash]) -> usize {
        hashes.iter().take_while(|hash| self.used.contains_key(hash)).count()
    }

    /// Blocks of a sequence that was sent there.
    pub fn insert(&mut self, hashes: &[BlockHash]) {
        // The last first: a beginning is forgotten after what continues it.
        for hash in hashes.iter().take(self.limit).rev() {
            self.clock += 1;
            if let Some(before) = self.used.insert(*hash, self.clock) {
                self.by_use.remove(&before);
            }
            self.by_use.insert(self.clock, *hash);
        }
        while self.used.len() > self.limit {
            let Some((_, oldest)) = self.by_use.pop_first() else { return };
            self.used.remove(&oldest);
        }
    }

    /// How many blocks are known.
    pub fn len(&self) -> usize {
        self.used.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.used.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batcher::HashChain;

    fn hashes(tokens: &[u32]) -> Vec<BlockHash> {
        let mut chain = HashChain::new(BlockHash::root("", None, None));
        chain.extend(tokens, 1);
        chain.hashes().to_vec()
    }

    #[test]
    fn the_beginning_of_what_was_sent_is_found() {
        let mut index = PrefixIndex::new(10);
        assert!(index.is_empty());
        index.insert(&hashes(&[1, 2, 3]));
        for (tokens, found) in [(&[1, 2, 3, 4][..], 3), (&[1, 2], 2), (&[1, 9, 3], 1), (&[2, 3], 0), (&[], 0)]
        {
            assert_eq!(index.matched(&hashes(tokens)), found, "{tokens:?}");
        }
    }

    #[test]
    fn it_is_bounded_and_forgets_ends_before_beginnings_and_old_before_new() {
        let mut index = PrefixIndex::new(5);
        index.insert(&hashes(&[1, 2, 3]));
        index.insert(&hashes(&[4, 5]));
        index.insert(&hashes(&[1, 2]));
        index.insert(&hashes(&[6]));
        assert_eq!(index.len(), 5);
        assert_eq!(index.matched(&hashes(&[1, 2, 3])), 2, "the end goes first");
        index.insert(&hashes(&[7]));
        assert_eq!((index.matched(&hashes(&[4, 5])), index.matched(&hashes(&[1, 2]))), (1, 2));
        index.insert(&hashes(&[8; 20]));
        assert_eq!((index.len(), index.matched(&hashes(&[8; 20]))), (5, 5));
        let mut none = PrefixIndex::new(0);
        none.insert(&hashes(&[1]));
        assert!(none.is_empty());
    }
}
