//! How a batcher begins with the sequences that another left at the leader.

use foggara_proto::sequence::SequenceRequest;
use foggara_proto::step::{BlockId, HeldSequence, SequenceId};

use super::Batcher;
use super::queue::Arrival;
use super::sequence::{Phase, Sequence};

/// Why a sequence cannot be taken over. It can be dropped and begun again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdoptionError {
    /// Blocks of several pools, or that do not exist.
    #[error("block {0} is not of its pool")]
    Block(BlockId),
    /// More in the cache than there are blocks for.
    #[error("{cached} positions in {blocks} blocks")]
    Room {
        /// Positions in the cache.
        cached: usize,
        /// Blocks it has.
        blocks: usize,
    },
}

impl Batcher {
    /// Takes over a sequence that the leader holds and that has not ended, before the first plan. `request` is what it was asked
    /// for, with all tokens known so far.
    pub fn adopt(&mut self, held: HeldSequence, request: SequenceRequest) -> Result<(), AdoptionError> {
        let pool = self.pool_of(&held)?;
        let (id, block_size) = (held.sequence, self.block_size());
        let arrival = Arrival::of(&request, self.now_ms);
        let mut sequence = Sequence::new(request, None, block_size);
        self.pools[pool].adopt(&held.blocks);
        sequence.ticket = self.queue.push(id, &arrival);
        // Its tenant has paid for its prompt already.
        self.queue.enter(id, &mut sequence.ticket, 0);
        sequence.phase = Phase::Running;
        sequence.entered = true;
        sequence.pool = pool;
        sequence.planned = held.cached;
        sequence.blocks = held.blocks;
        if held.decodes {
            sequence.joined_with = held.cached;
            sequence.prefilled_by = Some(0);
            // They have been told.
            sequence.params.prompt_logprobs = false;
            self.queue.streams(&mut sequence.ticket);
        }
        self.running.push(id);
        self.sequences.insert(id, sequence);
        self.name_blocks(id, held.cached);
        Ok(())
    }

    /// Has the first plan drop a sequence that the leader holds and that nobody wants.
    pub fn discard(&mut self, id: SequenceId) {
        self.dropping.push(id);
    }

    /// The pool that all of its blocks are of.
    fn pool_of(&self, held: &HeldSequence) -> Result<usize, AdoptionError> {
        let of = |block: BlockId| (block / self.limits.kv_blocks) as usize;
        let pool = held.blocks.first().map_or(0, |block| of(*block));
        let stray = held.blocks.iter().find(|block| of(**block) != pool || pool >= self.pools.len());
        if let Some(block) = stray {
            return Err(AdoptionError::Block(*block));
        }
        let (cached, blocks) = (held.cached, held.blocks.len());
        // One that is being read was granted all its blocks when it joined.
        let needed = if held.decodes { cached } else { held.tokens.len() };
        if blocks < self.blocks_for(needed.max(cached)) {
            return Err(AdoptionError::Room { cached, blocks });
        }
        Ok(pool)
    }
}
