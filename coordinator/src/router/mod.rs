//! From a request to the group that answers it.
//!
//! [`Generator`] is what a front door sees of the rest of the cluster; [`dispatch`] implements it over the replicated
//! state and the drivers. Which group it is to be is for a [`policy`] to say, which is pure; [`places`] remembers what it
//! goes by.

mod agreement;
pub mod dispatch;
#[cfg(test)]
pub(crate) mod fake_peer;
mod listening;
#[cfg(test)]
mod listening_tests;
pub mod places;
pub mod policy;
pub mod prefix_index;
mod pump;
mod rendezvous;

use std::time::Duration;

use foggara_proto::sequence::{SequenceEvent, SequenceRequest};
use futures::stream::BoxStream;

/// Why a sequence could not be generated. Every variant tells the client what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenerateError {
    /// No deployment has this name.
    #[error("model `{0}` is not served here; GET /v1/models lists what is")]
    UnknownModel(String),
    /// The request is outside a limit of the deployment.
    #[error("{field}: {reason}")]
    Invalid {
        /// The request's field.
        field: &'static str,
        /// What is wrong and what the limit is.
        reason: String,
    },
    /// The bounded queue is full.
    #[error("the queue of `{model}` is full ({limit} requests wait); retry in {} s", retry_after.as_secs().max(1))]
    QueueFull {
        /// The deployment.
        model: String,
        /// Most requests that may wait.
        limit: usize,
        /// When a place is likely to be free.
        retry_after: Duration,
    },
    /// It waited longer than it was willing to.
    #[error(
        "deadline_ms: it had not begun {deadline_ms} ms after it came; allow more time, or retry when fewer requests wait"
    )]
    DeadlineExceeded {
        /// How long it was willing to wait, in milliseconds.
        deadline_ms: u64,
    },
    /// No group of the deployment became ready in time.
    #[error("no replica of `{model}` is ready ({reason}); retry in a few seconds")]
    Unavailable {
        /// The deployment.
        model: String,
        /// What is being waited for.
        reason: String,
    },
    /// The same request id is being answered already.
    #[error("request id `{0}` is already being answered")]
    Duplicate(String),
    /// A fault of ours.
    #[error("internal error: {0}")]
    Internal(String),
}

/// Events of one sequence, in order. Ends after the event that carries `end`, or after an error. Dropping it cancels the
/// sequence.
pub type SequenceStream = BoxStream<'static, Result<SequenceEvent, GenerateError>>;

/// Generates sequences on whatever group is best. Outlives the death of a worker or of a driver: the sequence goes on
/// elsewhere and the stream shows only new tokens.
pub trait Generator: Send + Sync + 'static {
    /// Starts a sequence on a group of `deployment`.
    fn generate(&self, deployment: &str, request: SequenceRequest) -> SequenceStream;
}
