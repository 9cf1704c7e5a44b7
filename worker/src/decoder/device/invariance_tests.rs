//! A sequence's logits do not depend on how its tokens come nor on what else is in a step: one by one, as one chunk or as several,
//! alone or beside others, they have the same bits. So what is decoded, and computed again as a prompt when a worker has died, goes
//! on with the same tokens.

use std::path::Path;

use foggara_kernels::cuda::testing::devices;
use foggara_models::{Checkpoint, Quantize};

use super::*;
use crate::decoder::Scores;
use crate::testing::{BLOCK_SIZE, BLOCKS, Kind, golden, group_on, tokens};

/// A checkpoint of tests/golden on so many ranks, and how its weights are held.
struct Case {
    name: &'static str,
    ranks: usize,
    weights: Weights,
    kv: KvType,
}

/// All of them are stored in f32.
#[derive(Debug, Clone, Copy)]
#[allow(non_camel_case_types)]
enum Weights {
    /// Products in plain f32.
    AsStored,
    /// Rounded before they are read: products on tensor cores.
    Bf16,
    /// Those, and quantized.
    Fp8,
    /// The same, to blocks.
    Q4_0,
}

const fn case(name: &'static str, ranks: usize, weights: Weights) -> Case {
    Case { name, ranks, weights, kv: KvType::F16 }
}

const CASES: [Case; 17] = [
    case("llama", 1, Weights::AsStored),
    case("llama", 3, Weights::AsStored),
    case("llama-odd-heads", 1, Weights::Bf16),
    case("mistral-window", 1, Weights::AsStored),
    case("qwen2", 1, Weights::Bf16),
    case("qwen3", 1, Weights::Bf16),
    case("gemma2", 1, Weights::Bf16),
    case("gemma3", 1, Weights::AsStored),
    case("mixtral", 1, Weights::AsStored),
    case("mixtral", 2, Weights::Bf16),
    case("mixtral", 1, Weights::Fp8),
    case("mixtral", 1, Weights::Q4_0),
    case("gpt-oss", 1, Weights::Bf16),
    case("deepseek-v3", 1, Weights::Bf16),
    Case { kv: KvType::F8, ..case("llama", 1, Weights::Bf16) },
    Case { kv: KvType::F8, ..case("mixtral", 1, Weights::Fp8) },
    Case { kv: KvType::F8, ..case("deepseek-v3", 1, Weights::Bf16) },
];

/// A checkpoint of tests/golden with its numbers rounded to bf16, in `folder`.
fn rounded(name: &str, folder: &Path) -> Checkpoint {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
    for file in std::fs::read_dir(&from).expect("the fixture is there") {
        let path = file.expect("readable").path();
        std::fs::copy(&path, folder.join(path.file_name().expect("a file"))).expect("copied");
    }
    let bytes = std::fs::read(from.join("model.safetensors")).expect("weights");
    let (length, rest) = bytes.split_at(8);
    let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().expect("8 bytes")) as usize);
    let header: serde_json::Map<_, _> = serde_json::from_slice(header).expect("a header");
    let tensors: Vec<(&str, Vec<usize>, Vec<u8>)> = header
        .iter()
        .filter(|(name, _)| *name != "__metadata__")
        .map(|(name, tensor)| {
            let numbers = |what: &str| -> Vec<usize> {
                tensor[what]
                    .as_array()
                    .expect("a list")
                    .iter()
                    .map(|n| n.as_u64().expect("a number") as usize)
                    .collect()
            };
            let [begin, end] = numbers("data_offsets")[..] else { panic!("two offsets") };
            let values = data[begin..end].as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four));
            let bits = values.flat_map(|value| half::bf16::from_f32(value).to_le_bytes());
            (name.as_str(), numbers("shape"), bits.collect())
        })
        .collect();
    let borrowed: Vec<_> =
        tensors.iter().map(|(name, shape, bits)| (*name, "BF16", shape.as_slice(), bits.clone())).collect();
    std::fs::write(folder.join("model.safetensors"), foggara_models::testing::safetensors(&borrowed))
        .expect("written");
    Checkpoint::open(folder).expect("a valid checkpoint")
}

/// Of each sequence that is in a step, which, and how many of its next tokens.
type Step = Vec<(usize, usize)>;

/// Logits of every position of every sequence, as rank 0 has them; `kind` of the kinds of devices there are.
fn logits(
    model: &Checkpoint,
    case: &Case,
    kind: usize,
    sequences: &[Vec<u32>],
    steps: &[Step],
) -> Vec<Vec<Vec<f32>>> {
    let each = BLOCKS / sequences.len();
    assert!(sequences.iter().all(|tokens| tokens.len() <= each * BLOCK_SIZE), "the blocks are enough");
    let shape = Shape { ep: 1, ..Shape::tensor(case.ranks) };
    let device = |_: usize| Some(devices().remove(kind));
    let quantize = match case.weights {
        Weights::AsStored | Weights::Bf16 => Quantize::None,
        Weights::Fp8 => Quantize::Fp8,
        Weights::Q4_0 => Quantize::Q4_0,
    };
    let results = group_on(model, shape, quantize, Kind::Shm, case.kv, &device, |mut engine| {
        let mut rows = vec![Vec::new(); sequences.len()];
        // Where each goes on: only rank 0 is given rows.
        let mut next = vec![0; sequences.len()];
        for (number, step) in steps.iter().enumerate() {
            let mut input = StepInput::default();
            if number == 0 {
                // Interleaved, as a busy cache has them.
                let blocks = |slot: usize| (0..each).map(|i| (i * sequences.len() + slot) as u32).collect();
                input.grants = (0..sequences.len()).map(|slot| (slot as u32, blocks(slot))).collect();
            }
            let mut whose = Vec::new();
            for &(slot, len) in step {
                let (start, logits_from) = (next[slot], 0);
                next[slot] += len;
                let (slot_at, start_at, len_at) = (slot as u32, start as u32, len as u32);
                input.segments.push(Segment { slot: slot_at, start: start_at, len: len_at, logits_from });
                input.tokens.extend_from_slice(&sequences[slot][start..start + len]);
                whose.extend(std::iter::repeat_n(slot, len));
            }
            engine.tables.apply(&input).expect("blocks exist");
            let mut keep = |row: usize, scores: Scores<'_>| {
                rows[whose[row]].push(scores.whole().expect("all are wanted").to_vec());
            };
            let done = engine.decoder.forward(&input, &engine.tables, &mut engine.comms, &mut keep);
            done.expect("all ranks are there");
        }
        rows
    });
    results.into_iter().next().expect("rank 0")
}

/// Sequence 0 alone, in chunks of these lengths.
fn alone(chunks: &[usize]) -> Vec<Step> {
    chunks.iter().map(|len| vec![(0, *len)]).collect()
}

/// A prompt and what follows it greedily, `len` tokens altogether; and another, longer.
fn sequences(expected: &serde_json::Value, len: usize) -> [Vec<u32>; 2] {
    let of = |case: usize, what: &str| tokens(&expected["cases"][case][what]);
    let continued = |case: usize| [of(case, "prompt"), of(case, "greedy")].concat();
    [continued(1)[..len].to_vec(), continued(2)]
}

/// Expects it of sequence 0 of a checkpoint. Few steps, so that there is time for all of them.
fn check(case: &Case) {
    let (model, expected) = golden(case.name);
    let folder = tempfile::tempdir().expect("a folder");
    let model = match case.weights {
        Weights::AsStored => model,
        Weights::Bf16 | Weights::Fp8 | Weights::Q4_0 => rounded(case.name, folder.path()),
    };
    let sequences = sequences(&expected, 17);
    // The other decodes as well, or is a long prompt.
    let beside = [vec![(1, 3), (0, 4)], vec![(0, 12), (1, 1)], vec![(0, 1), (1, 40)]];
    // As a prompt; and as one when some have been decoded, which goes on after it.
    let cuts: [&[usize]; 2] = [&[17], &[7, 1, 9]];
    for kind in 0..devices().len() {
        let run =
            |sequences: &[Vec<u32>], steps: &[Step]| logits(&model, case, kind, sequences, steps).remove(0);
        let first = run(&sequences[..1], &alone(&[4, 12, 1]));
        assert_eq!(first.len(), sequences[0].len(), "a row for each token");
        let same = |what: &str, found: &[Vec<f32>]| {
            let differs = first.iter().zip(found).position(|(a, b)| a != b);
            let Case { name, ranks, weights, kv } = case;
            assert_eq!(
                differs, None,
                "{name} on {ranks} ranks, {weights:?}, {kv:?}, {what}: the first that differs"
            );
            assert_eq!(found.len(), first.len(), "{name}: positions");
        };
        same("beside another", &run(&sequences, &beside));
        for cut in cuts {
            same(&format!("cut {cut:?}"), &run(&sequences[..1], &alone(cut)));
        }
    }
}

#[test]
fn logits_do_not_depend_on_how_tokens_come() {
    CASES.iter().filter(|case| !has_experts(case)).for_each(check);
}

#[test]
fn logits_of_models_with_experts_do_not_depend_on_how_tokens_come() {
    CASES.iter().filter(|case| has_experts(case)).for_each(check);
}

fn has_experts(case: &Case) -> bool {
    foggara_models::testing::GOLDEN_WITH_EXPERTS.contains(&case.name)
}
