//! Continuous batching: events in (submitted, cancelled, reported), [`StepPlan`]s out.
//!
//! Pure: no clock, no I/O, no randomness. The driver owns one [`Batcher`] for each group it drives, sends its plans to the
//! group's leader and feeds it the reports. Plans are made ahead of the reports (`ahead`), so the leader never
//! waits: the batcher knows where every sequence will stand after the steps in flight, all but which of them will have
//! ended, and the leader skips those.
//!
//! A step plan is made in phases, each in its own file: `drops`, `decodes`, `prefills` (and for those who come in,
//! `admission`), `drafts` (what the leader may guess), `lease` (blocks for steps without a plan); `reports` is the way back. `adoption` is how a batcher begins with
//! the sequences of another. What the phases decide by is apart from them: `queue` (who enters next), `cost`
//! (how long a step takes), `budget` (how much prefill goes into it), `ahead` (how many plans are on their way). `kv` accounts
//! for the blocks.

mod admission;
mod adoption;
mod ahead;
mod budget;
mod cost;
mod decodes;
mod drafts;
mod drops;
mod kv;
mod lease;
#[cfg(test)]
mod lease_tests;
mod policy;
mod prefills;
mod queue;
mod reports;
mod sequence;
#[cfg(test)]
pub(crate) mod shadow;
#[cfg(test)]
mod sharing_tests;
#[cfg(test)]
mod simulation;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, VecDeque};

use foggara_proto::sequence::SequenceRequest;
use foggara_proto::step::{BlockId, SequenceId, StepPlan};

use ahead::Ahead;
use cost::{CostModel, Work};
use kv::Pool;
use queue::{Arrival, Queue};
use sequence::{Phase, Sequence};

pub use admission::HeldUp;
pub use adoption::AdoptionError;
pub use ahead::{LEAST_PLANS_AHEAD, MOST_PLANS_AHEAD};
pub use kv::hash::{BlockHash, HashChain};
pub use reports::ReportError;

/// What bounds a group's batches. Every field but the last two is at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// KV blocks in each pool.
    pub kv_blocks: u32,
    /// Pools: all blocks of a sequence come from one of them.
    pub pools: u32,
    /// Tokens in a block.
    pub block_size: u32,
    /// Rows (tokens) of one step.
    pub step_rows: u32,
    /// Sequences in the group at once.
    pub sequences: u32,
    /// Sequences waiting to get in.
    pub queue: usize,
    /// How long the leader may go on without plans, in milliseconds; 0: not at all.
    pub lease_ms: u32,
    /// Tokens that may be drafted of a sequence in a step; 0: none.
    pub drafts: u32,
}

/// Why a sequence was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The bounded queue is full.
    #[error("{limit} sequences wait already")]
    QueueFull {
        /// The bound.
        limit: usize,
    },
    /// It could never fit, even alone.
    #[error("needs {needed} tokens of KV cache; the group has {available}")]
    TooLong {
        /// Prompt and answer together.
        needed: usize,
        /// A whole pool.
        available: usize,
    },
}

/// How full a group is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Occupancy {
    /// Sequences in the group.
    pub running: usize,
    /// Sequences waiting.
    pub waiting: usize,
    /// Blocks nobody holds and nothing is known of.
    pub free_blocks: u32,
    /// Blocks held by sequences.
    pub live_blocks: u32,
    /// Blocks nobody holds, kept for whoever begins alike.
    pub cached_blocks: u32,
    /// Sequences preempted since the start.
    pub preemptions: u64,
    /// Tokens looked for in the cache since the start.
    pub prefix: CacheTokens,
}

/// Tokens of sequences that entered, as the prefix cache saw them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheTokens {
    /// Known tokens of sequences that could have found some of them in the cache.
    pub asked: u64,
    /// Of them, those that were there.
    pub found: u64,
}

/// A plan on its way.
#[derive(Debug)]
struct Step {
    number: u64,
    /// Where each running sequence stands after it, in positions in the cache.
    positions: Vec<(SequenceId, usize)>,
}

/// The batcher of one group.
#[derive(Debug)]
pub struct Batcher {
    driver_epoch: u64,
    limits: Limits,
    pools: Vec<Pool>,
    sequences: BTreeMap<SequenceId, Sequence>,
    queue: Queue,
    /// The driver's time.
    now_ms: u64,
    cost: CostModel,
    ahead: Ahead,
    /// What the plan being made will have the group do.
    work: Work,
    /// Steps up to now, in a row, of decodes and prefill together.
    both: u32,
    /// In order of entry: the last is the first to be preempted.
    running: Vec<SequenceId>,
    /// Preempted, with tokens still on their way.
    preempted: Vec<SequenceId>,
    /// To be named in the next plan's drops.
    dropping: Vec<SequenceId>,
    /// The plans on their way, oldest first.
    in_flight: VecDeque<Step>,
    last_number: u64,
    /// The last plan whose report has come.
    last_reported: u64,
    preemptions: u64,
    cache_tokens: CacheTokens,
    held_up: Option<HeldUp>,
}

impl Batcher {
    /// A batcher with empty pools for the holder of `driver_epoch`.
    pub fn new(driver_epoch: u64, limits: Limits) -> Self {
        Self {
            driver_epoch,
            limits,
            pools: kv::pools(limits.pools, limits.kv_blocks),
            sequences: BTreeMap::new(),
            queue: Queue::new(limits.queue),
            now_ms: 0,
            cost: CostModel::default(),
            ahead: Ahead::default(),
            work: Work::default(),
            both: 0,
            running: Vec::new(),
            preempted: Vec::new(),
            dropping: Vec::new(),
            in_flight: VecDeque::new(),
            last_number: 0,
            last_reported: 0,
            preemptions: 0,
            cache_tokens: CacheTokens::default(),
            held_up: None,
        }
    }

    /// Queues a sequence; ids must be new. `first` is the sequence that `sibling_of` names, if it is known here.
    pub fn submit(
        &mut self,
        id: SequenceId,
        request: SequenceRequest,
        first: Option<SequenceId>,
    ) -> Result<(), Refusal> {
        let arrival = Arrival::of(&request, self.now_ms);
        let mut sequence = Sequence::new(request, first, self.block_size());
        let available = self.limits.kv_blocks as usize * self.limits.block_size as usize;
        let needed = sequence.most_positions();
        if needed > available {
            return Err(Refusal::TooLong { needed, available });
        }
        sequence.ticket = self.line_up(id, arrival)?;
        let earlier = self.sequences.insert(id, sequence);
        debug_assert!(earlier.is_none(), "sequence id {id} used twice");
        Ok(())
    }

    /// Forgets a sequence; its blocks come back with the next plan. Unknown ids are ignored.
    pub fn cancel(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        match sequence.phase {
            Phase::Waiting => {
                self.queue.remove(id, &sequence.ticket);
                self.sequences.remove(&id);
            }
            // Already named in a drop: nothing of it is left at the leader.
            Phase::Preempted { .. } => {
                self.sequences.remove(&id);
            }
            Phase::Running | Phase::Ended => sequence.phase = Phase::Ended,
        }
    }

    /// The next step, or `None` while there is nothing to do or enough plans are in flight.
    pub fn plan(&mut self) -> Option<StepPlan> {
        if !self.ahead.has_room() {
            return None;
        }
        self.work = Work::default();
        let mut plan = StepPlan { driver_epoch: self.driver_epoch, ..StepPlan::default() };
        self.collect_ended();
        let decoding = self.plan_decodes(&mut plan);
        let prefilling = self.plan_prefills(&mut plan);
        plan.drafts = self.drafts(prefilling);
        self.grant_ahead(&mut plan);
        plan.drops = self.take_drops();
        if decoding + prefilling == 0 && plan.drops.is_empty() {
            return None;
        }
        self.last_number += 1;
        plan.number = self.last_number;
        let position = |id: &SequenceId| Some((*id, self.sequences.get(id)?.planned));
        let positions = self.running.iter().filter_map(position).collect();
        self.in_flight.push_back(Step { number: plan.number, positions });
        self.ahead.planned(self.work, self.cost.predict(self.work));
        Some(plan)
    }

    /// What kept whoever was next from entering with the last plan; `None`: nobody waited.
    pub fn held_up(&self) -> Option<HeldUp> {
        self.held_up
    }

    /// When the sequence that has waited longest began to, in the driver's time; `None`: nobody waits.
    pub fn waits_since(&self) -> Option<u64> {
        self.queue.oldest()
    }

    /// How full the group is.
    pub fn occupancy(&self) -> Occupancy {
        Occupancy {
            running: self.running.len(),
            waiting: self.sequences.len() - self.running.len(),
            free_blocks: self.blocks(Pool::free),
            live_blocks: self.blocks(Pool::live),
            cached_blocks: self.blocks(Pool::cached),
            preemptions: self.preemptions,
            prefix: self.cache_tokens,
        }
    }

    /// Checks that every block is free, live or cached, and is held by whom it should.
    ///
    /// # Errors
    /// What does not add up: a fault of ours.
    pub fn audit(&self) -> Result<(), String> {
        let mut held: Vec<BTreeMap<BlockId, u32>> = vec![BTreeMap::new(); self.pools.len()];
        for sequence in self.sequences.values() {
            for block in &sequence.blocks {
                *held[sequence.pool].entry(*block).or_default() += 1;
            }
        }
        self.pools.iter().zip(&held).enumerate().try_for_each(|(number, (pool, held))| {
            pool.audit(held).map_err(|reason| format!("pool {number}: {reason}"))
        })
    }

    /// Blocks of all pools that are in one state.
    fn blocks(&self, state: impl Fn(&Pool) -> usize) -> u32 {
        u32::try_from(self.pools.iter().map(state).sum::<usize>()).expect("block ids are 32 bits")
    }

    /// Whether nothing is known, held or in flight.
    pub fn is_idle(&self) -> bool {
        self.sequences.is_empty() && self.in_flight.is_empty() && self.dropping.is_empty()
    }

    /// Running sequences whose blocks are in `pool`.
    fn running_in(&self, pool: usize) -> usize {
        self.running.iter().filter(|id| self.sequences.get(id).is_some_and(|s| s.pool == pool)).count()
    }

    /// Blocks that `positions` tokens take.
    fn blocks_for(&self, positions: usize) -> usize {
        positions.div_ceil(self.block_size())
    }

    /// Tokens in a block.
    fn block_size(&self) -> usize {
        self.limits.block_size as usize
    }
}
