//! What the table holds, told to a driver that takes over from another: all in one message, and so within bounds.

use std::collections::{BTreeSet, VecDeque};

use foggara_proto::sequence::{SequenceParams, TokenOutput};
use foggara_proto::step::{HeldSequence, SequenceId};

use super::{Sequence, SequenceTable};
use crate::decoder::StepInput;

/// Outputs kept of each sequence whose probabilities are asked for. A driver that has gone had told most of them.
pub(super) const OUTPUTS_KEPT: usize = 512;

/// Bytes of all outputs in one answer. Beyond it those of the sequences that have most are left out.
const MOST_OUTPUT_BYTES: usize = 16 << 20;
/// Bytes of all else in one answer. Beyond it the largest sequences are forgotten: a driver starts them over.
const MOST_BYTES: usize = 40 << 20;

/// The last outputs of a sequence that asked for probabilities.
#[derive(Debug, Default)]
pub(super) struct LastOutputs(VecDeque<TokenOutput>);

impl LastOutputs {
    pub(super) fn push(&mut self, output: TokenOutput) {
        if self.0.len() == OUTPUTS_KEPT {
            self.0.pop_front();
        }
        self.0.push_back(output);
    }

    /// What they come to in a message, at most.
    fn bytes(&self) -> usize {
        self.0.iter().map(|output| 24 + 16 * output.top.len()).sum()
    }
}

impl SequenceTable {
    /// Forgets sequences of which there is too much to tell; returns the step that tells the other ranks.
    pub fn forget_untellable(&mut self) -> StepInput {
        let sizes: Vec<_> = self.sequences.iter().map(|(id, sequence)| (*id, sequence.bytes())).collect();
        let mut input = StepInput::default();
        for id in largest(sizes, MOST_BYTES) {
            tracing::warn!(sequence = id, "too long to be told to the next driver: it will start over");
            input.drops.extend(self.remove(id));
        }
        input
    }

    /// Everything that is here, in the order of the sequences' names.
    pub fn held(&self) -> Vec<HeldSequence> {
        let sizes =
            self.sequences.iter().map(|(id, sequence)| (*id, sequence.last_outputs.bytes())).collect();
        let untold = largest(sizes, MOST_OUTPUT_BYTES);
        self.sequences.iter().map(|(id, sequence)| sequence.held(*id, !untold.contains(id))).collect()
    }
}

impl Sequence {
    fn held(&self, id: SequenceId, with_outputs: bool) -> HeldSequence {
        let outputs = self.last_outputs.0.iter().filter(|_| with_outputs).cloned().collect();
        // The row of a token tells the probability of the next; the first token is told with its own.
        let read = self.cached >= (self.prompt_len - 1).max(1);
        HeldSequence {
            sequence: id,
            tokens: self.tokens.clone(),
            prompt_len: self.prompt_len,
            params: self.params.clone(),
            envelope: self.envelope.clone(),
            blocks: self.blocks.clone(),
            cached: self.cached,
            outputs,
            end: self.end,
            reading_prompt: self.params.prompt_logprobs && !read,
            decodes: self.prefilled,
        }
    }

    /// What it comes to in a message without its outputs, at most.
    fn bytes(&self) -> usize {
        let SequenceParams {
            stop_token_ids, logit_bias, allowed_token_ids, bad_words, held_token_ids, ..
        } = &self.params;
        let numbers = [&self.tokens, &self.blocks, stop_token_ids, allowed_token_ids, held_token_ids];
        let numbers: usize = numbers.into_iter().map(|list| packed(list)).sum();
        let words: usize = bad_words.iter().map(|word| 16 + packed(word)).sum();
        256 + numbers + words + 16 * logit_bias.len() + self.envelope.len()
    }
}

/// Bytes of numbers in a message: seven bits in each.
fn packed(numbers: &[u32]) -> usize {
    numbers.iter().map(|number| number.checked_ilog2().unwrap_or(0) as usize / 7 + 1).sum()
}

/// Those to leave out so that the rest is not more than `most` together: the largest.
fn largest(mut sizes: Vec<(SequenceId, usize)>, most: usize) -> BTreeSet<SequenceId> {
    let mut total: usize = sizes.iter().map(|(_, size)| size).sum();
    sizes.sort_by_key(|(_, size)| *size);
    let mut out = BTreeSet::new();
    while total > most
        && let Some((id, size)) = sizes.pop()
    {
        total -= size;
        out.insert(id);
    }
    out
}

#[cfg(test)]
#[path = "held_tests.rs"]
mod tests;
