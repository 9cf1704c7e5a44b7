//! Drawing a token: temperature, then min-p, then top-k, then top-p, then a random number.

use foggara_kernels::op::softmax::exp_scaled;
use foggara_proto::sequence::SequenceParams;

use super::random::uniform;
use crate::best::{better, likeliest};

/// Memory that is used again.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Of each token, relative to the likeliest one's.
    weights: Vec<f32>,
    /// Tokens that may be drawn.
    kept: Vec<u32>,
}

/// Draws the token at `position`. `greatest` is the place of the greatest logit.
pub(super) fn draw(
    row: &[f32],
    greatest: usize,
    params: &SequenceParams,
    position: usize,
    scratch: &mut Scratch,
) -> usize {
    let Scratch { weights, kept } = scratch;
    weigh(row, greatest, params, weights);
    let uniform = uniform(params.seed, position);
    match shorten(row, weights, params, kept) {
        true => pick(kept.iter().map(|id| *id as usize), weights, uniform),
        false => pick(0..weights.len(), weights, uniform),
    }
}

/// Draws as [`draw`] does of a whole row, given only the tokens that top-k leaves of it: their logits are `row`, in order of their
/// ids. Returns the place in it. Everything else looks at no other token, so it is the same one.
pub(super) fn draw_of_best(
    row: &[f32],
    greatest: usize,
    params: &SequenceParams,
    position: usize,
    scratch: &mut Scratch,
) -> usize {
    let Scratch { weights, kept } = scratch;
    weigh(row, greatest, params, weights);
    kept.clear();
    kept.extend((0u32..).zip(row).map(|(place, _)| place));
    nucleus(row, weights, params.top_p, kept);
    pick(kept.iter().map(|place| *place as usize), weights, uniform(params.seed, position))
}

/// Weights by temperature; 0 for what is impossible, and for what is less likely than min-p of the likeliest.
pub(super) fn weigh(row: &[f32], greatest: usize, params: &SequenceParams, weights: &mut Vec<f32>) {
    weights.resize(row.len(), 0.0);
    exp_scaled(row, row[greatest], 1.0 / params.temperature, weights);
    let least = params.min_p * weights[greatest];
    for (weight, logit) in weights.iter_mut().zip(row) {
        // The vector exponential gives what is not a number, and -∞, a weight: a small one, or that of a very large number.
        if *logit == f32::NEG_INFINITY || logit.is_nan() || *weight < least {
            *weight = 0.0;
        }
    }
}

/// Writes the tokens that top-k and top-p leave to `kept`, in order of their ids; `false` if they leave all.
pub(super) fn shorten(row: &[f32], weights: &[f32], params: &SequenceParams, kept: &mut Vec<u32>) -> bool {
    let top_k = Some(params.top_k as usize).filter(|k| *k > 0 && *k < row.len());
    if top_k.is_none() && params.top_p >= 1.0 {
        return false;
    }
    match top_k {
        Some(k) => {
            likeliest(row, k, kept);
            kept.sort_unstable();
            nucleus(row, weights, params.top_p, kept);
        }
        None => {
            let enough =
                f64::from(params.top_p) * weights.iter().map(|weight| f64::from(*weight)).sum::<f64>();
            gather(weights, enough, kept);
            let last = cut(row, weights, enough, kept);
            in_order(row, last, kept);
        }
    }
    true
}

/// Leaves, of tokens in order of their ids, those that top-p leaves, in order too. (The order in which weights are summed decides
/// about the last bit of the sum: nothing but the tokens may decide about the order.)
fn nucleus(row: &[f32], weights: &[f32], top_p: f32, ids: &mut Vec<u32>) {
    if top_p < 1.0 {
        cut(row, weights, f64::from(top_p) * total(weights, ids), ids);
        ids.sort_unstable();
    }
}

fn total(weights: &[f32], ids: &[u32]) -> f64 {
    ids.iter().map(|id| f64::from(weights[*id as usize])).sum()
}

/// Gathers tokens whose weights sum to `enough`, among them the likeliest: those above a threshold that falls until they
/// are.
fn gather(weights: &[f32], enough: f64, ids: &mut Vec<u32>) {
    for threshold in [1e-2, 1e-4, f32::MIN_POSITIVE] {
        ids.clear();
        ids.extend((0u32..).zip(weights).filter(|(_, weight)| **weight >= threshold).map(|(id, _)| id));
        if total(weights, ids) >= enough {
            return;
        }
    }
}

/// Shortens `ids` to the fewest, best first, whose weights sum to `enough`; at least one. Returns the last of them.
///
/// By selection: the better half of what is undecided is either kept whole or decides alone.
fn cut(row: &[f32], weights: &[f32], enough: f64, ids: &mut Vec<u32>) -> u32 {
    /// So few are sorted.
    const FEW: usize = 32;
    let (mut start, mut end, mut sum) = (0, ids.len(), 0.0);
    while end - start > FEW {
        let middle = start + (end - start) / 2;
        ids[start..end].select_nth_unstable_by(middle - start, |a, b| better(row, *a, *b));
        let half = sum + total(weights, &ids[start..middle]);
        if half >= enough {
            end = middle;
        } else {
            (start, sum) = (middle, half);
        }
    }
    ids[start..end].sort_unstable_by(|a, b| better(row, *a, *b));
    let reached = ids[start..end].iter().position(|id| {
        sum += f64::from(weights[*id as usize]);
        sum >= enough
    });
    ids.truncate(reached.map_or(end, |place| start + place + 1));
    ids.last().copied().unwrap_or(0)
}

/// Puts `ids`, which are all tokens up to `last` from the best, in order.
fn in_order(row: &[f32], last: u32, ids: &mut Vec<u32>) {
    if ids.len() < row.len() / 16 {
        ids.sort_unstable();
        return;
    }
    // So many are found faster than sorted.
    let all = 0..u32::try_from(row.len()).unwrap_or(u32::MAX);
    ids.clear();
    ids.extend(all.filter(|id| better(row, *id, last).is_le()));
}

/// The token at which the running sum of weights passes `uniform` of the whole.
fn pick(ids: impl Iterator<Item = usize> + Clone, weights: &[f32], uniform: f64) -> usize {
    let wanted = uniform * ids.clone().map(|id| f64::from(weights[id])).sum::<f64>();
    let (mut sum, mut last) = (0.0, ids.clone().next().unwrap_or(0));
    for id in ids {
        let weight = f64::from(weights[id]);
        if weight > 0.0 {
            last = id;
        }
        sum += weight;
        if sum > wanted {
            return id;
        }
    }
    last
}
