//! A leader whose device computes ahead of it says what one says that waits for every step.

use foggara_kernels::cuda::Device;
use foggara_kernels::cuda::testing::devices;
use foggara_models::Shape;
use foggara_proto::sequence::SequenceParams;
use foggara_proto::step::{Chunk, Grant, Join, StepPlan, StepReport};

use super::tests::{Driver, join, run_on};
use super::*;
use crate::testing::{BLOCK_SIZE, BLOCKS, Kind, golden};

/// Greedy and drawn, short and long, with tokens that end some.
fn joins() -> Vec<Join> {
    let join = |i: u64| {
        let prompt: Vec<u32> = (0..3 + i as u32 * 2).map(|j| (j * j * 13 + i as u32 * 29) % 320).collect();
        let join = join(i + 1, &prompt, 6 + 9 * i as u32, if i.is_multiple_of(2) { 0.0 } else { 0.9 });
        let params = SequenceParams {
            logprobs: None,
            stop_token_ids: (0..320).filter(|token| token % 16 == i as u32).collect(),
            ..join.params
        };
        Join { params, ..join }
    };
    (0..4).map(join).collect()
}

/// What they say, if so many plans are on their way at once; and how often a step was fed by the one before.
fn said(waiting: usize, counting: bool) -> (Vec<Vec<u32>>, u64) {
    let (model, _) = golden("llama");
    let device = devices().remove(0);
    let fed = |device: &Device| -> u64 {
        let launches = device.driver().launches().into_iter();
        launches.filter(|(kernel, _)| *kernel == "feed_tokens").map(|(_, times)| times).sum()
    };
    let before = fed(&device);
    let joins = joins();
    let mut said = vec![Vec::new(); joins.len()];
    let ends =
        run_on(&model, Shape::default(), Kind::Shm, KvType::F32, &|_| Some(device.clone()), |events| {
            let mut driver = Driver::attach(events, 1);
            let each = BLOCKS / joins.len();
            let mut plan = StepPlan::default();
            for (i, join) in joins.iter().enumerate() {
                let blocks = (0..each).map(|b| (b * joins.len() + i) as u32).collect();
                plan.grants.push(Grant { sequence: join.sequence, blocks });
                plan.chunks.push(Chunk { sequence: join.sequence, tokens: join.tokens.len() as u32 });
                plan.joins.push(join.clone());
            }
            driver.send(plan);
            let (mut ended, mut reported) = (0, 0);
            while ended < joins.len() {
                while driver.number < reported + waiting as u64 {
                    driver.send(StepPlan::default());
                }
                let report = driver.next().expect("the leader reports");
                reported += 1;
                assert_eq!((report.number, report.unplanned), (reported, false));
                for output in report.outputs {
                    let i = output.sequence as usize - 1;
                    said[i].extend(output.tokens.iter().map(|token| token.token));
                    ended += usize::from(output.end.is_some());
                }
            }
            // A driver that takes over finds them ended, whatever is still computed.
            let (_, held) = Driver::adopt(events, 2);
            assert!(held.len() == joins.len() && held.iter().all(|held| held.end.is_some()), "{held:?}");
            for held in held {
                assert_eq!(held.cached + 1, held.tokens.len());
            }
        });
    assert!(ends[0].is_ok(), "{ends:?}");
    (said, if counting { fed(&device) - before } else { 0 })
}

#[test]
fn plans_that_wait_are_begun_ahead_and_say_the_same() {
    let (expected, _) = said(1, false);
    assert!(expected.iter().any(|said| said.len() > 20), "{expected:?}");
    let (ahead, fed) = said(4, true);
    assert_eq!(ahead, expected);
    assert!(fed > 10, "{fed} steps were fed by the one before");
}

#[test]
fn a_driver_that_takes_over_finds_what_was_begun_done() {
    let (model, _) = golden("llama");
    let device = devices().remove(0);
    let ends =
        run_on(&model, Shape::default(), Kind::Shm, KvType::F32, &|_| Some(device.clone()), |events| {
            let joins = joins();
            let join = joins.last().expect("some");
            for plans in 1..5 {
                let mut driver = Driver::attach(events, 2 * plans);
                driver.send(StepPlan {
                    joins: vec![join.clone()],
                    grants: vec![Grant { sequence: join.sequence, blocks: (0..BLOCKS as u32).collect() }],
                    chunks: vec![Chunk { sequence: join.sequence, tokens: join.tokens.len() as u32 }],
                    ..StepPlan::default()
                });
                (0..plans).for_each(|_| driver.send(StepPlan::default()));
                let (_, held) = Driver::adopt(events, 2 * plans + 1);
                let answered = held[0].tokens.len() - held[0].prompt_len;
                assert_eq!((held[0].cached + 1, answered as u64), (held[0].tokens.len(), plans + 1));
            }
        });
    assert!(ends[0].is_ok(), "{ends:?}");
}

#[test]
fn what_has_no_block_is_told_and_goes_on_when_it_has() {
    let (model, _) = golden("llama");
    let device = devices().remove(0);
    let ends =
        run_on(&model, Shape::default(), Kind::Shm, KvType::F32, &|_| Some(device.clone()), |events| {
            let mut driver = Driver::attach(events, 1);
            let mut join = joins().swap_remove(3);
            (join.params.stop_token_ids, join.params.max_tokens) = (Vec::new(), 100);
            let id = join.sequence;
            let grant = |blocks| vec![Grant { sequence: id, blocks }];
            // Its last block is not full.
            let (len, blocks) = (join.tokens.len(), (join.tokens.len() + 2).div_ceil(BLOCK_SIZE));
            let room = blocks * BLOCK_SIZE - len;
            driver.send(StepPlan {
                grants: grant((0..blocks as u32).collect()),
                chunks: vec![Chunk { sequence: id, tokens: len as u32 }],
                joins: vec![join],
                ..StepPlan::default()
            });
            (0..room + 2).for_each(|_| driver.send(StepPlan::default()));
            driver.send(StepPlan { grants: grant(vec![blocks as u32]), ..StepPlan::default() });
            driver.send(StepPlan::default());
            let reports: Vec<_> = (0..room + 5).map(|_| driver.next().expect("the leader reports")).collect();
            let given =
                |report: &StepReport| report.outputs.iter().map(|output| output.tokens.len()).sum::<usize>();
            let given: Vec<usize> = reports.iter().map(given).collect();
            let skipped: Vec<&[u64]> = reports.iter().map(|report| &report.skipped[..]).collect();
            let mut expected = vec![1; room + 5];
            expected[room + 1..room + 3].fill(0);
            assert_eq!(given, expected, "{reports:?}");
            assert!(skipped.iter().enumerate().all(|(i, skipped)| skipped.is_empty() == (expected[i] == 1)));
        });
    assert!(ends[0].is_ok(), "{ends:?}");
}
