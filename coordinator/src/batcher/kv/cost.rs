//! What keys and values are worth: the work of computing them again.

/// At this position attention costs as much as everything else that a row needs. An estimate for the models served: only
/// ratios matter, and they change slowly with it.
const ATTENTION_EQUALS_THE_REST: u64 = 4096;

/// The cost of a row at `position`, in units of 1 / 4096 of a row at the beginning.
fn row(position: u64) -> u64 {
    ATTENTION_EQUALS_THE_REST + position
}

/// What it costs to compute the positions from `start` to `end` again, in the units of [`row`].
pub(in crate::batcher) fn recompute(start: usize, end: usize) -> u64 {
    let (start, end) = (start as u64, end.max(start) as u64);
    // The sum of row(start) to row(end - 1).
    (end - start) * (row(start) + row(end).saturating_sub(1)) / 2
}

/// Plans for which a block is kept that costs as much as one at the beginning of a prompt and was used once.
const KEPT_PLANS: u64 = 256;
/// More uses than these say nothing new.
const MOST_USES: u64 = 16;

/// The plan up to which a cached block is worth its memory: the later, the longer it is kept.
///
/// `released + 256 · uses · cost`, where `released` is the number of the plan that let it go, `uses` how many sequences have
/// had it, and `cost` that of a row at its position over that of a row at the beginning. So of blocks that are used and cost
/// the same, the one let go first goes first, and what is dear or used often stays that much longer, but not for ever (the
/// idea of GreedyDual-Size-Frequency, with the plans as its clock).
pub(super) fn kept_until(released: u64, uses: u64, position: usize) -> u64 {
    let uses = uses.clamp(1, MOST_USES);
    released + KEPT_PLANS * uses * row(position as u64) / ATTENTION_EQUALS_THE_REST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_of_a_range_is_that_of_its_rows() {
        for (start, end) in [(0, 0), (0, 1), (0, 16), (5, 9), (4096, 5000), (7, 3)] {
            let rows: u64 = (start as u64..end as u64).map(row).sum();
            assert_eq!(recompute(start, end), rows, "{start}..{end}");
        }
    }

    #[test]
    fn blocks_are_kept_longer_that_are_newer_or_dearer_or_used_more() {
        let base = kept_until(10, 1, 0);
        assert_eq!(base, 266);
        assert!(kept_until(11, 1, 0) > base && kept_until(10, 2, 0) > base && kept_until(10, 1, 64) > base);
        assert_eq!(kept_until(10, 1, 4096), 10 + 2 * 256, "twice the cost, twice as long");
        assert_eq!(kept_until(10, 1000, 0), kept_until(10, MOST_USES, 0));
        assert_eq!(kept_until(10, 0, 0), base);
    }
}
