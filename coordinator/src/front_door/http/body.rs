//! Reading a JSON body field by field, so that every complaint names the field.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, header};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::front_door::MAX_BODY_BYTES;
use crate::front_door::api_error::{ApiError, Kind};

/// A client that sends too much is listened to for so long, keeping nothing: or it would not get to read the answer.
const LINGER: Duration = Duration::from_secs(5);

/// The fields of a request.
#[derive(Debug, PartialEq)]
pub(super) struct Object(Map<String, Value>);

/// Reads a body, up to its limit.
pub(super) async fn read(headers: &HeaderMap, body: Body) -> Result<Object, ApiError> {
    let announced =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let mut chunks = body.into_data_stream();
    let mut bytes = Vec::new();
    let mut fits = announced.is_none_or(|length| length <= MAX_BODY_BYTES as u64);
    while fits {
        let Some(chunk) = chunks.next().await else { return parse(&bytes) };
        let chunk = chunk.map_err(|e| ApiError::new(Kind::Invalid, format!("the body broke off: {e}")))?;
        fits = bytes.len() + chunk.len() <= MAX_BODY_BYTES;
        bytes.extend_from_slice(&chunk);
    }
    tokio::spawn(tokio::time::timeout(LINGER, discard(chunks)));
    Err(ApiError::new(Kind::TooLarge, format!("the body is larger than {MAX_BODY_BYTES} bytes")))
}

async fn discard(mut chunks: BodyDataStream) {
    while let Some(Ok(_)) = chunks.next().await {}
}

fn parse(bytes: &[u8]) -> Result<Object, ApiError> {
    let text = std::str::from_utf8(bytes);
    let text = text.map_err(|e| ApiError::new(Kind::Invalid, format!("the body is not valid UTF-8: {e}")))?;
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => Ok(Object(fields)),
        Ok(_) => Err(ApiError::new(Kind::Invalid, "the body must be a JSON object")),
        Err(error) => Err(ApiError::new(Kind::Invalid, format!("the body is not valid JSON: {error}"))),
    }
}

impl Object {
    /// Takes a field out; `null` is as good as nothing.
    pub(super) fn take<T: DeserializeOwned>(&mut self, field: &'static str) -> Result<Option<T>, ApiError> {
        match self.0.remove(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(value).map(Some).map_err(|e| ApiError::invalid(field, e)),
        }
    }

    /// A field as it is.
    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        for (body, expected) in [
            (&b"{\"a\": \"\xff\"}"[..], "not valid UTF-8: invalid utf-8 sequence of 1 bytes from index 7"),
            (b"", "not valid JSON: EOF"),
            (b"{\"a\": 1", "not valid JSON: EOF while parsing an object at line 1 column 7"),
            (b"[1]", "must be a JSON object"),
        ] {
            let error = parse(body).expect_err("refused");
            assert!(error.kind == Kind::Invalid && error.message.contains(expected), "{}", error.message);
        }
        let mut object = parse(br#"{"a": "x", "b": null, "c": 2}"#).expect("an object");
        let error = object.take::<f32>("a").expect_err("not a number");
        assert_eq!((error.field, error.message.starts_with("a: invalid type")), (Some("a"), true));
        assert_eq!(object.take::<f32>("b"), Ok(None));
        assert_eq!(object.take::<f32>("c"), Ok(Some(2.0)));
        assert_eq!(object.take::<f32>("d"), Ok(None));
    }
}
