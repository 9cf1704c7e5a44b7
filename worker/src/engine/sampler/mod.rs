//! From logits to a token.
//!
//! In this order, which is vLLM's:
//! 1. Log-probabilities, if asked for, are of the logits as the model gave them ([`logprobs`]).
//! 2. What may be sampled ([`processors`]): only `allowed_token_ids`; nothing that completes one of `bad_words`; before
//!    `min_tokens`, nothing that ends the sequence.
//! 3. `logit_bias`.
//! 4. Penalties, from the tokens so far ([`History`]): repetition, frequency, presence.
//! 5. Without temperature, the greatest logit; else ([`crate::draw`]) temperature, min-p, top-k, top-p, and a random number.
//!
//! Deterministic: the random number of a token is a hash of the sequence's seed and the token's absolute position, and
//! everything else follows from the sequence's parameters and tokens. Weights are integers, so that in whichever order they
//! are added up, the sums are the same. So a sequence that starts over, alone or in another batch, samples the same tokens.
//!
//! A greedy token that asks for nothing costs one pass over the logits. No vocabulary is ever sorted.
//!
//! Where nothing changes the logits or asks for probabilities, a greedy token needs but the greatest of them, and one of the `k`
//! of top-k but the best `k` ([`wanted`]): whoever computes logits finds these, and the same token is sampled from them
//! ([`sample_best`]) as from the whole row. Top-p, min-p, or temperature alone depend on all of it: who has all of it draws, and tells
//! the token.
//!
//! Penalties that only lower the logits of the tokens a sequence has had need as many more of the best as there are such tokens
//! ([`wanted_after`], [`sample_best_after`]). For of the best `k + n`, where `n` tokens may be lowered, at least `k` are as they
//! were; whatever is not among them is worse than each of these `k`, or equal and has the greater id, and still is when it is
//! lowered. Rounding keeps to this: it never puts the less above the greater. A penalty that lifts could lift any token.

mod history;
mod logprobs;
mod processors;

use foggara_kernels::op::draw::Rule;
use foggara_kernels::op::softmax::argmax;
use foggara_proto::sequence::{SequenceParams, TokenOutput};

use crate::best::merge;
use crate::decoder::{MOST_BEST, Want};
use crate::draw::{self, draw_of_best, draw_one, is_possible};

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
    let token = if !is_possible(row.get(greatest)) {
        // Nothing is possible, but something must be said.
        params.allowed_token_ids.first().map_or(0, |id| *id as usize)
    } else if params.temperature < GREEDY_BELOW {
        greatest
    } else {
        let draw = rule(params).at(sequence.tokens.len());
        draw_one(row, greatest, &draw, params.top_k as usize, &mut scratch.draw)
    };
    describe(logits, token, params.logprobs)
}

/// How a sequence's tokens are drawn, but for top-k.
fn rule(params: &SequenceParams) -> Rule {
    Rule::new(params.temperature, params.top_p, params.min_p, params.seed)
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
    } else if (1..vocab).contains(&top_k) {
        Want::Whole
    } else {
        Want::Drawn(rule(params))
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
    let lowers = history.grows() && processors::only_lowers(params, answered);
    if params.logprobs.is_some() || !lowers {
        return wanted(params, answered, vocab);
    }
    let best = kept(params).saturating_add(history.len() + drafted);
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
    let place = if !is_possible(row.get(greatest)) {
        None
    } else if params.temperature < GREEDY_BELOW {
        Some(greatest)
    } else {
        Some(draw_of_best(row, greatest, &rule(params).at(position), draw))
    };
    // Nothing is possible, but something must be said.
    let token = place.and_then(|place| in_order.get(place)).map_or(0, |(token, _)| *token);
    drawn(token)
}

/// The token that was drawn where the logits are, as it was wanted: of such a row nothing else is known.
pub(super) fn drawn(token: u32) -> TokenOutput {
    TokenOutput { token, logprob: None, top: Vec::new() }
}

/// The random number of a token, in 0..1.
#[cfg(test)]
fn uniform(seed: u64, position: usize) -> f64 {
    foggara_kernels::op::draw::random(seed, position) as f64 / foggara_kernels::op::draw::WHOLE as f64
}

#[cfg(test)]
mod best_tests;
#[cfg(test)]
mod reference_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod transformers_tests;
