//! Everything is covered, evenly, and cut where it may be.

use super::*;
use crate::spec::{Activation, Experts, Grouped, Latent, Layer, Routing};

pub(super) fn spec(heads: usize, kv_heads: usize, head_dim: usize, ffn: usize, vocab: usize) -> ArchSpec {
    let layer = Layer { window: None, rope: 0, mlp: Mlp::Dense { width: ffn } };
    ArchSpec {
        family: "llama",
        hidden: heads * head_dim,
        heads,
        vocab,
        context: 64,
        norm_eps: 1e-5,
        norm_plus_one: false,
        post_norms: false,
        embedding_scale: 1.0,
        attention: Attention::Grouped(Grouped {
            kv_heads,
            head_dim,
            qkv_bias: false,
            o_bias: false,
            qk_norm: false,
            sinks: false,
        }),
        attention_scale: 1.0,
        attention_softcap: None,
        ropes: vec![],
        activation: Activation::Silu,
        layers: vec![layer; 5],
        logit_softcap: None,
        tied_output: true,
    }
}

pub(super) fn with_experts(spec: ArchSpec, count: usize, width: usize, shared_width: usize) -> ArchSpec {
    let routing = Routing::Softmax { renormalize: true };
    let experts = Experts { count, top_k: 2, width, shared_width, routing, bias: false };
    let layer = Layer { window: None, rope: 0, mlp: Mlp::Experts(experts) };
    // The first layer stays dense.
    let layers = [&spec.layers[..1], &vec![layer; spec.layers.len() - 1]].concat();
    ArchSpec { layers, ..spec }
}

const QUANTIZED: Granularity = Granularity { attention: 32, dense: 32, shared: 32, experts: 32 };

fn tensor(spec: &ArchSpec, granularity: Granularity, tp: usize) -> Vec<RankSlice> {
    plan_slices(spec, granularity, &Cut::even(Shape::tensor(tp))).expect("can be cut").ranks
}

#[test]
fn smollm2_on_two_ranks_is_as_even_as_can_be_in_each_part() {
    let slices = tensor(&spec(9, 3, 64, 1536, 49_152), QUANTIZED, 2);
    // Of three groups one rank would have two, and the other wait for it; neither holds more key heads than that.
    assert_eq!((slices[0].q_heads.clone(), slices[1].q_heads.clone()), (0..5, 5..9));
    assert_eq!((slices[0].kv_heads.clone(), slices[1].kv_heads.clone()), (0..2, 1..3));
    assert_eq!((slices[0].dense.len() / 32, slices[1].dense.len() / 32), (24, 24));
    assert_eq!((slices[0].vocab.clone(), slices[1].vocab.clone()), (0..24_576, 24_576..49_152));
}

#[test]
fn more_ranks_than_key_heads_replicate_them() {
    let slices = tensor(&spec(8, 2, 32, 96, 100), Granularity::ANY, 3);
    let q: Vec<_> = slices.iter().map(|s| s.q_heads.clone()).collect();
    let kv: Vec<_> = slices.iter().map(|s| s.kv_heads.clone()).collect();
    assert_eq!(q, [0..3, 3..6, 6..8]);
    assert_eq!(kv, [0..1, 0..2, 1..2]);
    let latent = Latent {
        q_rank: None,
        kv_rank: 32,
        nope_dim: 16,
        rope_dim: 8,
        value_dim: 16,
        bias: false,
        split_up: false,
        norm_eps: 1e-6,
    };
    let spec = ArchSpec { attention: Attention::Latent(latent), ..spec(8, 8, 32, 96, 100) };
    assert!(tensor(&spec, Granularity::ANY, 4).iter().all(|s| s.kv_heads == (0..1) && s.q_heads.len() == 2));
}

#[test]
fn key_groups_stay_whole_where_that_is_as_good() {
    for (heads, kv_heads, tp) in [(32, 8, 2), (32, 8, 3), (32, 8, 5), (9, 3, 3), (16, 8, 4)] {
        for slice in tensor(&spec(heads, kv_heads, 64, 1536, 49_152), QUANTIZED, tp) {
            let group = heads / kv_heads;
            assert_eq!(slice.q_heads.len(), slice.kv_heads.len() * group, "{heads} on {kv_heads}, tp {tp}");
        }
    }
}

#[test]
fn faster_ranks_get_more() {
    let cut = Cut { weights: vec![3, 1], ..Cut::even(Shape::tensor(2)) };
    let slices = plan_slices(&spec(16, 8, 64, 4096, 32_000), QUANTIZED, &cut).expect("can be cut").ranks;
    assert_eq!((slices[0].q_heads.len(), slices[1].q_heads.len()), (12, 4));
    assert_eq!((slices[0].dense.len(), slices[1].dense.len()), (3072, 1024));
    assert_eq!(slices[0].vocab, 0..24_000);
    let cut = Cut { weights: vec![4, 1], ..Cut::even(Shape { pp: 2, ..Shape::default() }) };
    let slices = plan_slices(&spec(16, 8, 64, 4096, 8), QUANTIZED, &cut).expect("can be cut").ranks;
    assert_eq!((slices[0].layers.clone(), slices[1].layers.clone()), (0..4, 4..5));
}

#[test]
fn everything_is_covered_once_and_cut_where_it_may_be() {
    for (heads, kv_heads) in [(9, 3), (8, 8), (32, 8), (5, 5), (6, 1), (71, 1)] {
        for head_dim in [8, 64, 80, 96, 128] {
            for (ffn, vocab) in [(1536, 49_152), (96, 320), (11_008, 32_003), (64, 10)] {
                let spec = spec(heads, kv_heads, head_dim, ffn, vocab);
                for granularity in [QUANTIZED, Granularity::ANY] {
                    if granularity == QUANTIZED && (heads * head_dim % 32 != 0 || ffn % 32 != 0) {
                        continue;
                    }
                    for tp in 1..=12 {
                        check(&spec, granularity, &Cut::even(Shape::tensor(tp)));
                    }
                }
            }
        }
    }
    let spec = with_experts(spec(8, 4, 16, 96, 320), 7, 64, 32);
    for (tp, dp, pp, ep) in
        [(1, 2, 1, 2), (2, 1, 1, 2), (4, 1, 1, 2), (3, 1, 1, 3), (2, 1, 2, 2), (2, 2, 3, 1), (2, 2, 5, 4)]
    {
        let shape = Shape { tp, dp, pp, ep };
        check(&spec, Granularity::ANY, &Cut::even(shape));
        let weights = (0..shape.ranks() as u32).map(|rank| 1 + rank % 3).collect();
        check(&spec, QUANTIZED, &Cut { weights, ..Cut::even(shape) });
    }
}

fn covers(parts: impl Iterator<Item = Range<usize>>, total: usize, what: &str) {
    let mut next = 0;
    for range in parts {
        assert_eq!(range.start, next, "{what}");
        next = range.end;
    }
    assert_eq!(next, total, "{what}");
}

pub(super) fn check(spec: &ArchSpec, granularity: Granularity, cut: &Cut) {
    let plan = plan_slices(spec, granularity, cut).expect("can be cut");
    let (shape, what) = (cut.shape, format!("{spec:?} {cut:?}"));
    assert_eq!(plan.ranks.len(), shape.ranks());
    let stages = plan.ranks.chunks(shape.stage_ranks());
    covers(stages.clone().map(|stage| stage[0].layers.clone()), spec.layers.len(), &what);
    for (s, stage) in stages.enumerate() {
        for tp in stage.chunks(shape.tp) {
            covers(tp.iter().map(|s| s.q_heads.clone()), spec.heads, &what);
            covers(tp.iter().map(|s| s.dense.clone()), dense_width(spec), &what);
            covers(tp.iter().map(|s| s.shared.clone()), shared_width(spec), &what);
            let vocab = if s == 0 || s + 1 == shape.pp { spec.vocab } else { 0 };
            covers(tp.iter().map(|s| s.vocab.clone()), vocab, &what);
        }
        for (l, experts) in spec.moe_layers().filter(|(l, _)| stage[0].layers.contains(l)) {
            for expert in 0..experts.count as u32 {
                let holders = stage.iter().filter(|slice| slice.experts[l].contains(&expert));
                covers(holders.map(|slice| slice.expert_columns.clone()), experts.width, &what);
            }
        }
    }
    for slice in &plan.ranks {
        assert_eq!(slice.q_heads.start * spec.out_dim() % granularity.attention, 0);
        assert_eq!(slice.dense.start % granularity.dense, 0);
        assert_eq!(slice.shared.start % granularity.shared, 0);
        assert_eq!(slice.expert_columns.start % granularity.experts, 0);
        for q in slice.q_heads.clone() {
            assert!(slice.kv_heads.contains(&(q / spec.heads_per_kv())));
        }
    }
    assert_eq!(plan, plan_slices(spec, granularity, cut).expect("can be cut"));
}

#[test]
fn what_does_not_go_with_the_model_is_named() {
    let dense = spec(8, 8, 8, 96, 320);
    let refused = |cut: Cut| plan_slices(&dense, Granularity::ANY, &cut).expect_err("refused").to_string();
    for (cut, said) in [
        (Cut::even(Shape::tensor(0)), "tp is 0"),
        (Cut::even(Shape::tensor(65)), "tp is 65"),
        (Cut::even(Shape { pp: 6, ..Shape::default() }), "pp is 6, the model has 5 layers"),
        (Cut::even(Shape { ep: 2, ..Shape::tensor(2) }), "ep is 2, the model has no experts"),
        (Cut { weights: vec![1], ..Cut::even(Shape::tensor(2)) }, "1 rank weights"),
        (Cut { weights: vec![1, 0], ..Cut::even(Shape::tensor(2)) }, "rank weights"),
        (Cut { experts: ExpertMap(vec![vec![0]; 5]), ..Cut::default() }, "layer 0"),
        (Cut { experts: ExpertMap(vec![vec![]; 4]), ..Cut::default() }, "4 layers for 5"),
    ] {
        let error = refused(cut);
        assert!(error.contains(said), "{error}");
    }
}
