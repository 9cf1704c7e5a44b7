//! Which experts a row goes to: pure, a function of the row's router logits only.

use foggara_models::spec::{Experts, Routing};

/// Chosen experts with their weights, in the order of their numbers.
pub(super) type Route = Vec<(u32, f32)>;

/// The experts of a row, from its router logits; `correction` is added to scores for the choice only (empty: nothing is).
/// Of equal scores the lower number is chosen.
pub(super) fn route(experts: &Experts, logits: &[f32], correction: &[f32]) -> Route {
    let mut route = match experts.routing {
        Routing::Softmax { renormalize } => softmax(logits, experts.top_k, renormalize),
        Routing::GroupedSigmoid { groups, top_groups, renormalize, scale } => {
            let scores: Vec<f64> = logits.iter().map(|x| 1.0 / (1.0 + (-f64::from(*x)).exp())).collect();
            let corrected: Vec<f64> = scores
                .iter()
                .enumerate()
                .map(|(e, s)| s + f64::from(correction.get(e).copied().unwrap_or(0.0)))
                .collect();
            let open = open_groups(&corrected, groups, top_groups);
            let size = logits.len() / groups;
            // There are always enough experts in open groups.
            let masked: Vec<f64> = corrected
                .iter()
                .enumerate()
                .map(|(e, s)| if open[e / size] { *s } else { f64::NEG_INFINITY })
                .collect();
            let chosen = greatest(&masked, experts.top_k);
            let sum: f64 = chosen.iter().map(|e| scores[*e]).sum();
            let by = if renormalize { f64::from(scale) / (sum + 1e-20) } else { f64::from(scale) };
            chosen.into_iter().map(|e| (e as u32, (scores[e] * by) as f32)).collect()
        }
    };
    route.sort_unstable_by_key(|(expert, _)| *expert);
    route
}

fn softmax(logits: &[f32], top_k: usize, renormalize: bool) -> Route {
    let scores: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
    let chosen = greatest(&scores, top_k);
    let highest = chosen.first().map_or(0.0, |e| scores[*e]);
    let weight = |e: &usize| (scores[*e] - highest).exp();
    let total: f64 = match renormalize {
        true => chosen.iter().map(weight).sum(),
        false => (0..scores.len()).map(|e| weight(&e)).sum(),
    };
    chosen.iter().map(|e| (*e as u32, (weight(e) / total) as f32)).collect()
}

/// Indices of the `count` greatest, greatest first; of equals the lower. NaN counts as the least.
///
/// They are few among many: each score is compared with the least of those so far, and only a greater one is put in its place.
fn greatest(scores: &[f64], count: usize) -> Vec<usize> {
    let key = |e: usize| if scores[e].is_nan() { f64::NEG_INFINITY } else { scores[e] };
    let mut best: Vec<usize> = Vec::with_capacity(count + 1);
    for e in 0..scores.len() {
        let score = key(e);
        if best.len() == count && best.last().is_none_or(|least| score.total_cmp(&key(*least)).is_le()) {
            continue;
        }
        let at = best.partition_point(|better| key(*better).total_cmp(&score).is_ge());
        best.insert(at, e);
        best.truncate(count);
    }
    best
}

/// The groups whose two best experts are best together.
fn open_groups(scores: &[f64], groups: usize, top_groups: usize) -> Vec<bool> {
    let of_group = |group: &[f64]| greatest(group, 2).into_iter().map(|e| group[e]).sum::<f64>();
    let sums: Vec<f64> = scores.chunks(scores.len() / groups).map(of_group).collect();
    let mut open = vec![false; groups];
    greatest(&sums, top_groups).into_iter().for_each(|group| open[group] = true);
    open
}

#[cfg(test)]
mod tests {
    use super::*;

    fn experts(count: usize, top_k: usize, routing: Routing) -> Experts {
        Experts { count, top_k, width: 8, shared_width: 0, routing, bias: false }
    }

    #[test]
    fn the_greatest_of_a_softmax_with_and_without_renormalizing() {
        let logits = [1.0, 3.0, 2.0, 3.0];
        let all: f32 = logits.iter().map(|x: &f32| x.exp()).sum();
        let route =
            |top_k, renormalize| route(&experts(4, top_k, Routing::Softmax { renormalize }), &logits, &[]);
        let plain = route(3, false);
        assert_eq!(plain.iter().map(|(e, _)| *e).collect::<Vec<_>>(), [1, 2, 3]);
        assert!((plain[1].1 - 2f32.exp() / all).abs() < 1e-6);
        assert_eq!(route(2, true), [(1, 0.5), (3, 0.5)]);
        assert_eq!(route(1, true), [(1, 1.0)], "the lower of equals");
    }

    #[test]
    fn the_greatest_are_those_of_a_sorted_list() {
        let mut state = 1u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for round in 0..400 {
            // Many equals in every other round, and now and then what is not a number.
            let (len, kinds) = (next(300) as usize, if round % 2 == 0 { 7 } else { 1 << 20 });
            let score = |n: u64| if n == 0 { f64::NAN } else { n as f64 - kinds as f64 / 2.0 };
            let scores: Vec<f64> = (0..len).map(|_| score(next(kinds))).collect();
            let key = |e: &usize| if scores[*e].is_nan() { f64::NEG_INFINITY } else { scores[*e] };
            let mut sorted: Vec<usize> = (0..len).collect();
            sorted.sort_by(|a, b| key(b).total_cmp(&key(a)).then(a.cmp(b)));
            let count = next(12) as usize;
            sorted.truncate(count);
            assert_eq!(greatest(&scores, count), sorted, "{count} of {scores:?}");
        }
    }

    #[test]
    fn groups_are_chosen_by_their_two_best_and_corrections_do_not_weigh() {
        let routing = Routing::GroupedSigmoid { groups: 2, top_groups: 1, renormalize: true, scale: 2.0 };
        // Expert 3 is the best, but its group has no second.
        let logits = [1.0, 1.0, -9.0, 2.0];
        let chosen = route(&experts(4, 1, routing), &logits, &[]);
        assert_eq!(chosen, [(0, 2.0)]);
        let corrected = route(&experts(4, 1, routing), &logits, &[0.0, 0.0, 1.0, 0.0]);
        assert_eq!(corrected, [(2, 2.0)], "chosen by the correction, weighed without");
        let both = route(&experts(4, 2, routing), &logits, &[0.0, 0.5, 0.0, 0.0]);
        assert_eq!(both, [(0, 1.0), (1, 1.0)]);
        let negative = route(&experts(4, 2, routing), &logits, &[0.0, -5.0, -9.0, -9.0]);
        assert_eq!(negative, [(0, 1.0), (1, 1.0)], "of the open group, however low");
    }
}
