//! The order of logits, and the best few of a row: what a token is often chosen from without a look at the others.

use std::cmp::Ordering;

use foggara_kernels::op::softmax::argmax;

/// What is not a number counts as the least.
fn key(logit: f32) -> f32 {
    if logit.is_nan() { f32::NEG_INFINITY } else { logit }
}

/// Tokens with their logits, best first: the greater logit, of equals the smaller id.
pub(crate) fn better_of(a: (u32, f32), b: (u32, f32)) -> Ordering {
    // Not `total_cmp`, to which 0.0 and -0.0 are different.
    key(b.1).partial_cmp(&key(a.1)).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0))
}

/// The same of tokens of a row.
pub(crate) fn better(logits: &[f32], a: u32, b: u32) -> Ordering {
    better_of((a, logits[a as usize]), (b, logits[b as usize]))
}

/// The `count` likeliest tokens, in any order, in one pass: a few more than `count` are held, and whatever is no greater
/// than the least of the best so far is passed over.
pub(crate) fn likeliest(logits: &[f32], count: usize, best: &mut Vec<u32>) {
    best.clear();
    if count == 0 {
        return;
    }
    let room = count.saturating_mul(2).max(64);
    let mut floor = None;
    for (id, logit) in (0u32..).zip(logits) {
        // Ids rise: an equal one is no better than those that are held. (What is not a number is never greater.)
        if floor.is_some_and(|floor| logit.partial_cmp(&floor) != Some(Ordering::Greater)) {
            continue;
        }
        best.push(id);
        if best.len() == room {
            keep(logits, count, best);
            floor = Some(logits[best[count - 1] as usize]).filter(|floor| !floor.is_nan());
        }
    }
    keep(logits, count, best);
}

/// Leaves the `count` best, the least of them last.
fn keep(logits: &[f32], count: usize, ids: &mut Vec<u32>) {
    if count < ids.len() {
        ids.select_nth_unstable_by(count - 1, |a, b| better(logits, *a, *b));
        ids.truncate(count);
    }
}

/// The `count` best of a row, or all of it if it has fewer; best first.
pub(crate) fn best_of(logits: &[f32], count: usize) -> Vec<u32> {
    if count == 1 && !logits.is_empty() {
        // One pass that vectorises. Where nothing is a number the first of the least, like any other, says so.
        return vec![argmax(logits) as u32];
    }
    let mut best = Vec::new();
    likeliest(logits, count, &mut best);
    best.sort_unstable_by(|a, b| better(logits, *a, *b));
    best
}

/// Of the best of each part of a row, the `count` best of all of it, best first.
pub(crate) fn merge(best: &mut Vec<(u32, f32)>, count: usize) {
    best.sort_unstable_by(|a, b| better_of(*a, *b));
    best.truncate(count);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows with many equals, and what is not a number.
    fn row(len: usize, turn: usize) -> Vec<f32> {
        let number = |i: usize| ((i * 7919 + turn * 104_729) % 97) as f32 - 40.0;
        let special = [f32::NAN, f32::NEG_INFINITY, 0.0, -0.0];
        (0..len)
            .map(|i| if (i * 31 + turn).is_multiple_of(11) { special[i % 4] } else { number(i) })
            .collect()
    }

    #[test]
    fn the_best_of_the_best_of_parts_are_the_best_of_the_whole() {
        for turn in 0..40 {
            let len = 1 + turn * 13;
            let row = row(len, turn);
            for count in [1, 2, 5, 40, 256] {
                let mut all: Vec<u32> = (0..len as u32).collect();
                all.sort_by(|a, b| better(&row, *a, *b));
                all.truncate(count);
                if row.iter().any(|logit| *logit > f32::NEG_INFINITY) || count > 1 {
                    assert_eq!(best_of(&row, count), all, "{count} of {len}");
                }
                for parts in [1, 2, 3, 7] {
                    let mut best = Vec::new();
                    for part in 0..parts {
                        let (from, to) = (len * part / parts, len * (part + 1) / parts);
                        let ids = best_of(&row[from..to], count);
                        best.extend(ids.iter().map(|id| (from as u32 + id, row[from + *id as usize])));
                    }
                    merge(&mut best, count);
                    let merged: Vec<u32> = best.iter().map(|(id, _)| *id).collect();
                    if best[0].1 > f32::NEG_INFINITY {
                        assert_eq!(merged, all, "{count} of {len} in {parts} parts");
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_of_nothing_says_so() {
        for row in [[f32::NAN; 5], [f32::NEG_INFINITY; 5]] {
            let id = best_of(&row, 1)[0];
            let least = row[id as usize];
            assert!(least.is_nan() || least == f32::NEG_INFINITY);
        }
        assert!(best_of(&[], 1).is_empty() && best_of(&[], 4).is_empty());
    }
}
