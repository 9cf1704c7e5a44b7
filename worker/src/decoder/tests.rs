//! The decoder against reference logits of transformers, at several degrees of parallelism.

use std::path::PathBuf;

use foggara_kernels::collective::{Collective, Solo, shm};
use foggara_models::Checkpoint;
use serde_json::Value;

use super::*;
use crate::engine::kv_type;
use crate::weights::RankWeights;

fn golden(name: &str) -> (Checkpoint, Value) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
    let expected = std::fs::read_to_string(folder.join("expected.json")).expect("the fixture is there");
    (
        Checkpoint::open(&folder).expect("a valid checkpoint"),
        serde_json::from_str(&expected).expect("valid JSON"),
    )
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|v| v.as_f64().expect("a number")).collect()
}

/// Runs `tokens` through `tp` ranks in chunks; returns rank 0's logits of every position.
fn logits(model: &Checkpoint, tokens: &[u32], tp: usize, chunk: usize) -> Vec<Vec<f32>> {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let name = format!("foggara-decoder-{}-{number}", std::process::id());
    let slices = model.slices(tp).expect("can be cut");
    let results: Vec<Vec<Vec<f32>>> = std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..tp)
            .map(|rank| {
                let (slices, name) = (&slices, name.clone());
                scope.spawn(move || {
                    let mut collective: Box<dyn Collective> = match tp {
                        1 => Box::<Solo>::default(),
                        _ => shm::connect(&shm::ShmConfig::new(name, rank, tp)).expect("connects"),
                    };
                    let weights = RankWeights::load(model, &slices[rank], &mut |_, _| true).expect("loads");
                    let ty = kv_type("auto", model).expect("auto is a choice");
                    let cache = CacheConfig { blocks: 40, block_size: 16, ty };
                    let pool = ThreadPool::new(1);
                    let mut decoder = Decoder::new(model.spec(), slices, rank, weights, cache, pool)
                        .expect("fits in memory");
                    let mut tables = BlockTables::default();
                    let mut rows = Vec::new();
                    // Blocks out of order, as a busy cache has them.
                    let blocks = (0..40).rev().collect();
                    let mut grants = vec![(0, blocks)];
                    for (i, part) in tokens.chunks(chunk).enumerate() {
                        let len = part.len() as u32;
                        let segment = Segment { slot: 0, start: (i * chunk) as u32, len, logits_from: 0 };
                        let grants = std::mem::take(&mut grants);
                        let input = StepInput {
                            drops: vec![],
                            grants,
                            segments: vec![segment],
                            tokens: part.to_vec(),
                        };
                        tables.apply(&input, 40).expect("blocks exist");
                        let mut keep = |_: usize, logits: &[f32]| rows.push(logits.to_vec());
                        decoder
                            .forward(&input, &tables, &mut *collective, &mut keep)
                            .expect("all ranks are there");
                    }
                    rows
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().expect("no rank panics")).collect()
    });
    results.into_iter().next().expect("rank 0")
}

#[test]
fn golden_logits_at_every_tp() {
    for name in ["llama", "llama3-rope", "llama-odd-heads"] {
        let (model, expected) = golden(name);
        for case in expected["cases"].as_array().expect("cases") {
            let tokens: Vec<u32> = numbers(&case["prompt"]).iter().map(|t| *t as u32).collect();
            let reference = numbers(&case["logits_last"]);
            let largest = reference.iter().fold(0.0f64, |a, b| a.max(b.abs()));
            for tp in [1, 2, 3, 4] {
                let rows = logits(&model, &tokens, tp, 64);
                let last = rows.last().expect("one row each");
                for (got, reference) in last.iter().zip(&reference) {
                    let error = (f64::from(*got) - reference).abs();
                    assert!(error <= 2e-4 * largest, "{name} tp {tp}: {got} for {reference}");
                }
            }
        }
    }
}

#[test]
fn the_cut_of_a_prompt_into_chunks_changes_no_bit() {
    let (model, expected) = golden("llama");
    let tokens: Vec<u32> = numbers(&expected["cases"][1]["prompt"]).iter().map(|t| *t as u32).collect();
    for tp in [1, 2] {
        let whole = logits(&model, &tokens, tp, tokens.len());
        for chunk in [1, 3, 16, 17] {
            assert!(logits(&model, &tokens, tp, chunk) == whole, "tp {tp}, chunks of {chunk}");
        }
    }
}
