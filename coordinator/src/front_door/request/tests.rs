//! Every limit, and what is filled in.

use super::sampling::seed_of;
use super::*;
use crate::front_door::api_error::Kind;

fn model() -> Arc<ServedModel> {
    Arc::new(ServedModel {
        name: "m".into(),
        deployment: "m".into(),
        adapter: None,
        created: 0,
        context: 100,
        vocab: 50,
        tokenizer: None,
        template: None,
        eos: vec![2],
    })
}

fn field(prompt: Vec<u32>, ask: Ask) -> Option<&'static str> {
    check(model(), None, Prompt::Tokens(prompt), ask, true).err().map(|error| {
        assert_eq!(error.kind, Kind::Invalid, "{error:?}");
        error.field.expect("names the field")
    })
}

#[test]
fn every_limit_names_its_field() {
    let ask = Ask::default;
    for (prompt, ask, expected) in [
        (vec![1], ask(), None),
        (vec![], ask(), Some("prompt")),
        (vec![1, 50], ask(), Some("prompt")),
        (vec![1; 100], ask(), Some("prompt")),
        (vec![1; 101], Ask { echo: true, max_tokens: Some(0), ..ask() }, Some("prompt")),
        (vec![1; 100], Ask { echo: true, max_tokens: Some(0), ..ask() }, None),
        (vec![1; 90], Ask { max_tokens: Some(10), ..ask() }, None),
        (vec![1; 90], Ask { max_tokens: Some(11), ..ask() }, Some("max_tokens")),
        (vec![1], Ask { max_tokens: Some(u32::MAX), ..ask() }, Some("max_tokens")),
        (vec![1], Ask { max_tokens: Some(0), ..ask() }, Some("max_tokens")),
        (vec![1], Ask { temperature: Some(-0.1), ..ask() }, Some("temperature")),
        (vec![1], Ask { temperature: Some(f32::NAN), ..ask() }, Some("temperature")),
        (vec![1], Ask { temperature: Some(f32::INFINITY), ..ask() }, Some("temperature")),
        (vec![1], Ask { top_p: Some(0.0), ..ask() }, Some("top_p")),
        (vec![1], Ask { top_p: Some(1.01), ..ask() }, Some("top_p")),
        (vec![1], Ask { top_p: Some(f32::NAN), ..ask() }, Some("top_p")),
        (vec![1], Ask { logprobs: Some(21), ..ask() }, Some("logprobs")),
        (vec![1], Ask { stop: vec!["x".into(); 17], ..ask() }, Some("stop")),
        (vec![1], Ask { stop: vec![String::new()], ..ask() }, Some("stop")),
        (vec![1], Ask { stop_token_ids: vec![50], ..ask() }, Some("stop_token_ids")),
        (vec![1], Ask { stop_token_ids: vec![1; 65], ..ask() }, Some("stop_token_ids")),
        (vec![1], Ask { prompt_logprobs: Some(21), ..ask() }, Some("prompt_logprobs")),
        (vec![1], Ask { min_p: Some(1.0), ..ask() }, None),
        (vec![1], Ask { min_p: Some(-0.1), ..ask() }, Some("min_p")),
        (vec![1], Ask { min_p: Some(f32::NAN), ..ask() }, Some("min_p")),
        (vec![1], Ask { repetition_penalty: Some(0.01), ..ask() }, None),
        (vec![1], Ask { repetition_penalty: Some(0.0), ..ask() }, Some("repetition_penalty")),
        (vec![1], Ask { repetition_penalty: Some(f32::INFINITY), ..ask() }, Some("repetition_penalty")),
        (vec![1], Ask { presence_penalty: Some(-2.0), ..ask() }, None),
        (vec![1], Ask { presence_penalty: Some(2.1), ..ask() }, Some("presence_penalty")),
        (vec![1], Ask { frequency_penalty: Some(-2.1), ..ask() }, Some("frequency_penalty")),
        (vec![1], Ask { logit_bias: vec![(49, -100.0)], ..ask() }, None),
        (vec![1], Ask { logit_bias: vec![(49, 100.5)], ..ask() }, Some("logit_bias")),
        (vec![1], Ask { logit_bias: vec![(49, f32::NAN)], ..ask() }, Some("logit_bias")),
        (vec![1], Ask { logit_bias: vec![(50, 1.0)], ..ask() }, Some("logit_bias")),
        (vec![1], Ask { logit_bias: vec![(1, 1.0); 1025], ..ask() }, Some("logit_bias")),
        (vec![1], Ask { allowed_token_ids: vec![3], ..ask() }, None),
        (vec![1], Ask { allowed_token_ids: vec![50], ..ask() }, Some("allowed_token_ids")),
        (vec![1], Ask { allowed_token_ids: vec![1; 16_385], ..ask() }, Some("allowed_token_ids")),
        (
            vec![1],
            Ask { allowed_token_ids: vec![3, 4], banned_token_ids: vec![4, 3], ..ask() },
            Some("allowed_token_ids"),
        ),
        (vec![1], Ask { allowed_token_ids: vec![2], min_tokens: 1, ..ask() }, Some("allowed_token_ids")),
        (vec![1], Ask { allowed_token_ids: vec![2, 3], min_tokens: 1, ..ask() }, None),
        (vec![1], Ask { banned_token_ids: vec![50], ..ask() }, Some("banned_token_ids")),
        (vec![1], Ask { banned_token_ids: vec![1; 1025], ..ask() }, Some("banned_token_ids")),
        (vec![1], Ask { bad_words: vec!["no tokenizer".into()], ..ask() }, Some("bad_words")),
        (vec![1], Ask { bad_words: vec![String::new()], ..ask() }, Some("bad_words")),
        (vec![1], Ask { min_tokens: 99, ..ask() }, None),
        (vec![1], Ask { min_tokens: 100, ..ask() }, Some("min_tokens")),
        (vec![1], Ask { min_tokens: 4, max_tokens: Some(3), ..ask() }, Some("min_tokens")),
        (vec![1], Ask { n: Some(16), ..ask() }, None),
        (vec![1], Ask { n: Some(0), ..ask() }, Some("n")),
        (vec![1], Ask { n: Some(17), ..ask() }, Some("n")),
        (vec![1], Ask { priority: -1000, ..ask() }, None),
        (vec![1], Ask { priority: 1001, ..ask() }, Some("priority")),
        (vec![1], Ask { priority: i32::MIN, ..ask() }, Some("priority")),
        (vec![1], Ask { deadline_ms: Some(86_400_000), ..ask() }, None),
        (vec![1], Ask { deadline_ms: Some(0), ..ask() }, Some("deadline_ms")),
        (vec![1], Ask { deadline_ms: Some(86_400_001), ..ask() }, Some("deadline_ms")),
        (vec![1], Ask { cache_salt: Some("x".repeat(256)), ..ask() }, None),
        (vec![1], Ask { cache_salt: Some(String::new()), ..ask() }, Some("cache_salt")),
        (vec![1], Ask { cache_salt: Some("x".repeat(257)), ..ask() }, Some("cache_salt")),
        (vec![1], Ask { session: Some("x".repeat(256)), ..ask() }, None),
        (vec![1], Ask { session: Some(String::new()), ..ask() }, Some("prompt_cache_key")),
        (vec![1], Ask { session: Some("x".repeat(257)), ..ask() }, Some("prompt_cache_key")),
    ] {
        assert_eq!(field(prompt, ask.clone()), expected, "{ask:?}");
    }
}

#[test]
fn defaults_are_filled_in() {
    let run = check(
        model(),
        None,
        Prompt::Tokens(vec![1; 30]),
        Ask { request_id: "r".into(), ..Ask::default() },
        true,
    );
    let params = run.map_err(|e| e.message).expect("valid").sequence.params;
    assert_eq!((params.max_tokens, params.temperature, params.top_p, params.top_k), (70, 1.0, 1.0, 0));
    assert_eq!((params.stop_token_ids, params.seed), (vec![2], seed_of("r")));
    let ask = Ask { ignore_eos: true, seed: Some(4), ..Ask::default() };
    let run = check(model(), None, Prompt::Tokens(vec![1]), ask, true).map_err(|e| e.message).expect("valid");
    assert_eq!((run.sequence.params.stop_token_ids, run.sequence.params.seed), (vec![], 4));
}

/// A checked request for the model whose tokens are bytes.
fn checked(ask: Ask) -> GenerationRequest {
    let model = Arc::new(crate::front_door::fixture::model(Some(crate::text::fixture::byte_tokenizer())));
    check(model, None, Prompt::Tokens(vec![1]), ask, true).map_err(|e| e.message).expect("valid")
}

#[test]
fn bans_are_written_in_tokens() {
    let params = |ask| checked(ask).sequence.params;
    let words = ["no", "  x", "a b"].map(str::to_owned).to_vec();
    let banned = params(Ask { bad_words: words, banned_token_ids: vec![7], ..Ask::default() });
    let bytes = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    assert_eq!(banned.bad_words, [vec![7], bytes("no"), bytes("x"), bytes("a b")], "a space is a token here");
    let held = |ignore_eos, min_tokens| {
        let params = params(Ask { ignore_eos, min_tokens, stop_token_ids: vec![9], ..Ask::default() });
        (params.stop_token_ids, params.held_token_ids)
    };
    assert_eq!(held(false, 3), (vec![9, 256], vec![]));
    assert_eq!(held(true, 3), (vec![9], vec![256]));
    assert_eq!(held(true, 0), (vec![9], vec![]));
}

#[test]
fn what_is_asked_of_the_prompt_is_told_once() {
    let params = |ask| checked(ask).sequence.params;
    for (echo, logprobs, prompt_logprobs, expected) in [
        (false, Some(3), None, (false, 0)),
        (true, None, None, (false, 0)),
        (true, Some(3), None, (true, 3)),
        (false, Some(3), Some(0), (true, 0)),
        (true, Some(3), Some(1), (true, 3)),
        (true, None, Some(4), (true, 4)),
    ] {
        let asked = params(Ask { echo, logprobs, prompt_logprobs, ..Ask::default() });
        assert_eq!((asked.prompt_logprobs, asked.prompt_top_logprobs), expected);
    }
}

#[test]
fn choices_differ_in_name_and_seed_alone() {
    let ask = Ask {
        request_id: "r".into(),
        n: Some(3),
        seed: Some(u64::MAX),
        prompt_logprobs: Some(1),
        priority: -4,
        cache_salt: Some("s".into()),
        ..Ask::default()
    };
    let request = checked(ask);
    let choices = request.sequences();
    assert_eq!(choices[0], request.sequence);
    let told: Vec<_> = choices
        .iter()
        .map(|choice| (choice.request_id.as_str(), choice.params.seed, choice.params.prompt_logprobs))
        .collect();
    assert_eq!(told, [("r", u64::MAX, true), ("r#1", 0, false), ("r#2", 1, false)]);
    let siblings: Vec<_> = choices.iter().map(|choice| choice.sibling_of.as_deref()).collect();
    assert_eq!(siblings, [None, Some("r"), Some("r")]);
    for choice in &choices {
        let same = (choice.tokens == [1], choice.priority, choice.cache_salt.as_deref());
        assert_eq!(same, (true, -4, Some("s")));
    }
}

#[test]
fn the_cache_bounds_what_the_context_does_not() {
    let asked = |prompt: usize, kv, max_tokens, default_max_tokens| {
        let ask = Ask { max_tokens, default_max_tokens, ..Ask::default() };
        let run = check(model(), kv, Prompt::Tokens(vec![1; prompt]), ask, true);
        run.map(|run| run.sequence.params.max_tokens).map_err(|e| e.message)
    };
    for (prompt, kv, max, default, expected) in [
        (30, None, None, None, Ok(70)),
        (30, Some(64), None, None, Ok(35)),
        (30, Some(64), Some(35), None, Ok(35)),
        (64, Some(64), None, None, Ok(1)),
        (30, Some(1000), None, None, Ok(70)),
        (30, None, None, Some(16), Ok(16)),
        (90, None, None, Some(16), Ok(10)),
        (60, Some(64), None, Some(16), Ok(5)),
        (
            30,
            Some(64),
            Some(36),
            None,
            Err("max_tokens: 36, but the prompt's 30 tokens leave 35 in the KV cache of 64"),
        ),
        (
            90,
            Some(900),
            Some(11),
            Some(16),
            Err("max_tokens: 11, but the prompt's 90 tokens leave 10 in the context of 100"),
        ),
        (65, Some(64), None, None, Err("prompt: 65 tokens do not fit the KV cache, which holds 64")),
    ] {
        let expected = expected.map_err(str::to_owned);
        assert_eq!(asked(prompt, kv, max, default), expected, "{prompt} {kv:?} {max:?} {default:?}");
    }
}

#[test]
fn request_ids_are_visible_ascii_or_made_up() {
    assert_eq!(request_id("abc-1").map_err(|e| e.message), Ok("abc-1".into()));
    for bad in ["a b", "é", &"x".repeat(129)] {
        assert_eq!(request_id(bad).err().and_then(|e| e.field), Some("request_id"));
    }
    assert_ne!(request_id("").map_err(|e| e.message), request_id("").map_err(|e| e.message));
}
