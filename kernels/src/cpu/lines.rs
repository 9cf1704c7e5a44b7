//! Large memory, aligned to cache lines, in slabs of huge pages.

use std::cell::RefCell;
use std::sync::Arc;

use rustix::mm::{Advice, madvise};

/// Bytes of a cache line.
const LINE: usize = 64;
const PAGE: usize = 4096;
/// What is smaller shares a slab of this size: in huge pages there is one page fault in place of five hundred, and most
/// matrices are smaller than one.
const SLAB: usize = 64 << 20;
/// From here on memory is asked for in huge pages (but for what is less than a page at its end).
const HUGE: usize = 4 << 20;
/// What is smaller still comes from the ordinary allocator.
const SMALL: usize = 32 << 10;

thread_local! {
    /// The slab this thread takes from, and how much of it is taken.
    static CURRENT: RefCell<Option<(Arc<Slab>, usize)>> = const { RefCell::new(None) };
}

/// Zeroed memory that is handed out once, piece by piece, and given back when the last piece is.
#[derive(Debug)]
struct Slab {
    memory: *mut [u8],
}

// SAFETY: pieces do not overlap (`Lines::zeroed` hands each byte out once), so whoever holds one has it alone; the pointer
// itself is only used to give the whole back.
unsafe impl Send for Slab {}
// SAFETY: as above.
unsafe impl Sync for Slab {}

impl Slab {
    fn new(bytes: usize) -> Self {
        // (With an alignment the standard library would write the zeros itself.)
        let mut memory = vec![0u8; bytes + LINE].into_boxed_slice();
        advise_huge(&mut memory);
        Self { memory: Box::into_raw(memory) }
    }

    /// Bytes before the first cache line.
    fn skip(&self) -> usize {
        self.memory.cast::<u8>().align_offset(LINE)
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: made by `Box::into_raw`; no piece is left.
        drop(unsafe { Box::from_raw(self.memory) });
    }
}

/// Zeroed bytes, aligned to cache lines. They come lazily from the system: only what is written is ever touched.
#[derive(Debug)]
pub(crate) struct Lines {
    slab: Arc<Slab>,
    /// Where they begin in it.
    start: usize,
    len: usize,
}

impl Lines {
    /// `bytes` of them, rounded up to whole cache lines.
    pub(crate) fn zeroed(bytes: usize) -> Self {
        let len = bytes.next_multiple_of(LINE);
        if !(SMALL..SLAB / 2).contains(&len) {
            let slab = Arc::new(Slab::new(len));
            return Self { start: slab.skip(), slab, len };
        }
        CURRENT.with_borrow_mut(|current| {
            let (slab, taken) = match current.take() {
                Some((slab, taken)) if taken + len <= SLAB => (slab, taken),
                _ => (Arc::new(Slab::new(SLAB)), 0),
            };
            let start = slab.skip() + taken;
            *current = Some((Arc::clone(&slab), taken + len));
            Self { slab, start, len }
        })
    }

    fn pointer(&self) -> *mut u8 {
        self.slab.memory.cast::<u8>().wrapping_add(self.start)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `start + len` is inside the slab, which lives as long as this; no other piece has these bytes.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.len) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and this is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(), self.len) }
    }
}

/// Asks for huge pages, if it is large. Advice only: without them the memory is the same.
pub(crate) fn advise_huge<T>(memory: &mut [T]) {
    let bytes = size_of_val(memory);
    let start = memory.as_mut_ptr().cast::<u8>();
    let skip = start.align_offset(PAGE).min(bytes);
    let len = (bytes - skip) / PAGE * PAGE;
    if len >= HUGE {
        // SAFETY: the range is inside the allocation, and this advice changes no contents.
        unsafe { madvise(start.wrapping_add(skip).cast(), len, Advice::LinuxHugepage) }.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zero_aligned_and_whole_lines() {
        // Several at once: of one slab, of the next, and of none.
        let mut held = Vec::new();
        for (asked, got) in [
            (0, 0),
            (1, 64),
            (64, 64),
            (65, 128),
            (SMALL + 1, SMALL + 64),
            (SLAB / 2 - 64, SLAB / 2 - 64),
            (SLAB / 2 - 64, SLAB / 2 - 64),
            (SMALL, SMALL),
            (HUGE + 1, HUGE + 64),
            (SLAB + 1, SLAB + 64),
        ] {
            let mut lines = Lines::zeroed(asked);
            assert_eq!(lines.bytes().len(), got);
            assert!(lines.bytes().iter().all(|byte| *byte == 0));
            assert!(got == 0 || lines.bytes().as_ptr().addr().is_multiple_of(LINE));
            lines.bytes_mut().fill(7);
            assert!(lines.bytes().iter().all(|byte| *byte == 7));
            held.push(lines);
        }
        assert!(held.iter().all(|lines| lines.bytes().iter().all(|byte| *byte == 7)));
        // Memory goes on where it was made, whichever thread holds it last.
        let last = held.pop().expect("some");
        std::thread::spawn(move || drop(last)).join().expect("no panic");
    }
}
