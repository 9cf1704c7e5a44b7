//! The planner on random models and clusters.

use std::collections::BTreeSet;

use foggara_models::{KvFormat, Quantize};
use foggara_proto::shape::Shape;
use proptest::prelude::*;

use super::choose::{PlannedRank, choose, shapes};
use super::facts::{
    Bits, ExpertFacts, HeldBits, Kind, LayerFacts, Links, ModelFacts, Reach, Speeds, Takes, Wish, WorkerFacts,
};
use super::layout::{layout, split};
use super::memory::usable;

fn models() -> impl Strategy<Value = ModelFacts> {
    let sizes = (1u64..9, 1u64..9, 1u64..9, 1usize..13, 0u64..9, prop::bool::ANY, 1u64..200);
    sizes.prop_map(|(kv_heads, group, width, layers, experts, tied, scale)| {
        let experts = (experts > 1).then(|| ExpertFacts {
            count: experts,
            top_k: experts.min(2),
            parameters: width * scale * 10_000,
        });
        let layer = |i: usize| LayerFacts {
            attention: width * scale * 3_000,
            dense: if experts.is_none() || i == 0 { width * scale * 20_000 } else { 0 },
            experts: experts.filter(|_| i > 0 || layers == 1),
        };
        ModelFacts {
            hidden: 64 * width,
            heads: kv_heads * group,
            kv_heads,
            kv_bytes: kv_heads * 128,
            layers: (0..layers).map(layer).collect(),
            embedding: 64 * width * 1000,
            tied,
            vocab: 1000,
            context: 4096,
            // As of a GGUF file, which takes more on GPUs.
            bits: HeldBits {
                cpu: Bits { layers: 8.5, embedding: 8.5 },
                gpu: Bits { layers: 16.0, embedding: 16.0 },
            },
            adapters: 0,
        }
    })
}

fn clusters() -> impl Strategy<Value = Vec<WorkerFacts>> {
    let cache = prop_oneof![Just(0u64), 1u64..1_000];
    let worker = (0usize..4, prop::bool::ANY, prop::bool::weighted(0.2), 50u64..3_000, 1u64..40, cache);
    prop::collection::vec(worker, 1..13).prop_map(|workers| {
        let facts =
            |(id, (host, gpu, newer, memory, speed, cache)): (usize, (usize, bool, bool, u64, u64, u64))| {
                let kind = if gpu { Kind::Gpu } else { Kind::Cpu };
                WorkerFacts {
                    id: id as u64 + 1,
                    host: ["a", "b", "c", "d"][host].to_owned(),
                    kind,
                    version: ["1.0.0", "1.1.0"][usize::from(newer)].to_owned(),
                    takes: Takes::usual(kind),
                    memory_bytes: memory * 1_000_000,
                    speeds: Speeds {
                        cache_bytes: cache * 1_000_000,
                        cache_bytes_per_second: speed * 2_000_000_000,
                        int8_ops_per_second: cache * 1_000_000_000,
                        ..Speeds::of_memory(speed * 1_000_000_000, speed * 10_000_000_000)
                    },
                }
            };
        workers.into_iter().enumerate().map(facts).collect()
    })
}

fn wishes() -> impl Strategy<Value = Wish> {
    let number = || prop_oneof![3 => Just(0u32), 1 => 1u32..5];
    let reach = prop_oneof![Just(Reach::Auto), Just(Reach::Tcp), Just(Reach::SharedMemory)];
    let tokens = prop_oneof![Just(0u64), 1u64..100_000];
    let kv = prop_oneof![3 => Just(None), 1 => Just(Some(KvFormat::Q8_0))];
    let quantize = prop_oneof![3 => Just(Quantize::None), 1 => Just(Quantize::Fp8)];
    (number(), number(), number(), number(), tokens, reach, kv, quantize).prop_map(
        |(tp, dp, pp, ep, kv_tokens, reach, kv, quantize)| Wish {
            shape: Shape { tp, dp, pp, ep },
            kv_tokens,
            reach,
            kv,
            quantize,
            ..Wish::OPEN
        },
    )
}

proptest! {
    #[test]
    fn plans_keep_to_memory_wishes_and_workers(model in models(), workers in clusters(), wish in wishes(), sharers in 1u32..13) {
        let links = Links::ASSUMED;
        let outcome = choose(&model, &wish, &workers, &links, sharers);
        let mut shuffled = workers.clone();
        shuffled.reverse();
        prop_assert_eq!(&outcome, &choose(&model, &wish, &shuffled, &links, sharers), "order of inputs");
        let Ok(plan) = outcome else { return Ok(()) };
        prop_assert!(plan.shape.is_fixed() && plan.shape.check().is_ok() && wish.shape.allows(plan.shape));
        prop_assert_eq!(plan.ranks.len(), plan.shape.ranks() as usize);
        let distinct: BTreeSet<u64> = plan.ranks.iter().map(|rank| rank.worker).collect();
        prop_assert_eq!(distinct.len(), plan.ranks.len());
        let on = |rank: &PlannedRank| workers.iter().find(|worker| worker.id == rank.worker).expect("one of them");
        let (kind, version) = (on(&plan.ranks[0]).kind, &on(&plan.ranks[0]).version);
        prop_assert!(kind == Kind::Cpu || (plan.shape.dp == 1 && wish.kv.is_none()));
        prop_assert!(kind == Kind::Gpu || wish.quantize == Quantize::None);
        if kind == Kind::Cpu {
            let gpus: Vec<WorkerFacts> = workers.iter().filter(|w| w.kind == Kind::Gpu).cloned().collect();
            prop_assert!(gpus.is_empty() || choose(&model, &wish, &gpus, &links, 1).is_err(), "GPUs come first");
        }
        let newer: Vec<WorkerFacts> = workers.iter().filter(|w| w.kind == kind && w.version > *version).cloned().collect();
        prop_assert!(newer.is_empty() || choose(&model, &wish, &newer, &links, sharers).is_err(), "the newest come first");
        for rank in &plan.ranks {
            let worker = on(rank);
            prop_assert_eq!(worker.kind, kind, "never both");
            prop_assert_eq!(&worker.version, version, "never two");
            prop_assert!(rank.bytes <= usable(worker), "{:?} on {:?}", rank, worker);
            prop_assert!(rank.bytes >= rank.needs.weights + rank.needs.kv_per_token * plan.kv_tokens);
        }
        prop_assert!(wish.kv_tokens <= plan.kv_tokens);
        prop_assert!(plan.rank_weights.is_empty() || plan.rank_weights.len() == plan.ranks.len());
        let p = plan.prediction;
        prop_assert!(p.one_stream.is_finite() && p.one_stream > 0.0 && p.saturated >= p.one_stream);
        let hosts: BTreeSet<&str> = plan.ranks.iter().map(|rank| rank.host.as_str()).collect();
        prop_assert!(wish.reach != Reach::SharedMemory || hosts.len() == 1);
    }

    #[test]
    fn everything_is_held_once_or_kept_twice_on_purpose(
        model in models(),
        weights in prop::collection::vec(1u32..100, 64),
        which in 0usize..10_000,
    ) {
        let shapes = shapes(Wish::OPEN.shape, &model, 24);
        let shape = shapes[which % shapes.len()];
        let weights = &weights[..shape.ranks() as usize];
        let parts = layout(&model, shape, weights);
        let (tp, stage_ranks) = (shape.tp as usize, shape.stage_ranks() as usize);
        let mut next = 0;
        for stage in parts.chunks(stage_ranks) {
            prop_assert_eq!(stage[0].layers.start, next);
            prop_assert!(!stage[0].layers.is_empty(), "no stage is without layers");
            next = stage[0].layers.end;
            let columns = model.layers.iter().any(|layer| layer.experts.is_some());
            let mut owned = 0.0;
            for tensor in stage.chunks(tp) {
                prop_assert!(tensor.iter().all(|part| part.layers == stage[0].layers));
                // Every data-parallel part has all heads and all columns.
                prop_assert_eq!(tensor.iter().map(|part| part.heads).sum::<u64>(), model.heads);
                prop_assert!(tensor.iter().map(|part| part.kv_heads).sum::<u64>() >= model.kv_heads);
                prop_assert!((tensor.iter().map(|part| part.share).sum::<f64>() - 1.0).abs() < 1e-9);
                owned += tensor.iter().map(|part| part.experts as f64 * part.expert_share).sum::<f64>();
            }
            // The stage has every expert once.
            prop_assert!(!columns || (owned - model.experts() as f64).abs() < 1e-6, "{owned} experts");
        }
        prop_assert_eq!(next, model.layers.len());
    }

    #[test]
    fn what_is_split_adds_up(total in 0u64..5_000, weights in prop::collection::vec(1u64..1_000, 1..20)) {
        let parts = split(total, &weights);
        prop_assert_eq!(parts.iter().sum::<u64>(), total);
        let sum: u64 = weights.iter().sum();
        for (part, weight) in parts.iter().zip(&weights) {
            let exact = total as f64 * *weight as f64 / sum as f64;
            prop_assert!((*part as f64 - exact).abs() < 1.0 + 1e-6);
        }
    }
}

fn gpu(id: u64, host: &str, gigabytes: u64) -> WorkerFacts {
    WorkerFacts {
        id,
        host: host.into(),
        kind: Kind::Gpu,
        version: "1.0.0".into(),
        takes: Takes::usual(Kind::Gpu),
        memory_bytes: gigabytes * 1_000_000_000,
        speeds: Speeds::of_memory(3_000_000_000_000, 900_000_000_000_000),
    }
}

#[test]
fn what_is_missing_is_said_with_numbers() {
    let model = super::known::mixtral_8x7b();
    let workers = [gpu(1, "a", 40), gpu(2, "a", 40)];
    let reason = choose(&model, &Wish::OPEN, &workers, &Links::ASSUMED, 1).expect_err("93 GB of weights");
    assert!(
        reason.starts_with("memory: needs 9") && reason.contains(" on GPUs, the 2 workers have 76.0 GB"),
        "{reason}"
    );
    assert!(reason.contains("GB more (1 such GPU), or --quantize fp8 would need 4"), "{reason}");
    let one = choose(&model, &Wish::OPEN, &[gpu(1, "a", 80)], &Links::ASSUMED, 1).expect_err("93 GB");
    assert!(
        one.contains(" on GPUs, the worker has 76.0 GB: ") && one.contains(" (1 such GPU), or "),
        "{one}"
    );
    let few = Wish { shape: Shape { tp: 4, dp: 1, pp: 1, ep: 1 }, ..Wish::OPEN };
    let reason = choose(&model, &few, &workers, &Links::ASSUMED, 1).expect_err("two of four");
    assert_eq!(reason, "4 idle workers are needed, there are 2");
    let shm = Wish { reach: Reach::SharedMemory, ..Wish::OPEN };
    let dense = Wish { shape: Shape { ep: 9, ..shm.shape }, ..shm };
    assert!(choose(&model, &dense, &workers, &Links::ASSUMED, 1).expect_err("8 experts").starts_with("ep: "));
    let apart = [gpu(1, "a", 80), gpu(2, "b", 80)];
    let two = Wish { shape: Shape::tensor(2), ..shm };
    let reason = choose(&model, &two, &apart, &Links::ASSUMED, 1).expect_err("two hosts");
    assert!(reason.contains("one host"), "{reason}");
}

#[test]
fn slower_workers_get_smaller_slices() {
    let model = super::known::mixtral_8x7b();
    let mut workers = [gpu(1, "a", 80), gpu(2, "a", 80)];
    workers[1].speeds.bytes_per_second /= 2;
    let wish = Wish { shape: Shape::tensor(2), ..Wish::OPEN };
    let plan = choose(&model, &wish, &workers, &Links::ASSUMED, 1).expect("it fits");
    assert_eq!(plan.rank_weights, [100, 50]);
    assert!(plan.ranks[0].needs.weights > plan.ranks[1].needs.weights * 3 / 2);
    let equal = gpu(2, "a", 80);
    let plan = choose(&model, &wish, &[workers[0].clone(), equal], &Links::ASSUMED, 1).expect("it fits");
    assert_eq!(plan.rank_weights, Vec::<u32>::new());
}

fn cpu(id: u64, host: &str, gigabytes: u64) -> WorkerFacts {
    WorkerFacts {
        kind: Kind::Cpu,
        version: "1.0.0".into(),
        takes: Takes::usual(Kind::Cpu),
        speeds: Speeds::of_memory(400_000_000_000, 7_000_000_000_000),
        ..gpu(id, host, gigabytes)
    }
}

#[test]
fn a_model_goes_on_gpus_where_it_fits_and_else_on_cpus_and_says_why() {
    let model = super::known::mixtral_8x7b();
    let boxes = [cpu(1, "a", 384), cpu(2, "b", 384)];
    let on = |gpus: &[WorkerFacts], wish: &Wish| {
        let workers = [&boxes[..], gpus].concat();
        let plan = choose(&model, wish, &workers, &Links::ASSUMED, 1)?;
        let kinds: BTreeSet<Kind> =
            plan.ranks.iter().map(|rank| if rank.worker < 3 { Kind::Cpu } else { Kind::Gpu }).collect();
        assert_eq!(kinds.len(), 1, "never both");
        Ok::<_, String>((*kinds.first().expect("one"), plan.shape, plan.reasons[0].clone()))
    };
    let (kind, shape, why) = on(&[gpu(3, "a", 80), gpu(4, "a", 80)], &Wish::OPEN).expect("it fits");
    assert_eq!((kind, shape), (Kind::Gpu, Shape::tensor(2)));
    assert!(why.starts_with("it fits on GPUs"), "{why}");
    let (kind, _, why) = on(&[gpu(3, "a", 80)], &Wish::OPEN).expect("it fits on the boxes");
    assert_eq!(kind, Kind::Cpu);
    assert!(why.starts_with("on CPUs, for it cannot be on GPUs (memory: needs 9"), "{why}");
    let asked =
        |kv, quantize, dp| Wish { kv, quantize, shape: Shape { dp, ..Wish::OPEN.shape }, ..Wish::OPEN };
    let two = [gpu(3, "a", 80), gpu(4, "a", 80)];
    for (wish, why) in [
        (
            asked(Some(KvFormat::Q8_0), Quantize::None, 0),
            "kv_dtype: a q8_0 KV cache is not kept on GPUs; use fp8",
        ),
        (
            asked(None, Quantize::None, 2),
            "dp: data-parallel attention is not computed on GPUs; use tp and ep",
        ),
    ] {
        let (kind, _, said) = on(&two, &wish).expect("CPUs take it");
        assert_eq!((kind, said), (Kind::Cpu, format!("on CPUs, for it cannot be on GPUs ({why})")));
        assert_eq!(choose(&model, &wish, &two, &Links::ASSUMED, 1).expect_err("GPUs alone"), why);
    }
    let small = asked(None, Quantize::Fp8, 0);
    let refused = choose(&model, &small, &boxes, &Links::ASSUMED, 1).expect_err("no GPU");
    assert_eq!(refused, "quantize: fp8 weights are not computed on CPUs, on GPUs only; use q8_0");
    let three = Wish { shape: Shape::tensor(3), ..Wish::OPEN };
    assert_eq!(
        on(&two, &three).expect_err("two of each are not four"),
        "on GPUs (3 idle workers are needed, there are 2), nor on CPUs (3 idle workers are needed, there are 2)"
    );
}

#[test]
fn data_parallelism_is_never_chosen_on_gpus() {
    let model = super::known::mixtral_8x22b().quantized(Quantize::Fp8);
    for count in 2..9 {
        let workers: Vec<WorkerFacts> = (1..=count).map(|id| gpu(id, "a", 141)).collect();
        let plan = choose(&model, &Wish::OPEN, &workers, &Links::ASSUMED, 1).expect("it fits");
        assert_eq!(plan.shape.dp, 1, "{count} GPUs: {}", plan.shape);
    }
}
