//! Collectives between the ranks of a group: one trait, shared memory for ranks of one host ([`shm`]), TCP across hosts
//! ([`tcp`]).
//!
//! Every rank makes the same calls in the same order. Sums are taken in rank order, element by element
//! (`((r0 + r1) + r2) + …`), so every implementation gives the same bits on every rank.

mod segment;
pub mod shm;
pub mod tcp;
mod tcp_exchange;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

/// Longest message of [`Collective::broadcast`], in bytes.
pub const MAX_BROADCAST: usize = 16 << 20;

/// Why a collective did not complete. After any error the group is unusable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CollectiveError {
    /// Someone asked for the group to end.
    #[error("aborted: {0}")]
    Aborted(String),
    /// A peer did not come in time.
    #[error("{op}: rank {rank} did not answer within {waited:?}")]
    Timeout {
        /// The call.
        op: &'static str,
        /// Who was waited for.
        rank: usize,
        /// The deadline.
        waited: Duration,
    },
    /// A peer's process or connection ended.
    #[error("rank {rank} is lost: {reason}")]
    PeerLost {
        /// Who.
        rank: usize,
        /// What was seen.
        reason: String,
    },
    /// Ranks made different calls.
    #[error("rank {rank} is in another call: {reason}")]
    Mismatch {
        /// Who disagrees with this rank.
        rank: usize,
        /// Both calls.
        reason: String,
    },
    /// The system refused something.
    #[error("{what}: {reason}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        reason: String,
    },
}

impl CollectiveError {
    fn io(what: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::Io { what: what.into(), reason: reason.to_string() }
    }
}

/// How a rank waits for its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpinPolicy {
    /// Spin this long, then park.
    Spin(Duration),
    /// Park at once: for hosts with more ranks than cores.
    Park,
}

impl Default for SpinPolicy {
    fn default() -> Self {
        Self::Spin(Duration::from_micros(20))
    }
}

impl SpinPolicy {
    fn duration(self) -> Duration {
        match self {
            Self::Spin(duration) => duration,
            Self::Park => Duration::ZERO,
        }
    }
}

/// What the collectives of one rank have cost so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CollectiveStats {
    /// Calls made.
    pub calls: u64,
    /// Bytes sent to peers.
    pub bytes: u64,
    /// Time inside calls.
    pub nanos: u64,
}

/// Ends a group from any thread: every blocked or later call of this rank returns [`CollectiveError::Aborted`], and its
/// peers find out too.
#[derive(Clone)]
pub struct AbortHandle(Arc<dyn Fn(&str) + Send + Sync>);

impl AbortHandle {
    fn new(abort: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(abort))
    }

    /// Ends the group, for `reason`.
    pub fn abort(&self, reason: &str) {
        (self.0)(reason);
    }
}

/// One rank's end of a group's collectives. Calls block; one thread makes them.
pub trait Collective: Send {
    /// This rank.
    fn rank(&self) -> usize;
    /// Ranks in the group.
    fn size(&self) -> usize;
    /// "shm", "tcp" or "solo".
    fn kind(&self) -> &'static str;
    /// Bounds every following call; `None` waits until the group ends.
    fn set_deadline(&mut self, deadline: Option<Duration>);
    /// Replaces `data` on every rank by the sum over ranks.
    ///
    /// # Errors
    /// Any [`CollectiveError`].
    fn all_reduce(&mut self, data: &mut [f32]) -> Result<(), CollectiveError>;
    /// Concatenates every rank's `send` in rank order into rank 0's `recv`; `counts[r]` is the length of rank r's part.
    /// `recv` is untouched on other ranks.
    ///
    /// # Errors
    /// Any [`CollectiveError`].
    fn gather(&mut self, send: &[f32], counts: &[usize], recv: &mut [f32]) -> Result<(), CollectiveError>;
    /// Gives every rank rank 0's bytes, at most [`MAX_BROADCAST`].
    ///
    /// # Errors
    /// Any [`CollectiveError`].
    fn broadcast(&mut self, bytes: &mut Vec<u8>) -> Result<(), CollectiveError>;
    /// Returns once every rank has called it.
    ///
    /// # Errors
    /// Any [`CollectiveError`].
    fn barrier(&mut self) -> Result<(), CollectiveError>;
    /// A way to end the group from another thread.
    fn abort_handle(&self) -> AbortHandle;
    /// What it has cost so far.
    fn stats(&self) -> CollectiveStats;
}

/// A group of one rank: nothing to exchange.
#[derive(Debug, Default)]
pub struct Solo {
    aborted: Arc<std::sync::Mutex<Option<String>>>,
}

impl Solo {
    fn check(&self) -> Result<(), CollectiveError> {
        match &*self.aborted.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            Some(reason) => Err(CollectiveError::Aborted(reason.clone())),
            None => Ok(()),
        }
    }
}

impl Collective for Solo {
    fn rank(&self) -> usize {
        0
    }
    fn size(&self) -> usize {
        1
    }
    fn kind(&self) -> &'static str {
        "solo"
    }
    fn set_deadline(&mut self, _deadline: Option<Duration>) {}
    fn all_reduce(&mut self, _data: &mut [f32]) -> Result<(), CollectiveError> {
        self.check()
    }
    fn gather(&mut self, send: &[f32], _counts: &[usize], recv: &mut [f32]) -> Result<(), CollectiveError> {
        recv[..send.len()].copy_from_slice(send);
        self.check()
    }
    fn broadcast(&mut self, _bytes: &mut Vec<u8>) -> Result<(), CollectiveError> {
        self.check()
    }
    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.check()
    }
    fn abort_handle(&self) -> AbortHandle {
        let aborted = Arc::clone(&self.aborted);
        AbortHandle::new(move |reason| {
            let mut aborted = aborted.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            aborted.get_or_insert_with(|| reason.to_owned());
        })
    }
    fn stats(&self) -> CollectiveStats {
        CollectiveStats::default()
    }
}

/// Elements that rank `r` of `size` reduces of a vector of `len`.
fn part_of(len: usize, size: usize, r: usize) -> std::ops::Range<usize> {
    // Multiples of 16 elements: a cache line is written by one rank only.
    let lines = len.div_ceil(16);
    let at = |r: usize| (lines * r / size * 16).min(len);
    at(r)..at(r + 1)
}
