//! Requests against the router: statuses, bodies, and the shape of streams.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::Response;
use futures::StreamExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::front_door::MAX_BODY_BYTES;
use crate::front_door::fixture::{FakeGenerator, Fixture};
use crate::router::GenerateError;

async fn send(fixture: &Fixture, request: Request<Body>) -> Response {
    fixture.door.router().oneshot(request).await.expect("never fails")
}

fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path).header("content-type", "application/json").body(body.into()).expect("valid")
}

async fn text(response: Response) -> (StatusCode, HeaderMap, String) {
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.expect("whole");
    (parts.status, parts.headers, String::from_utf8(bytes.to_vec()).expect("text"))
}

pub(super) async fn ask(fixture: &Fixture, path: &str, body: &Value) -> (StatusCode, HeaderMap, Value) {
    let (status, headers, text) = text(send(fixture, post(path, body.to_string())).await).await;
    (status, headers, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}")))
}

/// A successful answer.
pub(super) async fn answer(fixture: &Fixture, path: &str, body: Value) -> Value {
    let (status, _, value) = ask(fixture, path, &body).await;
    assert_eq!(status, StatusCode::OK, "{value}");
    value
}

/// The events of a stream, without the `[DONE]` that must end it.
pub(super) async fn events(fixture: &Fixture, path: &str, body: Value) -> Vec<Value> {
    let (status, headers, text) = text(send(fixture, post(path, body.to_string())).await).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    assert_eq!(headers["content-type"], "text/event-stream");
    let mut events: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(events.pop(), Some("[DONE]"), "{text}");
    events.into_iter().map(|event| serde_json::from_str(event).expect("JSON")).collect()
}

pub(super) const COMPLETIONS: &str = "/v1/completions";
pub(super) const CHAT: &str = "/v1/chat/completions";

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

#[tokio::test]
async fn a_completion_tells_text_reason_and_usage() {
    let fixture = Fixture::new(FakeGenerator::default());
    let body = json!({"model": "m", "prompt": "hi", "return_token_ids": true, "temperature": 0});
    let value = answer(&fixture, COMPLETIONS, body).await;
    assert_eq!((&value["object"], &value["model"]), (&json!("text_completion"), &json!("m")));
    assert!(value["id"].as_str().is_some_and(|id| id.starts_with("cmpl-")));
    let choice = &value["choices"][0];
    assert_eq!(choice["text"], "hello world");
    assert_eq!((&choice["finish_reason"], &choice["logprobs"]), (&json!("stop"), &Value::Null));
    assert_eq!(choice["token_ids"].as_array().map(Vec::len), Some(12), "the end token too");
    assert_eq!(choice["prompt_token_ids"], json!([104, 105]));
    assert_eq!(
        value["usage"],
        json!({"prompt_tokens": 2, "completion_tokens": 12, "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 0}})
    );
}

#[tokio::test]
async fn several_prompts_are_answered_in_their_places() {
    let fixture = Fixture::new(FakeGenerator { text: "ab".into(), ..FakeGenerator::default() });
    for prompt in [json!(["x", "yz"]), json!([[120], [121, 122]])] {
        let value = answer(&fixture, COMPLETIONS, json!({"prompt": prompt})).await;
        let texts: Vec<_> =
            value["choices"].as_array().expect("a list").iter().map(|c| (&c["index"], &c["text"])).collect();
        assert_eq!(texts, [(&json!(0), &json!("ab")), (&json!(1), &json!("ab"))]);
        assert_eq!(
            value["usage"],
            json!({"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 0}})
        );
    }
    let asked = fixture.generator.asked.lock().expect("no panic").clone();
    assert_eq!((&asked[0].tokens[..], &asked[3].tokens[..]), (&[120][..], &[121, 122][..]));
    assert_ne!(asked[0].request_id, asked[1].request_id);
}

#[tokio::test]
async fn log_probabilities_are_in_openais_shape() {
    let fixture = Fixture::new(FakeGenerator { text: "ab".into(), ..FakeGenerator::default() });
    let value = answer(&fixture, COMPLETIONS, json!({"prompt": "hi", "logprobs": 2, "max_tokens": 2})).await;
    assert_eq!(
        value["choices"][0]["logprobs"],
        json!({"tokens": ["a", "b"], "token_logprobs": [-0.5, -0.5], "text_offset": [0, 1],
            "top_logprobs": [{"a": -0.5, "b": -1.5}, {"b": -0.5, "c": -1.5}]})
    );
    let value = answer(&fixture, COMPLETIONS, json!({"prompt": "hi", "logprobs": 0, "max_tokens": 1})).await;
    assert_eq!(
        value["choices"][0]["logprobs"]["top_logprobs"],
        json!([{"a": -0.5}]),
        "the token itself is there"
    );
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "logprobs": true, "top_logprobs": 1, "max_tokens": 1});
    let value = answer(&fixture, CHAT, chat).await;
    assert_eq!(
        value["choices"][0]["logprobs"]["content"],
        json!([{"token": "a", "logprob": -0.5, "bytes": [97],
            "top_logprobs": [{"token": "a", "logprob": -0.5, "bytes": [97]}]}])
    );
}

#[tokio::test]
async fn an_echo_scores_the_prompt() {
    let fixture = Fixture::new(FakeGenerator { text: "ab".into(), ..FakeGenerator::default() });
    let body =
        json!({"prompt": "hey", "logprobs": 1, "echo": true, "max_tokens": 0, "return_token_ids": true});
    let value = answer(&fixture, COMPLETIONS, body).await;
    let choice = &value["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("hey"), &json!("length")));
    assert_eq!(choice["logprobs"]["tokens"], json!(["h", "e", "y"]));
    assert_eq!(choice["logprobs"]["token_logprobs"], json!([null, -0.5, -0.5]));
    assert_eq!(choice["logprobs"]["top_logprobs"], json!([null, {"e": -0.5}, {"y": -0.5}]));
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 1, 2]));
    assert_eq!(choice["token_ids"], json!([]), "those of the prompt are in their own place");
    assert_eq!(choice["prompt_token_ids"], json!([104, 101, 121]));
    assert_eq!(value["usage"]["completion_tokens"], 0);
    let body = json!({"prompt": [104, 101], "echo": true, "max_tokens": 1, "logprobs": 0});
    let value = answer(&fixture, COMPLETIONS, body).await;
    assert_eq!(value["choices"][0]["text"], "hea");
    assert_eq!(value["choices"][0]["logprobs"]["tokens"], json!(["h", "e", "a"]));
}

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

#[tokio::test]
async fn requests_have_ids_and_paths_have_methods() {
    let fixture = Fixture::new(FakeGenerator::default());
    let body = json!({"prompt": "hi"}).to_string();
    let mut request = post(COMPLETIONS, body.clone());
    request.headers_mut().insert("x-request-id", "mine-1".parse().expect("valid"));
    let (_, headers, text_body) = text(send(&fixture, request).await).await;
    assert_eq!(headers["x-request-id"], "mine-1");
    assert!(text_body.contains("cmpl-mine-1"));
    assert_eq!(fixture.generator.asked.lock().expect("no panic")[0].request_id, "mine-1");
    let mut request = post(COMPLETIONS, body);
    request.headers_mut().insert("x-request-id", "not one".parse().expect("valid"));
    assert_eq!(send(&fixture, request).await.status(), StatusCode::BAD_REQUEST);
    for (request, status) in [
        (Request::get("/healthz"), 200),
        (Request::get("/"), 200),
        (Request::get("/version"), 200),
        (Request::get("/v1/models"), 200),
        (Request::get("/v1/models/m"), 200),
        (Request::get("/v1/models/other"), 404),
        (Request::get("/nowhere"), 404),
        (Request::get(COMPLETIONS), 405),
        (Request::post("/metrics"), 405),
    ] {
        let request = request.body(Body::empty()).expect("valid");
        let path = request.uri().to_string();
        let response = send(&fixture, request).await;
        assert_eq!(response.status().as_u16(), status, "{path}");
        assert!(response.headers().contains_key("x-request-id"));
    }
    let models = Request::get("/v1/models").body(Body::empty()).expect("valid");
    let (_, _, body) = text(send(&fixture, models).await).await;
    let models: Value = serde_json::from_str(&body).expect("JSON");
    let expected =
        json!({"id": "m", "object": "model", "created": 7, "owned_by": "foggara", "max_model_len": 100});
    assert_eq!(models, json!({"object": "list", "data": [expected]}));
}

#[tokio::test]
async fn a_coordinator_that_stops_takes_nothing_new() {
    let fixture = Fixture::new(FakeGenerator::default());
    fixture.door.draining.store(true, Ordering::SeqCst);
    let (status, headers, value) = ask(&fixture, COMPLETIONS, &json!({"prompt": "hi"})).await;
    assert_eq!((status, &value["error"]["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("unavailable")));
    assert_eq!(headers["retry-after"], "1");
    let ready = Request::get("/readyz").body(Body::empty()).expect("valid");
    let (status, _, body) = text(send(&fixture, ready).await).await;
    assert!(status == StatusCode::SERVICE_UNAVAILABLE && body.contains("stopping"), "{body}");
}

#[tokio::test]
async fn metrics_are_served() {
    let fixture = Fixture::new(FakeGenerator::default());
    answer(&fixture, COMPLETIONS, json!({"prompt": "hi"})).await;
    let scrape = Request::get("/metrics").body(Body::empty()).expect("valid");
    let (status, headers, body) = text(send(&fixture, scrape).await).await;
    assert!(
        status == StatusCode::OK && headers["content-type"].to_str().is_ok_and(|ty| ty.contains("0.0.4"))
    );
    for series in [
        r#"foggara_requests_total{api="completions",model="m",status="stop"} 1"#,
        r#"foggara_prompt_tokens_total{model="m"} 2"#,
        r#"foggara_generated_tokens_total{model="m"} 12"#,
        r#"foggara_time_to_first_token_seconds_count{model="m"} 1"#,
        r#"foggara_inter_token_latency_seconds_count{model="m"} 11"#,
        r#"foggara_request_duration_seconds_count{model="m"} 1"#,
    ] {
        assert!(body.lines().any(|line| line == series), "{series}\n{body}");
    }
}

#[tokio::test]
async fn texts_become_tokens_and_tokens_texts() {
    let fixture = Fixture::new(FakeGenerator::default());
    let told = answer(&fixture, "/tokenize", json!({"prompt": "hi", "return_token_strs": true})).await;
    let expected = json!({"count": 2, "max_model_len": 100, "tokens": [104, 105], "token_strs": ["h", "i"]});
    assert_eq!(told, expected);
    let longer = answer(&fixture, "/tokenize", json!({"prompt": "x".repeat(500)})).await;
    assert_eq!(
        (&longer["count"], &longer["token_strs"]),
        (&json!(500), &Value::Null),
        "the context is no limit"
    );
    let text = answer(&fixture, "/detokenize", json!({"tokens": [104, 105]})).await;
    assert_eq!(text, json!({"prompt": "hi"}));
    for (path, body, field) in [
        ("/tokenize", json!({}), "prompt"),
        ("/tokenize", json!({"prompt": [1]}), "prompt"),
        ("/tokenize", json!({"prompt": "x".repeat((1 << 20) + 1)}), "prompt"),
        ("/detokenize", json!({}), "tokens"),
        ("/detokenize", json!({"tokens": [300]}), "tokens"),
        ("/detokenize", json!({"tokens": "hi"}), "tokens"),
    ] {
        let (status, _, value) = ask(&fixture, path, &body).await;
        assert_eq!(
            (status, value["error"]["param"].as_str()),
            (StatusCode::BAD_REQUEST, Some(field)),
            "{value}"
        );
    }
}
