//! A sequence's logits do not depend on how its tokens come nor on what else is in a step: one by one, as one chunk or as several,
//! alone or beside others, they have the same bits. So what is decoded, and computed again as a prompt when a worker has died, goes
//! on with the same tokens.

use foggara_kernels::cuda::testing::devices;
use foggara_models::{Checkpoint, Quantize};

use super::*;
use crate::decoder::Scores;
use crate::testing::{BLOCK_SIZE, BLOCKS, Kind, golden, group_on, tokens};

/// What changes no bit.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Holds {
    /// Others in its steps that decode when it does.
    Decoding,
    /// Whatever is in its steps, and however its tokens are cut into steps.
    Everything,
}

/// A checkpoint of tests/golden on so many ranks, how its weights are held, and what holds.
struct Case {
    name: &'static str,
    ranks: usize,
    quantize: Quantize,
    holds: Holds,
}

const fn case(name: &'static str, ranks: usize, quantize: Quantize, holds: Holds) -> Case {
    Case { name, ranks, quantize, holds }
}

/// All of these are stored in f32: products in plain f32, unless they are quantized.
const CASES: [Case; 11] = [
    case("llama", 1, Quantize::None, Holds::Decoding),
    case("llama", 3, Quantize::None, Holds::Decoding),
    case("llama-odd-heads", 1, Quantize::None, Holds::Decoding),
    case("mistral-window", 1, Quantize::None, Holds::Decoding),
    case("qwen2", 1, Quantize::None, Holds::Decoding),
    case("qwen3", 1, Quantize::None, Holds::Decoding),
    case("gemma2", 1, Quantize::None, Holds::Decoding),
    case("gemma3", 1, Quantize::None, Holds::Decoding),
    case("mixtral", 1, Quantize::None, Holds::Decoding),
    case("gpt-oss", 1, Quantize::None, Holds::Decoding),
    case("deepseek-v3", 1, Quantize::None, Holds::Decoding),
];

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
    let results = group_on(model, shape, case.quantize, Kind::Shm, KvType::F16, &device, |mut engine| {
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

/// Expects what holds of sequence 0 of a checkpoint. Few steps, so that there is time for all of them.
fn check(case: &Case) {
    let (model, expected) = golden(case.name);
    let sequences = sequences(&expected, 17);
    let everything = case.holds == Holds::Everything;
    // The other decodes as well, or is a long prompt.
    let beside = match everything {
        false => [vec![(1, 20), (0, 4)], vec![(0, 12), (1, 1)], vec![(1, 1), (0, 1)]],
        true => [vec![(1, 3), (0, 4)], vec![(0, 12), (1, 1)], vec![(0, 1), (1, 40)]],
    };
    // As a prompt; and as one when some have been decoded, which goes on after it.
    let cuts: [&[usize]; 2] = [&[17], &[7, 1, 9]];
    for kind in 0..devices().len() {
        let run =
            |sequences: &[Vec<u32>], steps: &[Step]| logits(&model, case, kind, sequences, steps).remove(0);
        let first = run(&sequences[..1], &alone(&[4, 12, 1]));
        assert_eq!(first.len(), sequences[0].len(), "a row for each token");
        let same = |what: &str, found: &[Vec<f32>]| {
            let differs = first.iter().zip(found).position(|(a, b)| a != b);
            let Case { name, ranks, quantize, .. } = case;
            assert_eq!(
                differs, None,
                "{name} on {ranks} ranks, {quantize:?}, {what}: the first that differs"
            );
            assert_eq!(found.len(), first.len(), "{name}: positions");
        };
        same("beside another", &run(&sequences, &beside));
        for cut in cuts.iter().filter(|_| everything) {
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
