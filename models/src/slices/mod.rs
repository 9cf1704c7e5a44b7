//! Which part of a model each rank of a group holds.
//!
//! Attention is cut by heads (at key-head boundaries where that is as even), MLPs by columns of their inner width,
//! embedding and output by rows of the vocabulary, layers by pipeline stage, and experts are spread whole or cut like MLPs.
//! Parts may be uneven: faster ranks get more. Each of attention and MLP is as even as can be by itself: ranks wait for each
//! other after both, so less of one does not make up for more of the other.

mod experts;
#[cfg(test)]
mod property_tests;
mod shape;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::error::ModelError;
use crate::spec::{ArchSpec, Attention, Mlp};

pub use experts::{ExpertMap, assign_experts};
pub use shape::{MAX_RANKS, RankPlace, Shape};

/// What one rank holds. Ranges may be empty; key heads may be held by several ranks, and ranks that differ in their part of
/// the batch only hold the same but for experts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankSlice {
    /// Where it stands.
    pub place: RankPlace,
    /// Layers of its stage.
    pub layers: Range<usize>,
    /// Query heads.
    pub q_heads: Range<usize>,
    /// The key and value heads they attend to.
    pub kv_heads: Range<usize>,
    /// Columns of MLPs.
    pub dense: Range<usize>,
    /// Columns of the expert that every token goes to.
    pub shared: Range<usize>,
    /// Columns of each expert it holds.
    pub expert_columns: Range<usize>,
    /// Experts it holds, for every layer of the model; none outside its stage.
    pub experts: Vec<Vec<u32>>,
    /// Rows of the embedding (first stage) and of the output (last stage).
    pub vocab: Range<usize>,
}

/// A model cut for a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePlan {
    /// The group's shape.
    pub shape: Shape,
    /// Which part holds which expert.
    pub experts: ExpertMap,
    /// What each rank holds.
    pub ranks: Vec<RankSlice>,
}

/// How a model is to be cut.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cut {
    /// The group's shape.
    pub shape: Shape,
    /// Relative speed of each rank; empty: all alike.
    pub weights: Vec<u32>,
    /// Which part holds which expert; empty: spread evenly.
    pub experts: ExpertMap,
}

impl Cut {
    /// An even cut.
    pub fn even(shape: Shape) -> Self {
        Self { shape, ..Self::default() }
    }
}

/// Where a checkpoint's stored types allow cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granularity {
    /// Columns of the attention's output projection.
    pub attention: usize,
    /// Columns of MLPs' down projections.
    pub dense: usize,
    /// Columns of the shared expert's.
    pub shared: usize,
    /// Columns of experts'.
    pub experts: usize,
}

impl Granularity {
    /// Cuts anywhere.
    pub const ANY: Self = Self { attention: 1, dense: 1, shared: 1, experts: 1 };
}

/// Cuts a model. Deterministic: a function of its arguments only.
///
/// # Errors
/// If the degrees of parallelism do not go together, or with the model.
pub fn plan_slices(spec: &ArchSpec, granularity: Granularity, cut: &Cut) -> Result<SlicePlan, ModelError> {
    let shape = cut.shape;
    shape.check()?;
    let wrong = |reason: String| Err(ModelError::Slices(reason));
    if shape.pp > spec.layers.len() {
        return wrong(format!("pp is {}, the model has {} layers", shape.pp, spec.layers.len()));
    }
    if shape.ep > 1 && spec.moe_layers().next().is_none() {
        return wrong(format!("ep is {}, the model has no experts", shape.ep));
    }
    let weights = match cut.weights.len() {
        0 => vec![1; shape.ranks()],
        n if n == shape.ranks() && cut.weights.iter().all(|weight| *weight > 0) => cut.weights.clone(),
        n => return wrong(format!("{n} rank weights (each at least 1) for {} ranks", shape.ranks())),
    };
    let experts = match cut.experts.0.is_empty() {
        true => ExpertMap::even(spec, shape.ep),
        false => cut.experts.clone(),
    };
    experts.check(spec, shape.ep).map_err(ModelError::Slices)?;
    let stage_weights: Vec<u64> =
        weights.chunks(shape.stage_ranks()).map(|stage| stage.iter().map(|w| u64::from(*w)).sum()).collect();
    let stages = layer_cuts(spec, &stage_weights);
    let ranks = (0..shape.ranks())
        .map(|rank| rank_slice(spec, granularity, shape, &weights, &experts, &stages, rank))
        .collect();
    Ok(SlicePlan { shape, experts, ranks })
}

fn rank_slice(
    spec: &ArchSpec,
    granularity: Granularity,
    shape: Shape,
    weights: &[u32],
    experts: &ExpertMap,
    stages: &[Range<usize>],
    rank: usize,
) -> RankSlice {
    let place = shape.place(rank);
    let first = place.stage * shape.stage_ranks();
    let stage = &weights[first..first + shape.stage_ranks()];
    // Ranks with the same part of attention hold the same: the slowest of them counts.
    let tp: Vec<u32> =
        (0..shape.tp).map(|t| (0..shape.dp).map(|d| stage[d * shape.tp + t]).min().unwrap_or(1)).collect();
    let heads = head_cuts(spec, granularity.attention, &tp);
    let dense = columns(dense_width(spec), granularity.dense, &tp);
    let shared = columns(shared_width(spec), granularity.shared, &tp);
    let part = shape.expert_part(rank);
    let part_ranks = shape.part_ranks(part);
    let expert_columns = columns(expert_width(spec), granularity.experts, &stage[part_ranks.clone()]);
    let layers = stages[place.stage].clone();
    let held = |l: usize| if layers.contains(&l) { experts.of_part(l, part) } else { Vec::new() };
    let ends = place.stage == 0 || place.stage + 1 == shape.pp;
    RankSlice {
        place,
        q_heads: heads[place.tp].clone(),
        kv_heads: kv_heads(spec, &heads[place.tp]),
        dense: dense[place.tp].clone(),
        shared: shared[place.tp].clone(),
        expert_columns: expert_columns[rank - first - part_ranks.start].clone(),
        experts: (0..spec.layers.len()).map(held).collect(),
        vocab: if ends { vocab_cut(spec, &tp, place.tp) } else { 0..0 },
        layers,
    }
}

/// Layers of each stage: as even in weights as whole layers allow, in proportion to the stages' speed; at least one.
fn layer_cuts(spec: &ArchSpec, speed: &[u64]) -> Vec<Range<usize>> {
    let mut cost: Vec<u128> = (0..spec.layers.len()).map(|l| layer_weights(spec, l) as u128).collect();
    // The last stage has the output layer too.
    if let Some(last) = cost.last_mut() {
        *last += spec.vocab as u128 * spec.hidden as u128;
    }
    let total: u128 = cost.iter().sum();
    let speeds: u128 = speed.iter().map(|s| u128::from(*s)).sum();
    let (mut cuts, mut start, mut done, mut share) = (Vec::new(), 0, 0u128, 0u128);
    for (stage, speed_here) in speed.iter().enumerate() {
        share += u128::from(*speed_here);
        let after = speed.len() - 1 - stage;
        let latest = cost.len() - after;
        let mut end = start + 1;
        done += cost[start];
        // A layer more while that comes closer to the share: done + cost / 2 ≤ total · share / speeds.
        while end < latest && (after == 0 || (2 * done + cost[end]) * speeds <= 2 * total * share) {
            done += cost[end];
            end += 1;
        }
        cuts.push(start..end);
        start = end;
    }
    cuts
}

/// Weights of a layer, all experts included.
fn layer_weights(spec: &ArchSpec, layer: usize) -> usize {
    let mlp = match spec.layers[layer].mlp {
        Mlp::Dense { width } => 3 * width,
        Mlp::Experts(e) => 3 * (e.count * e.width + e.shared_width) + e.count,
    };
    attention_weights(spec, &(0..spec.heads)) + mlp * spec.hidden
}

/// Weights of attention that a rank with these query heads holds.
fn attention_weights(spec: &ArchSpec, heads: &Range<usize>) -> usize {
    let count = heads.len();
    match spec.attention {
        Attention::Grouped(a) => (2 * count + 2 * kv_heads(spec, heads).len()) * a.head_dim * spec.hidden,
        Attention::Latent(_) if count == 0 => 0,
        Attention::Latent(a) => {
            let query = a.q_rank.unwrap_or(spec.hidden);
            let down = a.q_rank.unwrap_or(0) + a.kv_rank + a.rope_dim;
            let per_head = query * (a.nope_dim + a.rope_dim)
                + a.kv_rank * (a.nope_dim + a.value_dim)
                + spec.hidden * a.value_dim;
            down * spec.hidden + count * per_head
        }
    }
}

/// The key heads that query heads attend to.
fn kv_heads(spec: &ArchSpec, heads: &Range<usize>) -> Range<usize> {
    let group = spec.heads_per_kv();
    if heads.is_empty() { 0..0 } else { heads.start / group..(heads.end - 1) / group + 1 }
}

/// Width of the widest dense MLP (architectures have one width).
fn dense_width(spec: &ArchSpec) -> usize {
    let width = |mlp: &Mlp| if let Mlp::Dense { width } = mlp { *width } else { 0 };
    spec.layers.iter().map(|layer| width(&layer.mlp)).max().unwrap_or(0)
}

fn shared_width(spec: &ArchSpec) -> usize {
    spec.moe_layers().map(|(_, experts)| experts.shared_width).max().unwrap_or(0)
}

fn expert_width(spec: &ArchSpec) -> usize {
    spec.moe_layers().map(|(_, experts)| experts.width).max().unwrap_or(0)
}

/// Query heads of each rank, in proportion to the ranks' speed: whole key groups, or single heads where there are fewer groups
/// than ranks, or where the slowest is sooner through with those and no rank holds more key heads for it.
fn head_cuts(spec: &ArchSpec, granularity: usize, speed: &[u32]) -> Vec<Range<usize>> {
    // Heads whose columns end where the stored blocks can be cut.
    let aligned = granularity / gcd(granularity, spec.out_dim());
    let single = cut_heads(spec.heads, aligned, speed);
    if speed.len() > spec.kv_heads() {
        return single;
    }
    let groups = cut_heads(spec.heads, lcm(spec.heads_per_kv(), aligned), speed);
    let most_held = |cuts: &[Range<usize>]| cuts.iter().map(|heads| kv_heads(spec, heads).len()).max();
    let latest = |cuts: &[Range<usize>]| {
        let through = |(heads, speed): (&Range<usize>, &u32)| {
            ((attention_weights(spec, heads) as u128) << 20) / u128::from((*speed).max(1))
        };
        cuts.iter().zip(speed).map(through).max()
    };
    match latest(&single) < latest(&groups) && most_held(&single) <= most_held(&groups) {
        true => single,
        false => groups,
    }
}

/// `heads` divided into runs of whole `unit`s; what is left over goes to the first.
fn cut_heads(heads: usize, unit: usize, speed: &[u32]) -> Vec<Range<usize>> {
    let units = heads.div_ceil(unit);
    let mut next = 0;
    let range = |count: usize| {
        let start = next;
        next += count;
        (start * unit).min(heads)..(next * unit).min(heads)
    };
    in_proportion(units, speed).into_iter().map(range).collect()
}

/// `units` divided in proportion to `speed`: whole shares first, then one each by largest remainder, lower ranks first.
fn in_proportion(units: usize, speed: &[u32]) -> Vec<usize> {
    let total: u128 = speed.iter().map(|s| u128::from(*s)).sum::<u128>().max(1);
    let exact = |s: &u32| units as u128 * u128::from(*s);
    let mut counts: Vec<usize> = speed.iter().map(|s| (exact(s) / total) as usize).collect();
    let mut order: Vec<usize> = (0..speed.len()).collect();
    order.sort_by_key(|rank| (std::cmp::Reverse(exact(&speed[*rank]) % total), *rank));
    let left = units - counts.iter().sum::<usize>();
    order.into_iter().take(left).for_each(|rank| counts[rank] += 1);
    counts
}

/// Columns of an MLP for each rank, in proportion to the ranks' speed as far as the blocks allow.
fn columns(width: usize, granularity: usize, speed: &[u32]) -> Vec<Range<usize>> {
    // Multiples of 8 where any column would do: whole vectors.
    let unit = granularity.max(if width.is_multiple_of(8) { 8 } else { 1 });
    let units = width.div_ceil(unit);
    let mut start = 0;
    in_proportion(units, speed)
        .into_iter()
        .map(|count| {
            let range = (start * unit).min(width)..((start + count) * unit).min(width);
            start += count;
            range
        })
        .collect()
}

/// Rows of the vocabulary of part `t`, in proportion to the parts' speed.
fn vocab_cut(spec: &ArchSpec, speed: &[u32], t: usize) -> Range<usize> {
    let rows = if spec.vocab >= 8 * speed.len() { 8 } else { 1 };
    let units = spec.vocab.div_ceil(rows);
    let total: u128 = speed.iter().map(|s| u128::from(*s)).sum::<u128>().max(1);
    let at = |t: usize| {
        let before: u128 = speed[..t].iter().map(|s| u128::from(*s)).sum();
        ((units as u128 * before / total) as usize * rows).min(spec.vocab)
    };
    at(t)..if t + 1 == speed.len() { spec.vocab } else { at(t + 1) }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn lcm(a: usize, b: usize) -> usize {
    a / gcd(a, b) * b
}
