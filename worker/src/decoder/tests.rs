//! The decoder against transformers, at several degrees of parallelism and over both collectives.

use foggara_kernels::cuda::Device;
use foggara_kernels::op::softmax::{argmax, log_sum_exp};
use foggara_models::testing::{
    GOLDEN_DENSE, GOLDEN_WITH_EXPERTS, tiny_config, tiny_gguf, tiny_safetensors, tiny_tensors,
};
use foggara_models::{Adapter, Checkpoint, Cut, DType, Quantize};

use super::*;
use crate::testing::{BLOCK_SIZE, BLOCKS, Kind, golden, group, group_on, numbers, tokens};
use crate::weights::RankAdapter;

/// Sequences that go through the model side by side, `chunk` positions of each in a step, and the logits of every row.
/// Returns rank 0's, by sequence and position.
pub(super) fn logits(
    model: &Checkpoint,
    sequences: &[Vec<u32>],
    shape: Shape,
    kind: Kind,
    ty: KvType,
    chunk: usize,
) -> Vec<Vec<Vec<f32>>> {
    logits_on(model, sequences, (shape, Quantize::None), (kind, ty), chunk, &|_| None)
}

/// The same on devices: `device` gives each rank's.
pub(super) fn logits_on(
    model: &Checkpoint,
    sequences: &[Vec<u32>],
    how: (Shape, Quantize),
    kind: (Kind, KvType),
    chunk: usize,
    device: &(dyn Fn(usize) -> Option<Device> + Sync),
) -> Vec<Vec<Vec<f32>>> {
    let whole = |score: Score| match score {
        Score::Whole(logits) => logits,
        Score::Best(_) | Score::Drawn(_) => panic!("all are wanted"),
    };
    let all = scores_on(model, sequences, &[], how, kind, chunk, device);
    all.into_iter().map(|rows| rows.into_iter().map(whole).collect()).collect()
}

/// What was given of a row.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Score {
    Whole(Vec<f32>),
    Best(Vec<(u32, f32)>),
    Drawn(u32),
}

/// The same with what each sequence's rows want.
pub(super) fn scores_on(
    model: &Checkpoint,
    sequences: &[Vec<u32>],
    wants: &[Want],
    how: (Shape, Quantize),
    kind: (Kind, KvType),
    chunk: usize,
    device: &(dyn Fn(usize) -> Option<Device> + Sync),
) -> Vec<Vec<Score>> {
    adapted_scores_on(model, sequences, wants, (&[], &[]), how, kind, chunk, device)
}

/// The same with adapters, and which of them each sequence is computed with.
#[allow(clippy::too_many_arguments, reason = "all that makes a difference")]
pub(super) fn adapted_scores_on(
    model: &Checkpoint,
    sequences: &[Vec<u32>],
    wants: &[Want],
    (adapters, of): (&[Adapter], &[Option<u64>]),
    (shape, quantize): (Shape, Quantize),
    (kind, ty): (Kind, KvType),
    chunk: usize,
    device: &(dyn Fn(usize) -> Option<Device> + Sync),
) -> Vec<Vec<Score>> {
    // Sequences take turns on the parts of the batch.
    let each = BLOCKS / sequences.len().div_ceil(shape.dp);
    assert!(sequences.iter().all(|tokens| tokens.len() <= each * BLOCK_SIZE), "the blocks are enough");
    let plan = model.slices(&Cut::even(shape), quantize).expect("can be cut");
    let results = group_on(model, shape, quantize, kind, ty, device, |mut engine| {
        for (number, adapter) in adapters.iter().enumerate() {
            let slice = &plan.ranks[engine.comms.rank()];
            let adapter = RankAdapter::load(adapter, model.spec(), slice, shape.dp).expect("it fits");
            engine.adapters.insert(number as u64, adapter);
        }
        let mut rows = vec![Vec::new(); sequences.len()];
        let longest = sequences.iter().map(Vec::len).max().expect("at least one sequence");
        for (step, start) in (0..longest).step_by(chunk).enumerate() {
            let mut input = StepInput::default();
            let mut whose = Vec::new();
            for (slot, tokens) in sequences.iter().enumerate() {
                if step == 0 {
                    // Backwards and interleaved, as a busy cache has them.
                    let (pool, place) = (slot % shape.dp, slot / shape.dp);
                    let stride = sequences.len().div_ceil(shape.dp);
                    let blocks =
                        (0..each).map(|i| (pool * BLOCKS + (each - 1 - i) * stride + place) as u32).collect();
                    input.grants.push((slot as u32, blocks));
                    input.adapters.extend(of.get(slot).copied().flatten().map(|of| (slot as u32, of)));
                }
                let part = &tokens[start.min(tokens.len())..(start + chunk).min(tokens.len())];
                if !part.is_empty() {
                    let (start, len) = (start as u32, part.len() as u32);
                    input.segments.push(Segment { slot: slot as u32, start, len, logits_from: 0 });
                    input.wants.push(wants.get(slot).copied().unwrap_or_default());
                    input.tokens.extend_from_slice(part);
                    whose.extend(std::iter::repeat_n(slot, part.len()));
                }
            }
            engine.tables.apply(&input).expect("blocks exist");
            input.check(&engine.tables, model.spec().vocab, BLOCK_SIZE, 10_000).expect("a step that fits");
            input.check_adapters(&engine.tables, &engine.adapters).expect("they are loaded");
            let mut keep = |row: usize, scores: Scores<'_>| {
                rows[whose[row]].push(match scores {
                    Scores::Whole(logits) => Score::Whole(logits.to_vec()),
                    Scores::Best(best) => Score::Best(best.to_vec()),
                    Scores::Drawn(token) => Score::Drawn(token),
                });
            };
            engine
                .decoder
                .forward(&input, &engine.tables, &mut engine.comms, &mut keep)
                .expect("all ranks are there");
        }
        rows
    });
    results.into_iter().next().expect("rank 0")
}

/// One sequence, in one chunk.
fn alone(model: &Checkpoint, tokens: &[u32], tp: usize) -> Vec<Vec<f32>> {
    logits(model, &[tokens.to_vec()], Shape::tensor(tp), Kind::Shm, KvType::F32, 512).remove(0)
}

/// Compares with every number of a fixture: the last logits, each prompt token's probability, and 24 greedy tokens. All
/// cases go through the model side by side.
pub(super) fn agrees(name: &str, model: &Checkpoint, expected: &serde_json::Value, shape: Shape) {
    agrees_on(name, model, expected, shape, 512, &|_| None);
}

/// The same on devices, `chunk` positions at a time.
pub(super) fn agrees_on(
    name: &str,
    model: &Checkpoint,
    expected: &serde_json::Value,
    shape: Shape,
    chunk: usize,
    device: &(dyn Fn(usize) -> Option<Device> + Sync),
) {
    let cases = expected["cases"].as_array().expect("cases");
    let whole = |case: &serde_json::Value| [tokens(&case["prompt"]), tokens(&case["greedy"])].concat();
    let sequences: Vec<_> = cases.iter().map(whole).collect();
    let all = logits_on(model, &sequences, (shape, Quantize::None), (Kind::Shm, KvType::F32), chunk, device);
    agree(name, expected, shape, all);
}

/// Compares logits of every row of a fixture's cases, greedy tokens included, with its numbers.
pub(super) fn agree(name: &str, expected: &serde_json::Value, shape: Shape, all: Vec<Vec<Vec<f32>>>) {
    let cases = expected["cases"].as_array().expect("cases");
    for (case, rows) in cases.iter().zip(all) {
        let (prompt, greedy) = (tokens(&case["prompt"]), tokens(&case["greedy"]));
        let last = prompt.len() - 1;
        let reference = numbers(&case["logits_last"]);
        let largest = reference.iter().fold(0.0f64, |a, b| a.max(b.abs()));
        for (got, reference) in rows[last].iter().zip(reference) {
            // The fixture has five decimals.
            let error = (f64::from(*got) - reference).abs();
            assert!(error <= 2e-5 * (1.0 + largest), "{name} {shape}: {got} for {reference}");
        }
        for (i, reference) in numbers(&case["prompt_logprobs"]).into_iter().enumerate() {
            let got = rows[i][prompt[i + 1] as usize] - log_sum_exp(&rows[i]);
            assert!((f64::from(got) - reference).abs() <= 1e-4, "{name} {shape}: {got} for {reference}");
        }
        for (i, token) in greedy.iter().enumerate() {
            assert_eq!(argmax(&rows[last + i]), *token as usize, "{name} {shape}, greedy token {i}");
        }
    }
}

#[test]
fn every_golden_model_agrees_with_transformers_at_every_tp() {
    for name in GOLDEN_DENSE.into_iter().chain(GOLDEN_WITH_EXPERTS) {
        let (model, expected) = golden(name);
        for tp in 1..=4 {
            agrees(name, &model, &expected, Shape::tensor(tp));
        }
    }
    // 8 heads over 4 key heads and 9 over 3: uneven cuts, shared key heads, ranks without any head.
    for name in ["llama", "llama-odd-heads", "deepseek-v3"] {
        let (model, expected) = golden(name);
        for tp in [5, 7, 11] {
            agrees(name, &model, &expected, Shape::tensor(tp));
        }
    }
}

#[test]
fn every_golden_model_agrees_over_stages_and_parts_of_the_batch() {
    let shape = |tp, dp, pp| Shape { tp, dp, pp, ep: 1 };
    for name in GOLDEN_DENSE.into_iter().chain(GOLDEN_WITH_EXPERTS) {
        let (model, expected) = golden(name);
        for shape in [shape(1, 1, 2), shape(1, 2, 1), shape(2, 2, 2)] {
            agrees(name, &model, &expected, shape);
        }
    }
    let (model, expected) = golden("gemma2");
    agrees("gemma2", &model, &expected, shape(1, 1, 3));
}

#[test]
fn every_golden_model_with_experts_agrees_however_they_are_spread() {
    let shape = |tp, dp, pp, ep| Shape { tp, dp, pp, ep };
    for name in GOLDEN_WITH_EXPERTS {
        let (model, expected) = golden(name);
        for shape in [
            shape(2, 1, 1, 2),
            shape(4, 1, 1, 2),
            shape(4, 1, 1, 4),
            shape(3, 1, 1, 3),
            shape(2, 1, 2, 2),
            shape(1, 2, 1, 2),
            shape(1, 3, 1, 3),
            shape(2, 2, 1, 2),
            shape(2, 2, 1, 4),
            shape(2, 2, 2, 4),
        ] {
            agrees(name, &model, &expected, shape);
        }
    }
}

#[test]
fn biases_are_added_once_however_many_ranks_there_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = tiny_config();
    let mut tensors = tiny_tensors();
    let write = |config: &serde_json::Value, tensors: &[(String, Vec<usize>)]| {
        std::fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
        // A new file each time: the older one is mapped.
        drop(std::fs::remove_file(folder.path().join("model.safetensors")));
        let bytes = tiny_safetensors(DType::BF16, tensors);
        std::fs::write(folder.path().join("model.safetensors"), bytes).expect("written");
        Checkpoint::open(folder.path()).expect("a valid checkpoint")
    };
    let prompt = [5, 3, 8, 13, 21, 34, 1, 1, 2];
    let plain = alone(&write(&config, &tensors), &prompt, 1);
    config["attention_bias"] = true.into();
    // After the others, so that these keep their values.
    for (name, shape) in tiny_tensors().into_iter().filter(|(name, _)| name.contains("self_attn")) {
        tensors.push((name.replace("weight", "bias"), shape[..1].to_vec()));
    }
    let model = write(&config, &tensors);
    let whole = alone(&model, &prompt, 1);
    assert!(whole != plain, "biases change something");
    for tp in [2, 3, 5] {
        for (row, expected) in alone(&model, &prompt, tp).iter().zip(&whole) {
            let size = expected.iter().fold(0.0f32, |a, b| a.max(b.abs()));
            for (got, expected) in row.iter().zip(expected) {
                assert!((got - expected).abs() <= 1e-4 * size, "tp {tp}: {got} for {expected}");
            }
        }
    }
}

#[test]
fn tcp_gives_the_bits_of_shared_memory() {
    for (name, shape) in [
        ("llama-odd-heads", Shape::tensor(2)),
        ("llama-odd-heads", Shape::tensor(3)),
        ("llama-odd-heads", Shape::tensor(4)),
        ("mixtral", Shape { tp: 2, dp: 2, pp: 1, ep: 2 }),
        ("deepseek-v3", Shape { tp: 1, dp: 2, pp: 2, ep: 2 }),
    ] {
        let (model, expected) = golden(name);
        let prompt = tokens(&expected["cases"][2]["prompt"]);
        let run = |kind| logits(&model, std::slice::from_ref(&prompt), shape, kind, KvType::F16, 20);
        assert!(run(Kind::Shm) == run(Kind::Tcp), "{name} {shape}");
    }
}

#[test]
fn the_cut_of_a_prompt_into_chunks_changes_no_bit() {
    let shapes = [Shape::default(), Shape::tensor(2), Shape { tp: 2, dp: 2, pp: 1, ep: 2 }];
    for name in ["llama", "mixtral", "deepseek-v3", "gpt-oss", "gemma2"] {
        let (model, expected) = golden(name);
        let prompt = tokens(&expected["cases"][2]["prompt"]);
        for shape in shapes {
            let ep = if GOLDEN_WITH_EXPERTS.contains(&name) { shape.ep } else { 1 };
            let shape = Shape { ep, ..shape };
            for ty in [KvType::F32, KvType::F16, KvType::Q8_0] {
                let run = |chunk| logits(&model, std::slice::from_ref(&prompt), shape, Kind::Shm, ty, chunk);
                let whole = run(prompt.len());
                let chunks: &[usize] = if name == "llama" { &[1, 2, 3, 7, 15, 16, 17, 47] } else { &[3, 17] };
                for chunk in chunks {
                    assert!(run(*chunk) == whole, "{name} {shape}, {ty:?}, chunks of {chunk}");
                }
            }
        }
    }
}

#[test]
fn the_batch_around_a_sequence_changes_no_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, tiny_gguf(DType::Q4_1).bytes()).expect("written");
    let quantized = Checkpoint::open(&path).expect("a valid file");
    let (floats, _) = golden("llama-odd-heads");
    let (experts, _) = golden("mixtral");
    let dispatched = Shape { tp: 2, dp: 2, pp: 1, ep: 2 };
    for (model, shapes) in [
        (&quantized, [Shape::default(), Shape::tensor(3)]),
        (&floats, [Shape::default(), Shape::tensor(3)]),
        (&experts, [Shape { ep: 2, ..Shape::tensor(2) }, dispatched]),
    ] {
        let vocab = model.spec().vocab as u32;
        let sequence =
            |i: u32| (0..5 + 7 * i).map(|j| (i * 31 + j * j * 17 + 3) % vocab).collect::<Vec<u32>>();
        let sequences: Vec<Vec<u32>> = (0..8).map(sequence).collect();
        for shape in shapes {
            for chunk in [1, 11] {
                let together = logits(model, &sequences, shape, Kind::Shm, KvType::F16, chunk);
                for (i, tokens) in sequences.iter().enumerate() {
                    let alone =
                        logits(model, std::slice::from_ref(tokens), shape, Kind::Shm, KvType::F16, chunk);
                    assert!(alone[0] == together[i], "{shape}, chunks of {chunk}, sequence {i}");
                }
            }
        }
    }
}

#[test]
fn ranks_send_the_rows_they_route_and_little_else() {
    for name in GOLDEN_WITH_EXPERTS {
        let (model, expected) = golden(name);
        let prompt = tokens(&expected["cases"][2]["prompt"]);
        for shape in [Shape { tp: 1, dp: 2, pp: 1, ep: 2 }, Shape { tp: 2, dp: 2, pp: 1, ep: 4 }] {
            let stats = group(&model, shape, Kind::Tcp, KvType::F32, |mut engine| {
                let len = prompt.len() as u32;
                let blocks = |pool: usize| (0..8).map(|i| (pool * BLOCKS + i) as u32).collect();
                let segment = |slot| Segment { slot, start: 0, len, logits_from: len - 1 };
                let input = StepInput {
                    grants: vec![(0, blocks(0)), (1, blocks(1))],
                    segments: vec![segment(0), segment(1)],
                    tokens: [&prompt[..], &prompt[..]].concat(),
                    ..StepInput::default()
                };
                engine.tables.apply(&input).expect("blocks exist");
                let forward =
                    engine.decoder.forward(&input, &engine.tables, &mut engine.comms, &mut |_, _| ());
                forward.expect("all ranks are there");
                (engine.decoder.dispatch_stats(), engine.decoder.take_expert_counts().expect("counted"))
            });
            let row = 4 * model.spec().hidden as u64;
            for (rank, (stats, _)) in stats.iter().enumerate() {
                let rows = stats.routed_rows + stats.returned_rows;
                assert!(stats.routed_rows > 0, "{name} {shape}: rank {rank} sends rows");
                let most = rows * row * 11 / 10;
                assert!(stats.bytes <= most, "{name} {shape}: rank {rank} sends {} of {most}", stats.bytes);
            }
            // Every token of both sequences was counted once for each expert it went to.
            for (l, experts) in model.spec().moe_layers() {
                let total: u64 = stats.iter().map(|(_, counts)| counts[l].iter().sum::<u64>()).sum();
                assert_eq!(total, (2 * prompt.len() * experts.top_k) as u64, "{name} {shape} layer {l}");
            }
        }
    }
}
