//! Any model at any shape, with any speeds and any placement of experts: everything is held once, and cut where it may be.

use proptest::prelude::*;

use super::tests::{check, spec, with_experts};
use super::*;
use crate::spec::Latent;

/// A model, where it may be cut, and how it is to be.
type Case = (ArchSpec, Granularity, Cut);

/// Widths are in runs of 32 where the types want it, else anything.
fn widths(quantized: bool) -> BoxedStrategy<usize> {
    if quantized { (1usize..40).prop_map(|runs| runs * 32).boxed() } else { (1usize..600).boxed() }
}

fn models() -> impl Strategy<Value = (ArchSpec, Granularity)> {
    let attention = (1usize..9, 1usize..7, 1usize..17, any::<bool>(), 1usize..400, 1usize..9);
    (any::<bool>(), attention).prop_flat_map(|(quantized, (kv_heads, group, dim, latent, vocab, layers))| {
        let experts = prop::option::of((1usize..20, widths(quantized), prop::option::of(widths(quantized))));
        (widths(quantized), experts).prop_map(move |(dense, experts)| {
            let unit = if quantized { 32 } else { 1 };
            let granularity = Granularity { attention: unit, dense: unit, shared: unit, experts: unit };
            // Heads as wide as the output projection's blocks allow, whatever the number of heads.
            let dim = if quantized { dim * 8 } else { dim };
            let heads = kv_heads * group * if quantized { 4 } else { 1 };
            let mut spec = spec(heads, kv_heads, dim, dense, vocab);
            spec.layers = vec![spec.layers[0]; layers];
            if latent {
                spec.attention = Attention::Latent(Latent {
                    q_rank: None,
                    kv_rank: 24,
                    nope_dim: 8,
                    rope_dim: 4,
                    value_dim: dim,
                    bias: false,
                    split_up: false,
                    norm_eps: 1e-6,
                });
            }
            if let (Some((count, width, shared)), true) = (experts, layers > 1) {
                spec = with_experts(spec, count, width, shared.unwrap_or(0));
            }
            (spec, granularity)
        })
    })
}

fn cuts(spec: &ArchSpec) -> impl Strategy<Value = Cut> + use<> {
    let experts: Vec<usize> = (0..spec.layers.len())
        .map(|l| if let Mlp::Experts(experts) = spec.layers[l].mlp { experts.count } else { 0 })
        .collect();
    let has_experts = experts.iter().any(|count| *count > 0);
    (1usize..7, 1usize..4, 1usize..=spec.layers.len().min(3), any::<prop::sample::Index>()).prop_flat_map(
        move |(tp, dp, pp, which)| {
            let divisors: Vec<usize> = (1..=tp * dp).filter(|ep| (tp * dp).is_multiple_of(*ep)).collect();
            let ep = if has_experts { divisors[which.index(divisors.len())] } else { 1 };
            let shape = Shape { tp, dp, pp, ep };
            let weights = prop_oneof![
                Just(Vec::new()),
                prop::collection::vec(1u32..20, shape.ranks()),
                prop::collection::vec(prop_oneof![Just(1u32), Just(1_000_000)], shape.ranks()),
            ];
            let part = 0..u16::try_from(ep).expect("few parts");
            let layers: Vec<_> =
                experts.iter().map(|count| prop::collection::vec(part.clone(), *count)).collect();
            let map = prop::option::of(layers.prop_map(ExpertMap));
            (weights, map).prop_map(move |(weights, map)| Cut {
                shape,
                weights,
                experts: map.unwrap_or_default(),
            })
        },
    )
}

fn cases() -> impl Strategy<Value = Case> {
    models().prop_flat_map(|(spec, granularity)| {
        let cuts = cuts(&spec);
        cuts.prop_map(move |cut| (spec.clone(), granularity, cut))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn everything_is_held_once_and_cut_where_it_may_be((spec, granularity, cut) in cases()) {
        check(&spec, granularity, &cut);
        let plan = plan_slices(&spec, granularity, &cut).expect("can be cut");
        let map = if cut.experts.0.is_empty() { ExpertMap::even(&spec, cut.shape.ep) } else { cut.experts };
        prop_assert_eq!(&plan.experts, &map);
        for (rank, slice) in plan.ranks.iter().enumerate() {
            prop_assert_eq!(slice.place, plan.shape.place(rank));
            // Experts are where the map says, and nowhere else.
            let part = plan.shape.expert_part(rank);
            for (l, held) in slice.experts.iter().enumerate() {
                let expected = if slice.layers.contains(&l) { map.of_part(l, part) } else { Vec::new() };
                prop_assert_eq!(held, &expected, "layer {} of rank {}", l, rank);
            }
            // No key head is held that no query head there attends to.
            for kv in slice.kv_heads.clone() {
                let group = spec.heads_per_kv();
                let used = slice.q_heads.clone().any(|q| q / group == kv);
                prop_assert!(used, "rank {} holds key head {}", rank, kv);
            }
            // Ranks that differ in their part of the batch only hold the same but for experts.
            let first = &plan.ranks[plan.shape.rank(RankPlace { dp: 0, ..slice.place })];
            let shared = |s: &RankSlice| (s.layers.clone(), s.q_heads.clone(), s.dense.clone(), s.vocab.clone());
            prop_assert_eq!(shared(slice), shared(first));
        }
    }

    #[test]
    fn experts_go_to_parts_in_proportion_to_their_speed(
        load in prop::collection::vec(0u64..1_000_000, 0..300),
        speed in prop::collection::vec(1u32..50, 1..17),
    ) {
        let parts = assign_experts(&load, &speed);
        prop_assert_eq!(parts.len(), load.len());
        let total: u64 = speed.iter().map(|s| u64::from(*s)).sum();
        for (part, speed) in speed.iter().enumerate() {
            let held = parts.iter().filter(|p| usize::from(**p) == part).count() as u64;
            let share = (load.len() as u64 * u64::from(*speed)).div_ceil(total);
            prop_assert!(held <= share, "part {} holds {} of a share of {}", part, held, share);
        }
        prop_assert_eq!(&parts, &assign_experts(&load, &speed));
    }
}
