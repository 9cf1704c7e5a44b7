//! The shared memory of a group on one host: control words and data slots, mapped by every rank.
//!
//! Rank 0 makes the file and removes its name once every rank has mapped it, so nothing stays behind whatever dies later.
//! Until then it holds a lock on the file; a file without its lock was left by a maker that died, and the next group that
//! is made removes it.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{FallocateFlags, FlockOperation, OFlags, fallocate, flock};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::process::Process;
use super::signal::Signal;
use super::{CollectiveError, Joining};

/// Bytes of one data slot; each rank has two.
pub(super) const SLOT_BYTES: usize = 1 << 20;
/// The first bytes of a segment; the last digit is the layout's version.
pub(super) const MAGIC: u64 = 0x666f_6767_6172_6132;
/// Header and control words lie on pages of their own.
pub(super) const PAGE: usize = 4096;
/// Files looked at for ones left over; a memory file system holds a few.
const SWEEP_FILES: usize = 4096;
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Control words of the whole group.
#[repr(C)]
pub(super) struct Header {
    /// Written last by rank 0: the rest is valid.
    magic: AtomicU64,
    size: AtomicU32,
    /// 0, or 1 + the rank that ended the group.
    pub(super) aborted: AtomicU32,
}

/// Control words of one rank, on a page of their own.
#[repr(C)]
pub(super) struct Control {
    /// Last phase whose data this rank has put into its slot.
    pub(super) published: Signal,
    /// Last phase this rank is through with: it reads no slot of it any more.
    pub(super) done: Signal,
    /// Which call the published phase belongs to, one word for each of the two slots: a peer that is late must still find
    /// the word of its own phase.
    pub(super) call: [AtomicU64; 2],
    /// 1 once this rank makes no more calls. What it has published stays readable.
    left: AtomicU32,
    /// 0 until a process has taken this rank.
    pid: AtomicU32,
    started: AtomicU64,
    /// 1 once the words above are valid.
    joined: AtomicU32,
}

const _: () = assert!(size_of::<Header>() <= PAGE && size_of::<Control>() <= PAGE);

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
        PAGE + size * PAGE + size * 2 * SLOT_BYTES
    }

    /// Maps the segment called `name` in `dir` for `rank`, and waits until all ranks have.
    pub(super) fn join(
        dir: &Path,
        name: &str,
        rank: usize,
        size: usize,
        joining: Joining<'_>,
    ) -> Result<Self, CollectiveError> {
        let path = dir.join(name);
        if rank != 0 {
            return Self::open(&path, size, joining)?.joined_by_all(rank, joining);
        }
        sweep(dir);
        let (segment, lock) = Self::create(&path, size)?;
        let outcome = segment.joined_by_all(0, joining);
        // Best effort: a name that is gone already is what we want.
        drop(std::fs::remove_file(&path));
        drop(lock);
        outcome
    }

    /// The new segment and its file, which holds the lock.
    fn create(path: &Path, size: usize) -> Result<(Self, File), CollectiveError> {
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
        let made = || -> Result<Self, CollectiveError> {
            flock(&file, FlockOperation::NonBlockingLockExclusive)
                .map_err(|e| CollectiveError::io(format!("locking {}", path.display()), e))?;
            // Allocated, not just sized: a full /dev/shm must be an error now, not a bus error later.
            fallocate(&file, FallocateFlags::empty(), 0, bytes as u64)
                .map_err(|e| CollectiveError::io(format!("{}, {bytes} bytes", what()), e))?;
            let segment = Self::map(&file, bytes, size)?;
            let header = segment.header();
            header.size.store(u32::try_from(size).unwrap_or(u32::MAX), Ordering::Relaxed);
            header.magic.store(MAGIC, Ordering::Release);
            Ok(segment)
        };
        match made() {
            Ok(segment) => Ok((segment, file)),
            Err(error) => {
                drop(std::fs::remove_file(path));
                Err(error)
            }
        }
    }

    fn open(path: &Path, size: usize, joining: Joining<'_>) -> Result<Self, CollectiveError> {
        let bytes = Self::bytes_for(size);
        loop {
            joining.go_on()?;
            if let Ok(file) = OpenOptions::new().read(true).write(true).open(path)
                && file.metadata().is_ok_and(|found| found.len() == bytes as u64)
                && is_held(&file)
            {
                let segment = Self::map(&file, bytes, size)?;
                let header = segment.header();
                if header.magic.load(Ordering::Acquire) == MAGIC
                    && header.size.load(Ordering::Relaxed) as usize == size
                {
                    return Ok(segment);
                }
            }
            if joining.limit.passed() {
                let reason = format!("it has not made {} for {size} ranks in time", path.display());
                return Err(CollectiveError::PeerLost { rank: 0, reason });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Takes `rank`, and waits until every other rank is taken.
    fn joined_by_all(self, rank: usize, joining: Joining<'_>) -> Result<Self, CollectiveError> {
        let me = self.control(rank);
        let this = Process::this();
        if me.pid.compare_exchange(0, this.pid, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return Err(CollectiveError::io(
                format!("joining the group as rank {rank}"),
                "another process holds this rank; give every worker a rank of its own",
            ));
        }
        me.started.store(this.started, Ordering::Relaxed);
        me.joined.store(1, Ordering::SeqCst);
        let has_joined = |r: usize| self.control(r).joined.load(Ordering::SeqCst) != 0;
        let mut rounds = 0u32;
        let error = loop {
            let Some(missing) = (0..self.size).find(|r| !has_joined(*r)) else { return Ok(self) };
            if let Err(cancelled) = joining.go_on() {
                break cancelled;
            }
            if joining.limit.passed() {
                break joining.limit.timeout("connect", missing);
            }
            // Looking at processes costs more than looking at words.
            rounds += 1;
            let gone = (0..self.size).filter(|r| has_joined(*r)).find_map(|r| {
                self.is_gone(r, rounds.is_multiple_of(64)).map(|reason| (r, reason.to_owned()))
            });
            // A rank may have come, done its part and left again, all since the look for a missing one.
            if let Some((rank, reason)) = gone
                && !(0..self.size).all(has_joined)
            {
                break CollectiveError::PeerLost { rank, reason };
            }
            std::thread::sleep(POLL_INTERVAL);
        };
        self.leave(rank);
        Err(error)
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
        // SAFETY: inside the mapping, aligned to a page; all zeros is a valid Control and all its fields are atomic.
        unsafe { self.base.add(PAGE + rank * PAGE).cast().as_ref() }
    }

    /// The start of the slot of `rank` for `phase`: [`SLOT_BYTES`] bytes, aligned to a page.
    pub(super) fn slot(&self, rank: usize, phase: u32) -> NonNull<u8> {
        assert!(rank < self.size);
        let index = rank * 2 + (phase & 1) as usize;
        // SAFETY: inside the mapping (see `bytes_for`).
        unsafe { self.base.add(PAGE + self.size * PAGE + index * SLOT_BYTES) }
    }

    /// Why `rank` will publish nothing more, if so. A process that was killed says nothing: only with `look` is the
    /// system asked.
    pub(super) fn is_gone(&self, rank: usize, look: bool) -> Option<&'static str> {
        let control = self.control(rank);
        if control.left.load(Ordering::SeqCst) != 0 {
            return Some("it has left the group");
        }
        let process = Process {
            pid: control.pid.load(Ordering::Relaxed),
            started: control.started.load(Ordering::Relaxed),
        };
        (look && !process.is_alive()).then_some("its process has ended")
    }

    /// Says that `rank` makes no more calls, and wakes who waits for it.
    pub(super) fn leave(&self, rank: usize) {
        let control = self.control(rank);
        control.left.store(1, Ordering::SeqCst);
        control.published.ring();
        control.done.ring();
    }

    /// Ends the group and wakes everyone.
    pub(super) fn abort(&self, rank: usize) {
        let by = u32::try_from(rank + 1).unwrap_or(u32::MAX);
        // The first abort stays the one that is reported.
        self.header().aborted.compare_exchange(0, by, Ordering::SeqCst, Ordering::SeqCst).ok();
        for rank in 0..self.size {
            self.control(rank).published.ring();
            self.control(rank).done.ring();
        }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with these bounds and nothing borrowed from it outlives `self`.
        unsafe { munmap(self.base.as_ptr().cast(), self.bytes) }.ok();
    }
}

/// Whether the maker of a segment still holds its lock. The system lets go of it when the maker's process ends, however.
fn is_held(file: &File) -> bool {
    // A shared lock, so that ranks that look at the same time do not take each other for the maker.
    match flock(file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => false,
        Err(error) => error == rustix::io::Errno::WOULDBLOCK,
    }
}

/// Removes segments whose makers died before they could.
fn sweep(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten().take(SWEEP_FILES) {
        if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        // Without blocking, should the file have become a pipe by now.
        let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits() as i32;
        let Ok(mut file) = OpenOptions::new().read(true).custom_flags(flags).open(entry.path()) else {
            continue;
        };
        let mut magic = [0; 8];
        let is_segment = file.read_exact(&mut magic).is_ok() && u64::from_ne_bytes(magic) == MAGIC;
        if is_segment && !is_held(&file) {
            // Someone else's file stays, as the system decides.
            drop(std::fs::remove_file(entry.path()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn sweeps_segments_of_dead_makers_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).expect("written");
        write("dead", &MAGIC.to_ne_bytes());
        write("held", &MAGIC.to_ne_bytes());
        write("short", &MAGIC.to_ne_bytes()[..7]);
        write("other", b"something else");
        let held = File::open(dir.path().join("held")).expect("it is there");
        flock(&held, FlockOperation::NonBlockingLockExclusive).expect("nobody else has it");
        sweep(dir.path());
        let mut names: Vec<_> = std::fs::read_dir(dir.path())
            .expect("readable")
            .map(|entry| entry.expect("readable").file_name().into_string().expect("a plain name"))
            .collect();
        names.sort();
        assert_eq!(names, ["held", "other", "short"]);
    }

    #[test]
    fn a_rank_is_taken_once_and_a_segment_without_its_maker_by_nobody() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("group");
        let (first, lock) = Segment::create(&path, 1).expect("room for one rank");
        let cancelled = AtomicBool::new(false);
        let joining = |timeout| Joining::start(timeout, &cancelled);
        let minute = Duration::from_secs(60);
        let first = first.joined_by_all(0, joining(minute)).expect("nobody else is expected");
        let second = Segment::open(&path, 1, joining(minute)).expect("its maker holds it");
        let error = second.joined_by_all(0, joining(minute)).map(drop).expect_err("rank 0 is taken");
        assert!(error.to_string().contains("another process holds this rank"), "{error}");
        // Both: a mapping keeps its file open, and with it the lock.
        drop((first, lock));
        // A test that starts a process right now shares the lock with it, until that process runs its program.
        let deadline = std::time::Instant::now() + minute;
        let error = loop {
            match Segment::open(&path, 1, joining(Duration::ZERO)).map(drop) {
                Ok(()) if std::time::Instant::now() < deadline => std::thread::yield_now(),
                outcome => break outcome,
            }
        };
        assert!(matches!(error, Err(CollectiveError::PeerLost { rank: 0, .. })), "{error:?}");
    }
}
