//! Which part of a model each rank of a shape holds, as far as sizes go: layers by stages, heads and columns by
//! tensor-parallel ranks, experts by parts.

use std::ops::Range;

use foggara_models::slices::assign_experts;
use foggara_proto::shape::Shape;

use super::facts::ModelFacts;

/// What one rank holds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RankPart {
    /// Its stage.
    pub stage: u32,
    /// Its layers.
    pub layers: Range<usize>,
    /// Query heads of each layer.
    pub heads: u64,
    /// Key heads of each layer; several ranks may keep the same one.
    pub kv_heads: u64,
    /// Share of MLP columns, and of the rows of embedding and output.
    pub share: f64,
    /// Whole experts of each layer that its part owns.
    pub experts: u64,
    /// Its share of each of them.
    pub expert_share: f64,
}

/// Cuts `total` in proportion to `weights`, whole units: the largest remainders get what is left, earlier ones first.
pub(super) fn split(total: u64, weights: &[u64]) -> Vec<u64> {
    let sum: u128 = weights.iter().map(|weight| u128::from(*weight)).sum::<u128>().max(1);
    let exact = |weight: &u64| u128::from(total) * u128::from(*weight);
    let mut parts: Vec<u64> =
        weights.iter().map(|weight| u64::try_from(exact(weight) / sum).unwrap_or(u64::MAX)).collect();
    let left = total.saturating_sub(parts.iter().sum());
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(exact(&weights[*i]) % sum), *i));
    for i in order.into_iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
        parts[i] += 1;
    }
    parts
}

/// The weight of every rank: all 1 where none are given.
pub(super) fn weights_of(shape: Shape, weights: &[u32]) -> Vec<u64> {
    match weights {
        [] => vec![1; shape.ranks() as usize],
        weights => weights.iter().map(|weight| u64::from(*weight)).collect(),
    }
}

/// The parts of all ranks, in rank order. `shape` has no number left open.
pub(super) fn layout(model: &ModelFacts, shape: Shape, weights: &[u32]) -> Vec<RankPart> {
    let weights = weights_of(shape, weights);
    let stage_ranks = shape.stage_ranks() as usize;
    let tp = shape.tp as usize;
    let stage_weights: Vec<u64> = weights.chunks(stage_ranks).map(|ranks| ranks.iter().sum()).collect();
    let mut parts = Vec::with_capacity(weights.len());
    let mut first = 0;
    for (stage, count) in stages(model.layers.len() as u64, &stage_weights).into_iter().enumerate() {
        let layers = first..first + usize::try_from(count).unwrap_or(usize::MAX);
        first = layers.end;
        let ranks = &weights[stage * stage_ranks..(stage + 1) * stage_ranks];
        let experts = experts(model, shape, ranks);
        for (d, tensor) in ranks.chunks(tp).enumerate() {
            let sum = tensor.iter().sum::<u64>().max(1) as f64;
            for (t, (heads, kv_heads)) in heads(model, tensor).into_iter().enumerate() {
                let (experts, expert_share) = experts[d * tp + t];
                let (stage, layers) = (u32::try_from(stage).unwrap_or(u32::MAX), layers.clone());
                let share = tensor[t] as f64 / sum;
                parts.push(RankPart { stage, layers, heads, kv_heads, share, experts, expert_share });
            }
        }
    }
    parts
}

/// Layers of each stage: in proportion, at least one.
fn stages(layers: u64, weights: &[u64]) -> Vec<u64> {
    let mut counts = split(layers, weights);
    while let Some(empty) = counts.iter().position(|count| *count == 0) {
        let Some(most) = (0..counts.len()).max_by_key(|i| (counts[*i], std::cmp::Reverse(*i))) else { break };
        if counts[most] < 2 {
            break;
        }
        counts[most] -= 1;
        counts[empty] += 1;
    }
    counts
}

/// Query and key heads of each tensor-parallel rank: cut between key heads while there are enough of them.
fn heads(model: &ModelFacts, tensor: &[u64]) -> Vec<(u64, u64)> {
    let (heads, kv_heads) = (model.heads.max(1), model.kv_heads.max(1));
    let group = heads.div_ceil(kv_heads);
    if kv_heads >= tensor.len() as u64 {
        let cut = split(kv_heads, tensor);
        return cut.into_iter().map(|kv| ((kv * group).min(heads), kv)).collect();
    }
    let cut = split(heads, tensor);
    let mut at = 0;
    cut.into_iter()
        .map(|count| {
            let range = at..at + count;
            at = range.end;
            let kv = if count == 0 { 0 } else { (range.end - 1) / group - range.start / group + 1 };
            (count, kv.min(kv_heads))
        })
        .collect()
}

/// For each rank of a stage: experts of its part, and its share of each.
fn experts(model: &ModelFacts, shape: Shape, ranks: &[u64]) -> Vec<(u64, f64)> {
    let size = (ranks.len() / shape.ep as usize).max(1);
    let parts: Vec<u64> = ranks.chunks(size).map(|part| part.iter().sum()).collect();
    let counts = match parts.windows(2).all(|pair| pair[0] == pair[1]) {
        true => split(model.experts(), &parts),
        false => {
            let owners = owners(model.experts(), &parts);
            let of_part = |part: usize| owners.iter().filter(|owner| usize::from(**owner) == part).count();
            (0..parts.len()).map(|part| of_part(part) as u64).collect()
        }
    };
    let of = |(i, weight): (usize, &u64)| (counts[i / size], *weight as f64 / parts[i / size].max(1) as f64);
    ranks.iter().enumerate().map(of).collect()
}

/// The part that owns each of a layer's experts, by the speeds of the parts.
fn owners(experts: u64, speeds: &[u64]) -> Vec<u16> {
    let word = |speed: &u64| u32::try_from(*speed).unwrap_or(u32::MAX);
    let speeds: Vec<u32> = speeds.iter().map(word).collect();
    assign_experts(&vec![1; usize::try_from(experts).unwrap_or(0)], &speeds)
}

/// For each layer with experts, the part that owns each of them; empty where all parts are alike, which is the default.
pub(super) fn expert_map(model: &ModelFacts, shape: Shape, weights: &[u32]) -> Vec<Vec<u16>> {
    if weights.is_empty() || shape.ep < 2 {
        return Vec::new();
    }
    let parts = layout(model, shape, weights);
    let weights = weights_of(shape, weights);
    let size = (shape.stage_ranks() / shape.ep).max(1) as usize;
    let mut map = Vec::new();
    for (stage, ranks) in weights.chunks(shape.stage_ranks() as usize).enumerate() {
        let speeds: Vec<u64> = ranks.chunks(size).map(|part| part.iter().sum()).collect();
        let layers = parts[stage * ranks.len()].layers.clone();
        let experts = model.layers[layers].iter().filter_map(|layer| layer.experts);
        map.extend(experts.map(|experts| owners(experts.count, &speeds)));
    }
    map
}
