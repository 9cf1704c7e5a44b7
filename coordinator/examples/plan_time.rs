//! Prints how long the batcher takes to make a plan, and to take in its report, with a full group and a long queue.
//!
//! `cargo run --release -p foggara-coordinator --example plan_time -- [WAITING]`

#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use foggara_coordinator::batcher::{Batcher, Limits};
use foggara_proto::sequence::{SequenceEnd, SequenceParams, SequenceRequest, TokenOutput};
use foggara_proto::step::{SequenceOutput, StepPlan, StepReport, StepTiming};

const STEPS: usize = 2_000;
const PROMPT: usize = 64;
const ANSWER: usize = 100;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let waiting: u64 = std::env::args().nth(1).map_or(Ok(10_000), |n| n.parse())?;
    let limits = Limits {
        kv_blocks: 4_096,
        pools: 1,
        block_size: 16,
        step_rows: 256,
        sequences: 64,
        queue: usize::try_from(waiting)? + 64 + STEPS * 64,
        lease_ms: 2_000,
        drafts: 0,
    };
    let mut batcher = Batcher::new(1, limits);
    let mut id = 0;
    let mut submit = |batcher: &mut Batcher| {
        id += 1;
        let mut request = request(id);
        request.tenant = format!("tenant {}", id % 50);
        batcher.submit(id, request, None)
    };
    let started = Instant::now();
    for _ in 0..waiting + 64 {
        submit(&mut batcher)?;
    }
    println!("submit: {:.1?}", started.elapsed() / u32::try_from(waiting + 64)?);
    let (mut plans, mut reports) = (Vec::new(), Vec::new());
    let mut leader = Leader::default();
    for step in 0..STEPS {
        let started = Instant::now();
        let Some(plan) = batcher.plan() else { break };
        plans.push(started.elapsed());
        let report = leader.execute(&plan);
        // As many come as leave.
        let ended = report.outputs.iter().filter(|output| output.end.is_some()).count();
        let started = Instant::now();
        batcher.report(report)?;
        reports.push(started.elapsed());
        for _ in 0..ended {
            submit(&mut batcher)?;
        }
        if step == STEPS / 2 {
            println!("in the middle: {:?}", batcher.occupancy());
        }
    }
    print("plan", plans);
    print("report", reports);
    Ok(())
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("{what}: p50 {:.1?}, p99 {:.1?}, most {:.1?}", at(50), at(99), at(100));
}

fn request(id: u64) -> SequenceRequest {
    let params = SequenceParams {
        max_tokens: u32::try_from(ANSWER).unwrap_or(u32::MAX),
        temperature: 0.0,
        ..SequenceParams::default()
    };
    // No prompt begins as another does.
    let mut tokens = vec![1; PROMPT];
    tokens[0] = u32::try_from(id).unwrap_or(u32::MAX);
    SequenceRequest::new("r", tokens, PROMPT, params)
}

/// What is cached of each sequence, and how many tokens it has sampled.
#[derive(Default)]
struct Leader(std::collections::BTreeMap<u64, (usize, usize)>);

impl Leader {
    fn execute(&mut self, plan: &StepPlan) -> StepReport {
        for id in &plan.drops {
            self.0.remove(id);
        }
        self.0.extend(plan.joins.iter().map(|join| (join.sequence, (0, 0))));
        let (mut outputs, mut rows) = (Vec::new(), 0);
        for (id, (cached, sampled)) in &mut self.0 {
            let chunk = plan.chunks.iter().find(|chunk| chunk.sequence == *id);
            if chunk.is_none() && *cached < PROMPT || *sampled == ANSWER {
                continue;
            }
            let done = chunk.map_or(1, |chunk| chunk.tokens as usize);
            *cached += done;
            rows += u32::try_from(done).unwrap_or(u32::MAX);
            if *cached >= PROMPT {
                *sampled += 1;
                let end = (*sampled == ANSWER).then_some(SequenceEnd::Length);
                let tokens = vec![TokenOutput { token: 1, logprob: None, top: Vec::new() }];
                outputs.push(SequenceOutput { sequence: *id, prompt: Vec::new(), tokens, end });
            }
        }
        let timing = StepTiming { rows, compute_us: 5_000 + rows * 500, ..StepTiming::default() };
        StepReport { driver_epoch: 1, number: plan.number, outputs, timing, ..StepReport::default() }
    }
}
