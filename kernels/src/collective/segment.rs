//! The shared memory of a group on one host: control words and data slots, mapped by every rank.
//!
//! Rank 0 makes the file and removes its name once every rank has mapped it, so nothing stays behind whatever dies.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::thread::futex;

use super::CollectiveError;

/// Bytes of one data slot; each rank has two.
pub(super) const SLOT_BYTES: usize = 1 << 20;
const MAGIC: u64 = 0x666f_6767_6172_6131;
const HEADER_BYTES: usize = 4096;

/// Control words of the whole group.
#[repr(C)]
pub(super) struct Header {
    /// Written last by rank 0: the rest is valid.
    magic: AtomicU64,
    size: AtomicU32,
    creator: AtomicU32,
    creator_started: AtomicU64,
    joined: AtomicU32,
    /// 0, or 1 + the rank that ended the group.
    pub(super) aborted: AtomicU32,
}

/// Control words of one rank, on cache lines of their own.
#[repr(C, align(128))]
pub(super) struct Control {
    /// Last phase whose data this rank has put into its slot.
    pub(super) published: AtomicU32,
    /// Last phase this rank is through with: it reads no slot of it any more.
    pub(super) done: AtomicU32,
    /// Threads asleep on `published` or `done`.
    pub(super) sleepers: AtomicU32,
    /// 1 once this rank makes no more calls. What it has published stays readable.
    left: AtomicU32,
    pid: AtomicU32,
    started: AtomicU64,
    /// Which call the published phase belongs to.
    pub(super) call: AtomicU64,
}

/// The mapping.
pub(super) struct Segment {
    base: NonNull<u8>,
    bytes: usize,
    pub(super) size: usize,
}

// SAFETY: the memory is shared by design; every word in it is atomic, and slots are handed over through them.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    fn bytes_for(size: usize) -> usize {
        HEADER_BYTES + size * size_of::<Control>().next_multiple_of(4096) + size * 2 * SLOT_BYTES
    }

    /// Maps the segment called `name` in `dir` for `rank`, and waits until all ranks have.
    pub(super) fn join(
        dir: &Path,
        name: &str,
        rank: usize,
        size: usize,
        timeout: Duration,
    ) -> Result<Self, CollectiveError> {
        let path = dir.join(name);
        let deadline = Instant::now() + timeout;
        let segment = if rank == 0 { Self::create(&path, size)? } else { Self::open(&path, size, deadline)? };
        let me = segment.control(rank);
        let (pid, started) = this_process();
        me.started.store(started, Ordering::Relaxed);
        me.pid.store(pid, Ordering::Relaxed);
        let joined = &segment.header().joined;
        joined.fetch_add(1, Ordering::SeqCst);
        let outcome = loop {
            if joined.load(Ordering::SeqCst) as usize >= size {
                break Ok(());
            }
            if Instant::now() > deadline {
                let missing =
                    (0..size).find(|r| segment.control(*r).pid.load(Ordering::Relaxed) == 0).unwrap_or(0);
                break Err(CollectiveError::Timeout { op: "connect", rank: missing, waited: timeout });
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        if rank == 0 {
            // Best effort: a name that is gone already is what we want.
            drop(std::fs::remove_file(&path));
        }
        outcome.map(|()| segment)
    }

    fn create(path: &Path, size: usize) -> Result<Self, CollectiveError> {
        let what = || format!("creating the shared memory {}", path.display());
        // A segment of this name can only be left over: names carry the group's epoch.
        drop(std::fs::remove_file(path));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|e| CollectiveError::io(what(), e))?;
        let bytes = Self::bytes_for(size);
        // Allocated, not just sized: a full /dev/shm must be an error now, not a bus error later.
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes as u64)
            .map_err(|e| CollectiveError::io(format!("{}, {bytes} bytes", what()), e))?;
        let segment = Self::map(&file, bytes, size)?;
        let header = segment.header();
        let (pid, started) = this_process();
        header.size.store(u32::try_from(size).unwrap_or(u32::MAX), Ordering::Relaxed);
        header.creator_started.store(started, Ordering::Relaxed);
        header.creator.store(pid, Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
        Ok(segment)
    }

    fn open(path: &Path, size: usize, deadline: Instant) -> Result<Self, CollectiveError> {
        let bytes = Self::bytes_for(size);
        loop {
            if let Ok(file) = OpenOptions::new().read(true).write(true).open(path)
                && file.metadata().is_ok_and(|found| found.len() == bytes as u64)
            {
                let segment = Self::map(&file, bytes, size)?;
                let header = segment.header();
                let valid = header.magic.load(Ordering::Acquire) == MAGIC
                    && header.size.load(Ordering::Relaxed) as usize == size
                    && is_alive(
                        header.creator.load(Ordering::Relaxed),
                        header.creator_started.load(Ordering::Relaxed),
                    );
                if valid {
                    return Ok(segment);
                }
            }
            if Instant::now() > deadline {
                let reason = format!("rank 0 has not made {} in time", path.display());
                return Err(CollectiveError::PeerLost { rank: 0, reason });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn map(file: &File, bytes: usize, size: usize) -> Result<Self, CollectiveError> {
        // SAFETY: a new mapping at an address of the kernel's choice; the file has `bytes` bytes, allocated.
        let base = unsafe {
            mmap(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, 0)
        };
        let base = base.map_err(|e| CollectiveError::io("mapping shared memory", e))?;
        let base =
            NonNull::new(base.cast()).ok_or_else(|| CollectiveError::io("mapping shared memory", "null"))?;
        Ok(Self { base, bytes, size })
    }

    pub(super) fn header(&self) -> &Header {
        // SAFETY: inside the mapping, aligned to a page; all zeros is a valid Header and all its fields are atomic.
        unsafe { self.base.cast().as_ref() }
    }

    pub(super) fn control(&self, rank: usize) -> &Control {
        assert!(rank < self.size);
        let at = HEADER_BYTES + rank * size_of::<Control>().next_multiple_of(4096);
        // SAFETY: inside the mapping, aligned to a page; all zeros is a valid Control and all its fields are atomic.
        unsafe { self.base.add(at).cast().as_ref() }
    }

    /// The start of the slot of `rank` for `phase`: [`SLOT_BYTES`] bytes.
    pub(super) fn slot(&self, rank: usize, phase: u32) -> NonNull<u8> {
        assert!(rank < self.size);
        let controls = self.size * size_of::<Control>().next_multiple_of(4096);
        let index = rank * 2 + (phase & 1) as usize;
        // SAFETY: inside the mapping (see `bytes_for`).
        unsafe { self.base.add(HEADER_BYTES + controls + index * SLOT_BYTES) }
    }

    /// Why `rank` will publish nothing more, if so.
    pub(super) fn is_gone(&self, rank: usize) -> Option<&'static str> {
        let control = self.control(rank);
        if control.left.load(Ordering::SeqCst) != 0 {
            return Some("it has left the group");
        }
        let alive = is_alive(control.pid.load(Ordering::Relaxed), control.started.load(Ordering::Relaxed));
        (!alive).then_some("its process has ended")
    }

    /// Says that `rank` makes no more calls, and wakes who waits for it.
    pub(super) fn leave(&self, rank: usize) {
        let control = self.control(rank);
        control.left.store(1, Ordering::SeqCst);
        wake(&control.published);
        wake(&control.done);
    }

    /// Ends the group and wakes everyone.
    pub(super) fn abort(&self, rank: usize) {
        let by = u32::try_from(rank + 1).unwrap_or(u32::MAX);
        // The first abort stays the one that is reported.
        self.header().aborted.compare_exchange(0, by, Ordering::SeqCst, Ordering::SeqCst).ok();
        for rank in 0..self.size {
            let control = self.control(rank);
            for word in [&control.published, &control.done] {
                wake(word);
            }
        }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with these bounds and nothing borrowed from it outlives `self`.
        unsafe { munmap(self.base.as_ptr().cast(), self.bytes) }.ok();
    }
}

/// Wakes every sleeper on `word`.
pub(super) fn wake(word: &AtomicU32) {
    // Waking cannot fail in a way that matters: sleepers look again after a while on their own.
    futex::wake(word, futex::Flags::empty(), i32::MAX as u32).ok();
}

/// Sleeps while `word` is `seen`, at most `limit`.
pub(super) fn sleep(word: &AtomicU32, seen: u32, limit: Duration) {
    let timeout = futex::Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    // Whatever woke us, the caller looks at the word again.
    futex::wait(word, futex::Flags::empty(), seen, Some(&timeout)).ok();
}

/// This process's id and start time.
fn this_process() -> (u32, u64) {
    let pid = std::process::id();
    (pid, process_state(pid).map_or(0, |(_, started)| started))
}

/// A process's state letter and start time in clock ticks since boot (proc(5), /proc/[pid]/stat fields 3 and 22).
fn process_state(pid: u32) -> Option<(u8, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command in parentheses may hold anything, so fields are counted after it.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Whether the process `pid` that started at `started` still runs (a zombie does not).
fn is_alive(pid: u32, started: u64) -> bool {
    process_state(pid).is_some_and(|(state, since)| since == started && state != b'Z' && state != b'X')
}
