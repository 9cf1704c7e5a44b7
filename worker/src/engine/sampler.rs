//! From logits to a token.
//!
//! Deterministic: the random number of a token is a hash of the sequence's seed and the token's absolute position, so a
//! sequence that starts over, alone or in another batch, samples the same tokens.

use foggara_kernels::op::softmax::{argmax, exp_scaled, log_sum_exp};
use foggara_proto::sequence::{SequenceParams, TokenOutput};

/// Samples the token at `position` (0-based in the whole sequence) from `logits` over the vocabulary.
pub fn sample(
    logits: &[f32],
    params: &SequenceParams,
    position: usize,
    scratch: &mut Vec<f32>,
) -> TokenOutput {
    let token =
        if params.temperature <= 0.0 { argmax(logits) } else { draw(logits, params, position, scratch) };
    describe(logits, token, params.logprobs)
}

/// The output for `token`, with its log-probability and the `top` likeliest if asked for.
pub fn describe(logits: &[f32], token: usize, top: Option<u32>) -> TokenOutput {
    let id = |index: usize| u32::try_from(index).expect("vocabularies are smaller than 2^32");
    let Some(count) = top else { return TokenOutput { token: id(token), logprob: None, top: Vec::new() } };
    let total = log_sum_exp(logits);
    let top = likeliest(logits, count as usize)
        .into_iter()
        .map(|index| (id(index), logits[index] - total))
        .collect();
    TokenOutput { token: id(token), logprob: logits.get(token).map(|logit| logit - total), top }
}

/// Greater logit first, then smaller id. What is not a number comes last.
fn better(logits: &[f32], a: usize, b: usize) -> std::cmp::Ordering {
    let key = |index: usize| if logits[index].is_nan() { f32::NEG_INFINITY } else { logits[index] };
    key(b).total_cmp(&key(a)).then(a.cmp(&b))
}

/// The `count` likeliest tokens, best first.
fn likeliest(logits: &[f32], count: usize) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..logits.len()).collect();
    if count == 0 {
        return Vec::new();
    }
    if count < indices.len() {
        indices.select_nth_unstable_by(count - 1, |a, b| better(logits, *a, *b));
        indices.truncate(count);
    }
    indices.sort_unstable_by(|a, b| better(logits, *a, *b));
    indices
}

/// Draws by temperature, then top-k, then top-p.
fn draw(logits: &[f32], params: &SequenceParams, position: usize, weights: &mut Vec<f32>) -> usize {
    let greatest = logits[argmax(logits)];
    weights.resize(logits.len(), 0.0);
    exp_scaled(logits, greatest, 1.0 / params.temperature, weights);
    for (weight, logit) in weights.iter_mut().zip(logits) {
        // The vector exponential gives these a weight: a small one, or that of a very large number.
        if *logit == f32::NEG_INFINITY || logit.is_nan() {
            *weight = 0.0;
        }
    }
    let uniform = uniform(params.seed, position);
    if params.top_k == 0 && params.top_p >= 1.0 {
        let all = 0..weights.len();
        return pick(all, weights, total(weights, 0..weights.len()), uniform);
    }
    let kept = match params.top_k {
        0 => nucleus(logits, weights, params.top_p),
        k => {
            let best = likeliest(logits, k as usize);
            let enough = f64::from(params.top_p) * total(weights, best.iter().copied());
            cut(best, weights, enough)
        }
    };
    let sum = total(weights, kept.iter().copied());
    pick(kept.into_iter(), weights, sum, uniform)
}

fn total(weights: &[f32], indices: impl Iterator<Item = usize>) -> f64 {
    indices.map(|index| f64::from(weights[index])).sum()
}

/// The shortest beginning of `sorted` whose weights sum to `enough`; at least one.
fn cut(mut sorted: Vec<usize>, weights: &[f32], enough: f64) -> Vec<usize> {
    let mut sum = 0.0;
    let count = sorted.iter().position(|index| {
        sum += f64::from(weights[*index]);
        sum >= enough
    });
    sorted.truncate(count.map_or(sorted.len(), |last| last + 1));
    sorted
}

/// The likeliest tokens whose probabilities sum to `top_p`, without sorting the whole vocabulary: candidates above a
/// falling threshold are sorted until they are enough.
fn nucleus(logits: &[f32], weights: &[f32], top_p: f32) -> Vec<usize> {
    let enough = f64::from(top_p) * total(weights, 0..weights.len());
    for threshold in [1e-2, 1e-4, 1e-6, 0.0f32] {
        let mut candidates: Vec<usize> =
            (0..weights.len()).filter(|index| weights[*index] >= threshold).collect();
        if threshold > 0.0 && total(weights, candidates.iter().copied()) < enough {
            continue;
        }
        candidates.sort_unstable_by(|a, b| better(logits, *a, *b));
        return cut(candidates, weights, enough);
    }
    (0..weights.len()).collect()
}

/// The index at which the running sum of weights passes `uniform` of the whole.
fn pick(indices: impl Iterator<Item = usize>, weights: &[f32], total: f64, uniform: f64) -> usize {
    let wanted = uniform * total;
    let (mut sum, mut last) = (0.0, 0);
    for index in indices {
        let weight = f64::from(weights[index]);
        if weight > 0.0 {
            last = index;
        }
        sum += weight;
        if sum > wanted {
            return index;
        }
    }
    last
}

/// A number in [0, 1) from a seed and a position: SplitMix64's output function (Steele, Lea and Flood, 2014) of both.
fn uniform(seed: u64, position: usize) -> f64 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let state = mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15))
        .wrapping_add((position as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    (mix(state) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
