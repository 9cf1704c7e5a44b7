//! What is beside answers: ids, paths, readiness, metrics, tokens.

use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::{Value, json};

use super::{COMPLETIONS, answer, ask, post, send, text};
use crate::cluster::state::adapters::Adapter;
use crate::front_door::fixture::{FakeGenerator, Fixture};

#[tokio::test]
async fn requests_have_ids_and_paths_have_methods() {
    let fixture = Fixture::new(FakeGenerator::default());
    let body = json!({"prompt": "hi"}).to_string();
    let mut request = post(COMPLETIONS, body.clone());
    request.headers_mut().insert("x-request-id", "mine-1".parse().expect("valid"));
    let (_, headers, text_body) = text(send(&fixture, request).await).await;
    assert_eq!(headers["x-request-id"], "mine-1");
    assert!(text_body.contains("cmpl-mine-1"));
    let asked = fixture.generator.asked.lock().expect("no panic")[0].clone();
    assert_eq!((asked.request_id.as_str(), asked.named), ("mine-1", true));
    let mut request = post(COMPLETIONS, body);
    request.headers_mut().insert("x-request-id", "not one".parse().expect("valid"));
    assert_eq!(send(&fixture, request).await.status(), StatusCode::BAD_REQUEST);
    for (request, status) in [
        (Request::get("/healthz"), 200),
        (Request::get("/"), 200),
        (Request::get("/version"), 200),
        (Request::get("/sd/prometheus"), 200),
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
async fn an_adapter_is_listed_and_answers_under_its_own_name() {
    let fixture = Fixture::new(FakeGenerator::default());
    let adapter =
        Adapter { id: 5, deployment: "m".into(), path: "/a".into(), manifest: String::new(), created: 9 };
    fixture.door.models.insert_adapter("a", adapter);
    let one = Request::get("/v1/models/a").body(Body::empty()).expect("valid");
    let (_, _, body) = text(send(&fixture, one).await).await;
    let expected = json!({"id": "a", "object": "model", "created": 9, "owned_by": "foggara", "max_model_len": 100,
        "parent": "m", "root": "/a"});
    assert_eq!(serde_json::from_str::<Value>(&body).expect("JSON"), expected);
    let answered =
        answer(&fixture, COMPLETIONS, json!({"model": "a", "prompt": "hi", "max_tokens": 3})).await;
    assert_eq!(answered["model"], "a");
    answer(&fixture, COMPLETIONS, json!({"model": "m", "prompt": "hi"})).await;
    let asked: Vec<Option<u64>> = {
        let asked = fixture.generator.asked.lock().expect("no panic");
        asked.iter().map(|request| request.params.adapter).collect()
    };
    assert_eq!(asked, [Some(5), None]);
    let scrape = Request::get("/metrics").body(Body::empty()).expect("valid");
    let (_, _, body) = text(send(&fixture, scrape).await).await;
    for line in [
        r#"foggara_requests_total{api="completions",model="m",status="length"} 1"#,
        r#"foggara_adapter_requests_total{adapter="a",deployment="m"} 1"#,
        r#"foggara_adapter_prompt_tokens_total{adapter="a",deployment="m"} 2"#,
        r#"foggara_adapter_generated_tokens_total{adapter="a",deployment="m"} 3"#,
    ] {
        assert!(body.lines().any(|found| found == line), "{line}\n{body}");
    }
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
