//! From logits to a token.
//!
//! In this order, which is vLLM's:
//! 1. Log-probabilities, if asked for, are of the logits as the model gave them ([`logprobs`]).
//! 2. What may be sampled ([`processors`]): only `allowed_token_ids`; nothing that completes one of `bad_words`; before
//!    `min_tokens`, nothing that ends the sequence.
//! 3. `logit_bias`.
//! 4. Penalties, from the tokens so far ([`History`]): repetition, frequency, presence.
//! 5. Without temperature, the greatest logit; else ([`draw`]) temperature, min-p, top-k, top-p, and a random number.
//!
//! Deterministic: the random number of a token is a hash of the sequence's seed and the token's absolute position, and
//! everything else follows from the sequence's parameters and tokens. So a sequence that starts over, alone or in another
//! batch, samples the same tokens.
//!
//! A greedy token that asks for nothing costs one pass over the logits. No vocabulary is ever sorted.

mod draw;
mod history;
mod logprobs;
mod processors;
mod random;

use foggara_kernels::op::softmax::argmax;
use foggara_proto::sequence::{SequenceParams, TokenOutput};

pub(super) use history::History;
pub(super) use logprobs::describe;

/// A lower temperature is none.
const GREEDY_BELOW: f32 = 1e-5;

/// A sequence that is to get its next token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context<'a> {
    /// How to choose it.
    pub(super) params: &'a SequenceParams,
    /// The prompt and the answer so far.
    pub(super) tokens: &'a [u32],
    /// How many of `tokens` are the prompt.
    pub(super) prompt_len: usize,
    /// Of these very tokens.
    pub(super) history: &'a History,
}

impl Context<'_> {
    fn answer(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }
}

/// Memory that is used again for every token. What it holds between two does not matter.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    row: Vec<f32>,
    draw: draw::Scratch,
}

/// Samples the token after those of `sequence` from `logits` over the vocabulary.
pub(super) fn sample(logits: &[f32], sequence: Context<'_>, scratch: &mut Scratch) -> TokenOutput {
    let row = match processors::process(logits, sequence, &mut scratch.row) {
        true => &scratch.row[..],
        false => logits,
    };
    let params = sequence.params;
    let greatest = argmax(row);
    let token = if row.get(greatest).is_none_or(|logit| logit.is_nan() || *logit == f32::NEG_INFINITY) {
        // Nothing is possible, but something must be said.
        params.allowed_token_ids.first().map_or(0, |id| *id as usize)
    } else if params.temperature < GREEDY_BELOW {
        greatest
    } else {
        draw::draw(row, greatest, params, sequence.tokens.len(), &mut scratch.draw)
    };
    describe(logits, token, params.logprobs)
}

#[cfg(test)]
mod reference_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod transformers_tests;
