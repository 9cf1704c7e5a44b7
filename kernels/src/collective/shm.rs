//! Collectives through shared memory, for ranks of one host.
//!
//! Calls are made of *phases*. In a phase a rank puts data into its slot (two slots, used in turn) and publishes the phase's
//! number; readers wait for the number, read, and say when they are through. A slot is written again two phases later, once
//! every rank is through with what it held. So a small all-reduce is one exchange: everyone writes, everyone reads all.

mod all_to_all;

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::segment::{PAGE, SLOT_BYTES, Segment};
use super::signal::Signal;
use super::{
    AbortHandle, Collective, CollectiveError, CollectiveStats, Joining, Limit, MAX_BROADCAST, SpinPolicy,
    check_all_to_all, check_broadcast, check_gather, check_pass, nanos_since, part_of, sent_to_peers,
};

/// Most ranks of a group: each takes two megabytes of memory.
pub const MAX_RANKS: usize = 64;
/// What each rank takes of `/dev/shm`: two slots, and its control words. A group takes a page more.
pub const BYTES_PER_RANK: usize = 2 * SLOT_BYTES + PAGE;
/// Longest name of a group, in bytes.
pub const MAX_NAME: usize = 200;

/// Up to here (and always for two ranks) every rank sums the whole vector itself: one exchange. Above it each rank reduces
/// a part and a second exchange spreads the parts.
const DIRECT_BYTES: usize = 64 << 10;

/// First and longest sleep between looks at whether the peer still lives.
const FIRST_SLEEP: Duration = Duration::from_millis(5);
const LONGEST_SLEEP: Duration = Duration::from_millis(100);

/// How to join a group.
#[derive(Debug, Clone)]
pub struct ShmConfig {
    /// Unique for the group and its epoch: letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// This rank.
    pub rank: usize,
    /// Ranks in the group.
    pub size: usize,
    /// How to wait.
    pub spin: SpinPolicy,
    /// How long to wait for the other ranks to join.
    pub connect_timeout: Duration,
    /// Set from another thread: gives up joining.
    pub cancelled: Arc<AtomicBool>,
    /// Where the segment's file is made: a memory file system.
    pub dir: PathBuf,
}

impl ShmConfig {
    /// The usual settings: `/dev/shm`, 30 s to join.
    pub fn new(name: impl Into<String>, rank: usize, size: usize) -> Self {
        Self {
            name: name.into(),
            rank,
            size,
            spin: SpinPolicy::default(),
            connect_timeout: Duration::from_secs(30),
            cancelled: Arc::default(),
            dir: PathBuf::from("/dev/shm"),
        }
    }
}

/// Joins the group; returns once every rank has.
///
/// # Errors
/// If the segment cannot be made, or a rank does not come in time.
pub fn connect(config: &ShmConfig) -> Result<Box<dyn Collective>, CollectiveError> {
    check(config)?;
    let joining = Joining::start(config.connect_timeout, &config.cancelled);
    let segment = Segment::join(&config.dir, &config.name, config.rank, config.size, joining)?;
    Ok(Box::new(Shm {
        segment: Arc::new(segment),
        rank: config.rank,
        spin: config.spin.duration(),
        deadline: None,
        limit: Limit::start(None),
        phase: 0,
        reason: Arc::new(Mutex::new(None)),
        stats: CollectiveStats::default(),
        waited: Cell::new(0),
    }))
}

fn check(config: &ShmConfig) -> Result<(), CollectiveError> {
    let (name, rank, size) = (&config.name, config.rank, config.size);
    let refuse = |reason: String| Err(CollectiveError::io(format!("shared memory `{name:.60}`"), reason));
    let valid = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(valid) || name == "." || name == ".." {
        return refuse(format!("a name is 1 to {MAX_NAME} letters, digits, `.`, `_` or `-`"));
    }
    if size > MAX_RANKS {
        return refuse(format!("{size} ranks, at most {MAX_RANKS}; use the TCP collectives"));
    }
    if rank >= size {
        return refuse(format!("rank {rank} of {size}; ranks count from 0"));
    }
    Ok(())
}

/// Numbers of the calls, for the check that ranks agree.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum Call {
    AllReduce = 1,
    Spread,
    Gather,
    Broadcast,
    Barrier,
    AllToAll,
    Pass,
}

impl Call {
    const ALL: [Self; 7] = [
        Self::AllReduce,
        Self::Spread,
        Self::Gather,
        Self::Broadcast,
        Self::Barrier,
        Self::AllToAll,
        Self::Pass,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::AllReduce | Self::Spread => "all_reduce",
            Self::Gather => "gather",
            Self::Broadcast => "broadcast",
            Self::Barrier => "barrier",
            Self::AllToAll => "all_to_all",
            Self::Pass => "pass",
        }
    }

    /// What a peer's word says.
    fn name_of(number: u64) -> &'static str {
        Self::ALL.into_iter().find(|call| *call as u64 == number).map_or("an unknown call", Self::name)
    }
}

struct Shm {
    segment: Arc<Segment>,
    rank: usize,
    spin: Duration,
    deadline: Option<Duration>,
    /// The deadline of the call under way.
    limit: Limit,
    /// Number of the current phase. Wraps around; compared by distance.
    phase: u32,
    reason: Arc<Mutex<Option<String>>>,
    stats: CollectiveStats,
    /// Nanoseconds spent waiting, apart from `stats` because waits happen while slots are borrowed.
    waited: Cell<u64>,
}

impl Shm {
    fn aborted(&self) -> Option<CollectiveError> {
        let by = self.segment.header().aborted.load(Ordering::Relaxed);
        (by != 0).then(|| {
            let reason = self.reason.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
            CollectiveError::Aborted(reason.unwrap_or_else(|| format!("by rank {}", by - 1)))
        })
    }

    /// Waits until `signal`, one of those of `peer`, has come to `phase`.
    fn wait(&self, call: Call, peer: usize, signal: &Signal, phase: u32) -> Result<(), CollectiveError> {
        if signal.reached(phase) {
            return Ok(());
        }
        let started = Instant::now();
        let mut came = false;
        while !came && started.elapsed() < self.spin {
            for _ in 0..16 {
                came |= signal.reached(phase);
                std::hint::spin_loop();
            }
        }
        let outcome = if came { Ok(()) } else { self.park(call, peer, signal, phase) };
        self.waited.set(self.waited.get() + nanos_since(started));
        outcome
    }

    /// As [`wait`](Self::wait), asleep.
    fn park(&self, call: Call, peer: usize, signal: &Signal, phase: u32) -> Result<(), CollectiveError> {
        let mut nap = FIRST_SLEEP;
        signal.sleep_until(|ran_out| {
            if signal.reached(phase) {
                return Ok(Ok(()));
            }
            if let Some(error) = self.aborted() {
                return Ok(Err(error));
            }
            if let Some(reason) = self.segment.is_gone(peer, ran_out) {
                // It may have done its part just before.
                let lost = || CollectiveError::PeerLost { rank: peer, reason: reason.into() };
                return Ok(if signal.reached(phase) { Ok(()) } else { Err(lost()) });
            }
            if self.limit.passed() {
                return Ok(Err(self.limit.timeout(call.name(), peer)));
            }
            if ran_out {
                nap = (nap * 2).min(LONGEST_SLEEP);
            }
            Err(self.limit.left(nap))
        })
    }

    /// Starts the next phase with `write` filling this rank's slot; `len` and `call` are checked by readers.
    fn publish(
        &mut self,
        call: Call,
        len: usize,
        write: impl FnOnce(&mut [u8]),
    ) -> Result<(), CollectiveError> {
        self.phase = self.phase.wrapping_add(1);
        if let Some(error) = self.aborted() {
            return Err(error);
        }
        // This slot was last read in the phase before the last.
        for peer in (0..self.segment.size).filter(|peer| *peer != self.rank) {
            self.wait(call, peer, &self.segment.control(peer).done, self.phase.wrapping_sub(2))?;
        }
        let slot = self.segment.slot(self.rank, self.phase);
        // SAFETY: the slot is this rank's own, and every reader of what it held is through (just waited for).
        write(unsafe { std::slice::from_raw_parts_mut(slot.as_ptr(), SLOT_BYTES) });
        let me = self.segment.control(self.rank);
        me.call[(self.phase & 1) as usize].store((call as u64) << 56 | len as u64, Ordering::Relaxed);
        me.published.set(self.phase);
        Ok(())
    }

    /// Waits for the slot of `peer` in this phase. With `len`, the peer must be in the same call.
    fn peer(&self, call: Call, peer: usize, len: Option<usize>) -> Result<&[u8], CollectiveError> {
        let control = self.segment.control(peer);
        self.wait(call, peer, &control.published, self.phase)?;
        // Like the slot, this word is written again only when this rank is done with the phase.
        let theirs = control.call[(self.phase & 1) as usize].load(Ordering::Relaxed);
        let (their_call, their_len) = (theirs >> 56, theirs & ((1 << 56) - 1));
        if their_call != call as u64 || len.is_some_and(|len| len as u64 != their_len) {
            let here = len.map_or_else(String::new, |len| format!(" of {len} bytes"));
            let there = Call::name_of(their_call);
            let reason = format!("{}{here} here, {there} of {their_len} bytes there", call.name());
            return Err(CollectiveError::Mismatch { rank: peer, reason });
        }
        let slot = self.segment.slot(peer, self.phase);
        // SAFETY: published (just waited for); its owner writes it again only when this rank is done with the phase.
        Ok(unsafe { std::slice::from_raw_parts(slot.as_ptr(), SLOT_BYTES) })
    }

    fn done(&self) {
        self.segment.control(self.rank).done.set(self.phase);
    }

    /// Sums `data` (one slot at most) over ranks in rank order, every rank by itself.
    fn reduce_direct(&mut self, data: &mut [f32]) -> Result<(), CollectiveError> {
        let bytes = size_of_val(data);
        self.publish(Call::AllReduce, bytes, |slot| {
            slot[..bytes].copy_from_slice(bytemuck::cast_slice(data))
        })?;
        for rank in 0..self.segment.size {
            self.peer(Call::AllReduce, rank, Some(bytes))?;
        }
        self.sum(data, 0);
        self.done();
        Ok(())
    }

    /// Writes to `out` the sum of everyone's published elements `from..`, in rank order.
    fn sum(&self, out: &mut [f32], from: usize) {
        assert!(from + out.len() <= SLOT_BYTES / 4, "elements of one slot");
        let len = out.len();
        let part = |rank: usize| {
            let slot = self.segment.slot(rank, self.phase);
            // SAFETY: as in `peer`, which the caller has called for every rank in this phase; inside the slot (checked
            // above), which is aligned to a page.
            unsafe { std::slice::from_raw_parts(slot.as_ptr().cast::<f32>().add(from), len) }
        };
        if self.segment.size == 1 {
            out.copy_from_slice(part(0));
            return;
        }
        // The first two at once: one pass less over the vector.
        crate::op::rms_norm::add_to(out, part(0), part(1));
        (2..self.segment.size).for_each(|rank| crate::op::rms_norm::add_assign(out, part(rank)));
    }

    /// As [`reduce_direct`](Self::reduce_direct), each rank summing a part, then everyone collecting the parts.
    fn reduce_in_parts(&mut self, data: &mut [f32]) -> Result<(), CollectiveError> {
        let (bytes, size) = (size_of_val(data), self.segment.size);
        self.publish(Call::AllReduce, bytes, |slot| {
            slot[..bytes].copy_from_slice(bytemuck::cast_slice(data))
        })?;
        for rank in 0..size {
            self.peer(Call::AllReduce, rank, Some(bytes))?;
        }
        let mine = part_of(data.len(), size, self.rank);
        self.sum(&mut data[mine.clone()], mine.start);
        self.done();
        let part = &data[mine];
        self.publish(Call::Spread, bytes, |slot| {
            slot[..size_of_val(part)].copy_from_slice(bytemuck::cast_slice(part));
        })?;
        for rank in (0..size).filter(|rank| *rank != self.rank) {
            let theirs = part_of(data.len(), size, rank);
            let slot = self.peer(Call::Spread, rank, Some(bytes))?;
            bytemuck::cast_slice_mut(&mut data[theirs.clone()]).copy_from_slice(&slot[..theirs.len() * 4]);
        }
        self.done();
        Ok(())
    }

    fn counted(
        &mut self,
        bytes: usize,
        f: impl FnOnce(&mut Self) -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        self.limit = Limit::start(self.deadline);
        let outcome = match self.aborted() {
            Some(error) => Err(error),
            None => f(self),
        };
        self.stats.count(bytes, self.limit.started);
        self.stats.wait_nanos = self.waited.get();
        outcome
    }
}

impl Collective for Shm {
    fn rank(&self) -> usize {
        self.rank
    }
    fn size(&self) -> usize {
        self.segment.size
    }
    fn kind(&self) -> &'static str {
        "shm"
    }
    fn set_deadline(&mut self, deadline: Option<Duration>) {
        self.deadline = deadline;
    }

    fn all_reduce(&mut self, data: &mut [f32]) -> Result<(), CollectiveError> {
        self.counted(size_of_val(data), |this| {
            let direct = this.segment.size == 2 || size_of_val(data) <= DIRECT_BYTES;
            for chunk in data.chunks_mut(SLOT_BYTES / 4) {
                if direct { this.reduce_direct(chunk)? } else { this.reduce_in_parts(chunk)? }
            }
            Ok(())
        })
    }

    fn gather(&mut self, send: &[f32], counts: &[usize], recv: &mut [f32]) -> Result<(), CollectiveError> {
        check_gather(self.rank, self.segment.size, send, counts, recv)?;
        let per_phase = SLOT_BYTES / 4;
        let phases = counts.iter().copied().max().unwrap_or(0).div_ceil(per_phase);
        self.counted(size_of_val(send), |this| {
            for phase in 0..phases {
                let part =
                    |count: usize| (phase * per_phase).min(count)..((phase + 1) * per_phase).min(count);
                let mine = &send[part(send.len())];
                // Rank 0 reads its own part where it is.
                let sent = if this.rank == 0 { &[] } else { mine };
                this.publish(Call::Gather, size_of_val(mine), |slot| {
                    slot[..size_of_val(sent)].copy_from_slice(bytemuck::cast_slice(sent));
                })?;
                if this.rank == 0 {
                    let mut start = 0;
                    for (rank, count) in counts.iter().enumerate() {
                        let range = part(*count);
                        let bytes = range.len() * 4;
                        let to = &mut recv[start + range.start..start + range.end];
                        if rank == 0 {
                            to.copy_from_slice(mine);
                        } else {
                            let slot = this.peer(Call::Gather, rank, Some(bytes))?;
                            bytemuck::cast_slice_mut(to).copy_from_slice(&slot[..bytes]);
                        }
                        start += count;
                    }
                }
                this.done();
            }
            Ok(())
        })
    }

    fn broadcast(&mut self, bytes: &mut Vec<u8>) -> Result<(), CollectiveError> {
        const FIRST: usize = SLOT_BYTES - 8;
        if self.rank == 0 {
            check_broadcast(bytes)?;
        }
        let sent = if self.rank == 0 { bytes.len() } else { 0 };
        self.counted(sent, |this| {
            let mut at = 0;
            let mut total = bytes.len();
            let mut first = true;
            while first || at < total {
                let room = if first { FIRST } else { SLOT_BYTES };
                if this.rank == 0 {
                    let part = &bytes[at..total.min(at + room)];
                    this.publish(Call::Broadcast, part.len(), |slot| {
                        let slot = if first {
                            slot[..8].copy_from_slice(&(total as u64).to_ne_bytes());
                            &mut slot[8..]
                        } else {
                            slot
                        };
                        slot[..part.len()].copy_from_slice(part);
                    })?;
                    at += part.len();
                } else {
                    this.publish(Call::Broadcast, 0, |_| ())?;
                    let slot = this.peer(Call::Broadcast, 0, None)?;
                    let slot = if first {
                        let length: [u8; 8] = *slot.first_chunk().expect("a slot is longer than 8 bytes");
                        total = usize::try_from(u64::from_ne_bytes(length)).unwrap_or(usize::MAX);
                        if total > MAX_BROADCAST {
                            let reason = format!("a broadcast of {total} bytes, at most {MAX_BROADCAST}");
                            return Err(CollectiveError::Mismatch { rank: 0, reason });
                        }
                        bytes.clear();
                        &slot[8..]
                    } else {
                        slot
                    };
                    let part = &slot[..room.min(total - at)];
                    bytes.extend_from_slice(part);
                    at += part.len();
                }
                this.done();
                first = false;
            }
            Ok(())
        })
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.counted(0, |this| {
            this.publish(Call::Barrier, 0, |_| ())?;
            for rank in 0..this.segment.size {
                this.peer(Call::Barrier, rank, Some(0))?;
            }
            this.done();
            Ok(())
        })
    }

    fn all_to_all(&mut self, send: &[&[f32]], recv: &mut [Vec<f32>]) -> Result<(), CollectiveError> {
        check_all_to_all(self.segment.size, send, recv)?;
        let sent = sent_to_peers(self.rank, send);
        self.counted(sent, |this| this.exchange(send, recv))
    }

    fn pass(&mut self, data: &mut [f32]) -> Result<(), CollectiveError> {
        check_pass(self.segment.size)?;
        let sent = if self.rank == 0 { size_of_val(data) } else { 0 };
        self.counted(sent, |this| {
            for chunk in data.chunks_mut(SLOT_BYTES / 4) {
                let bytes = size_of_val(chunk);
                if this.rank == 0 {
                    this.publish(Call::Pass, bytes, |slot| {
                        slot[..bytes].copy_from_slice(bytemuck::cast_slice(chunk));
                    })?;
                } else {
                    this.publish(Call::Pass, 0, |_| ())?;
                    let slot = this.peer(Call::Pass, 0, Some(bytes))?;
                    bytemuck::cast_slice_mut(chunk).copy_from_slice(&slot[..bytes]);
                }
                this.done();
            }
            Ok(())
        })
    }

    fn abort_handle(&self) -> AbortHandle {
        let (segment, reason, rank) = (Arc::clone(&self.segment), Arc::clone(&self.reason), self.rank);
        AbortHandle::new(move |why| {
            reason
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .get_or_insert_with(|| why.to_owned());
            segment.abort(rank);
        })
    }

    fn stats(&self) -> CollectiveStats {
        self.stats
    }
}

impl Drop for Shm {
    /// Peers that wait for this rank, or come to, must not wait for ever.
    fn drop(&mut self) {
        self.segment.leave(self.rank);
    }
}
