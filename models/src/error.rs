//! Why a checkpoint cannot be used.

use std::path::{Path, PathBuf};

/// Names the file, the tensor or field, and the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// The system would not give us the file.
    #[error("{}: {reason}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        reason: String,
    },
    /// The file is not what it should be: truncated, corrupt, or of another kind.
    #[error("{}: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// Valid, but not something this version can serve.
    #[error("{}: not supported: {reason}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What was found, and what is supported.
        reason: String,
    },
    /// A tensor is missing, damaged, or of another shape or type than the configuration says.
    #[error("{}: tensor `{tensor}`: {reason}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name in it.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// The model cannot be cut as asked.
    #[error("cannot cut the model: {0}")]
    Slices(String),
}

impl ModelError {
    pub(crate) fn io(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::Io { path: path.into(), reason: reason.to_string() }
    }

    pub(crate) fn corrupt(path: &Path, reason: impl Into<String>) -> Self {
        Self::Corrupt { path: path.into(), reason: reason.into() }
    }

    pub(crate) fn unsupported(path: &Path, reason: impl Into<String>) -> Self {
        Self::Unsupported { path: path.into(), reason: reason.into() }
    }

    pub(crate) fn tensor(path: &Path, tensor: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Tensor { path: path.into(), tensor: tensor.into(), reason: reason.into() }
    }
}
