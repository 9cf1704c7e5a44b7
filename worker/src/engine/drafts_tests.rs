//! Whatever is drafted, sequences say what they say without: on every shape of group, on CPUs and devices.

use std::collections::BTreeMap;

use foggara_kernels::cuda::Device;
use foggara_kernels::cuda::testing::devices;
use foggara_models::{Checkpoint, Shape};
use foggara_proto::sequence::{SequenceEnd, SequenceParams, TokenOutput};
use foggara_proto::step::{Chunk, Drafts, Grant, Join, StepPlan};

use super::tests::{Driver, join, run_on};
use super::*;
use crate::testing::{BLOCK_SIZE, BLOCKS, Kind, golden};

/// Long drafts that nearly anything is worth.
const ANY: Drafts = Drafts { most: 6, price: 1 };

/// What a sequence has said, with probabilities by their bits, and how it ended.
type Told = (Vec<(u32, Option<u32>, usize)>, Vec<(u32, Option<u32>, usize)>, Option<SequenceEnd>);

/// What sequences said, and what was drafted for it.
#[derive(Default)]
struct Outcome {
    told: BTreeMap<u64, Told>,
    steps: usize,
    drafted: u32,
    accepted: u32,
    /// Steps in which a sequence ended behind another token of its own.
    ended_inside: usize,
    /// Rows that lacked a block.
    skipped: usize,
}

/// Runs sequences together. Each has its blocks at once, or, `by_need`, one when it has been left out for lack of it.
fn say(driver: &mut Driver<'_>, joins: &[Join], dp: usize, by_need: bool) -> Outcome {
    let each = BLOCKS * dp / joins.len();
    let (mut outcome, mut plan, mut ended) = (Outcome::default(), StepPlan::default(), 0);
    let mut left = BTreeMap::new();
    for (i, join) in joins.iter().enumerate() {
        // Those of one pool: the sequences of a part of the batch share it.
        let first = (i % dp) * BLOCKS + (i / dp) * each;
        let mut blocks: Vec<u32> = (first as u32..(first + each) as u32).collect();
        let now = if by_need { join.tokens.len().div_ceil(BLOCK_SIZE) } else { each };
        let later = blocks.split_off(now);
        left.insert(join.sequence, later);
        plan.grants.push(Grant { sequence: join.sequence, blocks });
        plan.chunks.push(Chunk { sequence: join.sequence, tokens: join.tokens.len() as u32 });
        plan.joins.push(join.clone());
    }
    while ended < joins.len() {
        driver.send(std::mem::take(&mut plan));
        let report = driver.report();
        outcome.steps += 1;
        outcome.drafted += report.drafted;
        outcome.accepted += report.accepted;
        outcome.skipped += report.skipped.len();
        for id in report.skipped {
            let blocks = vec![left.get_mut(&id).expect("one of ours").remove(0)];
            plan.grants.push(Grant { sequence: id, blocks });
        }
        for output in report.outputs {
            let (prompt, said, end) = outcome.told.entry(output.sequence).or_default();
            let bits = |token: &TokenOutput| (token.token, token.logprob.map(f32::to_bits), token.top.len());
            prompt.extend(output.prompt.iter().map(bits));
            said.extend(output.tokens.iter().map(bits));
            *end = output.end;
            ended += usize::from(output.end.is_some());
            outcome.ended_inside += usize::from(output.end.is_some() && output.tokens.len() > 1);
        }
    }
    driver.send(StepPlan { drops: joins.iter().map(|join| join.sequence).collect(), ..StepPlan::default() });
    driver.report();
    outcome
}

/// Sequences with these parameters, of prompts that begin to repeat.
fn joins(params: &[SequenceParams]) -> Vec<Join> {
    let prompt = |i: u32| -> Vec<u32> { (0..20 + i).map(|j| (i * 31 + j % 7 * 17 + 3) % 320).collect() };
    let join = |(i, params): (u32, &SequenceParams)| {
        let seed = u64::from(i) * 77;
        Join {
            params: SequenceParams { seed, ..params.clone() },
            ..join(u64::from(i) + 1, &prompt(i), 1, 0.0)
        }
    };
    (0..).zip(params).map(join).collect()
}

/// Everything that tokens may depend on. Few tokens are allowed where nothing would repeat otherwise.
fn all_kinds() -> Vec<SequenceParams> {
    let few = vec![5, 11, 42];
    let base = SequenceParams { max_tokens: 60, ..SequenceParams::default() };
    let sampled = SequenceParams { temperature: 0.8, allowed_token_ids: few.clone(), ..base.clone() };
    vec![
        base.clone(),
        SequenceParams { logprobs: Some(3), prompt_logprobs: true, prompt_top_logprobs: 1, ..base.clone() },
        sampled.clone(),
        SequenceParams { top_p: 0.7, logprobs: Some(0), ..sampled.clone() },
        SequenceParams { temperature: 0.3, top_k: 2, ..base.clone() },
        SequenceParams { temperature: 0.1, top_k: 3, presence_penalty: 0.001, ..base.clone() },
        SequenceParams { repetition_penalty: 1.01, frequency_penalty: 0.02, ..base.clone() },
        SequenceParams { frequency_penalty: 0.4, presence_penalty: 0.2, ..sampled.clone() },
        SequenceParams { frequency_penalty: -0.5, ..base.clone() },
        SequenceParams { bad_words: vec![vec![5, 5], vec![11, 42, 11]], ..sampled.clone() },
        SequenceParams { min_tokens: 30, stop_token_ids: vec![42], ..sampled.clone() },
        SequenceParams { logit_bias: few.iter().map(|token| (*token, 9.0)).collect(), ..base },
    ]
}

/// Runs `joins` with and without drafts; what they say is the same.
fn alike(model: &Checkpoint, shape: Shape, joins: &[Join], by_need: bool) -> Outcome {
    alike_on(model, shape, joins, by_need, &|_| None)
}

fn alike_on(
    model: &Checkpoint,
    shape: Shape,
    joins: &[Join],
    by_need: bool,
    device: &(dyn Fn(usize) -> Option<Device> + Sync),
) -> Outcome {
    let mut outcomes = Vec::new();
    let ends = run_on(model, shape, Kind::Shm, KvType::F32, device, |events| {
        let mut driver = Driver::attach(events, 1);
        let without = say(&mut driver, joins, shape.dp, by_need);
        assert_eq!((without.drafted, without.accepted), (0, 0));
        driver.drafts = ANY;
        let with = say(&mut driver, joins, shape.dp, by_need);
        assert_eq!(with.told, without.told, "{shape:?}");
        assert!(with.steps <= without.steps + with.skipped);
        outcomes.push(with);
    });
    assert!(ends[0].is_ok(), "{ends:?}");
    outcomes.remove(0)
}

#[test]
fn on_every_shape_sequences_say_what_they_say_without_drafts() {
    for (name, shape) in [
        ("llama", Shape::tensor(1)),
        ("llama", Shape::tensor(2)),
        ("llama", Shape { pp: 2, ..Shape::default() }),
        ("mixtral", Shape { tp: 2, ep: 2, ..Shape::default() }),
        ("mixtral", Shape { dp: 2, ep: 2, ..Shape::default() }),
        ("deepseek-v3", Shape::tensor(2)),
        ("gemma2", Shape::tensor(1)),
    ] {
        let (model, _) = golden(name);
        let (mut drafted, mut accepted) = (0, 0);
        for some in all_kinds().chunks(6) {
            let outcome = alike(&model, shape, &joins(some), false);
            (drafted, accepted) = (drafted + outcome.drafted, accepted + outcome.accepted);
        }
        assert!(accepted > 50 && drafted > accepted + 50, "{name}: {accepted} of {drafted} were right");
    }
}

#[test]
fn alone_every_sequence_has_drafts_and_says_the_same() {
    let (model, _) = golden("llama");
    for mut join in joins(&all_kinds()) {
        // As long as it takes until something repeats.
        join.params.max_tokens = 300;
        let one = alike(&model, Shape::tensor(1), std::slice::from_ref(&join), false);
        assert!(one.drafted > 0, "{:?}", join.params);
    }
}

#[test]
fn a_draft_ends_where_the_sequence_does() {
    let (model, _) = golden("llama");
    let (mut by_length, mut by_token) = (0, 0);
    let few =
        SequenceParams { allowed_token_ids: vec![5, 11], temperature: 0.4, ..SequenceParams::default() };
    let lengths: Vec<_> = (30..38).map(|max_tokens| SequenceParams { max_tokens, ..few.clone() }).collect();
    let outcome = alike(&model, Shape::tensor(1), &joins(&lengths), false);
    by_length += outcome.ended_inside;
    for (join, (_, said, end)) in joins(&lengths).iter().zip(outcome.told.values()) {
        assert_eq!((said.len(), *end), (join.params.max_tokens as usize, Some(SequenceEnd::Length)));
    }
    // A third token that ends it, and comes now and then.
    let stops = |seed| SequenceParams {
        allowed_token_ids: vec![5, 11, 42],
        stop_token_ids: vec![42],
        logit_bias: vec![(42, -2.0)],
        temperature: 1.0,
        max_tokens: 70,
        min_tokens: seed,
        ..SequenceParams::default()
    };
    for round in 0..8usize {
        let stops: Vec<_> = (0..4).map(|i| stops(4 * round as u32 + i)).collect();
        let mut joins = joins(&stops);
        // It is in the prompt, as ends of turns are, and so among what is drafted.
        for (join, i) in joins.iter_mut().zip(round..) {
            join.tokens = (0..24).map(|j| [5, 11, 5, 42, 11, 42][(i * j + j * j) % 6]).collect();
            join.prompt_len = join.tokens.len();
        }
        let outcome = alike(&model, Shape::tensor(1), &joins, false);
        let stopped =
            outcome.told.values().filter(|(_, _, end)| *end == Some(SequenceEnd::StopToken)).count();
        by_token += outcome.ended_inside.min(stopped);
    }
    assert!(by_length >= 3 && by_token >= 3, "{by_length} and {by_token} ends inside drafts");
}

#[test]
fn a_draft_keeps_to_the_blocks_there_are() {
    let (model, _) = golden("llama");
    let outcome = alike(&model, Shape::tensor(2), &joins(&all_kinds()[..6]), true);
    let (accepted, skipped) = (outcome.accepted, outcome.skipped);
    assert!(accepted > 20 && skipped > 12, "{accepted} were right, {skipped} lacked a block");
}

#[test]
fn on_devices_sequences_say_what_they_say_without_drafts() {
    let (model, _) = golden("llama");
    for kind in 0..devices().len() {
        for tp in [1, 2] {
            let device = move |_| Some(devices().remove(kind));
            let outcome = alike_on(&model, Shape::tensor(tp), &joins(&all_kinds()[3..7]), false, &device);
            let (drafted, accepted) = (outcome.drafted, outcome.accepted);
            assert!(accepted > 10 && drafted > accepted, "{accepted} of {drafted} were right");
        }
    }
}

#[test]
fn a_leader_drafts_without_plans_as_its_last_plan_allowed_and_not_for_a_driver_that_does_not() {
    let (model, _) = golden("llama");
    let allowed_token_ids = vec![5, 11];
    let params = SequenceParams { max_tokens: 200, allowed_token_ids, ..SequenceParams::default() };
    let joins = joins(&[params]);
    let ends = run_on(&model, Shape::tensor(2), Kind::Shm, KvType::F32, &|_| None, |events| {
        let mut driver = Driver::attach(events, 1);
        let expected = say(&mut driver, &joins, 1, false).told.remove(&1).expect("it was told").1;
        driver.drafts = ANY;
        driver.send(StepPlan {
            joins: joins.clone(),
            grants: vec![Grant { sequence: 1, blocks: (0..BLOCKS as u32).collect() }],
            chunks: vec![Chunk { sequence: 1, tokens: joins[0].tokens.len() as u32 }],
            lease_ms: 3_600_000,
            ..StepPlan::default()
        });
        let mut said: Vec<u32> = driver.report().outputs[0].tokens.iter().map(|token| token.token).collect();
        let mut most = 0;
        while said.len() < 100 {
            let report = driver.next().expect("it goes on");
            assert!(report.unplanned);
            most = most.max(report.outputs[0].tokens.len());
            said.extend(report.outputs[0].tokens.iter().map(|token| token.token));
        }
        assert!(most > 3, "{most} tokens in a step");
        let (mut next, held) = Driver::adopt(events, 2);
        let mut said = held[0].tokens[held[0].prompt_len..].to_vec();
        let (mut planned, begun) = (false, said.len());
        while said.len() < 200 {
            // Its first plan comes late.
            if !planned && said.len() == begun + 5 {
                next.send(StepPlan { lease_ms: 3_600_000, ..StepPlan::default() });
                planned = true;
            }
            let report = next.next().expect("it goes on");
            assert!(planned || report.unplanned);
            assert_eq!((report.drafted, report.outputs.len()), (0, 1), "it knows of no drafts");
            said.extend(report.outputs[0].tokens.iter().map(|token| token.token));
        }
        assert_eq!(said, expected.iter().map(|(token, ..)| *token).collect::<Vec<_>>());
    });
    assert!(ends[0].is_ok(), "{ends:?}");
}
