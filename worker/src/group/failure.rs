//! Why a rank ended, as the cluster is told.

use foggara_kernels::cuda::DeviceError;
use foggara_proto::wire::worker as wire;

use crate::engine::EngineError;
use crate::models::OpenError;
use crate::weights::LoadError;

/// What is told of a rank that has failed.
pub(super) fn failed(assign: &wire::Assign, failure: &Failure) -> wire::worker_message::Message {
    let (group, epoch, rank) = (assign.group, assign.epoch, assign.rank);
    let (reason, files) = (failure.reason.clone(), failure.files);
    wire::worker_message::Message::Failed(wire::RankFailed { group, epoch, rank, reason, files })
}

/// Why a rank ended.
pub(super) struct Failure {
    pub(super) reason: String,
    /// Whether this worker, of all, cannot hold such a rank: it lacks the model's files or what computes with such weights.
    pub(super) files: bool,
    /// The device, if it is lost.
    pub(super) lost: Option<Box<DeviceError>>,
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self { reason, files: false, lost: None }
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        Self { files: matches!(error, OpenError::Files(_)), ..Self::from(error.to_string()) }
    }
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        let failure = Self::from(error.to_string());
        Self { lost: error.lost.then(|| Box::new(error)), ..failure }
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Device(error) => error.into(),
            LoadError::NeedsGpu => Self { files: true, ..Self::from(error.to_string()) },
            other => other.to_string().into(),
        }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Device(error) => error.into(),
            other => other.to_string().into(),
        }
    }
}
