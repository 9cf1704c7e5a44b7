//! What can be wrong with the arguments of an op.

/// An op was given what it cannot work on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{op}: {reason}")]
pub struct KernelError {
    /// The op.
    pub op: &'static str,
    /// Shapes, and what is wrong with them.
    pub reason: String,
}

impl KernelError {
    /// An error of `op`.
    pub fn new(op: &'static str, reason: impl Into<String>) -> Self {
        Self { op, reason: reason.into() }
    }
}
