//! Conversions between wire and domain types. One file for each group of messages.

mod request;
mod sequence;
mod shape;
mod step;

/// A message that does not say what it must.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct WireError {
    /// The message's field.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

impl WireError {
    /// An error about `field`.
    pub fn new(field: &'static str, reason: impl Into<String>) -> Self {
        Self { field, reason: reason.into() }
    }
}

impl From<WireError> for tonic::Status {
    fn from(error: WireError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}
