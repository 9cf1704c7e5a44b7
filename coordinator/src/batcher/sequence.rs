//! What the batcher knows of one sequence.

use foggara_proto::sequence::{SequenceParams, SequenceRequest};
use foggara_proto::step::{BlockId, SequenceId};

use super::kv::hash::{BlockHash, HashChain};
use super::queue::Ticket;

/// Where a sequence is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Queued; holds nothing.
    Waiting,
    /// At the leader.
    Running,
    /// Ended or cancelled; the next plan drops it.
    Ended,
    /// Dropped for lack of blocks. It waits again once the report of plan `until` has come: then every token it sampled is
    /// known.
    Preempted {
        /// Number of the plan that names the drop.
        until: u64,
    },
}

/// One sequence.
#[derive(Debug)]
pub(super) struct Sequence {
    /// The prompt, then what is known to have been generated.
    pub(super) tokens: Vec<u32>,
    pub(super) prompt_len: usize,
    pub(super) params: SequenceParams,
    pub(super) phase: Phase,
    /// The first of several choices, while this one has not entered.
    pub(super) first: Option<SequenceId>,
    /// Its place among those that wait, and its tenant.
    pub(super) ticket: Ticket,
    /// Where its blocks come from, since it last joined.
    pub(super) pool: usize,
    /// Blocks granted, in order of use.
    pub(super) blocks: Vec<BlockId>,
    /// Positions in the cache after every plan made so far.
    pub(super) planned: usize,
    /// Tokens it had when it last joined: all of them are prefill.
    pub(super) joined_with: usize,
    /// Of them, those that it found in the cache.
    pub(super) joined_at: usize,
    /// Number of the plan with which all of `joined_with` are in the cache.
    pub(super) prefilled_by: Option<u64>,
    /// What its full blocks are called.
    pub(super) chain: HashChain,
    /// Of its blocks, the first ones that are called so.
    pub(super) named: usize,
    /// Prompt tokens found in the cache when it first entered, until that is told.
    pub(super) found: Option<u32>,
    /// Whether it has entered before.
    pub(super) entered: bool,
    /// What a later driver needs to know of it.
    pub(super) envelope: Vec<u8>,
}

impl Sequence {
    pub(super) fn new(request: SequenceRequest, first: Option<SequenceId>, block_size: usize) -> Self {
        let envelope = request.to_envelope();
        let mut chain = HashChain::new(BlockHash::root_of(&request));
        let SequenceRequest { tokens, prompt_len, params, .. } = request;
        chain.extend(&tokens, block_size);
        Self {
            joined_with: tokens.len(),
            joined_at: 0,
            tokens,
            prompt_len,
            params,
            phase: Phase::Waiting,
            first,
            ticket: Ticket::default(),
            pool: 0,
            blocks: Vec::new(),
            planned: 0,
            prefilled_by: None,
            chain,
            named: 0,
            found: None,
            entered: false,
            envelope,
        }
    }

    /// Cache positions it can come to need: the last sampled token is never fed back.
    pub(super) fn most_positions(&self) -> usize {
        let answer = (self.params.max_tokens as usize).saturating_sub(1);
        self.tokens.len().max(self.prompt_len + answer)
    }

    /// Known tokens that no plan has put through the model yet.
    pub(super) fn prefill_left(&self) -> usize {
        self.joined_with.saturating_sub(self.planned)
    }

    /// Whether the leader goes on sampling it in the next step, as far as can be known now.
    pub(super) fn decodes(&self) -> bool {
        self.phase == Phase::Running && self.prefill_left() == 0 && self.planned < self.most_positions()
    }

    /// Most tokens that it may take over from the cache: one is left to compute, so that there are logits, or all of them if
    /// the logits of all are wanted.
    pub(super) fn most_cached(&self) -> usize {
        if self.params.prompt_logprobs { 0 } else { self.tokens.len().saturating_sub(1) }
    }
}
