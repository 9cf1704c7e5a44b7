//! A leader whose plans are late: what it does by itself, and when it does nothing.

use std::time::Duration;

use foggara_models::Shape;
use foggara_proto::step::{Chunk, Grant, StepPlan};

use super::tests::{Driver, join, run_shape};
use super::*;
use crate::testing::{BLOCK_SIZE, Kind, golden};

/// A lease that no test outlasts.
const LONG_MS: u32 = 3_600_000;

/// Long after a plan is late.
const PAUSE: Duration = Duration::from_millis(10);

/// Sequence 1 joins with `blocks` blocks and `rows` rows of a prompt of five tokens.
fn joining(blocks: u32, rows: u32, lease_ms: u32) -> StepPlan {
    StepPlan {
        joins: vec![join(1, &[1, 2, 3, 4, 5], 100, 0.0)],
        grants: vec![Grant { sequence: 1, blocks: (0..blocks).collect() }],
        chunks: vec![Chunk { sequence: 1, tokens: rows }],
        lease_ms,
        ..StepPlan::default()
    }
}

fn with_a_leader(drive: impl FnOnce(&mut Driver<'_>) + Send) {
    let (model, _) = golden("llama");
    let ends = run_shape(&model, Shape::tensor(2), Kind::Shm, KvType::F32, |events| {
        drive(&mut Driver::attach(events, 1));
    });
    assert!(ends[0].is_ok(), "{ends:?}");
}

/// Sends plans with pauses between, and hears of nothing but these.
fn nothing_else(driver: &mut Driver<'_>, lease_ms: u32) {
    for _ in 0..3 {
        std::thread::sleep(PAUSE);
        driver.send(StepPlan { lease_ms, ..StepPlan::default() });
        driver.report();
    }
}

#[test]
fn without_a_lease_nothing_happens_between_plans() {
    // The other lease is over before a plan is late.
    for lease_ms in [0, 1] {
        with_a_leader(|driver| {
            driver.send(joining(2, 5, lease_ms));
            driver.report();
            nothing_else(driver, lease_ms);
        });
    }
}

#[test]
fn nothing_happens_while_nothing_decodes() {
    with_a_leader(|driver| {
        driver.send(StepPlan { lease_ms: LONG_MS, ..StepPlan::default() });
        driver.report();
        nothing_else(driver, LONG_MS);
        // A prompt in part.
        driver.send(joining(1, 3, LONG_MS));
        driver.report();
        nothing_else(driver, LONG_MS);
        // One that has ended.
        driver.send(StepPlan {
            drops: vec![1],
            joins: vec![join(2, &[1], 1, 0.0)],
            grants: vec![Grant { sequence: 2, blocks: vec![0] }],
            chunks: vec![Chunk { sequence: 2, tokens: 1 }],
            lease_ms: LONG_MS,
            ..StepPlan::default()
        });
        assert!(driver.report().outputs[0].end.is_some());
        nothing_else(driver, LONG_MS);
    });
}

#[test]
fn a_sequence_goes_on_as_far_as_its_blocks_reach_and_is_left_out_until_it_has_more() {
    with_a_leader(|driver| {
        driver.send(joining(1, 5, LONG_MS));
        let mut said: Vec<_> = driver.report().outputs[0].tokens.iter().map(|token| token.token).collect();
        // Five positions are taken by the prompt, and every step takes another.
        for step in 5..BLOCK_SIZE {
            let report = driver.next().expect("it goes on");
            assert_eq!((report.number, report.unplanned, report.timing.rows), (1, true, 1), "{step}");
            assert_eq!((report.timing.wait_us, &report.skipped[..]), (0, &[][..]));
            said.extend(report.outputs[0].tokens.iter().map(|token| token.token));
        }
        driver.send(StepPlan { lease_ms: LONG_MS, ..StepPlan::default() });
        let report = driver.report();
        assert_eq!((report.outputs.len(), &report.skipped[..]), (0, &[1][..]));
        assert!(report.timing.wait_us >= 50_000, "late by more than it took to go on: {:?}", report.timing);
        nothing_else(driver, LONG_MS);
        let grants = vec![Grant { sequence: 1, blocks: vec![7] }];
        driver.send(StepPlan { grants, ..StepPlan::default() });
        let report = driver.report();
        assert!(report.skipped.is_empty());
        said.extend(report.outputs[0].tokens.iter().map(|token| token.token));
        // The same as with all blocks at once and a plan for each step.
        let alone = driver_said(driver);
        assert_eq!(said, alone[..said.len()]);
    });
}

/// What sequence 1 says when every step is planned.
fn driver_said(driver: &mut Driver<'_>) -> Vec<u32> {
    let mut plan = joining(4, 5, 0);
    plan.drops = vec![1];
    driver.send(plan);
    let mut said = Vec::new();
    for _ in 0..BLOCK_SIZE {
        said.extend(driver.report().outputs[0].tokens.iter().map(|token| token.token));
        driver.send(StepPlan::default());
    }
    driver.report();
    said
}
