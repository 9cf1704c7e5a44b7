//! Large memory, aligned to cache lines.

use rustix::mm::{Advice, madvise};

/// Bytes of a cache line.
const LINE: usize = 64;
const PAGE: usize = 4096;
/// From here on memory is asked for in huge pages: one page fault in place of five hundred.
const HUGE: usize = 4 << 20;

/// Zeroed bytes, aligned to cache lines. They come lazily from the system: only what is written is ever touched.
#[derive(Debug)]
pub(crate) struct Lines {
    /// A little more than is asked for. (With an alignment the standard library would write the zeros itself.)
    memory: Vec<u8>,
    /// Where the first cache line begins.
    start: usize,
    len: usize,
}

impl Lines {
    /// `bytes` of them, rounded up to whole cache lines.
    pub(crate) fn zeroed(bytes: usize) -> Self {
        let len = bytes.next_multiple_of(LINE);
        let mut memory = vec![0; len + LINE];
        let start = memory.as_ptr().align_offset(LINE);
        if len >= HUGE {
            advise_huge(&mut memory);
        }
        Self { memory, start, len }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..][..self.len]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.len]
    }
}

/// Asks for huge pages. Advice only: without them the memory is the same.
fn advise_huge(memory: &mut [u8]) {
    let skip = memory.as_ptr().align_offset(PAGE).min(memory.len());
    let pages = &mut memory[skip..];
    let len = pages.len() / PAGE * PAGE;
    // SAFETY: the range is inside the allocation, and this advice changes no contents.
    unsafe { madvise(pages.as_mut_ptr().cast(), len, Advice::LinuxHugepage) }.ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zero_aligned_and_whole_lines() {
        for (asked, got) in [(0, 0), (1, 64), (64, 64), (65, 128), (HUGE + 1, HUGE + 64)] {
            let mut lines = Lines::zeroed(asked);
            assert_eq!(lines.bytes().len(), got);
            assert!(lines.bytes().iter().all(|byte| *byte == 0));
            assert!(got == 0 || lines.bytes().as_ptr().addr().is_multiple_of(LINE));
            lines.bytes_mut().fill(7);
            assert!(lines.bytes().iter().all(|byte| *byte == 7));
        }
    }
}
