//! What a process says by its exit code: docs/reference/exit-codes.md.

use foggara_coordinator::CoordinatorError;
use foggara_worker::WorkerError;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// It was asked to stop, or has done what it was asked.
    Success = 0,
    /// Something failed. Another try may succeed.
    Failure = 1,
    /// The command line, a variable or the configuration is wrong (clap's code, too). Another try fails the same way.
    Usage = 2,
    /// The cluster refused this worker, for its token or its version; or this coordinator's version cannot read what others wrote.
    Refused = 3,
    /// The GPU is lost to this process; a new one may use it.
    DeviceLost = 4,
    /// Stopped at once, by a second signal.
    AtOnce = 130,
}

/// What was asked makes no sense, and will not the next time.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

/// What the first cause that has a code of its own says.
pub(crate) fn of(error: &anyhow::Error) -> Exit {
    error.chain().find_map(of_cause).unwrap_or(Exit::Failure)
}

fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    if cause.is::<UsageError>() {
        return Some(Exit::Usage);
    }
    if let Some(error) = cause.downcast_ref::<CoordinatorError>() {
        let version = error.is_version().then_some(Exit::Refused);
        return version.or(error.is_configuration().then_some(Exit::Usage));
    }
    match cause.downcast_ref::<WorkerError>()? {
        WorkerError::Config { .. } => Some(Exit::Usage),
        WorkerError::Refused { .. } => Some(Exit::Refused),
        WorkerError::DeviceLost(_) => Some(Exit::DeviceLost),
        WorkerError::Listen { .. } | WorkerError::Device(_) | WorkerError::Serve(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use foggara_kernels::cuda::DeviceError;

    use super::*;

    #[test]
    fn every_kind_of_end_has_its_code() {
        let worker = |error: WorkerError| anyhow::Error::from(error);
        let reason = || "why".to_owned();
        let gone = || DeviceError {
            device: "cuda:0".into(),
            call: "cuStreamSynchronize",
            shape: String::new(),
            reason: reason(),
            lost: true,
        };
        let addr = "127.0.0.1:1".parse().expect("an address");
        for (error, code) in [
            (anyhow::anyhow!("anything"), 1),
            (UsageError(reason()).into(), 2),
            (CoordinatorError::Config { field: "peers", reason: reason() }.into(), 2),
            (CoordinatorError::Listen { addr, reason: reason() }.into(), 1),
            (CoordinatorError::Failed(reason()).into(), 1),
            (worker(WorkerError::Config { field: "join", reason: reason() }), 2),
            (worker(WorkerError::Refused { coordinator: reason(), reason: reason() }), 3),
            (worker(WorkerError::Serve(reason())), 1),
            (worker(WorkerError::DeviceLost(gone())), 4),
            (worker(WorkerError::Device(gone())), 1),
        ] {
            assert_eq!(of(&error) as u8, code, "{error}");
        }
        let inside: anyhow::Result<()> = Err(UsageError(reason()).into());
        assert_eq!(of(&inside.context("around it").expect_err("it is one")), Exit::Usage);
    }
}
