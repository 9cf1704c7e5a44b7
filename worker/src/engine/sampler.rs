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

/// Greater logit first, then smaller id.
fn better(logits: &[f32], a: usize, b: usize) -> std::cmp::Ordering {
    logits[b].total_cmp(&logits[a]).then(a.cmp(&b))
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
mod tests {
    use super::*;

    fn params(temperature: f32, top_k: u32, top_p: f32, seed: u64) -> SequenceParams {
        SequenceParams {
            max_tokens: 1,
            temperature,
            top_p,
            top_k,
            seed,
            stop_token_ids: vec![],
            logprobs: None,
            prompt_logprobs: false,
        }
    }

    /// Shares of each token over many positions.
    fn shares(logits: &[f32], temperature: f32, top_k: u32, top_p: f32) -> Vec<f64> {
        let params = params(temperature, top_k, top_p, 42);
        let mut counts = vec![0.0; logits.len()];
        for position in 0..40_000 {
            counts[sample(logits, &params, position, &mut Vec::new()).token as usize] += 1.0 / 40_000.0;
        }
        counts
    }

    fn close(got: &[f64], expected: &[f64]) {
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < 0.012, "{got} {expected}");
        }
    }

    #[test]
    fn shares_follow_temperature_top_k_and_top_p() {
        let probabilities = [0.5f32, 0.3, 0.15, 0.05];
        let logits = probabilities.map(f32::ln);
        close(&shares(&logits, 1.0, 0, 1.0), &[0.5, 0.3, 0.15, 0.05]);
        close(&shares(&logits, 1.0, 2, 1.0), &[0.625, 0.375, 0.0, 0.0]);
        close(&shares(&logits, 1.0, 0, 0.79), &[0.625, 0.375, 0.0, 0.0]);
        close(&shares(&logits, 1.0, 0, 0.81), &[0.526, 0.316, 0.158, 0.0]);
        close(&shares(&logits, 1.0, 3, 0.5), &[1.0, 0.0, 0.0, 0.0]);
        let squares: Vec<f64> = probabilities.iter().map(|p| f64::from(p * p) / 0.365).collect();
        close(&shares(&logits, 0.5, 0, 1.0), &squares);
    }

    #[test]
    fn the_nucleus_of_a_flat_distribution_is_found_too() {
        let logits = vec![0.0; 5000];
        let mut weights = vec![0.0; 5000];
        exp_scaled(&logits, 0.0, 1.0, &mut weights);
        assert_eq!(nucleus(&logits, &weights, 0.5).len(), 2500);
        let steep: Vec<f32> = (0..5000).map(|i| -(i as f32)).collect();
        exp_scaled(&steep, 0.0, 1.0, &mut weights);
        assert_eq!(nucleus(&steep, &weights, 0.9), [0, 1, 2]);
    }

    #[test]
    fn a_token_depends_on_seed_and_position_alone() {
        let logits: Vec<f32> = (0..100).map(|i| (i % 7) as f32).collect();
        let draw =
            |seed, position| sample(&logits, &params(1.0, 0, 1.0, seed), position, &mut Vec::new()).token;
        assert_eq!(draw(3, 10), draw(3, 10));
        let different = (0..50).filter(|position| draw(3, *position) != draw(4, *position)).count();
        assert!(different > 30, "{different}");
    }

    #[test]
    fn greedy_takes_the_first_of_equals_and_logprobs_are_normalised() {
        let logits = [1.0, 4.0, 4.0, 2.0];
        let output = sample(
            &logits,
            &SequenceParams { logprobs: Some(2), ..params(0.0, 0, 1.0, 0) },
            0,
            &mut Vec::new(),
        );
        assert_eq!(output.token, 1);
        assert_eq!(output.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2]);
        let sum: f64 =
            describe(&logits, 0, Some(4)).top.iter().map(|(_, logprob)| f64::from(*logprob).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6);
    }
}
