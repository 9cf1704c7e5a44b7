//! Requests against the router.

mod answers;
mod mistakes;
mod service;
mod streams;

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::Response;
use serde_json::Value;
use tower::ServiceExt;

use crate::front_door::fixture::Fixture;

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
pub(in crate::front_door) async fn answer(fixture: &Fixture, path: &str, body: Value) -> Value {
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

pub(in crate::front_door) const COMPLETIONS: &str = "/v1/completions";
pub(in crate::front_door) const CHAT: &str = "/v1/chat/completions";
