//! Over HTTP: the right status, OpenAI's error body, and `param` is the field.

use foggara_tests::{http, machine};
use serde_json::{Value, json};

use crate::shared::{SMOL, TINY};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_field_has_limits() {
    let _machine = machine::shared().await;
    let (tiny, smol) = (TINY.get().await, SMOL.get().await);
    let url = format!("{}/v1/completions", tiny.http(0));
    let with = |field: &str, value: Value| {
        let mut body = json!({"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 4});
        body[field] = value;
        body
    };
    for (body, status, param) in [
        (with("model", json!("nonesuch")), 404, "model"),
        (with("prompt", json!([])), 400, "prompt"),
        (with("prompt", json!(null)), 400, "prompt"),
        (with("prompt", json!(vec![1; 513])), 400, "prompt"),
        (with("prompt", json!([1, 320])), 400, "prompt"),
        (with("prompt", json!("text")), 400, "prompt"),
        (with("max_tokens", json!(0)), 400, "max_tokens"),
        (with("max_tokens", json!(-1)), 400, "max_tokens"),
        (with("max_tokens", json!(510)), 400, "max_tokens"),
        (with("max_tokens", json!(1_000_000_000_000_i64)), 400, "max_tokens"),
        (with("temperature", json!(-0.1)), 400, "temperature"),
        (with("temperature", json!(1e30)), 400, "temperature"),
        (with("top_p", json!(0)), 400, "top_p"),
        (with("top_p", json!(2)), 400, "top_p"),
        (with("top_k", json!(-2)), 400, "top_k"),
        (with("logprobs", json!(21)), 400, "logprobs"),
        (with("stop", json!(["a"])), 400, "stop"),
        (with("stop_token_ids", json!([320])), 400, "stop_token_ids"),
        (with("n", json!(17)), 400, "n"),
        (with("best_of", json!(2)), 400, "best_of"),
        (with("logit_bias", json!({"320": 1})), 400, "logit_bias"),
        (with("logit_bias", json!({"5": 101})), 400, "logit_bias"),
        (with("min_p", json!(-1)), 400, "min_p"),
        (with("repetition_penalty", json!(0)), 400, "repetition_penalty"),
        (with("presence_penalty", json!(2.5)), 400, "presence_penalty"),
        (with("frequency_penalty", json!(-2.5)), 400, "frequency_penalty"),
        (with("allowed_token_ids", json!([320])), 400, "allowed_token_ids"),
        (with("bad_words", json!(["x"])), 400, "bad_words"),
        (with("min_tokens", json!(5)), 400, "min_tokens"),
        (with("priority", json!(1001)), 400, "priority"),
        (with("cache_salt", json!("")), 400, "cache_salt"),
        (with("tools", json!([{"type": "function"}])), 400, "tools"),
    ] {
        for stream in [false, true] {
            let mut body = body.clone();
            body["stream"] = stream.into();
            let reply = http::post(&url, &body).await;
            assert_eq!(reply.status, status, "{} for {body:.200}", reply.text);
            let error = &reply.json()["error"];
            assert_eq!(error["param"], param, "{error} for {body:.200}");
            assert!(error["message"].as_str().is_some_and(|m| m.contains(param)) || status == 404, "{error}");
            assert_eq!(error["type"], "invalid_request_error", "{error}");
        }
    }
    let chat = format!("{}/v1/chat/completions", smol.http(0));
    for (body, param) in [
        (json!({"model": "smol", "messages": []}), "messages"),
        (
            json!({"model": "smol", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "messages",
        ),
        (
            json!({"model": "smol", "messages": [{"role": "user", "content": "x"}], "top_logprobs": 2}),
            "top_logprobs",
        ),
        (
            json!({"model": "smol", "messages": [{"role": "user", "content": "x"}], "max_completion_tokens": 0}),
            "max_tokens",
        ),
    ] {
        let reply = http::post(&chat, &body).await;
        assert_eq!(
            (reply.status, reply.json()["error"]["param"].as_str()),
            (400, Some(param)),
            "{}",
            reply.text
        );
    }
    let reply = http::post(&url, &with("max_tokens", json!(3))).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    tiny.wait_idle("tiny").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_paths_and_methods() {
    let _machine = machine::shared().await;
    let cluster = TINY.get().await;
    let url = format!("{}/v1/completions", cluster.http(0));
    let json_type = "application/json";
    for (what, content_type, body, status, names) in [
        ("malformed JSON", json_type, b"{\"model\": \"tiny\", ".to_vec(), 400, "body"),
        ("no JSON", json_type, b"hello".to_vec(), 400, "body"),
        ("nothing", json_type, Vec::new(), 400, "body"),
        ("another shape", json_type, b"[1, 2]".to_vec(), 400, "body"),
        (
            "a field of another type",
            json_type,
            b"{\"model\": \"tiny\", \"prompt\": {\"a\": 1}}".to_vec(),
            400,
            "prompt",
        ),
        ("invalid UTF-8", json_type, b"{\"model\": \"tiny\", \"prompt\": \"caf\xe9\"}".to_vec(), 400, "body"),
        ("a form", "application/x-www-form-urlencoded", b"model=tiny&prompt=x".to_vec(), 400, "body"),
        ("100 MB", json_type, vec![b' '; 100 << 20], 413, "body"),
    ] {
        let reply = http::post_raw(&url, content_type, body).await;
        assert_eq!(reply.status, status, "{what}: {}", reply.text);
        let message = reply.json()["error"]["message"].as_str().map(str::to_owned);
        assert!(message.is_some_and(|message| message.contains(names)), "{what}: {}", reply.text);
    }
    // A reader has to see where in its JSON the mistake is.
    let reply = http::post_raw(&url, json_type, b"{\"model\": \"tiny\",\n \"prompt\": [1,}".to_vec()).await;
    assert!(reply.text.contains("line 2"), "{}", reply.text);
    let base = cluster.http(0);
    assert_eq!(http::get(&format!("{base}/v1/nothing")).await.status, 404);
    assert_eq!(http::get(&format!("{base}/v1/models/nonesuch")).await.status, 404);
    assert_eq!(http::get(&url).await.status, 405);
    assert_eq!(http::post(&format!("{base}/healthz"), &json!({})).await.status, 405);
    let reply = http::post(&url, &json!({"model": "tiny", "prompt": [1], "max_tokens": 2})).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
}
