//! The parameters of sampling, and several choices, over HTTP.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::tests::{CHAT, COMPLETIONS, answer, ask, events};
use crate::front_door::fixture::{FakeGenerator, Fixture};

fn says(text: &str) -> Fixture {
    Fixture::new(FakeGenerator { text: text.into(), ..FakeGenerator::default() })
}

#[tokio::test]
async fn every_parameter_reaches_the_sampler() {
    let fixture = says("ab");
    let body = json!({"prompt": "hi", "min_p": 0.25, "repetition_penalty": 1.5, "presence_penalty": -1,
        "frequency_penalty": 0.5, "logit_bias": {"9": -100, "10": 2.5}, "allowed_token_ids": [97, 98],
        "banned_token_ids": [3], "bad_words": ["x"], "min_tokens": 1, "max_completion_tokens": 5, "max_tokens": 9,
        "priority": -3, "cache_salt": "mine", "deadline_ms": 900, "seed": 8, "prompt_cache_key": "a chat"});
    answer(&fixture, COMPLETIONS, body.clone()).await;
    let mut chat = body;
    chat["messages"] = json!([{"role": "user", "content": "hi"}]);
    answer(&fixture, CHAT, chat).await;
    for asked in fixture.generator.asked.lock().expect("no panic").iter() {
        let params = &asked.params;
        assert_eq!((params.min_p, params.repetition_penalty), (0.25, 1.5));
        assert_eq!((params.presence_penalty, params.frequency_penalty), (-1.0, 0.5));
        assert_eq!(params.logit_bias, [(9, -100.0), (10, 2.5)]);
        assert_eq!(params.allowed_token_ids, [97, 98]);
        assert_eq!(params.bad_words, [vec![3], vec![u32::from(b'x')]]);
        assert_eq!((params.min_tokens, params.max_tokens, params.seed), (1, 5, 8));
        assert_eq!((asked.priority, asked.cache_salt.as_deref()), (-3, Some("mine")));
        assert_eq!((asked.deadline_ms, asked.session.as_deref()), (Some(900), Some("a chat")));
    }
}

#[tokio::test]
async fn mistakes_in_them_are_named() {
    let fixture = says("ab");
    for (field, value) in [
        ("n", json!(17)),
        ("n", json!(0)),
        ("n", json!("3")),
        ("best_of", json!(2)),
        ("min_p", json!(1.5)),
        ("repetition_penalty", json!(0)),
        ("presence_penalty", json!(3)),
        ("frequency_penalty", json!(-3)),
        ("logit_bias", json!({"x": 1})),
        ("logit_bias", json!({"5": 101})),
        ("logit_bias", json!({"300": 1})),
        ("logit_bias", json!({"5": "1"})),
        ("logit_bias", json!({"5": 1, "05": 2})),
        ("logit_bias", json!([1])),
        ("allowed_token_ids", json!([300])),
        ("allowed_token_ids", json!(["a"])),
        ("banned_token_ids", json!([-1])),
        ("bad_words", json!([" "])),
        ("bad_words", json!([""])),
        ("min_tokens", json!(17)),
        ("min_tokens", json!(-1)),
        ("prompt_logprobs", json!(21)),
        ("prompt_logprobs", json!(-1)),
        ("include_stop_str_in_output", json!(1)),
        ("skip_special_tokens", json!("no")),
        ("priority", json!(5000)),
        ("priority", json!(0.5)),
        ("cache_salt", json!("")),
        ("cache_salt", json!(7)),
        ("prompt_cache_key", json!("")),
        ("prompt_cache_key", json!("x".repeat(257))),
        ("prompt_cache_key", json!(7)),
        ("deadline_ms", json!(0)),
        ("deadline_ms", json!(-1)),
        ("length_penalty", json!(2)),
    ] {
        let mut body = json!({"prompt": "hi"});
        body[field] = value;
        let (status, _, answer) = ask(&fixture, COMPLETIONS, &body).await;
        let error = &answer["error"];
        assert_eq!(
            (status, error["param"].as_str()),
            (StatusCode::BAD_REQUEST, Some(field)),
            "{body}: {answer}"
        );
        assert!(error["message"].as_str().is_some_and(|message| message.starts_with(field)), "{error}");
    }
    let many = json!({"prompt": vec!["a"; 20], "n": 7});
    let (_, _, value) = ask(&fixture, COMPLETIONS, &many).await;
    assert_eq!(
        value["error"]["message"], "n: 7 answers to each of 20 prompts, at most 128 answers in all",
        "{value}"
    );
    let streamed = json!({"prompt": "hi", "prompt_logprobs": 1, "stream": true});
    assert_eq!(ask(&fixture, COMPLETIONS, &streamed).await.2["error"]["param"], "prompt_logprobs");
    assert!(fixture.generator.asked.lock().expect("no panic").is_empty(), "nothing was begun");
}

#[tokio::test]
async fn several_choices_are_answered_in_their_places() {
    let fixture = says("ab");
    let body = json!({"prompt": ["x", "yz"], "n": 2, "best_of": 2, "seed": 5, "echo": true});
    let value = answer(&fixture, COMPLETIONS, body).await;
    let told: Vec<_> =
        value["choices"].as_array().expect("a list").iter().map(|c| (&c["index"], &c["text"])).collect();
    let places = [(0, "xab"), (1, "xab"), (2, "yzab"), (3, "yzab")].map(|(i, text)| (json!(i), json!(text)));
    assert_eq!(told, places.iter().map(|(index, text)| (index, text)).collect::<Vec<_>>());
    assert_eq!(
        value["usage"],
        json!({"prompt_tokens": 3, "completion_tokens": 12, "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 0}})
    );
    let seeds: Vec<u64> =
        fixture.generator.asked.lock().expect("no panic").iter().map(|asked| asked.params.seed).collect();
    assert_eq!(seeds, [5, 6, 5, 6]);

    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "n": 3, "return_token_ids": true});
    let value = answer(&fixture, CHAT, chat).await;
    for (index, choice) in value["choices"].as_array().expect("a list").iter().enumerate() {
        assert_eq!((&choice["index"], &choice["message"]["content"]), (&json!(index), &json!("ab")));
        assert_eq!(choice["token_ids"], json!([97, 98, 256]));
    }
    assert_eq!(value["choices"].as_array().map(Vec::len), Some(3));
    assert_eq!(value["usage"]["completion_tokens"], 9);
}

/// Texts and ends of a stream's choices.
fn by_choice(events: &[Value], n: usize, text: impl Fn(&Value) -> Option<&str>) -> Vec<(String, Vec<Value>)> {
    let mut choices = vec![(String::new(), Vec::new()); n];
    for choice in events.iter().flat_map(|event| event["choices"].as_array().expect("a list")) {
        let (so_far, ends) = &mut choices[choice["index"].as_u64().expect("a number") as usize];
        assert!(ends.is_empty(), "nothing after the end: {choice}");
        so_far.push_str(text(choice).unwrap_or_default());
        ends.extend(Some(choice["finish_reason"].clone()).filter(|reason| !reason.is_null()));
    }
    choices
}

#[tokio::test]
async fn streams_of_several_choices_say_whose_each_piece_is() {
    let fixture = says("abc");
    let expected = |text: &str, n| vec![(text.to_owned(), vec![json!("stop")]); n];
    let options = json!({"include_usage": true});
    let body = json!({"prompt": "hi", "n": 2, "echo": true, "stream": true, "stream_options": options});
    let told = events(&fixture, COMPLETIONS, body).await;
    assert_eq!(by_choice(&told, 2, |choice| choice["text"].as_str()), expected("hiabc", 2));
    let usage = |events: &[Value]| events.last().expect("some")["usage"].clone();
    let details = json!({"cached_tokens": 0});
    let expected_usage = json!({"prompt_tokens": 2, "completion_tokens": 8, "total_tokens": 10,
        "prompt_tokens_details": details});
    assert_eq!(usage(&told), expected_usage);

    let messages = json!([{"role": "user", "content": "hi"}]);
    let body = json!({"messages": messages, "n": 3, "stream": true, "stream_options": options});
    let told = events(&fixture, CHAT, body).await;
    assert_eq!(by_choice(&told, 3, |choice| choice["delta"]["content"].as_str()), expected("abc", 3));
    let roles = told.iter().filter(|event| event["choices"][0]["delta"]["role"] == "assistant").count();
    assert_eq!((roles, &usage(&told)["completion_tokens"]), (3, &json!(12)));
    let ids: std::collections::BTreeSet<_> = told.iter().map(|event| event["id"].to_string()).collect();
    assert_eq!(ids.len(), 1, "one answer");
}

#[tokio::test]
async fn what_stopped_an_answer_is_told() {
    let fixture = says("abc");
    for (field, value, text, reason) in [
        ("stop", json!("b"), "a", json!("b")),
        ("stop_token_ids", json!([98]), "a", json!(98)),
        ("max_tokens", json!(1), "a", Value::Null),
        ("seed", json!(1), "abc", Value::Null),
    ] {
        let mut body = json!({"prompt": "hi"});
        body[field] = value;
        let choice = &answer(&fixture, COMPLETIONS, body.clone()).await["choices"][0];
        assert_eq!((&choice["text"], &choice["stop_reason"]), (&json!(text), &reason), "{body}");
        body["include_stop_str_in_output"] = json!(true);
        let choice = &answer(&fixture, COMPLETIONS, body.clone()).await["choices"][0];
        let whole = if reason.is_null() { text } else { "ab" };
        assert_eq!(choice["text"], whole, "{body}");
    }
    let special = json!({"prompt": "hi", "include_stop_str_in_output": true, "skip_special_tokens": false});
    assert_eq!(answer(&fixture, COMPLETIONS, special).await["choices"][0]["text"], "abc<|end|>");
}

#[tokio::test]
async fn prompts_are_scored_without_an_echo() {
    let fixture = says("ab");
    let entry = |logprob: f32, rank: Value, token: &str| json!({"logprob": logprob, "rank": rank, "decoded_token": token});
    let body = json!({"prompt": "hi", "prompt_logprobs": 1, "n": 2});
    let value = answer(&fixture, COMPLETIONS, body).await;
    let expected = json!([null, {"105": entry(-0.5, json!(1), "i")}]);
    for choice in value["choices"].as_array().expect("a list") {
        assert_eq!((&choice["text"], &choice["prompt_logprobs"]), (&json!("ab"), &expected));
        assert_eq!(choice["logprobs"], Value::Null);
    }
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "prompt_logprobs": 0});
    let value = answer(&fixture, CHAT, chat).await;
    let scored = value["prompt_logprobs"].as_array().expect("a list");
    assert_eq!(scored.len(), "[user]hi[assistant]".len());
    assert_eq!(scored[1], json!({"117": entry(-0.5, Value::Null, "u")}), "its rank is not known");
}
