//! The shape of streams, and how they end.

use std::sync::atomic::Ordering;

use axum::http::StatusCode;
use futures::StreamExt;
use serde_json::{Value, json};

use super::{CHAT, COMPLETIONS, answer, events, post, send, text};
use crate::front_door::fixture::{FakeGenerator, Fixture};
use crate::router::GenerateError;

#[tokio::test]
async fn a_streamed_completion_says_the_same() {
    let fixture = Fixture::new(FakeGenerator { text: "one. two".into(), ..FakeGenerator::default() });
    let body = json!({"prompt": "hi", "stream": true, "echo": true, "logprobs": 0, "return_token_ids": true,
        "stop": [". "], "stream_options": {"include_usage": true}});
    let events = events(&fixture, COMPLETIONS, body).await;
    let (usage, events) = events.split_last().expect("some");
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(5)));
    let (last, events) = events.split_last().expect("some");
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    let text: String = events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(text, "hione");
    let first = &events[0]["choices"][0];
    assert_eq!((&first["prompt_token_ids"], &first["token_ids"]), (&json!([104, 105]), &json!([])));
    let offsets: Vec<_> =
        events.iter().map(|event| event["choices"][0]["logprobs"]["text_offset"].clone()).collect();
    assert_eq!(offsets, [json!([0, 1]), json!([2]), json!([3]), json!([4]), json!([5]), json!([6])]);
    assert!(events.iter().all(|event| event["choices"][0]["finish_reason"].is_null()));
}

#[tokio::test]
async fn a_chat_is_rendered_answered_and_streamed() {
    let fixture = Fixture::new(FakeGenerator { text: "hé".into(), ..FakeGenerator::default() });
    let messages = json!([{"role": "system", "content": "be"},
        {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]);
    let value = answer(&fixture, CHAT, json!({"messages": messages, "max_completion_tokens": 9})).await;
    let message = &value["choices"][0]["message"];
    assert_eq!(
        (&value["object"], message),
        (&json!("chat.completion"), &json!({"role": "assistant", "content": "hé"}))
    );
    assert_eq!(value["usage"]["completion_tokens"], 4);
    let asked = fixture.generator.asked.lock().expect("no panic")[0].clone();
    let prompt: Vec<u32> = "[system]be[user]hi[assistant]".bytes().map(u32::from).collect();
    assert_eq!((asked.tokens, asked.params.max_tokens), (prompt, 9));

    let events = events(&fixture, CHAT, json!({"messages": messages, "stream": true})).await;
    assert!(events.iter().all(|event| event["object"] == "chat.completion.chunk"));
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let text: String =
        events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, "hé");
    let last = &events.last().expect("some")["choices"][0];
    assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &json!("stop")));
    let asked = fixture.generator.asked.lock().expect("no panic")[1].clone();
    assert_eq!(asked.params.max_tokens, 100 - 29, "the rest of the context");
}

#[tokio::test]
async fn a_failure_in_the_middle_of_a_stream_is_an_event() {
    let error = GenerateError::Internal("broken".into());
    let fixture = Fixture::new(FakeGenerator { fails: Some((3, error)), ..FakeGenerator::default() });
    let response =
        send(&fixture, post(COMPLETIONS, json!({"prompt": "hi", "stream": true}).to_string())).await;
    let (status, _, text) = text(response).await;
    assert_eq!(status, StatusCode::OK);
    let last = text.lines().filter_map(|line| line.strip_prefix("data: ")).next_back().expect("some");
    let last: Value = serde_json::from_str(last).expect("not [DONE]");
    assert_eq!(last["error"]["message"], "internal error: broken");
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_request() {
    let fixture = Fixture::new(FakeGenerator { hangs: Some(3), ..FakeGenerator::default() });
    let response =
        send(&fixture, post(COMPLETIONS, json!({"prompt": "hi", "stream": true}).to_string())).await;
    let mut body = response.into_body().into_data_stream();
    body.next().await.expect("a first event").expect("no error");
    assert_eq!(fixture.generator.open.load(Ordering::SeqCst), 1);
    drop(body);
    assert_eq!(fixture.generator.open.load(Ordering::SeqCst), 0);
    let cancelled = &["m", "completions", "cancelled"];
    assert_eq!(fixture.door.metrics.requests.with_label_values(cancelled).get(), 1);
}
