//! Against the same thing written plainly: everything sorted, everything in double precision.

use proptest::prelude::*;

use super::*;

/// The processed logits, step by step.
fn processed(logits: &[f32], params: &SequenceParams, prompt: &[u32], answer: &[u32]) -> Vec<f32> {
    let possible = |id: u32| params.allowed_token_ids.is_empty() || params.allowed_token_ids.contains(&id);
    let banned = |id: u32| {
        let ends = params.stop_token_ids.contains(&id) || params.held_token_ids.contains(&id);
        let said = [answer, &[id]].concat();
        (ends && answer.len() < params.min_tokens as usize)
            || params.bad_words.iter().any(|word| said.ends_with(word))
    };
    let ids = 0..logits.len() as u32;
    let nothing = !ids.clone().any(|id| possible(id) && !banned(id));
    let logit = |id: u32| {
        if !possible(id) || (banned(id) && !nothing) {
            return f32::NEG_INFINITY;
        }
        let mut logit = logits[id as usize];
        for (_, bias) in params.logit_bias.iter().filter(|(token, _)| *token == id) {
            logit += bias;
        }
        let count = answer.iter().filter(|token| **token == id).count();
        if count > 0 || prompt.contains(&id) {
            let penalty = params.repetition_penalty;
            logit = if logit > 0.0 { logit / penalty } else { logit * penalty };
        }
        if count > 0 {
            logit = logit - params.frequency_penalty * count as f32 - params.presence_penalty;
        }
        logit
    };
    ids.map(logit).collect()
}

/// The tokens that may be drawn with their weights, by id.
fn candidates(row: &[f32], params: &SequenceParams) -> Vec<(usize, f64)> {
    let greatest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: f32| f64::from((logit - greatest) / params.temperature).exp();
    let mut sorted: Vec<(usize, f64)> = row.iter().map(|logit| weight(*logit)).enumerate().collect();
    sorted.retain(|(_, weight)| *weight >= f64::from(params.min_p));
    sorted.sort_by(|a, b| row[b.0].total_cmp(&row[a.0]).then(a.0.cmp(&b.0)));
    if params.top_k > 0 {
        sorted.truncate(params.top_k as usize);
    }
    let total: f64 = sorted.iter().map(|(_, weight)| weight).sum();
    let mut sum = 0.0;
    sorted.retain(|(_, weight)| {
        let wanted = sum < f64::from(params.top_p) * total;
        sum += weight;
        wanted
    });
    sorted.sort_by_key(|(id, _)| *id);
    sorted
}

/// The token at a random number; `None` if another one is so near that rounding decides.
fn drawn(candidates: &[(usize, f64)], uniform: f64) -> Option<usize> {
    let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
    let mut sum = 0.0;
    for (id, weight) in candidates {
        sum += weight;
        if (sum / total - uniform).abs() < 1e-6 {
            return None;
        }
        if sum > uniform * total {
            return Some(*id);
        }
    }
    None
}

prop_compose! {
    fn any_params(vocab: u32)(
        (temperature, top_p, top_k, min_p) in
            (prop_oneof![Just(0.0f32), 0.2f32..3.0], prop_oneof![Just(1.0f32), 0.05f32..0.99],
                prop_oneof![Just(0u32), 1u32..80], prop_oneof![Just(0.0f32), 0.001f32..0.6]),
        (repetition_penalty, presence_penalty, frequency_penalty) in
            (prop_oneof![Just(1.0f32), 0.5f32..2.0], prop_oneof![Just(0.0f32), -2.0f32..2.0],
                prop_oneof![Just(0.0f32), -2.0f32..2.0]),
        logit_bias in prop::collection::vec((0..vocab, -5.0f32..5.0), 0..3),
        allowed_token_ids in prop_oneof![Just(vec![]), prop::collection::vec(0..vocab, 1..9)],
        bad_words in prop::collection::vec(prop::collection::vec(0..vocab, 1..3), 0..3),
        min_tokens in 0u32..6,
        stop_token_ids in prop::collection::vec(0..vocab, 0..3),
        held_token_ids in prop::collection::vec(0..vocab, 0..2),
        seed in any::<u64>(),
    ) -> SequenceParams {
        SequenceParams {
            temperature, top_p, top_k, min_p, repetition_penalty, presence_penalty, frequency_penalty, logit_bias,
            allowed_token_ids, bad_words, min_tokens, stop_token_ids, held_token_ids, seed, ..SequenceParams::default()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn the_sampler_is_its_plain_reading(
        // Multiples of a quarter: many are equal.
        logits in prop::collection::vec((-24i8..24).prop_map(|x| f32::from(x) * 0.25), 12..400),
        params in any_params(12),
        prompt in prop::collection::vec(0u32..12, 1..5),
        answer in prop::collection::vec(0u32..12, 0..8),
    ) {
        let tokens = [&prompt[..], &answer[..]].concat();
        let history = &History::new(&params, &tokens, prompt.len());
        let context = Context { params: &params, tokens: &tokens, prompt_len: prompt.len(), history };
        let got = sample(&logits, context, &mut Scratch::default()).token as usize;
        let row = processed(&logits, &params, &prompt, &answer);
        if params.temperature == 0.0 {
            let best = (0..row.len()).rev().max_by(|a, b| row[*a].total_cmp(&row[*b]));
            prop_assert_eq!(Some(row[got]), best.map(|best| row[best]));
            prop_assert!(!row[..got].contains(&row[got]), "of equals the first");
            return Ok(());
        }
        let candidates = candidates(&row, &params);
        let Some(expected) = drawn(&candidates, uniform(params.seed, tokens.len())) else { return Ok(()) };
        // Where top-p ends within rounding of a token, that token may be in or out.
        if got != expected {
            let slightly = |share: f32| SequenceParams { top_p: params.top_p * share, min_p: params.min_p * share, ..params.clone() };
            let near = [1.0 - 1e-5, 1.0 + 1e-5].map(|share| {
                drawn(&self::candidates(&row, &slightly(share)), uniform(params.seed, tokens.len()))
            });
            prop_assert!(near.iter().any(|near| near.is_none_or(|near| near == got)), "{} {} {:?}", got, expected, near);
        }
    }

    #[test]
    fn the_likeliest_are_those_of_a_sort(
        logits in prop::collection::vec(prop_oneof![
            (-20i8..20).prop_map(f32::from), Just(f32::NEG_INFINITY), Just(f32::NAN), Just(-0.0f32)
        ], 0..600),
        count in 0usize..90,
    ) {
        let key = |id: &u32| if logits[*id as usize].is_nan() { f32::NEG_INFINITY } else { logits[*id as usize] };
        let mut sorted: Vec<u32> = (0..logits.len() as u32).collect();
        sorted.sort_by(|a, b| key(b).partial_cmp(&key(a)).expect("numbers"));
        sorted.truncate(count);
        let mut best = vec![77];
        crate::best::likeliest(&logits, count, &mut best);
        sorted.sort_unstable();
        best.sort_unstable();
        prop_assert_eq!(best, sorted);
    }
}
