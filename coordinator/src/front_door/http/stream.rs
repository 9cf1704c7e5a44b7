//! Server-sent events: one JSON object each, `[DONE]` last.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use futures::StreamExt;
use serde_json::Value;

use crate::front_door::api_error::ApiError;

const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A response that streams `chunks`. An error before the first chunk is an ordinary error response; a later one is sent as
/// an event, since the status is gone by then.
pub(super) async fn respond(
    chunks: impl Stream<Item = Result<Value, ApiError>> + Send + 'static,
) -> Response {
    let mut chunks = Box::pin(chunks);
    let first = match chunks.next().await {
        Some(Err(error)) => return error.into_response(),
        Some(Ok(first)) => first,
        None => {
            return ApiError::new(crate::front_door::api_error::Kind::Internal, "nothing to stream")
                .into_response();
        }
    };
    let event = |value: Value| Ok::<_, Infallible>(SseEvent::default().data(value.to_string()));
    let events = async_stream::stream! {
        yield event(first);
        while let Some(chunk) = chunks.next().await {
            match chunk {
                Ok(value) => yield event(value),
                Err(error) => {
                    yield event(error.body());
                    return;
                }
            }
        }
        yield Ok(SseEvent::default().data("[DONE]"));
    };
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}
