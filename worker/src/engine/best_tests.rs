//! Sequences that get the best few logits, or the token that was drawn where these are, say what they would say of all of them, on CPUs
//! and on devices.

use foggara_kernels::cuda::Device;
use foggara_kernels::cuda::testing::devices;
use foggara_models::{Checkpoint, Quantize, Shape};
use foggara_proto::sequence::SequenceParams;
use foggara_proto::step::{Chunk, Grant, Join, SequenceId, StepPlan};

use super::*;
use crate::decoder::Scores;
use crate::testing::{BLOCK_SIZE, BLOCKS, Kind, golden, group_on, tokens};

/// What a sequence has said: tokens with the bits of their log-probabilities.
type Said = Vec<(u32, Option<u32>)>;

/// Runs `step` on every rank; on rank 0 what is told of rows goes to `on_scores`.
fn step(engine: &mut Engine, mut input: StepInput, on_scores: &mut OnScores<'_>) -> StepInput {
    let mut bytes = Vec::new();
    input.encode(&mut bytes);
    engine.comms.all().broadcast(&mut bytes).expect("all ranks are there");
    input = StepInput::decode(&bytes).expect("encoded");
    engine.prepare(&input).expect("a step that fits");
    engine.run(&input, on_scores).expect("all ranks are there");
    input
}

/// What sequences with these prompts say, how many rows were given as their best, and how many as a token. `whole`: whatever they want,
/// they get all.
fn say(
    model: &Checkpoint,
    sequences: &[(Vec<u32>, SequenceParams)],
    shape: Shape,
    whole: bool,
    device: &(dyn Fn(usize) -> Option<Device> + Sync),
) -> (Vec<Said>, [usize; 2]) {
    let each = BLOCKS / sequences.len();
    let results = group_on(model, shape, Quantize::None, Kind::Shm, KvType::F32, device, |mut engine| {
        if engine.comms.rank() > 0 {
            while !step(&mut engine, StepInput::default(), &mut |_, _| ()).is_empty() {}
            return (Vec::new(), [0; 2]);
        }
        let mut table = SequenceTable::new(model.spec().vocab, BLOCK_SIZE, engine.max_rows);
        let id = |i: usize| i as SequenceId;
        let join = |(i, (prompt, params)): (usize, &(Vec<u32>, SequenceParams))| Join {
            sequence: id(i),
            tokens: prompt.clone(),
            prompt_len: prompt.len(),
            params: params.clone(),
            cached: 0,
            envelope: Vec::new(),
        };
        let all = || 0..sequences.len();
        let blocks = |i: usize| ((i * each) as u32..((i + 1) * each) as u32).collect();
        let mut plan = StepPlan {
            joins: sequences.iter().enumerate().map(join).collect(),
            grants: all().map(|i| Grant { sequence: id(i), blocks: blocks(i) }).collect(),
            chunks: all().map(|i| Chunk { sequence: id(i), tokens: sequences[i].0.len() as u32 }).collect(),
            ..StepPlan::default()
        };
        let (mut said, mut given) = (vec![Vec::new(); sequences.len()], [0; 2]);
        loop {
            let mut input = table.begin(std::mem::take(&mut plan)).expect("a plan that makes sense");
            if whole {
                input.wants.clear();
            }
            let ran = step(&mut engine, input, &mut |row, scores| {
                given[0] += usize::from(matches!(scores, Scores::Best(_)));
                given[1] += usize::from(matches!(scores, Scores::Drawn(_)));
                table.take_scores(row, scores);
            });
            if ran.is_empty() {
                return (said, given);
            }
            for output in table.finish() {
                let token = output.tokens.first().expect("a token");
                said[output.sequence as usize].push((token.token, token.logprob.map(f32::to_bits)));
            }
        }
    });
    results.into_iter().next().expect("rank 0")
}

/// What gives each rank a device, or none.
type DeviceOf = Box<dyn Fn(usize) -> Option<Device> + Sync>;

fn cpu() -> DeviceOf {
    Box::new(|_| None)
}

/// The CPU, and each kind of device.
fn kinds() -> Vec<DeviceOf> {
    let mut kinds = vec![cpu()];
    for kind in 0..devices().len() {
        kinds.push(Box::new(move |_| Some(devices().remove(kind))));
    }
    kinds
}

#[test]
fn greedy_sequences_say_what_transformers_says() {
    for name in ["llama", "llama-odd-heads", "mixtral", "deepseek-v3", "gpt-oss", "gemma2"] {
        let (model, expected) = golden(name);
        let cases = expected["cases"].as_array().expect("cases");
        let greedy = |case: &serde_json::Value| {
            let max_tokens = tokens(&case["greedy"]).len() as u32;
            (tokens(&case["prompt"]), SequenceParams { max_tokens, ..SequenceParams::default() })
        };
        let sequences: Vec<_> = cases.iter().map(greedy).collect();
        // On a device the products take long for a test: one model, and one with capped logits.
        let kinds = if ["llama", "gemma2"].contains(&name) { kinds() } else { vec![cpu()] };
        for device in kinds {
            for tp in [1, 2] {
                let (said, [best, _]) = say(&model, &sequences, Shape::tensor(tp), false, &device);
                assert_eq!(best, said.iter().map(Vec::len).sum::<usize>(), "no row was needed whole");
                for (said, case) in said.iter().zip(cases) {
                    let said: Vec<u32> = said.iter().map(|(token, _)| *token).collect();
                    assert_eq!(said, tokens(&case["greedy"]), "{name}, tp {tp}");
                }
            }
        }
    }
}

#[test]
fn sampled_sequences_say_what_they_say_of_whole_rows() {
    let params = |temperature, top_k, top_p, min_p, logprobs| SequenceParams {
        temperature,
        top_k,
        top_p,
        min_p,
        logprobs,
        max_tokens: 12,
        ..SequenceParams::default()
    };
    // Alone, so that these are steps of few of the best, or of many; and beside those that need whole rows.
    let batches = [
        vec![
            params(1.0, 40, 0.95, 0.0, None),
            params(1.5, 20, 1.0, 0.05, None),
            params(0.0, 0, 1.0, 0.0, None),
        ],
        vec![
            params(2.0, 200, 0.9, 0.0, None),
            params(1.0, 40, 0.8, 0.0, None),
            params(0.9, 0, 1.0, 0.02, None),
        ],
        vec![
            params(1.0, 40, 0.95, 0.0, None),
            params(1.0, 0, 0.9, 0.0, None),
            params(0.0, 0, 1.0, 0.0, Some(2)),
        ],
    ];
    for name in ["llama", "gemma2"] {
        let (model, _) = golden(name);
        for (kind, device) in kinds().into_iter().enumerate() {
            let seeds = if kind == 0 { 4 } else { 1 };
            for (seed, batch) in (0..seeds).flat_map(|seed| batches.iter().map(move |batch| (seed, batch))) {
                let prompt =
                    |i: usize| (0..5 + 3 * i).map(|j| ((i * 31 + j * 17 + 3) % 320) as u32).collect();
                let sequence = |(i, params): (usize, &SequenceParams)| {
                    (prompt(i), SequenceParams { seed: seed * 100 + i as u64, ..params.clone() })
                };
                let sequences: Vec<_> = batch.iter().enumerate().map(sequence).collect();
                let draws = |params: &&SequenceParams| params.temperature > 0.0 && params.top_k == 0;
                let drawn = 12 * batch.iter().filter(draws).count();
                for tp in [1, 2] {
                    let run = |whole| say(&model, &sequences, Shape::tensor(tp), whole, &device);
                    let (said, given) = run(false);
                    assert!(given[0] >= 12 && said.iter().all(|said| said.len() == 12), "{name}: {given:?}");
                    // Where two ranks have a part of a row each, it comes whole.
                    assert_eq!(given[1], if tp == 1 { drawn } else { 0 }, "{name}, tp {tp}");
                    assert_eq!((said, [0; 2]), run(true), "{name}, tp {tp}, seed {seed}");
                }
            }
        }
    }
}
