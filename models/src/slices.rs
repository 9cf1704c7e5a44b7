//! Which part of a model each rank of a tensor-parallel group holds.
//!
//! Attention is cut by heads (at key-head boundaries where there are enough of them), the MLP by columns of its inner width,
//! embedding and output by rows of the vocabulary. Parts may be uneven: what a rank has too much of in attention it gets
//! less of in the MLP.

use std::ops::Range;

use crate::error::ModelError;
use crate::spec::ArchSpec;

/// Ranks a group may have.
pub const MAX_TP: usize = 64;

/// What one rank holds. Ranges may be empty; key heads may be held by several ranks, everything else by one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankSlice {
    /// Query heads.
    pub q_heads: Range<usize>,
    /// The key and value heads they attend to.
    pub kv_heads: Range<usize>,
    /// Columns of the MLP.
    pub ffn: Range<usize>,
    /// Rows of the embedding and of the output.
    pub vocab: Range<usize>,
}

/// Where a checkpoint's stored types allow cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granularity {
    /// Columns of the attention's output projection.
    pub attention: usize,
    /// Columns of the MLP's down projection.
    pub ffn: usize,
}

/// Cuts a model for `tp` ranks. Deterministic: a function of its arguments only.
///
/// # Errors
/// If `tp` is not within `1..=64`.
pub fn plan_slices(
    spec: &ArchSpec,
    granularity: Granularity,
    tp: usize,
) -> Result<Vec<RankSlice>, ModelError> {
    if tp == 0 || tp > MAX_TP {
        return Err(ModelError::Slices(format!("tp is {tp}, must be within 1..={MAX_TP}")));
    }
    let heads = head_cuts(spec, granularity.attention, tp);
    let ffn = ffn_cuts(spec, granularity.ffn, &heads);
    let rows = if spec.vocab >= 8 * tp { 8 } else { 1 };
    let vocab_units = spec.vocab.div_ceil(rows);
    let group = spec.heads_per_kv();
    Ok((0..tp)
        .map(|rank| {
            let q_heads = heads[rank].clone();
            let kv_heads =
                if q_heads.is_empty() { 0..0 } else { q_heads.start / group..(q_heads.end - 1) / group + 1 };
            let at = |rank: usize| (vocab_units * rank / tp * rows).min(spec.vocab);
            RankSlice { q_heads, kv_heads, ffn: ffn[rank].clone(), vocab: at(rank)..at(rank + 1) }
        })
        .collect())
}

/// Query heads of each rank: whole key groups while there are as many, else single heads; the first ranks get one more.
fn head_cuts(spec: &ArchSpec, granularity: usize, tp: usize) -> Vec<Range<usize>> {
    let group = spec.heads_per_kv();
    let whole_groups = tp <= spec.kv_heads;
    // Heads whose columns end where the stored blocks can be cut.
    let aligned = granularity / gcd(granularity, spec.head_dim);
    let unit = if whole_groups { lcm(group, aligned) } else { aligned };
    let units = spec.heads.div_ceil(unit);
    // Each of the first `extra` ranks takes one unit more.
    let (each, extra) = (units / tp, units % tp);
    let at = |rank: usize| ((rank * each + rank.min(extra)) * unit).min(spec.heads);
    (0..tp).map(|rank| at(rank)..at(rank + 1)).collect()
}

/// MLP columns of each rank, so that attention and MLP weights together are as even as the blocks allow.
fn ffn_cuts(spec: &ArchSpec, granularity: usize, heads: &[Range<usize>]) -> Vec<Range<usize>> {
    // Multiples of 8 where any column would do: whole vectors.
    let unit = granularity.max(if spec.ffn.is_multiple_of(8) { 8 } else { 1 });
    let units = spec.ffn.div_ceil(unit);
    let group = spec.heads_per_kv();
    // Weights per query head (Q and O, and its share of K and V) and per unit of the MLP, both divided by `hidden`.
    let per_head = |q: &Range<usize>| {
        let kv = if q.is_empty() { 0 } else { (q.end - 1) / group + 1 - q.start / group };
        (2 * q.len() + 2 * kv) * spec.head_dim
    };
    let attention: Vec<usize> = heads.iter().map(per_head).collect();
    let per_unit = 3 * unit;
    let mut given = vec![0usize; heads.len()];
    // One unit at a time to the rank with the least: exact, and at most a few thousand steps.
    for _ in 0..units {
        let least = (0..heads.len()).min_by_key(|rank| (attention[*rank] + given[*rank] * per_unit, *rank));
        given[least.expect("there is at least one rank")] += 1;
    }
    let mut start = 0;
    given
        .into_iter()
        .map(|count| {
            let range = (start * unit).min(spec.ffn)..((start + count) * unit).min(spec.ffn);
            start += count;
            range
        })
        .collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn lcm(a: usize, b: usize) -> usize {
    a / gcd(a, b) * b
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{RopeSpec, RopeStyle};

    fn spec(heads: usize, kv_heads: usize, head_dim: usize, ffn: usize, vocab: usize) -> ArchSpec {
        let rope = RopeSpec { style: RopeStyle::Half, inv_freq: vec![], scale: 1.0 };
        ArchSpec {
            family: "llama",
            hidden: heads * head_dim,
            layers: 2,
            heads,
            kv_heads,
            head_dim,
            ffn,
            vocab,
            context: 64,
            norm_eps: 1e-5,
            rope,
            tied_output: true,
            attention_bias: false,
        }
    }

    const QUANTIZED: Granularity = Granularity { attention: 32, ffn: 32 };
    const FLOATS: Granularity = Granularity { attention: 1, ffn: 1 };

    #[test]
    fn smollm2_on_two_ranks_is_uneven_in_parts_and_even_in_sum() {
        let slices = plan_slices(&spec(9, 3, 64, 1536, 49_152), QUANTIZED, 2).expect("two ranks");
        assert_eq!(slices[0].q_heads, 0..6);
        assert_eq!(slices[1].kv_heads, 2..3);
        assert_eq!((slices[0].ffn.len() / 32, slices[1].ffn.len() / 32), (21, 27));
        assert_eq!((slices[0].vocab.clone(), slices[1].vocab.clone()), (0..24_576, 24_576..49_152));
    }

    #[test]
    fn more_ranks_than_key_heads_replicate_them() {
        let slices = plan_slices(&spec(8, 2, 32, 96, 100), FLOATS, 3).expect("three ranks");
        let q: Vec<_> = slices.iter().map(|s| s.q_heads.clone()).collect();
        let kv: Vec<_> = slices.iter().map(|s| s.kv_heads.clone()).collect();
        assert_eq!(q, [0..3, 3..6, 6..8]);
        assert_eq!(kv, [0..1, 0..2, 1..2]);
    }

    #[test]
    fn everything_is_covered_once_and_cut_where_it_may_be() {
        for (heads, kv_heads) in [(9, 3), (8, 8), (32, 8), (5, 5), (6, 1), (71, 1)] {
            for head_dim in [8, 64, 80, 96, 128] {
                for (ffn, vocab) in [(1536, 49_152), (96, 320), (11_008, 32_003), (64, 10)] {
                    let spec = spec(heads, kv_heads, head_dim, ffn, vocab);
                    for granularity in [QUANTIZED, FLOATS] {
                        if granularity == QUANTIZED && (heads * head_dim % 32 != 0 || ffn % 32 != 0) {
                            continue;
                        }
                        for tp in 1..=12 {
                            check(&spec, granularity, tp);
                        }
                    }
                }
            }
        }
    }

    fn check(spec: &ArchSpec, granularity: Granularity, tp: usize) {
        let slices = plan_slices(spec, granularity, tp).expect("1..=64");
        assert_eq!(slices.len(), tp);
        for (part, total) in [
            (slices.iter().map(|s| s.q_heads.clone()).collect::<Vec<_>>(), spec.heads),
            (slices.iter().map(|s| s.ffn.clone()).collect(), spec.ffn),
            (slices.iter().map(|s| s.vocab.clone()).collect(), spec.vocab),
        ] {
            let mut next = 0;
            for range in part {
                assert_eq!(range.start, next, "{spec:?} tp {tp}");
                next = range.end;
            }
            assert_eq!(next, total, "{spec:?} tp {tp}");
        }
        for slice in &slices {
            assert_eq!(slice.q_heads.start * spec.head_dim % granularity.attention, 0);
            assert_eq!(slice.ffn.start % granularity.ffn, 0);
            for q in slice.q_heads.clone() {
                assert!(slice.kv_heads.contains(&(q / spec.heads_per_kv())));
            }
        }
        assert_eq!(slices, plan_slices(spec, granularity, tp).expect("1..=64"));
    }

    #[test]
    fn a_group_has_one_to_sixty_four_ranks() {
        for tp in [0, 65] {
            assert!(plan_slices(&spec(8, 8, 8, 96, 320), FLOATS, tp).is_err());
        }
    }
}
