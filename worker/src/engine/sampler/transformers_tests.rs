//! Against the logits processors of transformers: see `tests/tools/make_sampling.py`.

use foggara_kernels::op::draw::weigh;
use serde_json::Value;

use super::*;
use crate::draw::shorten;

const CASES: &str = include_str!("../../../../tests/expected/sampling.json");

fn numbers<T>(case: &Value, field: &str, number: impl Fn(&Value) -> Option<T>) -> Vec<T> {
    let list = case[field].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().map(|value| number(value).expect("a number")).collect()
}

fn float(value: &Value) -> Option<f32> {
    value.as_f64().map(|x| x as f32)
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|x| u32::try_from(x).ok())
}

fn params(case: &Value) -> SequenceParams {
    let number = |field: &str, default| float(&case[field]).unwrap_or(default);
    let count = |field: &str| id(&case[field]).unwrap_or(0);
    let bias = |entry: &Value| Some((id(&entry[0])?, float(&entry[1])?));
    let word = |word: &Value| Some(word.as_array()?.iter().filter_map(id).collect());
    SequenceParams {
        temperature: number("temperature", 1.0),
        top_p: number("top_p", 1.0),
        top_k: count("top_k"),
        min_p: number("min_p", 0.0),
        repetition_penalty: number("repetition_penalty", 1.0),
        presence_penalty: number("presence_penalty", 0.0),
        frequency_penalty: number("frequency_penalty", 0.0),
        logit_bias: numbers(case, "logit_bias", bias),
        allowed_token_ids: numbers(case, "allowed_token_ids", id),
        bad_words: numbers(case, "bad_words", word),
        min_tokens: count("min_tokens"),
        stop_token_ids: numbers(case, "stop_token_ids", id),
        ..SequenceParams::default()
    }
}

/// What would be drawn from, by token.
fn probabilities(logits: &[f32], sequence: Context<'_>) -> Vec<f64> {
    let (mut row, mut weights, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    if !processors::process(logits, sequence, &mut row) {
        row = logits.to_vec();
    }
    let rule = rule(sequence.params);
    weigh(&row, row[argmax(&row)], rule.scale, rule.least, &mut weights);
    if !shorten(&row, &weights, rule.share, sequence.params.top_k as usize, &mut kept) {
        kept = (0..logits.len() as u32).collect();
    }
    let weight = |id: &u32| weights[*id as usize] as f64;
    let total: f64 = kept.iter().map(weight).sum();
    let mut probabilities = vec![0.0; logits.len()];
    kept.iter().for_each(|id| probabilities[*id as usize] = weight(id) / total);
    probabilities
}

#[test]
fn probabilities_are_those_of_transformers() {
    let cases: Vec<Value> = serde_json::from_str(CASES).expect("valid");
    assert!(cases.len() > 50);
    for case in &cases {
        let params = params(case);
        let prompt = numbers(case, "prompt", id);
        let tokens = [prompt.clone(), numbers(case, "answer", id)].concat();
        let history = &History::new(&params, &tokens, prompt.len());
        let sequence = Context { params: &params, tokens: &tokens, prompt_len: prompt.len(), history };
        let expected = numbers(case, "probabilities", Value::as_f64);
        let got = probabilities(&numbers(case, "logits", float), sequence);
        for (token, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let close = (got - expected).abs() <= 2e-5 * expected + 1e-12;
            // What is less than 2^-40 as likely as the likeliest is never drawn; what is impossible is not, either.
            let possible = if *got > 0.0 { *expected > 1e-30 } else { *expected < 1e-12 };
            assert!(close && possible, "token {token}: {got} {expected}\n{case}");
        }
    }
}
