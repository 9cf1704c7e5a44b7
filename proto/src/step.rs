//! The step protocol between a driver (on a coordinator) and a group's leader (rank 0): numbered plans one way, numbered
//! reports the other.

use crate::sequence::{SequenceEnd, SequenceParams, TokenOutput};

/// Names a sequence between one driver and its leader. Never reused within a driver epoch.
pub type SequenceId = u64;

/// Index of a KV block in every rank's pool.
pub type BlockId = u32;

/// One step, as a change of what the leader already knows.
///
/// Order of effect: drops, joins, grants, copies, chunks. Every sequence that has all its known tokens in the cache, has not ended
/// and is not dropped samples one more token in each step (or several, where drafts are right), without being named.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepPlan {
    /// The driver's lease; older ones are ignored.
    pub driver_epoch: u64,
    /// Counts up by one from 1 within a driver epoch.
    pub number: u64,
    /// Forgotten; their blocks may be granted again in this very plan.
    pub drops: Vec<SequenceId>,
    /// New sequences.
    pub joins: Vec<Join>,
    /// KV blocks, used in the order in which they were granted.
    pub grants: Vec<Grant>,
    /// Blocks that begin as another one is, one copy after the other.
    pub copies: Vec<BlockCopy>,
    /// Prefill work of this step.
    pub chunks: Vec<Chunk>,
    /// How many milliseconds after this plan has come the leader may go on by itself when the next one is late. It repeats
    /// the decodes, as far as the granted blocks reach.
    pub lease_ms: u32,
    /// What may be drafted in this step, and in those without a plan after it.
    pub drafts: Drafts,
}

/// Tokens that may be drafted: computed in one step with the one that is known, behind it, and kept as far as they are what is
/// sampled. The default: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drafts {
    /// Of one sequence, at most.
    pub most: u32,
    /// What a row costs, in thousandths of what a token costs in such a step.
    pub price: u32,
}

/// A sequence enters the group.
#[derive(Debug, Clone, PartialEq)]
pub struct Join {
    /// Its name from now on.
    pub sequence: SequenceId,
    /// The prompt, then what was already generated.
    pub tokens: Vec<u32>,
    /// How many of `tokens` are the prompt.
    pub prompt_len: usize,
    /// How to sample.
    pub params: SequenceParams,
    /// How many of `tokens` have their keys and values in the first granted blocks already. Fewer than all, so that
    /// there is a row to compute.
    pub cached: usize,
    /// What a later driver needs to know beside this: [`SequenceRequest::to_envelope`]. The leader only keeps it.
    ///
    /// [`SequenceRequest::to_envelope`]: crate::sequence::SequenceRequest::to_envelope
    pub envelope: Vec<u8>,
}

/// A sequence that the leader holds for a driver that has gone.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldSequence {
    /// Its name, from the driver that has gone.
    pub sequence: SequenceId,
    /// The prompt, then what was generated so far.
    pub tokens: Vec<u32>,
    /// How many of `tokens` are the prompt.
    pub prompt_len: usize,
    /// How to sample.
    pub params: SequenceParams,
    /// As it came with the join.
    pub envelope: Vec<u8>,
    /// Granted to it, in the order of use.
    pub blocks: Vec<BlockId>,
    /// How many of `tokens` have their keys and values in the cache.
    pub cached: usize,
    /// Its last tokens with their probabilities, if it asked for them: the last of `tokens`.
    pub outputs: Vec<TokenOutput>,
    /// Set when it has ended.
    pub end: Option<SequenceEnd>,
    /// Its prompt's log-probabilities were asked for and have been reported in part at most.
    pub reading_prompt: bool,
    /// It has been read whole: unless it has ended, it decodes in every step.
    pub decodes: bool,
}

/// What a leader answers a driver that attaches.
#[derive(Debug, Clone, PartialEq)]
pub struct Attached {
    /// The group's bounds.
    pub limits: GroupLimits,
    /// What an earlier driver left, as it is before the first plan of this one.
    pub sequences: Vec<HeldSequence>,
}

/// More KV blocks for a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Whose.
    pub sequence: SequenceId,
    /// In the order of use.
    pub blocks: Vec<BlockId>,
}

/// The content of one block over that of another of the same pool, at every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    /// Stays as it is.
    pub from: BlockId,
    /// Nobody else's.
    pub to: BlockId,
}

/// How many more of a sequence's known tokens go through the model in this step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Whose.
    pub sequence: SequenceId,
    /// At least 1.
    pub tokens: u32,
}

/// What a step produced.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepReport {
    /// Of the plan.
    pub driver_epoch: u64,
    /// Of the plan.
    pub number: u64,
    /// One entry for each sequence that has news.
    pub outputs: Vec<SequenceOutput>,
    /// Where the leader's time went.
    pub timing: StepTiming,
    /// Tokens routed to experts since the last report that had any; experts without are left out.
    pub experts: Vec<ExpertCount>,
    /// What each rank has done since the last report that said so; empty in most.
    pub ranks: Vec<RankUse>,
    /// The leader went on by itself: `number` is that of the last plan before this step.
    pub unplanned: bool,
    /// Sequences that the plan had decode but that lacked a block, having gone further in steps without a plan.
    pub skipped: Vec<SequenceId>,
    /// Tokens that were drafted.
    pub drafted: u32,
    /// Of them, those that were right.
    pub accepted: u32,
}

/// What one rank has done in some steps. Times are in microseconds; no two of them overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RankUse {
    /// Which.
    pub rank: u32,
    /// Steps with rows.
    pub steps: u64,
    /// Waiting for the next step: the leader for a plan, the others for the leader.
    pub wait_us: u64,
    /// Computing.
    pub compute_us: u64,
    /// Inside collectives, waiting for other ranks included.
    pub collective_us: u64,
    /// Sampling; the leader alone does.
    pub sample_us: u64,
    /// Rows sent to other ranks for experts there, and results sent back.
    pub dispatched_rows: u64,
    /// Their bytes.
    pub dispatched_bytes: u64,
}

impl RankUse {
    /// Adds what the same rank did in other steps.
    pub fn add(&mut self, more: &Self) {
        for (sum, more) in [
            (&mut self.steps, more.steps),
            (&mut self.wait_us, more.wait_us),
            (&mut self.compute_us, more.compute_us),
            (&mut self.collective_us, more.collective_us),
            (&mut self.sample_us, more.sample_us),
            (&mut self.dispatched_rows, more.dispatched_rows),
            (&mut self.dispatched_bytes, more.dispatched_bytes),
        ] {
            *sum = sum.saturating_add(more);
        }
    }
}

/// Tokens that one layer's router sent to one expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertCount {
    /// The layer.
    pub layer: u32,
    /// Which of its experts.
    pub expert: u32,
    /// How many.
    pub tokens: u64,
}

/// News of one sequence in one step.
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceOutput {
    /// Whose.
    pub sequence: SequenceId,
    /// Log-probabilities of prompt tokens, when asked for.
    pub prompt: Vec<TokenOutput>,
    /// The sampled tokens: one at most, unless there were drafts.
    pub tokens: Vec<TokenOutput>,
    /// Set when the sequence ended with this step.
    pub end: Option<SequenceEnd>,
}

/// Where the leader's time in a step went, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepTiming {
    /// Tokens that went through the model.
    pub rows: u32,
    /// How late the plan came: from when the leader wanted it, whether it waited or went on by itself.
    pub wait_us: u32,
    /// The forward pass, collectives included.
    pub compute_us: u32,
    /// Of it, inside collectives.
    pub collective_us: u32,
    /// Sampling.
    pub sample_us: u32,
}

/// What a driver learns about a group when it attaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupLimits {
    /// KV blocks in each pool.
    pub kv_blocks: u32,
    /// Pools, one for each data-parallel index. Block ids of pool `d` are `d · kv_blocks` and up.
    pub pools: u32,
    /// Tokens in a block.
    pub block_size: u32,
    /// Most rows of one step.
    pub max_step_rows: u32,
}
