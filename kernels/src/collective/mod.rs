//! Collectives between the ranks of a group: one trait, shared memory for ranks of one host ([`shm`]), TCP across hosts
//! ([`tcp`]).
//!
//! Every rank makes the same calls in the same order. Sums are taken in rank order, element by element
//! (`((r0 + r1) + r2) + …`), so every implementation gives the same bits on every rank.

mod process;
#[cfg(test)]
mod process_tests;
mod segment;
pub mod shm;
mod signal;
pub mod tcp;
mod tcp_exchange;
mod tcp_handshake;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Longest message of [`Collective::broadcast`], in bytes.
pub const MAX_BROADCAST: usize = 16 << 20;

/// Longest part of [`Collective::all_to_all`], in elements.
pub const MAX_PART: usize = 1 << 30;

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
    /// Bytes sent to peers: data, and the lengths where peers do not know them.
    pub bytes: u64,
    /// Time inside calls.
    pub nanos: u64,
    /// Of it, time in which there was nothing to do but wait for peers.
    pub wait_nanos: u64,
}

impl CollectiveStats {
    /// A call that began at `started` has ended.
    pub fn count(&mut self, bytes: usize, started: Instant) {
        self.calls += 1;
        self.bytes += bytes as u64;
        self.nanos += nanos_since(started);
    }
}

fn nanos_since(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// How long something may still take.
#[derive(Debug, Clone, Copy)]
struct Limit {
    started: Instant,
    allowed: Option<Duration>,
}

impl Limit {
    /// `None` is for ever.
    fn start(allowed: Option<Duration>) -> Self {
        Self { started: Instant::now(), allowed }
    }

    fn passed(&self) -> bool {
        self.allowed.is_some_and(|allowed| self.started.elapsed() >= allowed)
    }

    /// What is left of it, but not more than `at_most`.
    fn left(&self, at_most: Duration) -> Duration {
        self.allowed.map_or(at_most, |allowed| allowed.saturating_sub(self.started.elapsed()).min(at_most))
    }

    fn timeout(&self, op: &'static str, rank: usize) -> CollectiveError {
        CollectiveError::Timeout { op, rank, waited: self.allowed.unwrap_or_default() }
    }
}

/// A rank on its way into a group: how long it may take, and a flag that makes it give up.
#[derive(Clone, Copy)]
struct Joining<'a> {
    limit: Limit,
    cancelled: &'a AtomicBool,
}

impl<'a> Joining<'a> {
    fn start(timeout: Duration, cancelled: &'a AtomicBool) -> Self {
        Self { limit: Limit::start(Some(timeout)), cancelled }
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// An error once the flag is set.
    fn go_on(&self) -> Result<(), CollectiveError> {
        match self.is_cancelled() {
            true => Err(CollectiveError::Aborted("joining the group was cancelled".into())),
            false => Ok(()),
        }
    }
}

/// Ends a group from any thread: every blocked or later call of this rank returns [`CollectiveError::Aborted`], and its
/// peers find out too.
#[derive(Clone)]
pub struct AbortHandle(Arc<dyn Fn(&str) + Send + Sync>);

impl AbortHandle {
    pub(crate) fn new(abort: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(abort))
    }

    /// One handle for several groups.
    pub fn all(handles: Vec<Self>) -> Self {
        Self::new(move |reason| handles.iter().for_each(|handle| handle.abort(reason)))
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
    /// Bounds each following call, however many messages it takes; `None` waits until the group ends.
    fn set_deadline(&mut self, deadline: Option<Duration>);
    /// Replaces `data` on every rank by the sum over ranks.
    ///
    /// # Errors
    /// Any [`CollectiveError`].
    fn all_reduce(&mut self, data: &mut [f32]) -> Result<(), CollectiveError>;
    /// Concatenates every rank's `send` in rank order into rank 0's `recv`; `counts[r]` is the length of rank r's part.
    /// `recv` is untouched on other ranks; on rank 0 it is as long as all counts together.
    ///
    /// # Errors
    /// Any [`CollectiveError`].
    fn gather(&mut self, send: &[f32], counts: &[usize], recv: &mut [f32]) -> Result<(), CollectiveError>;
    /// Gives every rank rank 0's bytes, at most [`MAX_BROADCAST`].
    ///
    /// # Errors
    /// Any [`CollectiveError`].
    fn broadcast(&mut self, bytes: &mut Vec<u8>) -> Result<(), CollectiveError>;
    /// Sends `send[r]` to rank r, for every r (this rank's own part is copied), and replaces `recv[r]` by what rank r sent
    /// here. Parts have any length up to [`MAX_PART`], which only their sender need know.
    ///
    /// # Errors
    /// Any [`CollectiveError`].
    fn all_to_all(&mut self, send: &[&[f32]], recv: &mut [Vec<f32>]) -> Result<(), CollectiveError>;
    /// In a group of two: replaces rank 1's `data` by rank 0's, of the same length. Rank 0 does not wait until rank 1 has
    /// it, only until there is room for it on the way.
    ///
    /// # Errors
    /// Any [`CollectiveError`].
    fn pass(&mut self, data: &mut [f32]) -> Result<(), CollectiveError>;
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
    fn gather(&mut self, send: &[f32], counts: &[usize], recv: &mut [f32]) -> Result<(), CollectiveError> {
        self.check()?;
        check_gather(0, 1, send, counts, recv)?;
        recv.copy_from_slice(send);
        Ok(())
    }
    fn broadcast(&mut self, bytes: &mut Vec<u8>) -> Result<(), CollectiveError> {
        self.check()?;
        check_broadcast(bytes)
    }
    fn all_to_all(&mut self, send: &[&[f32]], recv: &mut [Vec<f32>]) -> Result<(), CollectiveError> {
        self.check()?;
        check_all_to_all(1, send, recv)?;
        recv[0].clear();
        recv[0].extend_from_slice(send[0]);
        Ok(())
    }
    fn pass(&mut self, _data: &mut [f32]) -> Result<(), CollectiveError> {
        self.check()?;
        check_pass(1)
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

/// Refuses lengths that do not belong together, before anything is sent.
fn check_gather(
    rank: usize,
    size: usize,
    send: &[f32],
    counts: &[usize],
    recv: &[f32],
) -> Result<(), CollectiveError> {
    let refuse = |reason: String| Err(CollectiveError::io("gather", reason));
    if counts.len() != size {
        return refuse(format!("{} counts for {size} ranks; give one for each", counts.len()));
    }
    if counts[rank] != send.len() {
        return refuse(format!(
            "rank {rank} sends {} elements, its count says {}; they must agree",
            send.len(),
            counts[rank]
        ));
    }
    let total = counts.iter().try_fold(0usize, |total, count| total.checked_add(*count));
    if rank == 0 && total != Some(recv.len()) {
        return refuse(format!("room for {} elements, the counts add up to {total:?}", recv.len()));
    }
    Ok(())
}

/// Refuses a message of rank 0 that is too long.
fn check_broadcast(bytes: &[u8]) -> Result<(), CollectiveError> {
    if bytes.len() > MAX_BROADCAST {
        let reason = format!("{} bytes, at most {MAX_BROADCAST}; send it in parts", bytes.len());
        return Err(CollectiveError::io("broadcast", reason));
    }
    Ok(())
}

/// Refuses an exchange without a part for each rank, or with one that is too long.
fn check_all_to_all(size: usize, send: &[&[f32]], recv: &[Vec<f32>]) -> Result<(), CollectiveError> {
    let refuse = |reason: String| Err(CollectiveError::io("all_to_all", reason));
    if send.len() != size || recv.len() != size {
        return refuse(format!(
            "{} parts to send and {} to receive for {size} ranks; give one for each",
            send.len(),
            recv.len()
        ));
    }
    match send.iter().find(|part| part.len() > MAX_PART) {
        Some(part) => refuse(format!("a part of {} elements, at most {MAX_PART}", part.len())),
        None => Ok(()),
    }
}

/// Bytes that an exchange sends to peers: a length and a part to each.
fn sent_to_peers(rank: usize, send: &[&[f32]]) -> usize {
    send.iter().enumerate().filter(|(peer, _)| *peer != rank).map(|(_, part)| 4 + size_of_val(*part)).sum()
}

fn check_pass(size: usize) -> Result<(), CollectiveError> {
    match size {
        2 => Ok(()),
        _ => Err(CollectiveError::io("pass", format!("{size} ranks; it is for groups of two"))),
    }
}

/// Elements that rank `r` of `size` reduces of a vector of `len`.
fn part_of(len: usize, size: usize, r: usize) -> std::ops::Range<usize> {
    // Multiples of 16 elements: a cache line is written by one rank only.
    let lines = len.div_ceil(16);
    let at = |r: usize| (lines * r / size * 16).min(len);
    at(r)..at(r + 1)
}
