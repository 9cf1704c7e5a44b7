//! Tensors that are used where they lie in a mapped file.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::mmap::{MappedFile, PAGE};
use crate::slice::TensorSlice;

/// A share of a slice's bytes, as a divisor, that its pages may hold of others.
const FOREIGN: usize = 32;

/// Where rows lie.
#[derive(Clone)]
pub struct InPlace {
    /// The file's bytes, mapped for as long as this is held.
    pub file: Arc<dyn AsRef<[u8]> + Send + Sync>,
    /// Where the first row begins in them.
    pub start: usize,
    /// Bytes from a row to the next.
    pub stride: usize,
}

impl fmt::Debug for InPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rows from {} every {} bytes", self.start, self.stride)
    }
}

/// Whether nearly all that is in the pages of `rows` rows of `row_bytes` is theirs: a process that uses them in place has these
/// pages in its memory, whole. Columns cut out of the middle of short rows are not worth that; whole rows always are.
pub(crate) fn fills_pages(start: usize, stride: usize, row_bytes: usize, rows: usize) -> bool {
    let bytes = rows * row_bytes;
    let (mut pages, mut next) = (0, 0);
    for row in 0..rows {
        let at = start + row * stride;
        let (from, to) = ((at / PAGE).max(next), (at + row_bytes).div_ceil(PAGE));
        pages += to.saturating_sub(from);
        next = next.max(to);
    }
    // A page at each end is shared with whatever lies there.
    bytes > 0 && pages * PAGE <= bytes + bytes / FOREIGN + 2 * PAGE
}

/// Of the files that `read` lie in, keeps only `used`, which are some of them, in this process's memory. What is mapped around a
/// page that was touched, and what was read once, would count as its memory for as long as the files are mapped.
pub fn keep_only(read: &[TensorSlice], used: &[TensorSlice]) {
    let mut files: Vec<(&Arc<MappedFile>, Vec<Range<usize>>)> = Vec::new();
    for slice in read {
        if !files.iter().any(|(file, _)| Arc::ptr_eq(file, slice.file())) {
            files.push((slice.file(), Vec::new()));
        }
    }
    for slice in used {
        if let Some((_, kept)) = files.iter_mut().find(|(file, _)| Arc::ptr_eq(file, slice.file())) {
            kept.push(slice.extent());
        }
    }
    for (file, kept) in files {
        let gaps = gaps(kept.clone(), file.bytes().len());
        let give_back = || gaps.iter().for_each(|gap| file.advise_dont_need(gap.clone()));
        if gaps.is_empty() {
            continue;
        }
        // Where the system maps two megabytes at a time, these come whole, and go whole. So they are mapped page by page, and what
        // went with its neighbours comes back now, not in a step; again with some pages around it.
        file.advise_single_pages();
        give_back();
        for range in kept {
            // It was read a moment ago. If it cannot be now, steps will find out.
            file.populate(range).ok();
        }
        give_back();
    }
}

/// What of `0..len` is in none of `kept`.
fn gaps(mut kept: Vec<Range<usize>>, len: usize) -> Vec<Range<usize>> {
    kept.sort_by_key(|range| range.start);
    let (mut gaps, mut end) = (Vec::new(), 0);
    for range in kept {
        if range.start > end {
            gaps.push(end..range.start);
        }
        end = end.max(range.end);
    }
    if end < len {
        gaps.push(end..len);
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_rows_are_used_in_place_and_cut_ones_where_rows_are_long() {
        for (start, stride, row_bytes, rows, worth) in [
            // Whole rows, however few and wherever they begin.
            (0, 4096, 4096, 8, true),
            (1234, 1152, 1152, 49152, true),
            (4095, 128, 128, 1, true),
            (4090, 128, 128, 8, true),
            // Half of rows of 3 KB: all pages of the matrix for half of its bytes.
            (64, 3072, 1536, 576, false),
            // Half of rows of 8 KB: whole pages if they begin with one, else half as many again.
            (0, 8192, 4096, 512, true),
            (2048, 8192, 4096, 512, false),
            // A share of long rows.
            (1000, 1 << 20, 1 << 17, 64, true),
            (1000, 1 << 20, 1 << 15, 64, false),
            // Gaps of less than a page in each are of little account, if they are few.
            (0, 5000, 4992, 1000, true),
            (0, 0, 0, 0, false),
            (0, 64, 0, 9, false),
        ] {
            assert_eq!(
                fills_pages(start, stride, row_bytes, rows),
                worth,
                "{start} {stride} {row_bytes} {rows}"
            );
        }
    }

    #[test]
    fn gaps_are_what_nothing_covers() {
        assert_eq!(gaps(vec![], 10), vec![Range { start: 0, end: 10 }]);
        assert_eq!(gaps(vec![4..6, 0..2, 5..7], 10), [2..4, 7..10]);
        assert_eq!(gaps(vec![0..9, 3..4], 9), []);
    }
}
