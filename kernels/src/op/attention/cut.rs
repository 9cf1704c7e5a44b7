//! What is one task: rows of one sequence, and query heads that attend to the same key head. A result depends on neither.

use std::ops::Range;

use super::AttentionRow;
use super::tile::QUERIES;

/// Query heads of a task at most: two vectors of positions (or of a value) for each of six fill twelve of sixteen registers.
const HEADS: usize = 6;
/// Queries of a tile, of several rows where heads are few, or twice as many as that: where there are 32 registers of twice the
/// width, as many queries have one for each.
const TILE: usize = 12;
/// Tasks that each thread should have at least, so that all end at about the same time.
const TASKS: usize = 2;

/// Cuts the query heads into runs with the same key head: (first, count).
pub(super) fn groups(kv_head_of: &[u32], rows: usize, in_keys: bool, threads: usize) -> Vec<(usize, usize)> {
    if !in_keys {
        // Runs of 1, 2, 3, 4 and 6, as few as can be.
        return cut(kv_head_of, |left| match left {
            5 => 3,
            7 | 8 => 4,
            left => left.min(HEADS),
        });
    }
    // Where keys lie position by position, queries take one register each, and numbers are powers of two.
    let power = |most: usize| move |left: usize| most.min(1 << left.ilog2());
    let many = cut(kv_head_of, power(8));
    if rows * many.len() >= TASKS * threads { many } else { cut(kv_head_of, power(4)) }
}

/// Into runs of what `next` says of so many that are left.
fn cut(kv_head_of: &[u32], next: impl Fn(usize) -> usize) -> Vec<(usize, usize)> {
    let mut groups = Vec::new();
    let mut first = 0;
    for run in kv_head_of.chunk_by(|a, b| a == b) {
        let mut left = run.len();
        while left > 0 {
            let count = next(left);
            groups.push((first, count));
            (first, left) = (first + count, left - count);
        }
    }
    groups
}

/// Cuts the rows into runs of one sequence (of the same list of blocks), as long as a task can have them while there are enough
/// tasks for `threads`.
pub(super) fn spans(
    rows: &[AttentionRow<'_>],
    groups: &[(usize, usize)],
    threads: usize,
) -> Vec<Range<usize>> {
    let most_heads = groups.iter().map(|(_, count)| *count).max().unwrap_or(1);
    let fair = (rows.len() * groups.len()).div_ceil(TASKS * threads).max(1);
    let most = if threads == 1 { usize::MAX } else { fair };
    let tile = (TILE / most_heads).max(1);
    // Whole tiles, as many as a task has room for.
    let most = most.min(QUERIES / most_heads).next_multiple_of(tile).min(QUERIES / most_heads / tile * tile);
    let mut spans = Vec::new();
    let mut first = 0;
    for run in rows.chunk_by(|a, b| std::ptr::eq(a.blocks, b.blocks)) {
        for part in run.chunks(most) {
            spans.push(first..first + part.len());
            first += part.len();
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_go_together_where_they_share_keys() {
        let grouped = |counts: &[usize]| -> Vec<u32> {
            counts.iter().zip(0..).flat_map(|(count, head)| std::iter::repeat_n(head, *count)).collect()
        };
        let counts = |of: &[usize], in_keys, threads| -> Vec<usize> {
            groups(&grouped(of), 1, in_keys, threads).iter().map(|(_, count)| *count).collect()
        };
        assert_eq!(counts(&[3, 3, 3], false, 1), [3, 3, 3]);
        assert_eq!(counts(&[8, 1, 7, 5, 16], false, 1), [4, 4, 1, 4, 3, 3, 2, 6, 6, 4]);
        assert_eq!(counts(&[13], true, 1), [8, 4, 1]);
        assert_eq!(counts(&[13], true, 4), [4, 4, 4, 1]);
    }

    #[test]
    fn rows_go_together_where_they_are_of_one_sequence() {
        let (one, other) = ([1, 2], [1, 2]);
        let row = |blocks| AttentionRow { blocks, len: 2, window_start: 0 };
        let rows = [vec![row(&one[..]); 70], vec![row(&other[..]); 3]].concat();
        // Three heads: tiles of two or four rows, 32 rows of 96 queries.
        assert_eq!(spans(&rows, &[(0, 3), (3, 3)], 1), [0..32, 32..64, 64..70, 70..73]);
        assert_eq!(spans(&rows, &[(0, 3), (3, 3)], 2)[..2], [0..32, 32..64]);
        // 73 rows of one group for 32 tasks.
        assert_eq!(spans(&rows, &[(0, 3)], 16)[..2], [0..4, 4..8]);
        assert_eq!(spans(&rows, &[(0, 8)], 1)[..2], [0..12, 12..24]);
        assert!(spans(&[], &[(0, 3)], 2).is_empty());
    }
}
