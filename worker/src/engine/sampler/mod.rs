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
//!
//! Where nothing changes the logits or asks for probabilities, a greedy token needs but the greatest of them, and one of the `k`
//! of top-k but the best `k` ([`wanted`]): whoever computes logits finds these, and the same token is sampled from them
//! ([`sample_best`]) as from the whole row. (Top-p and min-p alone depend on all of it.)
//!
//! Penalties that only lower the logits of the tokens a sequence has had need as many more of the best as there are such tokens
//! ([`wanted_after`], [`sample_best_after`]). For of the best `k + n`, where `n` tokens may be lowered, at least `k` are as they
//! were; whatever is not among them is worse than each of these `k`, or equal and has the greater id, and still is when it is
//! lowered. Rounding keeps to this: it never puts the less above the greater. A penalty that lifts could lift any token.

mod draw;
mod history;
mod logprobs;
mod processors;
mod random;

use foggara_kernels::op::softmax::argmax;
use foggara_proto::sequence::{SequenceParams, TokenOutput};

use crate::best::merge;
use crate::decoder::{MOST_BEST, Want};

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
    best: Vec<(u32, f32)>,
    lowered: Vec<(u32, f32)>,
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

/// What must be known of the logits over `vocab` tokens that the token after `answered` tokens of the answer is sampled from.
pub(super) fn wanted(params: &SequenceParams, answered: usize, vocab: usize) -> Want {
    let top_k = params.top_k as usize;
    if params.logprobs.is_some() || processors::may_change(params, answered) {
        Want::Whole
    } else if params.temperature < GREEDY_BELOW {
        Want::Best(1)
    } else if (1..vocab.min(MOST_BEST + 1)).contains(&top_k) {
        Want::Best(params.top_k)
    } else {
        Want::Whole
    }
}

/// The same where penalties may be asked for, of a sequence with this history; and for each of so many tokens `drafted` after it.
pub(super) fn wanted_after(
    history: &History,
    params: &SequenceParams,
    answered: usize,
    drafted: usize,
    vocab: usize,
) -> Want {
    if params.logprobs.is_some() || !processors::only_lowers(params, answered) {
        return wanted(params, answered, vocab);
    }
    let lowered = if history.grows() { history.len() + drafted } else { 0 };
    let best = kept(params).saturating_add(lowered);
    match kept(params) {
        1.. if best < vocab.min(MOST_BEST + 1) => Want::Best(best as u32),
        _ => Want::Whole,
    }
}

/// Of so many of the best a token is chosen; 0: of all.
fn kept(params: &SequenceParams) -> usize {
    if params.temperature < GREEDY_BELOW { 1 } else { params.top_k as usize }
}

/// Samples the next token of `sequence` from the `best` logits, as many as were wanted ([`wanted_after`]).
pub(super) fn sample_best_after(
    best: &[(u32, f32)],
    sequence: Context<'_>,
    scratch: &mut Scratch,
) -> TokenOutput {
    let Context { params, tokens, history, .. } = sequence;
    if !history.grows() {
        return sample_best(best, params, tokens.len(), scratch);
    }
    let mut lowered = std::mem::take(&mut scratch.lowered);
    lowered.clear();
    lowered.extend(best.iter().map(|(token, logit)| {
        let count = history.count(*token);
        (*token, count.map_or(*logit, |count| processors::penalised(*logit, count, params)))
    }));
    merge(&mut lowered, kept(params));
    let output = sample_best(&lowered, params, tokens.len(), scratch);
    scratch.lowered = lowered;
    output
}

/// Samples the token at `position` from the `best` logits, as many as were [`wanted`]: the one that [`sample`] would of the row.
pub(super) fn sample_best(
    best: &[(u32, f32)],
    params: &SequenceParams,
    position: usize,
    scratch: &mut Scratch,
) -> TokenOutput {
    let Scratch { row, best: in_order, draw, .. } = scratch;
    in_order.clear();
    in_order.extend_from_slice(best);
    in_order.sort_unstable_by_key(|(token, _)| *token);
    row.clear();
    row.extend(in_order.iter().map(|(_, logit)| *logit));
    let greatest = argmax(row);
    let place = if row.get(greatest).is_none_or(|logit| logit.is_nan() || *logit == f32::NEG_INFINITY) {
        None
    } else if params.temperature < GREEDY_BELOW {
        Some(greatest)
    } else {
        Some(draw::draw_of_best(row, greatest, params, position, draw))
    };
    // Nothing is possible, but something must be said.
    let token = place.and_then(|place| in_order.get(place)).map_or(0, |(token, _)| *token);
    TokenOutput { token, logprob: None, top: Vec::new() }
}

#[cfg(test)]
mod best_tests;
#[cfg(test)]
mod reference_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod transformers_tests;
