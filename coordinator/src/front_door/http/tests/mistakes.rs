//! Statuses and bodies of what is refused.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use futures::StreamExt;
use serde_json::{Value, json};

use super::{CHAT, COMPLETIONS, answer, ask, post, send, text};
use crate::front_door::MAX_BODY_BYTES;
use crate::front_door::fixture::{FakeGenerator, Fixture};
use crate::router::GenerateError;

#[tokio::test]
async fn every_mistake_has_its_status_and_names_its_field() {
    let fixture = Fixture::new(FakeGenerator::default());
    let user = json!([{"role": "user", "content": "hi"}]);
    for (path, body, status, field) in [
        (COMPLETIONS, json!({"prompt": "hi", "model": "other"}), 404, Some("model")),
        (COMPLETIONS, json!({"model": "m"}), 400, Some("prompt")),
        (COMPLETIONS, json!({"prompt": ""}), 400, Some("prompt")),
        (COMPLETIONS, json!({"prompt": []}), 400, Some("prompt")),
        (COMPLETIONS, json!({"prompt": [257]}), 400, Some("prompt")),
        (COMPLETIONS, json!({"prompt": [-1]}), 400, Some("prompt")),
        (COMPLETIONS, json!({"prompt": [1.5]}), 400, Some("prompt")),
        (COMPLETIONS, json!({"prompt": [[1], []]}), 400, Some("prompt")),
        (COMPLETIONS, json!({"prompt": [[1], 2]}), 400, Some("prompt")),
        (COMPLETIONS, json!({"prompt": {"text": "hi"}}), 400, Some("prompt")),
        (COMPLETIONS, json!({"prompt": vec!["a"; 65]}), 400, Some("prompt")),
        (COMPLETIONS, json!({"prompt": "x".repeat(101)}), 400, Some("prompt")),
        (COMPLETIONS, json!({"prompt": "hi", "max_tokens": 0}), 400, Some("max_tokens")),
        (COMPLETIONS, json!({"prompt": "hi", "max_tokens": -5}), 400, Some("max_tokens")),
        (COMPLETIONS, json!({"prompt": "hi", "max_tokens": 99}), 400, Some("max_tokens")),
        (COMPLETIONS, json!({"prompt": "hi", "max_tokens": u64::MAX}), 400, Some("max_tokens")),
        (COMPLETIONS, json!({"prompt": "hi", "temperature": -1}), 400, Some("temperature")),
        (COMPLETIONS, json!({"prompt": "hi", "temperature": "hot"}), 400, Some("temperature")),
        (COMPLETIONS, json!({"prompt": "hi", "top_p": 0}), 400, Some("top_p")),
        (COMPLETIONS, json!({"prompt": "hi", "top_k": -2}), 400, Some("top_k")),
        (COMPLETIONS, json!({"prompt": "hi", "seed": "x"}), 400, Some("seed")),
        (COMPLETIONS, json!({"prompt": "hi", "stop": 5}), 400, Some("stop")),
        (COMPLETIONS, json!({"prompt": "hi", "stop": [""]}), 400, Some("stop")),
        (COMPLETIONS, json!({"prompt": "hi", "stop_token_ids": [999]}), 400, Some("stop_token_ids")),
        (COMPLETIONS, json!({"prompt": "hi", "logprobs": 21}), 400, Some("logprobs")),
        (COMPLETIONS, json!({"prompt": "hi", "n": 17}), 400, Some("n")),
        (COMPLETIONS, json!({"prompt": "hi", "suffix": "x"}), 400, Some("suffix")),
        (COMPLETIONS, json!([1]), 400, None),
        (CHAT, json!({"model": "m"}), 400, Some("messages")),
        (CHAT, json!({"messages": []}), 400, Some("messages")),
        (CHAT, json!({"messages": "hi"}), 400, Some("messages")),
        (CHAT, json!({"messages": [{"role": "tool", "content": "x"}]}), 400, Some("messages")),
        (
            CHAT,
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            400,
            Some("messages"),
        ),
        (CHAT, json!({"messages": user, "top_logprobs": 3}), 400, Some("top_logprobs")),
        (CHAT, json!({"messages": user, "logprobs": true, "top_logprobs": 30}), 400, Some("logprobs")),
        (CHAT, json!({"messages": user, "max_completion_tokens": 0}), 400, Some("max_tokens")),
        (CHAT, json!({"messages": user, "tools": [{"type": "function"}]}), 400, Some("tools")),
        (
            CHAT,
            json!({"messages": user, "response_format": {"type": "json_object"}}),
            400,
            Some("response_format"),
        ),
        (CHAT, json!({"messages": user, "echo": true}), 400, Some("echo")),
    ] {
        for stream in [false, true] {
            let mut body = body.clone();
            if let Value::Object(fields) = &mut body {
                fields.insert("stream".into(), stream.into());
            }
            let (got, _, value) = ask(&fixture, path, &body).await;
            let error = &value["error"];
            assert_eq!((got.as_u16(), error["param"].as_str()), (status, field), "{body}: {value}");
            assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{value}");
            assert_eq!(error["type"], "invalid_request_error");
        }
    }
    assert!(fixture.generator.asked.lock().expect("no panic").is_empty(), "nothing was begun");
    let refused =
        fixture.door.metrics.requests.with_label_values(&["unknown", "completions", "not_found"]).get();
    assert_eq!(refused, 2);
}

#[tokio::test]
async fn what_asks_for_nothing_is_ignored() {
    let fixture = Fixture::new(FakeGenerator::default());
    let body = json!({"prompt": "hi", "n": 1, "best_of": null, "presence_penalty": 0.0, "frequency_penalty": 0,
        "logit_bias": {}, "user": "me", "response_format": {"type": "text"}, "suffix": null, "top_k": -1, "seed": -1});
    assert_eq!(answer(&fixture, COMPLETIONS, body).await["choices"][0]["text"], "hello world");
    let asked = fixture.generator.asked.lock().expect("no panic")[0].params.clone();
    assert_eq!((asked.top_k, asked.seed, asked.max_tokens), (0, u64::MAX, 16));
}

#[tokio::test]
async fn bodies_that_are_too_large_or_no_text_are_refused() {
    let fixture = Fixture::new(FakeGenerator::default());
    let announced = Request::post(COMPLETIONS).header("content-length", (100u64 << 20).to_string());
    let endless = Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>());
    let (status, _, body) = text(send(&fixture, announced.body(endless).expect("valid")).await).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "without waiting for it: {body}");
    assert!(body.contains(&MAX_BODY_BYTES.to_string()));
    let chunks = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 1 << 16])).take(1600);
    let (status, _, _) = text(send(&fixture, post(COMPLETIONS, Body::from_stream(chunks))).await).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "not announced");
    let (status, _, body) =
        text(send(&fixture, post(COMPLETIONS, &b"{\"prompt\": \"\xff\"}"[..])).await).await;
    assert!(status == StatusCode::BAD_REQUEST && body.contains("not valid UTF-8"), "{body}");
}

#[tokio::test]
async fn overload_and_absence_say_when_to_come_back() {
    let full = GenerateError::QueueFull { model: "m".into(), limit: 3, retry_after: Duration::from_secs(7) };
    let gone = GenerateError::Unavailable { model: "m".into(), reason: "no group".into() };
    for (error, status, kind, retry) in [
        (full, StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "7"),
        (gone, StatusCode::SERVICE_UNAVAILABLE, "server_error", "2"),
    ] {
        let fixture = Fixture::new(FakeGenerator { fails: Some((0, error)), ..FakeGenerator::default() });
        for stream in [false, true] {
            let body = json!({"prompt": "hi", "stream": stream, "echo": true});
            let (got, headers, value) = ask(&fixture, COMPLETIONS, &body).await;
            assert_eq!((got, &value["error"]["type"]), (status, &json!(kind)), "{value}");
            assert_eq!(headers["retry-after"], retry);
        }
    }
}
