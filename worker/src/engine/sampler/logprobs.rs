//! The likeliest tokens of a row, and log-probabilities.

use std::cmp::Ordering;

use foggara_kernels::op::softmax::log_sum_exp;
use foggara_proto::sequence::TokenOutput;

/// The output for `token`, with its log-probability and the `top` likeliest if asked for.
pub fn describe(logits: &[f32], token: usize, top: Option<u32>) -> TokenOutput {
    let id = |index: usize| u32::try_from(index).expect("vocabularies are smaller than 2^32");
    let Some(count) = top else { return TokenOutput { token: id(token), logprob: None, top: Vec::new() } };
    let total = log_sum_exp(logits);
    let mut best = Vec::new();
    likeliest(logits, count as usize, &mut best);
    best.sort_unstable_by(|a, b| better(logits, *a, *b));
    let top = best.into_iter().map(|id| (id, logits[id as usize] - total)).collect();
    TokenOutput { token: id(token), logprob: logits.get(token).map(|logit| logit - total), top }
}

/// Greater logit first, then smaller id. What is not a number comes last.
pub(super) fn better(logits: &[f32], a: u32, b: u32) -> Ordering {
    let key = |id: u32| match logits[id as usize] {
        logit if logit.is_nan() => f32::NEG_INFINITY,
        logit => logit,
    };
    // Not `total_cmp`, to which 0.0 and -0.0 are different.
    key(b).partial_cmp(&key(a)).unwrap_or(Ordering::Equal).then(a.cmp(&b))
}

/// The `count` likeliest tokens, in any order, in one pass: a few more than `count` are held, and whatever is no greater
/// than the least of the best so far is passed over.
pub(super) fn likeliest(logits: &[f32], count: usize, best: &mut Vec<u32>) {
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
