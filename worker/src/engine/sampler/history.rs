//! What penalties know of the past.

use std::collections::HashMap;

use foggara_proto::sequence::SequenceParams;

/// The tokens a sequence has had, for penalties: a function of its tokens, so one that starts over with the tokens it has
/// has the same. Empty unless the sequence asks for a penalty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    wanted: bool,
    /// How often each token is in the answer; 0 for one that is only in the prompt.
    counts: HashMap<u32, u32>,
}

impl History {
    /// The history of `tokens`, of which the first `prompt_len` are the prompt.
    pub fn new(params: &SequenceParams, tokens: &[u32], prompt_len: usize) -> Self {
        let repeats = params.repetition_penalty != 1.0;
        let mut history = Self { wanted: Self::is_wanted(params), counts: HashMap::new() };
        let (prompt, answer) = tokens.split_at(prompt_len.min(tokens.len()));
        if repeats {
            history.counts.extend(prompt.iter().map(|token| (*token, 0)));
        }
        answer.iter().for_each(|token| history.push(*token));
        history
    }

    /// Whether a sequence asks for a penalty.
    pub(super) fn is_wanted(params: &SequenceParams) -> bool {
        let repeats = params.repetition_penalty != 1.0;
        repeats || params.presence_penalty != 0.0 || params.frequency_penalty != 0.0
    }

    /// Whether it keeps what is added.
    pub(in crate::engine) fn grows(&self) -> bool {
        self.wanted
    }

    /// Adds a token of the answer.
    pub fn push(&mut self, token: u32) {
        if self.wanted {
            *self.counts.entry(token).or_default() += 1;
        }
    }

    /// Every token so far with its count in the answer, in no order.
    pub(super) fn counts(&self) -> impl Iterator<Item = (u32, u32)> {
        self.counts.iter().map(|(token, count)| (*token, *count))
    }

    /// How often this token is in the answer, if it is one of these.
    pub(super) fn count(&self, token: u32) -> Option<u32> {
        self.counts.get(&token).copied()
    }

    /// Tokens, each once.
    pub(super) fn len(&self) -> usize {
        self.counts.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }
}
