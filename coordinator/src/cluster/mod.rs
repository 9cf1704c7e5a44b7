//! The replicated control plane: what the cluster knows, kept by Raft.
//!
//! [`state`] is the pure state machine; [`node`] drives raft-rs on a thread of its own; [`store`] keeps log, hard state and
//! snapshot on disk; [`transport`] carries messages between coordinators. Only membership, placement and operators' notes
//! go through here, never a token.

mod codec;
mod format;
mod handle;
mod inbound;
mod node;
mod peers;
mod seal;
pub mod state;
mod store;
#[cfg(test)]
mod tests;
pub mod transport;

pub use format::Formats;
pub use handle::{ClusterHandle, PeerProgress, RaftStatus, Role};
pub use node::{ClusterConfig, start};
pub use peers::Peers;
pub use state::{ClusterState, Command, Outcome};
pub use store::{Fault, StoreError};

/// Why the control plane did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClusterError {
    /// No leader was found or the leader changed too often within the deadline.
    #[error("no leader answered within {0:?}; are a majority of the coordinators up?")]
    NoLeader(std::time::Duration),
    /// This coordinator does not lead.
    #[error("coordinator {id} does not lead")]
    NotLeader {
        /// Who was asked.
        id: u64,
    },
    /// More is being asked than can be done.
    #[error("the control plane is overloaded; retry")]
    Overloaded,
    /// A write is too large.
    #[error("a write of {bytes} bytes; the limit is {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The state machine said no.
    #[error("{0}")]
    Refused(String),
    /// Another coordinator's message makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// It is of a version that this one cannot work with.
    #[error("{0}")]
    Incompatible(String),
    /// The coordinator is stopping, or its store has failed.
    #[error("this coordinator's control plane has stopped")]
    Stopped,
    /// Log, hard state or snapshot cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A folder for a test's stores: in memory where there is such a place. No power is cut in these tests, and a busy disk would
/// only make elections take longer than their timeouts.
#[cfg(test)]
pub(crate) fn test_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
}
