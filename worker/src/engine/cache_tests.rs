//! Sequences that begin with blocks of others: the same tokens and log-probabilities, bit for bit, as computed from the start.

use std::collections::BTreeMap;

use foggara_models::Shape;
use foggara_proto::step::{BlockCopy, BlockId, Chunk, Grant, Join, SequenceId, StepPlan};

use super::tests::{Driver, Said, join, run_shape};
use super::*;
use crate::testing::{BLOCK_SIZE, BLOCKS, Kind, golden};

const PROMPT: usize = 37;
const ANSWER: usize = 24;

/// A sequence that says what every other says.
fn same(id: SequenceId, vocab: usize) -> Join {
    let prompt: Vec<u32> = (0..PROMPT).map(|i| ((i * i * 13 + 5) % vocab) as u32).collect();
    let mut join = join(id, &prompt, ANSWER as u32, 0.9);
    join.params.seed = 11;
    join
}

/// A sequence enters with `blocks` (of pool `pool`) and its first rows.
fn entering(plan: &mut StepPlan, join: Join, pool: usize, blocks: &[usize], rows: usize) {
    let blocks = blocks.iter().map(|block| place(pool, *block)).collect();
    plan.grants.push(Grant { sequence: join.sequence, blocks });
    plan.chunks.push(Chunk { sequence: join.sequence, tokens: rows as u32 });
    plan.joins.push(join);
}

fn place(pool: usize, block: usize) -> BlockId {
    (pool * BLOCKS + block) as BlockId
}

/// Collects what sequences say.
#[derive(Default)]
struct Heard(BTreeMap<SequenceId, Said>);

impl Heard {
    fn step(&mut self, driver: &mut Driver<'_>, plan: StepPlan) {
        driver.send(plan);
        self.report(driver);
    }

    fn report(&mut self, driver: &mut Driver<'_>) {
        for output in driver.report().outputs {
            let token = output.tokens.first().map(|token| (token.token, token.logprob.map(f32::to_bits)));
            self.0.entry(output.sequence).or_default().extend(token);
        }
    }

    /// Steps until `id` has said `count` tokens.
    fn until(&mut self, driver: &mut Driver<'_>, id: SequenceId, count: usize) {
        while self.0.get(&id).map_or(0, Vec::len) < count {
            self.step(driver, StepPlan::default());
        }
    }
}

/// One sequence from the start, then the same with a beginning that is there in every way there is.
fn warm_and_cold(driver: &mut Driver<'_>, pool: usize, vocab: usize) {
    let mut heard = Heard::default();
    let mut plan = StepPlan::default();
    entering(&mut plan, same(1, vocab), pool, &[0, 1, 2, 3], PROMPT);
    heard.step(driver, plan);
    heard.until(driver, 1, ANSWER);
    let cold = heard.0[&1].clone();

    // From the prefix cache, at once and in two chunks; and after a preemption, with tokens that were generated before.
    let whole = 2 * BLOCK_SIZE;
    let mut plan = StepPlan::default();
    entering(&mut plan, Join { cached: whole, ..same(2, vocab) }, pool, &[0, 1, 4, 5], PROMPT - whole);
    entering(&mut plan, Join { cached: whole, ..same(3, vocab) }, pool, &[0, 1, 6, 7], 2);
    let mut again = Join { cached: 3 * BLOCK_SIZE, ..same(4, vocab) };
    again.tokens.extend(cold[..20].iter().map(|(token, _)| *token));
    let rest = again.tokens.len() - again.cached;
    entering(&mut plan, again, pool, &[0, 1, 2, 8], rest);
    heard.step(driver, plan);
    let second = Chunk { sequence: 3, tokens: (PROMPT - whole - 2) as u32 };
    heard.step(driver, StepPlan { chunks: vec![second], ..StepPlan::default() });
    heard.until(driver, 2, ANSWER);
    heard.until(driver, 3, ANSWER);
    heard.until(driver, 4, ANSWER - 20);

    // Choices: one that comes right after the first one's prefill, whose report is on its way, and one that comes later.
    let copy = |to| vec![BlockCopy { from: place(pool, 11), to: place(pool, to) }];
    let mut plan = StepPlan::default();
    entering(&mut plan, same(5, vocab), pool, &[9, 10, 11, 12], PROMPT);
    driver.send(plan);
    heard.report(driver);
    let mut plan = StepPlan { copies: copy(13), ..StepPlan::default() };
    entering(&mut plan, Join { cached: PROMPT - 1, ..same(6, vocab) }, pool, &[9, 10, 13, 14], 1);
    heard.step(driver, plan);
    heard.until(driver, 5, 7);
    let mut plan = StepPlan { copies: copy(15), ..StepPlan::default() };
    entering(&mut plan, Join { cached: PROMPT - 1, ..same(7, vocab) }, pool, &[9, 10, 15, 16], 1);
    heard.step(driver, plan);
    heard.until(driver, 5, ANSWER);
    heard.until(driver, 7, ANSWER);

    for id in [2, 3, 5, 6, 7] {
        assert!(heard.0[&id] == cold, "sequence {id}: {:?} instead of {cold:?}", heard.0[&id]);
    }
    assert!(heard.0[&4] == cold[20..], "after a preemption");
    driver.send(StepPlan { drops: (1..8).collect(), ..StepPlan::default() });
    driver.report();
}

#[test]
fn a_cached_beginning_changes_no_bit() {
    let shape = |tp, dp| Shape { tp, dp, ..Shape::tensor(1) };
    for (name, shape, ty) in [
        ("llama-odd-heads", shape(1, 1), KvType::F32),
        ("llama-odd-heads", shape(2, 1), KvType::F16),
        ("llama-odd-heads", shape(3, 1), KvType::Q8_0),
        ("deepseek-v3", shape(2, 1), KvType::F16),
        ("mixtral", shape(1, 2), KvType::Q8_0),
        ("mistral-window", Shape { pp: 2, ..Shape::tensor(1) }, KvType::F16),
    ] {
        let (model, _) = golden(name);
        let vocab = model.spec().vocab;
        let ends = run_shape(&model, shape, Kind::Shm, ty, |events| {
            let mut driver = Driver::attach(events, 1);
            for pool in 0..shape.dp {
                warm_and_cold(&mut driver, pool, vocab);
            }
        });
        assert!(ends[0].is_ok(), "{name} {shape:?}: {ends:?}");
    }
}
