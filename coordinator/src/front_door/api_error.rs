//! The one table of errors: what each is called in gRPC, in HTTP, and in OpenAI's vocabulary.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tonic::{Code, Status};

use crate::router::GenerateError;

/// An error on its way to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    pub(super) kind: Kind,
    pub(super) message: String,
    /// The request's field at fault.
    pub(super) field: Option<&'static str>,
    /// Seconds after which to try again.
    pub(super) retry_after: Option<u64>,
}

/// What kind of error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Invalid,
    NotFound,
    NoSuchModel,
    MethodNotAllowed,
    TooLarge,
    Duplicate,
    QueueFull,
    DeadlineExceeded,
    Unavailable,
    Internal,
}

impl Kind {
    /// gRPC code, HTTP status, OpenAI type, OpenAI code.
    fn table(self) -> (Code, StatusCode, &'static str, Option<&'static str>) {
        let invalid = "invalid_request_error";
        match self {
            Self::Invalid => (Code::InvalidArgument, StatusCode::BAD_REQUEST, invalid, None),
            Self::NotFound => (Code::NotFound, StatusCode::NOT_FOUND, invalid, None),
            Self::NoSuchModel => (Code::NotFound, StatusCode::NOT_FOUND, invalid, Some("model_not_found")),
            Self::MethodNotAllowed => (Code::Unimplemented, StatusCode::METHOD_NOT_ALLOWED, invalid, None),
            Self::TooLarge => (Code::ResourceExhausted, StatusCode::PAYLOAD_TOO_LARGE, invalid, None),
            Self::Duplicate => {
                (Code::AlreadyExists, StatusCode::CONFLICT, invalid, Some("duplicate_request_id"))
            }
            Self::QueueFull => {
                let code = Some("queue_full");
                (Code::ResourceExhausted, StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", code)
            }
            Self::DeadlineExceeded => {
                let code = Some("deadline_exceeded");
                (Code::DeadlineExceeded, StatusCode::GATEWAY_TIMEOUT, "server_error", code)
            }
            Self::Unavailable => {
                (Code::Unavailable, StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("unavailable"))
            }
            Self::Internal => (Code::Internal, StatusCode::INTERNAL_SERVER_ERROR, "server_error", None),
        }
    }

    /// For metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Invalid | Self::TooLarge | Self::Duplicate => "invalid",
            Self::NotFound | Self::NoSuchModel | Self::MethodNotAllowed => "not_found",
            Self::QueueFull => "queue_full",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}

impl ApiError {
    pub(super) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), field: None, retry_after: None }
    }

    /// A field outside its limits.
    pub(super) fn invalid(field: &'static str, reason: impl std::fmt::Display) -> Self {
        Self { field: Some(field), ..Self::new(Kind::Invalid, format!("{field}: {reason}")) }
    }

    /// OpenAI's body.
    pub(super) fn body(&self) -> serde_json::Value {
        let (_, _, kind, code) = self.kind.table();
        json!({"error": {"message": self.message, "type": kind, "param": self.field, "code": code}})
    }
}

impl From<GenerateError> for ApiError {
    fn from(error: GenerateError) -> Self {
        let message = error.to_string();
        match error {
            GenerateError::UnknownModel(_) => {
                Self { field: Some("model"), ..Self::new(Kind::NoSuchModel, message) }
            }
            GenerateError::Invalid { field, .. } => {
                Self { field: Some(field), ..Self::new(Kind::Invalid, message) }
            }
            GenerateError::QueueFull { retry_after, .. } => Self {
                retry_after: Some(retry_after.as_secs().max(1)),
                ..Self::new(Kind::QueueFull, message)
            },
            GenerateError::DeadlineExceeded { .. } => {
                Self { field: Some("deadline_ms"), ..Self::new(Kind::DeadlineExceeded, message) }
            }
            GenerateError::Unavailable { .. } => {
                Self { retry_after: Some(2), ..Self::new(Kind::Unavailable, message) }
            }
            GenerateError::Duplicate(_) => {
                Self { field: Some("request_id"), ..Self::new(Kind::Duplicate, message) }
            }
            GenerateError::Internal(_) => Self::new(Kind::Internal, message),
        }
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let mut status = Self::new(error.kind.table().0, error.message);
        if let Some(seconds) = error.retry_after {
            status.metadata_mut().insert("retry-after", seconds.into());
        }
        status
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.kind.table().1, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert("retry-after", seconds.into());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_deadline_is_told_as_one() {
        let error = ApiError::from(GenerateError::DeadlineExceeded { deadline_ms: 250 });
        let body = error.body();
        assert_eq!(
            (&body["error"]["code"], &body["error"]["param"]),
            (&json!("deadline_exceeded"), &json!("deadline_ms"))
        );
        assert!(error.message.contains("250 ms"), "{}", error.message);
        assert_eq!(error.kind.label(), "deadline_exceeded");
        assert_eq!(error.clone().into_response().status(), StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(Status::from(error).code(), Code::DeadlineExceeded);
    }
}
