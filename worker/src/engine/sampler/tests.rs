//! The sampler: shares, edges, and what it must not depend on.

use foggara_kernels::op::draw::weigh;

use crate::draw::shorten;

use super::*;

fn params(temperature: f32, top_k: u32, top_p: f32, seed: u64) -> SequenceParams {
    SequenceParams { temperature, top_p, top_k, seed, ..SequenceParams::default() }
}

/// Samples the token at `position` of a sequence whose other tokens do not matter.
fn sample(logits: &[f32], params: &SequenceParams, position: usize, scratch: &mut Scratch) -> TokenOutput {
    let tokens = vec![0; position];
    let history = &History::new(params, &tokens, position);
    super::sample(logits, Context { params, tokens: &tokens, prompt_len: position, history }, scratch)
}

/// Shares of each token over many positions.
fn shares(logits: &[f32], temperature: f32, top_k: u32, top_p: f32) -> Vec<f64> {
    let params = params(temperature, top_k, top_p, 42);
    let mut counts = vec![0.0; logits.len()];
    for position in 0..40_000 {
        counts[sample(logits, &params, position, &mut Scratch::default()).token as usize] += 1.0 / 40_000.0;
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
    let nucleus = |logits: &[f32], top_p| {
        let (mut weights, mut kept) = (Vec::new(), Vec::new());
        weigh(logits, logits[argmax(logits)], 1.0, 0.0, &mut weights);
        assert!(shorten(logits, &weights, Rule::new(1.0, top_p, 0.0, 0).share, 0, &mut kept));
        kept
    };
    assert_eq!(nucleus(&[0.0; 5000], 0.5), (0..2500).collect::<Vec<_>>());
    let steep: Vec<f32> = (0..5000).map(|i| -(i as f32)).collect();
    assert_eq!(nucleus(&steep, 0.9), [0, 1, 2]);
}

#[test]
fn a_token_depends_on_seed_and_position_alone() {
    let logits: Vec<f32> = (0..100).map(|i| (i % 7) as f32).collect();
    let draw =
        |seed, position| sample(&logits, &params(1.0, 0, 1.0, seed), position, &mut Scratch::default()).token;
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
        &mut Scratch::default(),
    );
    assert_eq!(output.token, 1);
    assert_eq!(output.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2]);
    let sum: f64 =
        describe(&logits, 0, Some(4)).top.iter().map(|(_, logprob)| f64::from(*logprob).exp()).sum();
    assert!((sum - 1.0).abs() < 1e-6);
}

fn one(logits: &[f32], params: &SequenceParams, position: usize) -> u32 {
    sample(logits, params, position, &mut Scratch::default()).token
}

#[test]
fn the_random_numbers_are_uniform_and_do_not_follow_each_other() {
    let count = 100_000;
    for seed in [0, 1, 2, u64::MAX] {
        let draws: Vec<f64> = (0..count).map(|position| uniform(seed, position)).collect();
        assert!(draws.iter().all(|u| (0.0..1.0).contains(u)));
        let mean = draws.iter().sum::<f64>() / count as f64;
        assert!((mean - 0.5).abs() < 0.005, "{mean}");
        let mut bins = [0.0f64; 64];
        draws.iter().for_each(|u| bins[(u * 64.0) as usize] += 1.0);
        let expected = count as f64 / 64.0;
        // 63 degrees of freedom: above 120 once in a hundred thousand times, and these draws are always the same.
        let chi: f64 = bins.iter().map(|bin| (bin - expected).powi(2) / expected).sum();
        assert!(chi < 120.0, "seed {seed}: {chi}");
        let correlation = |other: &dyn Fn(usize) -> f64| {
            (0..count).map(|i| (draws[i] - 0.5) * (other(i) - 0.5)).sum::<f64>() / count as f64 * 12.0
        };
        for lag in [1, 2, 64] {
            let next = correlation(&|i| uniform(seed, i + lag));
            assert!(next.abs() < 0.015, "seed {seed}, {lag} positions apart: {next}");
        }
        let neighbour = correlation(&|i| uniform(seed.wrapping_add(1), i));
        assert!(neighbour.abs() < 0.015, "seeds {seed} and the next: {neighbour}");
    }
}

#[test]
fn narrow_choices_are_greedy_and_wide_ones_are_all() {
    let logits: Vec<f32> = (0..200).map(|i| ((i * 37) % 101) as f32 * 0.05).collect();
    let greedy = one(&logits, &params(0.0, 0, 1.0, 0), 0);
    assert_eq!(greedy as usize, argmax(&logits), "the first of two equals");
    for position in 0..500 {
        for narrow in
            [params(1.0, 1, 1.0, 7), params(1.0, 0, 1e-6, 7), params(5.0, 1, 0.5, 7), params(1e-4, 0, 1.0, 7)]
        {
            let token = one(&logits, &narrow, position);
            // At a temperature near 0 equals stay equals; every other way takes the first of them.
            assert!(
                token == greedy
                    || (narrow.temperature < 1.0 && logits[token as usize] == logits[greedy as usize])
            );
        }
        let all = one(&logits, &params(1.3, 0, 1.0, 7), position);
        let everything = one(&logits, &params(1.3, 200, 1.0, 7), position);
        let more_than_everything = one(&logits, &params(1.3, 100_000, 1.0, 7), position);
        assert_eq!(everything, more_than_everything);
        assert!(logits[all as usize].is_finite());
    }
}

#[test]
fn a_nucleus_that_ends_among_equals_keeps_the_smaller_ids() {
    let logits = [1.0, 1.0, 1.0, 1.0];
    for (top_p, kept) in [(0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (0.99, 4)] {
        let seen: std::collections::BTreeSet<u32> =
            (0..2000).map(|position| one(&logits, &params(1.0, 0, top_p, 3), position)).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), (0..kept).collect::<Vec<_>>(), "top_p {top_p}");
    }
}

#[test]
fn what_cannot_be_is_never_drawn() {
    let logits = [f32::NAN, f32::NEG_INFINITY, 0.5, f32::NEG_INFINITY, 0.5, f32::NAN];
    for settings in
        [params(0.0, 0, 1.0, 1), params(1.0, 0, 1.0, 1), params(100.0, 0, 0.99, 1), params(1.0, 4, 1.0, 1)]
    {
        for position in 0..2000 {
            assert!([2, 4].contains(&one(&logits, &settings, position)), "{settings:?}");
        }
    }
    for hopeless in [[f32::NAN; 3], [f32::NEG_INFINITY; 3]] {
        assert_eq!(one(&hopeless, &params(1.0, 0, 0.9, 1), 5), 0, "something must be said");
    }
}

#[test]
fn scratch_memory_leaves_no_trace() {
    let long: Vec<f32> = (0..300).map(|i| (i as f32 * 0.7).sin() * 4.0).collect();
    let mut scratch = Scratch::default();
    sample(&[f32::NAN; 1000], &params(1.0, 30, 0.5, 0), 0, &mut scratch);
    for position in 0..200 {
        let logits = &long[..100 + position];
        let settings = params(0.9, position as u32 % 3 * 20, 0.8, 11);
        let again = sample(logits, &settings, position, &mut scratch).token;
        assert_eq!(one(logits, &settings, position), again);
    }
}

#[test]
fn log_probabilities_are_those_before_temperature_and_truncation() {
    let logits = [0.0f32, 2.0, 1.0, -3.0];
    let total = logits.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
    for settings in [params(0.0, 0, 1.0, 5), params(2.0, 2, 0.9, 5)] {
        let output =
            sample(&logits, &SequenceParams { logprobs: Some(10), ..settings }, 3, &mut Scratch::default());
        let own = f64::from(output.logprob.expect("asked for"));
        assert!((own - (f64::from(logits[output.token as usize]) - total)).abs() < 1e-6);
        assert_eq!(
            output.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
            [1, 2, 0, 3],
            "no more than there are"
        );
    }
    let output = sample(
        &logits,
        &SequenceParams { logprobs: Some(0), ..params(0.0, 0, 1.0, 0) },
        3,
        &mut Scratch::default(),
    );
    assert!(output.logprob.is_some() && output.top.is_empty());
    assert_eq!(sample(&logits, &params(0.0, 0, 1.0, 0), 3, &mut Scratch::default()).logprob, None);
}

#[test]
fn equal_seeds_draw_equal_tokens_however_the_candidates_were_found() {
    // Twenty tokens hold nearly everything: top-k, top-p and min-p all leave just those.
    let logits: Vec<f32> =
        (0..4000).map(|i| if i % 200 == 7 { 10.0 + (i % 3) as f32 } else { -20.0 }).collect();
    let top_p = params(1.0, 0, 0.999, 5);
    let top_k = params(1.0, 20, 1.0, 5);
    let min_p = SequenceParams { min_p: 0.01, ..params(1.0, 0, 1.0, 5) };
    for position in 0..300 {
        let token = one(&logits, &top_k, position);
        assert_eq!((token, token), (one(&logits, &top_p, position), one(&logits, &min_p, position)));
    }
}

#[test]
fn what_penalties_know_follows_from_the_tokens() {
    let penalties =
        SequenceParams { frequency_penalty: 0.5, repetition_penalty: 1.2, ..params(0.0, 0, 1.0, 0) };
    for params in
        [penalties.clone(), SequenceParams { repetition_penalty: 1.0, ..penalties }, params(1.0, 0, 1.0, 0)]
    {
        let tokens = [4, 4, 9, 9, 9, 4, 1];
        let whole = History::new(&params, &tokens, 2);
        for start in 2..tokens.len() {
            let mut grown = History::new(&params, &tokens[..start], 2);
            tokens[start..].iter().for_each(|token| grown.push(*token));
            assert_eq!(grown, whole, "started over after {start}");
        }
    }
}

#[test]
fn bans_that_leave_nothing_do_not_hold() {
    let logits = [1.0, 5.0, 3.0, 4.0];
    let hold = SequenceParams { min_tokens: 9, stop_token_ids: vec![1, 2], ..params(0.0, 0, 1.0, 0) };
    assert_eq!(one(&logits, &hold, 0), 3);
    let only = SequenceParams { allowed_token_ids: vec![2, 1], ..hold };
    assert_eq!(one(&logits, &only, 0), 1, "of those allowed the likeliest");
    let broken = [f32::NAN; 4];
    assert_eq!(one(&broken, &only, 0), 2, "the first of those allowed");
    let elsewhere = SequenceParams {
        allowed_token_ids: vec![2, 99],
        logit_bias: vec![(77, 5.0)],
        bad_words: vec![vec![88]],
        ..params(0.0, 0, 1.0, 0)
    };
    assert_eq!(one(&logits, &elsewhere, 0), 2, "ids that do not exist change nothing");
}

#[test]
fn bad_words_are_looked_for_in_the_answer_alone() {
    let logits = [0.0, 1.0, 2.0, 3.0];
    let params = SequenceParams { bad_words: vec![vec![2, 3]], ..params(0.0, 0, 1.0, 0) };
    let greedy = |tokens: &[u32], prompt_len| {
        let history = &History::new(&params, tokens, prompt_len);
        let context = Context { params: &params, tokens, prompt_len, history };
        super::sample(&logits, context, &mut Scratch::default()).token
    };
    assert_eq!(greedy(&[1, 2], 2), 3, "the beginning is in the prompt");
    assert_eq!(greedy(&[1, 2], 1), 2, "it would be whole");
    assert_eq!(greedy(&[1, 1], 1), 3);
}
