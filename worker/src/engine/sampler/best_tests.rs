//! Sampling from the best few of a row, against sampling from all of it.

use super::*;
use crate::best::{best_of, merge};

/// A number in 0..1, by nothing but `at`.
fn noise(at: u64) -> f64 {
    uniform(0x5eed, at as usize)
}

/// Rows as models give them, with equals, with what is not a number, flat, and steep.
fn row(len: usize, turn: u64) -> Vec<f32> {
    let logit = |i: usize| {
        let x = noise(turn << 32 | i as u64) as f32;
        match turn % 5 {
            0 => x * 24.0 - 12.0,
            1 => (x * 12.0).floor() - 4.0,
            2 if x < 0.1 => f32::NAN,
            2 if x < 0.9 => f32::NEG_INFINITY,
            2 => (x * 100.0).floor(),
            3 => x * 1e-3,
            _ => x.powi(8) * 60.0,
        }
    };
    (0..len).map(logit).collect()
}

/// What whoever computes `row` in `parts` parts gives of it.
fn found(row: &[f32], count: usize, parts: usize) -> Vec<(u32, f32)> {
    let mut best = Vec::new();
    for part in 0..parts {
        let (from, to) = (row.len() * part / parts, row.len() * (part + 1) / parts);
        let ids = best_of(&row[from..to], count);
        best.extend(ids.iter().map(|id| (from as u32 + id, row[from + *id as usize])));
    }
    merge(&mut best, count);
    best
}

#[test]
fn the_best_give_the_token_of_the_whole_row() {
    let (mut whole_scratch, mut best_scratch) = (Scratch::default(), Scratch::default());
    let (mut drawn, mut greedy) = (0, 0);
    for turn in 0..60 {
        let vocab = [300, 1000, 4001][turn as usize % 3];
        let row = row(vocab, turn);
        for (temperature, top_k, top_p, min_p) in [
            (0.0, 0, 1.0, 0.0),
            (0.0, 40, 0.5, 0.2),
            (1.0, 1, 1.0, 0.0),
            (0.7, 40, 0.95, 0.0),
            (1.0, 40, 0.9, 0.05),
            (1.3, 256, 0.999, 0.0),
            (1.0, 20, 1.0, 0.0),
            (0.05, 50, 0.8, 0.0),
            (2.0, 2, 0.0, 0.0),
            (100.0, 255, 0.5, 1.0),
        ] {
            let params = SequenceParams { temperature, top_k, top_p, min_p, ..SequenceParams::default() };
            let Want::Best(count) = wanted(&params, 0, vocab) else { panic!("{params:?} needs all") };
            for (seed, parts) in (0..12).zip([1, 2, 3, 8].into_iter().cycle()) {
                let params = SequenceParams { seed, ..params.clone() };
                let tokens = vec![1; 5 + (seed as usize * 7 + turn as usize) % 90];
                let history = &History::new(&params, &tokens, 3);
                let context = Context { params: &params, tokens: &tokens, prompt_len: 3, history };
                let expected = sample(&row, context, &mut whole_scratch);
                let best = found(&row, count as usize, parts);
                let got = sample_best(&best, &params, tokens.len(), &mut best_scratch);
                assert_eq!(got, expected, "turn {turn}, {parts} parts: {params:?}");
                greedy += u32::from(row[got.token as usize] == row[argmax(&row)]);
                drawn += 1;
            }
        }
    }
    assert!(drawn > 7000 && greedy < drawn * 3 / 4, "{greedy} of {drawn} are just the greatest");
}

#[test]
fn a_hopeless_row_says_what_it_says_as_a_whole() {
    for value in [f32::NAN, f32::NEG_INFINITY, f32::INFINITY] {
        let row = [value; 300];
        for (temperature, top_k) in [(0.0, 0), (1.0, 1), (1.0, 40)] {
            let params = SequenceParams { temperature, top_k, ..SequenceParams::default() };
            let Want::Best(count) = wanted(&params, 0, 300) else { panic!("{params:?} needs all") };
            let history = &History::new(&params, &[0; 4], 4);
            let context = Context { params: &params, tokens: &[0; 4], prompt_len: 4, history };
            let expected = sample(&row, context, &mut Scratch::default());
            let best = found(&row, count as usize, 2);
            assert_eq!(sample_best(&best, &params, 4, &mut Scratch::default()), expected, "{value}");
        }
    }
}

#[test]
fn whoever_needs_more_gets_the_whole_row() {
    let greedy = SequenceParams { temperature: 0.0, ..SequenceParams::default() };
    let drawn = SequenceParams { temperature: 0.8, top_k: 40, top_p: 0.9, ..SequenceParams::default() };
    assert_eq!(wanted(&greedy, 0, 1000), Want::Best(1));
    assert_eq!(wanted(&drawn, 0, 1000), Want::Best(40));
    let of = |top_k, vocab| wanted(&SequenceParams { top_k, ..drawn.clone() }, 0, vocab);
    let all = Want::Drawn(rule(&drawn));
    assert_eq!(of(0, 1000), all, "no top-k");
    assert!(matches!(all, Want::Drawn(rule) if rule.cuts() && rule.seed == drawn.seed));
    assert_eq!((of(256, 1000), of(257, 1000)), (Want::Best(256), Want::Whole));
    assert_eq!((of(99, 100), of(100, 100)), (Want::Best(99), all), "top-k leaves all");
    let open = SequenceParams { top_k: 0, ..drawn.clone() };
    for base in [greedy, drawn, open] {
        for params in [
            SequenceParams { logprobs: Some(0), ..base.clone() },
            SequenceParams { repetition_penalty: 1.1, ..base.clone() },
            SequenceParams { presence_penalty: 0.1, ..base.clone() },
            SequenceParams { frequency_penalty: -0.1, ..base.clone() },
            SequenceParams { logit_bias: vec![(1, 1.0)], ..base.clone() },
            SequenceParams { allowed_token_ids: vec![1], ..base.clone() },
            SequenceParams { bad_words: vec![vec![1]], ..base.clone() },
        ] {
            assert_eq!(wanted(&params, 9, 1000), Want::Whole, "{params:?}");
        }
        let held = SequenceParams { min_tokens: 3, ..base.clone() };
        assert_eq!(wanted(&held, 2, 1000), Want::Whole, "what ends it is still banned");
        assert_eq!(wanted(&held, 3, 1000), wanted(&base, 0, 1000));
    }
}

/// Histories of tokens of which many are among the best, so that penalties put others in their place.
#[test]
fn the_best_give_the_token_of_the_whole_row_after_penalties() {
    let (mut whole_scratch, mut best_scratch) = (Scratch::default(), Scratch::default());
    let mut changed = 0;
    for turn in 0..60 {
        let vocab = [300, 1000, 4001][turn as usize % 3];
        let row = row(vocab, turn);
        let favourites = best_of(&row, 90);
        for (i, (temperature, top_k, top_p, min_p)) in
            [(0.0, 0, 1.0, 0.0), (0.7, 40, 0.95, 0.0), (1.0, 3, 1.0, 0.1), (1.3, 150, 0.999, 0.0)]
                .into_iter()
                .enumerate()
        {
            for (repetition_penalty, presence_penalty, frequency_penalty) in
                [(1.5, 0.0, 0.0), (1.0, 3.0, 0.0), (1.0, 0.0, 1e-3), (1.1, 0.5, 0.25), (9.0, 2.0, 2.0)]
            {
                let drawn = SequenceParams { temperature, top_k, top_p, min_p, ..SequenceParams::default() };
                let seed = turn * 5 + i as u64;
                let params =
                    SequenceParams { repetition_penalty, presence_penalty, frequency_penalty, seed, ..drawn };
                let of = |at: u64| favourites[(noise(seed << 20 | at).powi(2) * 90.0) as usize];
                let mut tokens: Vec<u32> = (0..5 + turn % 70).map(of).collect();
                // One that is not among the best, twice.
                tokens.extend([vocab as u32 - 1; 2]);
                let history = &History::new(&params, &tokens, 3);
                // Some of the last tokens may have been drafts when the row was asked for.
                let drafted = turn as usize % 4;
                let known = tokens.len() - drafted;
                let before = &History::new(&params, &tokens[..known], 3);
                let Want::Best(count) = wanted_after(before, &params, known - 3, drafted, vocab) else {
                    panic!("{params:?} needs all")
                };
                let context = Context { params: &params, tokens: &tokens, prompt_len: 3, history };
                let expected = sample(&row, context, &mut whole_scratch);
                let best = found(&row, count as usize, 1 + turn as usize % 4);
                let got = sample_best_after(&best, context, &mut best_scratch);
                assert_eq!(got, expected, "turn {turn}: {params:?}");
                let without = SequenceParams { repetition_penalty: 1.0, ..params.clone() };
                let without = SequenceParams { presence_penalty: 0.0, frequency_penalty: 0.0, ..without };
                changed += u32::from(sample_best(&best, &without, tokens.len(), &mut best_scratch) != got);
            }
        }
    }
    assert!(changed > 300, "penalties change {changed} of 1200 tokens");
}

#[test]
fn penalties_want_a_few_more_or_the_whole_row() {
    let greedy = SequenceParams { presence_penalty: 0.5, temperature: 0.0, ..SequenceParams::default() };
    let of = |params: &SequenceParams, tokens: &[u32]| {
        wanted_after(&History::new(params, tokens, 2), params, tokens.len() - 2, 0, 1000)
    };
    assert_eq!(of(&greedy, &[7, 8]), Want::Best(1));
    assert_eq!(of(&greedy, &[7, 8, 9, 9, 7]), Want::Best(3));
    let repeats = SequenceParams { repetition_penalty: 1.2, ..greedy.clone() };
    assert_eq!(of(&repeats, &[7, 8, 9, 9, 7]), Want::Best(4), "the prompt's as well");
    let many: Vec<u32> = (0..258).collect();
    assert_eq!((of(&greedy, &many[..257]), of(&greedy, &many)), (Want::Best(256), Want::Whole));
    let drawn = SequenceParams { temperature: 1.0, top_k: 40, ..greedy.clone() };
    assert_eq!(of(&drawn, &[7, 8, 9]), Want::Best(41));
    for params in [
        SequenceParams { top_k: 0, ..drawn.clone() },
        SequenceParams { presence_penalty: -0.5, ..greedy.clone() },
        SequenceParams { frequency_penalty: -0.5, ..greedy.clone() },
        SequenceParams { repetition_penalty: 0.9, ..greedy.clone() },
        SequenceParams { repetition_penalty: f32::NAN, ..greedy.clone() },
        SequenceParams { logprobs: Some(0), ..greedy.clone() },
        SequenceParams { logit_bias: vec![(1, -1.0)], ..greedy.clone() },
        SequenceParams { min_tokens: 9, ..greedy.clone() },
    ] {
        assert_eq!(of(&params, &[7, 8, 9]), Want::Whole, "{params:?}");
    }
    let plain = SequenceParams { presence_penalty: 0.0, ..greedy.clone() };
    assert_eq!(of(&plain, &[7, 8, 9]), Want::Best(1));
    let drafted =
        |params: &SequenceParams| wanted_after(&History::new(params, &[7, 8, 9], 2), params, 1, 5, 1000);
    assert_eq!((drafted(&greedy), drafted(&plain)), (Want::Best(7), Want::Best(1)), "as many as may come");
}

#[test]
fn a_first_token_is_drawn_of_no_more_than_top_k_however_many_are_given() {
    let (row, mut scratch) = (row(1000, 3), Scratch::default());
    let drawn =
        SequenceParams { temperature: 2.0, top_k: 3, presence_penalty: 0.5, ..SequenceParams::default() };
    for seed in 0..200 {
        let params = &SequenceParams { seed, ..drawn.clone() };
        let history = &History::new(params, &[7, 8], 2);
        let context = Context { params, tokens: &[7, 8], prompt_len: 2, history };
        let best = found(&row, 9, 1);
        let got = sample_best_after(&best, context, &mut scratch);
        assert_eq!(got, sample(&row, context, &mut scratch), "seed {seed}");
    }
}
