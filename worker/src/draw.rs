//! Drawing a token from a row of logits that the host has: min-p, then top-k, then top-p, then a random number. What a token weighs, and
//! how sums are cut, is said by [`foggara_kernels::op::draw`]; devices draw the same tokens.

use foggara_kernels::op::draw::{Draw, ONE, WHOLE, enough, passed, weigh};
use foggara_kernels::op::softmax::argmax;

use crate::best::{better, likeliest};

/// Memory that is used again.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Of each token.
    weights: Vec<u64>,
    /// Tokens that may be drawn.
    kept: Vec<u32>,
}

/// Whether a row with this greatest logit has any that is possible.
pub(crate) fn is_possible(greatest: Option<&f32>) -> bool {
    greatest.is_some_and(|logit| !logit.is_nan() && *logit != f32::NEG_INFINITY)
}

/// Draws of a row whatever it is: token 0 where nothing is possible.
pub(crate) fn draw_any(row: &[f32], draw: &Draw, scratch: &mut Scratch) -> usize {
    let greatest = argmax(row);
    if is_possible(row.get(greatest)) { draw_one(row, greatest, draw, 0, scratch) } else { 0 }
}

/// Draws of a row whose greatest logit is at `greatest`. `top_k`: of so many of the best; 0: of all.
pub(crate) fn draw_one(
    row: &[f32],
    greatest: usize,
    draw: &Draw,
    top_k: usize,
    scratch: &mut Scratch,
) -> usize {
    let Scratch { weights, kept } = scratch;
    weigh(row, row[greatest], draw.scale, draw.least, weights);
    match shorten(row, weights, draw.share, top_k, kept) {
        true => pick(kept.iter().map(|id| *id as usize), weights, draw.uniform),
        false => pick(0..weights.len(), weights, draw.uniform),
    }
}

/// Draws as [`draw_one`] does of a whole row, given only the tokens that top-k leaves of it: their logits are `row`, in order of their
/// ids. Returns the place in it. Everything else looks at no other token, so it is the same one.
pub(crate) fn draw_of_best(row: &[f32], greatest: usize, draw: &Draw, scratch: &mut Scratch) -> usize {
    let Scratch { weights, kept } = scratch;
    weigh(row, row[greatest], draw.scale, draw.least, weights);
    kept.clear();
    kept.extend((0u32..).zip(row).map(|(place, _)| place));
    nucleus(row, weights, draw.share, kept);
    pick(kept.iter().map(|place| *place as usize), weights, draw.uniform)
}

/// Writes the tokens that top-k and top-p leave to `kept`, in order of their ids; `false` if they leave all.
pub(crate) fn shorten(row: &[f32], weights: &[u64], share: u64, top_k: usize, kept: &mut Vec<u32>) -> bool {
    let cuts = share < WHOLE;
    if (1..row.len()).contains(&top_k) {
        likeliest(row, top_k, kept);
        kept.sort_unstable();
        nucleus(row, weights, share, kept);
    } else if cuts {
        let enough = enough(weights.iter().sum(), share);
        gather(weights, enough, kept);
        let last = cut(row, weights, enough, kept);
        in_order(row, last, kept);
    } else {
        return false;
    }
    true
}

/// Leaves, of tokens in order of their ids, those that top-p leaves, in order too.
fn nucleus(row: &[f32], weights: &[u64], share: u64, ids: &mut Vec<u32>) {
    if share < WHOLE {
        cut(row, weights, enough(total(weights, ids), share), ids);
        ids.sort_unstable();
    }
}

fn total(weights: &[u64], ids: &[u32]) -> u64 {
    ids.iter().map(|id| weights[*id as usize]).sum()
}

/// Gathers tokens whose weights sum to `enough`, among them the likeliest: those above a threshold that falls until they
/// are.
fn gather(weights: &[u64], enough: u64, ids: &mut Vec<u32>) {
    for threshold in [ONE / 100, ONE / 10_000, 1] {
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
fn cut(row: &[f32], weights: &[u64], enough: u64, ids: &mut Vec<u32>) -> u32 {
    /// So few are sorted.
    const FEW: usize = 32;
    let (mut start, mut end, mut sum) = (0, ids.len(), 0);
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
        sum += weights[*id as usize];
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

/// The token at which the sum so far passes `uniform` of the whole.
fn pick(ids: impl Iterator<Item = usize> + Clone, weights: &[u64], uniform: u64) -> usize {
    let wanted = passed(ids.clone().map(|id| weights[id]).sum(), uniform);
    let mut sum = 0;
    let mut passes = ids.filter(|id| {
        sum += weights[*id];
        sum > wanted
    });
    // The likeliest weighs something: there is one.
    passes.next().unwrap_or(0)
}

#[cfg(test)]
#[path = "draw_tests.rs"]
mod tests;
