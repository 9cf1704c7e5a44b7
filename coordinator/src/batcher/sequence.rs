//! What the batcher knows of one sequence.

use foggara_proto::sequence::SequenceParams;
use foggara_proto::step::BlockId;

/// Where a sequence is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Queued; holds nothing.
    Waiting,
    /// At the leader.
    Running,
    /// Ended or cancelled; the next plan drops it.
    Ended,
    /// Dropped for lack of blocks. It waits again once the report of plan `until` has told every token it sampled.
    Preempted {
        /// Number of the last plan in which it took part.
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
    /// Where its blocks come from, since it last joined.
    pub(super) pool: usize,
    /// Blocks granted, in order of use.
    pub(super) blocks: Vec<BlockId>,
    /// Positions in the cache after every plan made so far.
    pub(super) planned: usize,
    /// Tokens it had when it last joined: all of them are prefill.
    pub(super) joined_with: usize,
}

impl Sequence {
    pub(super) fn new(tokens: Vec<u32>, prompt_len: usize, params: SequenceParams) -> Self {
        let joined_with = tokens.len();
        Self {
            tokens,
            prompt_len,
            params,
            phase: Phase::Waiting,
            pool: 0,
            blocks: Vec::new(),
            planned: 0,
            joined_with,
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
}
