//! Drivers that pause, vanish and are followed by others: the same tokens and log-probabilities, bit for bit, as with one
//! that does not.

use std::sync::mpsc::Sender;

use foggara_models::Shape;
use foggara_proto::sequence::SequenceEnd;
use foggara_proto::step::{
    BlockCopy, BlockId, Chunk, Grant, HeldSequence, Join, SequenceId, StepPlan, StepReport,
};

use super::tests::{Driver, Said, join, run_shape};
use super::*;
use crate::testing::{BLOCK_SIZE, BLOCKS, Kind, golden};

const SEEDS: std::ops::RangeInclusive<u64> = 1..=6;

/// A lease that no test outlasts.
const LONG_MS: u32 = 3_600_000;

/// Numbers from a seed.
struct Dice(u64);

impl Dice {
    /// Below `sides`.
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }

    fn chance(&mut self, of: usize) -> bool {
        self.roll(of) == 0
    }
}

/// A sequence, with what is known of it.
struct Known {
    join: Join,
    /// What it says when nothing disturbs it.
    expected: Said,
    pool: usize,
    blocks: Vec<BlockId>,
    /// Its prompt's part that has gone through.
    prefilled: usize,
    said: usize,
    joined: bool,
    ended: bool,
    dropped: bool,
}

impl Known {
    fn is_here(&self) -> bool {
        self.joined && !self.dropped
    }

    fn prefills(&self) -> bool {
        self.is_here() && self.prefilled < self.join.prompt_len
    }

    fn decodes(&self) -> bool {
        self.is_here() && !self.prefills() && !self.ended
    }

    /// Positions in the cache.
    fn cached(&self) -> usize {
        self.prefilled + self.said.saturating_sub(1)
    }

    fn has_room(&self) -> bool {
        self.cached() < self.blocks.len() * BLOCK_SIZE
    }

    fn hears(&mut self, token: u32, logprob: Option<f32>) {
        assert_eq!((token, logprob.map(f32::to_bits)), self.expected[self.said], "token {}", self.said);
        self.said += 1;
    }
}

/// A driver that knows too little to be kind: what it does comes from dice.
struct Player<'a> {
    events: &'a Sender<EngineEvent>,
    driver: Driver<'a>,
    epoch: u64,
    sequences: Vec<Known>,
    free: Vec<Vec<BlockId>>,
    dice: Dice,
    unplanned: usize,
}

impl<'a> Player<'a> {
    fn new(
        events: &'a Sender<EngineEvent>,
        pools: usize,
        sequences: impl Iterator<Item = (Join, Said)>,
        seed: u64,
    ) -> Self {
        let known = |(i, (join, expected))| Known {
            join,
            expected,
            pool: i % pools,
            blocks: Vec::new(),
            prefilled: 0,
            said: 0,
            joined: false,
            ended: false,
            dropped: false,
        };
        let blocks =
            |pool: usize| (0..BLOCKS).rev().map(|block| (pool * BLOCKS + block) as BlockId).collect();
        let epoch = seed * 1_000;
        Self {
            events,
            driver: Driver::attach(events, epoch),
            epoch,
            sequences: sequences.enumerate().map(known).collect(),
            free: (0..pools).map(blocks).collect(),
            dice: Dice(seed),
            unplanned: 0,
        }
    }

    fn known(&mut self, id: SequenceId) -> &mut Known {
        self.sequences.iter_mut().find(|known| known.join.sequence == id).expect("ours")
    }

    /// Something that makes sense.
    fn plan(&mut self) -> StepPlan {
        let mut plan = StepPlan { lease_ms: LONG_MS, ..StepPlan::default() };
        for known in &self.sequences {
            let (id, length) = (known.join.sequence, known.join.prompt_len);
            let positions = if known.is_here() && known.ended {
                if self.dice.chance(2) {
                    plan.drops.push(id);
                }
                continue;
            } else if !known.joined {
                if self.dice.chance(3) {
                    plan.joins.push(known.join.clone());
                }
                continue;
            } else if known.prefills() && !self.dice.chance(3) {
                let rows = 1 + self.dice.roll(length - known.prefilled);
                plan.chunks.push(Chunk { sequence: id, tokens: rows as u32 });
                known.prefilled + rows
            } else if known.decodes() && !self.dice.chance(4) {
                let most = length + known.expected.len();
                (known.cached() + self.dice.roll(2 * BLOCK_SIZE)).min(most)
            } else {
                continue;
            };
            let more = positions.div_ceil(BLOCK_SIZE).saturating_sub(known.blocks.len());
            let free = &mut self.free[known.pool];
            let blocks = free.split_off(free.len() - more);
            plan.grants.extend((!blocks.is_empty()).then_some(Grant { sequence: id, blocks }));
        }
        plan
    }

    /// It is the turn of a plan.
    fn apply(&mut self, plan: &StepPlan) {
        for id in &plan.drops {
            let known = self.known(*id);
            known.dropped = true;
            let (pool, mut blocks) = (known.pool, std::mem::take(&mut known.blocks));
            self.free[pool].append(&mut blocks);
        }
        plan.joins.iter().for_each(|join| self.known(join.sequence).joined = true);
        plan.grants.iter().for_each(|grant| self.known(grant.sequence).blocks.extend(&grant.blocks));
    }

    /// The sequences that decode in a step, and those that lack a block for it.
    fn decoding(&self) -> (Vec<SequenceId>, Vec<SequenceId>) {
        let decoding = self.sequences.iter().filter(|known| known.decodes());
        let (with, without): (Vec<_>, Vec<_>) = decoding.partition(|known| known.has_room());
        let ids = |known: Vec<&Known>| known.iter().map(|known| known.join.sequence).collect();
        (ids(with), ids(without))
    }

    /// Takes in a report of a step in which `chunks` were prefilled.
    fn hear(&mut self, report: StepReport, chunks: &[Chunk]) {
        let (mut expected, without) = self.decoding();
        assert_eq!(report.skipped, if report.unplanned { vec![] } else { without });
        for chunk in chunks {
            let known = self.known(chunk.sequence);
            known.prefilled += chunk.tokens as usize;
            expected.extend((!known.prefills()).then_some(chunk.sequence));
        }
        expected.sort_unstable();
        let mut told: Vec<SequenceId> = report.outputs.iter().map(|output| output.sequence).collect();
        // They come part of the batch by part of the batch.
        told.sort_unstable();
        assert_eq!(told, expected, "each that decodes says something");
        for output in report.outputs {
            let known = self.known(output.sequence);
            let token = output.tokens.first().expect("a token");
            known.hears(token.token, token.logprob);
            known.ended = output.end.is_some();
            assert_eq!(known.ended, known.said == known.expected.len());
        }
    }

    /// Takes in a report of a step that the leader ran by itself.
    fn hear_unplanned(&mut self, report: StepReport, last_plan: u64) {
        assert_eq!((report.number, report.unplanned, report.timing.wait_us), (last_plan, true, 0));
        self.hear(report, &[]);
        self.unplanned += 1;
    }

    /// Leaves the leader alone for up to `steps` steps; whether it took one.
    fn pause(&mut self, steps: usize) -> bool {
        for step in 0..steps {
            if self.decoding().0.is_empty() {
                return step > 0;
            }
            let report = self.driver.next().expect("the leader goes on");
            self.hear_unplanned(report, self.driver.number);
        }
        steps > 0
    }

    /// A plan, after the leader may have gone on by itself: `paused` says that it has.
    fn step(&mut self, paused: bool) {
        let plan = self.plan();
        self.driver.send(plan.clone());
        loop {
            let report = self.driver.next().expect("the leader reports");
            if report.unplanned {
                // It went on while the plan was made.
                self.hear_unplanned(report, self.driver.number - 1);
                continue;
            }
            assert_eq!(report.number, self.driver.number);
            assert!(!paused || report.timing.wait_us >= 50_000, "{:?}", report.timing);
            self.apply(&plan);
            return self.hear(report, &plan.chunks);
        }
    }

    /// Another driver takes over from one that vanishes, maybe with a plan on its way.
    fn vanish(&mut self) {
        if self.dice.chance(2) {
            let plan = self.plan();
            self.driver.send(plan.clone());
            self.apply(&plan);
        }
        self.epoch += 1;
        let (driver, held) = Driver::adopt(self.events, self.epoch);
        // The last words of one that does not know yet.
        let mut gone = std::mem::replace(&mut self.driver, driver);
        gone.send(StepPlan { drops: vec![77], ..StepPlan::default() });
        let here = self.sequences.iter().filter(|known| known.is_here());
        assert!(held.iter().map(|held| held.sequence).eq(here.map(|known| known.join.sequence)));
        held.iter().for_each(|held| check_and_take(self.known(held.sequence), held));
    }
}

/// What is held of a sequence must be what it would be without any disturbance; nobody has to have heard it.
fn check_and_take(known: &mut Known, held: &HeldSequence) {
    let (join, prompt_len) = (&known.join, known.join.prompt_len);
    assert_eq!((held.prompt_len, &held.params, &held.envelope), (prompt_len, &join.params, &join.envelope));
    assert_eq!((&held.blocks, held.reading_prompt), (&known.blocks, false));
    let said = held.tokens.len() - prompt_len;
    assert!(said >= known.said, "nothing that was told is forgotten");
    let expected: Vec<u32> = known.expected[..said].iter().map(|(token, _)| *token).collect();
    assert!(held.tokens.starts_with(&join.tokens) && held.tokens[prompt_len..] == expected[..]);
    let told = held.outputs.iter().map(|output| (output.token, output.logprob.map(f32::to_bits)));
    let kept = if join.params.logprobs.is_some() { &known.expected[..said] } else { &[] };
    assert_eq!(told.collect::<Vec<_>>(), kept);
    known.said = said;
    known.prefilled = held.cached.min(prompt_len);
    known.ended = held.end.is_some();
    assert_eq!(held.cached, known.cached());
    assert_eq!(known.ended, said == known.expected.len());
    assert_eq!(held.end, known.ended.then_some(SequenceEnd::Length));
}

fn joins(vocab: usize) -> Vec<Join> {
    let of = |i: usize| {
        let prompt: Vec<u32> = (0..3 + i * 7).map(|j| ((j * j * 13 + i * 29 + 1) % vocab) as u32).collect();
        let mut join = join(i as u64 + 1, &prompt, 20 + 6 * i as u32, [0.9, 0.0][i % 2]);
        join.envelope = vec![i as u8; 3];
        join.params.logprobs = (i != 2).then_some(i as u32);
        join.params.frequency_penalty = if i == 1 { 0.4 } else { 0.0 };
        join
    };
    (0..6).map(of).collect()
}

#[test]
fn drivers_that_pause_and_vanish_change_no_bit() {
    let shape = |tp, dp| Shape { tp, dp, ..Shape::tensor(1) };
    for (name, shape, kind) in [
        ("llama", shape(1, 1), Kind::Shm),
        ("llama-odd-heads", shape(2, 1), Kind::Tcp),
        ("mixtral", shape(1, 2), Kind::Shm),
        ("mistral-window", Shape { pp: 2, ..Shape::tensor(1) }, Kind::Shm),
    ] {
        let (model, _) = golden(name);
        let ends = run_shape(&model, shape, kind, KvType::F32, |events| {
            let joins = joins(model.spec().vocab);
            let expected = Driver::attach(events, 1).generate(&joins, 2);
            let (mut vanished, mut unplanned) = (0, 0);
            for seed in SEEDS {
                let sequences = joins.iter().cloned().zip(expected.iter().cloned());
                let mut player = Player::new(events, shape.dp, sequences, seed);
                let mut paused = false;
                while player.sequences.iter().any(|known| !known.dropped) {
                    player.step(paused);
                    let steps = if player.dice.chance(3) { player.dice.roll(20) } else { 0 };
                    paused = player.pause(steps);
                    if player.dice.chance(6) {
                        player.vanish();
                        (paused, vanished) = (false, vanished + 1);
                    }
                }
                unplanned += player.unplanned;
            }
            assert!(vanished > 0 && unplanned > 0, "{name}: nothing was disturbed");
        });
        assert!(ends[0].is_ok(), "{name}: {ends:?}");
    }
}

#[test]
fn shared_beginnings_outlive_a_driver() {
    const PROMPT: usize = 2 * BLOCK_SIZE + 5;
    let (model, _) = golden("llama-odd-heads");
    let vocab = model.spec().vocab;
    let same = |id: SequenceId, cached| {
        let prompt: Vec<u32> = (0..PROMPT).map(|i| ((i * i * 13 + 5) % vocab) as u32).collect();
        let mut join = join(id, &prompt, 20, 0.9);
        join.params.seed = 11;
        Join { cached, ..join }
    };
    let enter = |join: Join, blocks: &[BlockId], rows: usize| {
        let sequence = join.sequence;
        StepPlan {
            joins: vec![join],
            grants: vec![Grant { sequence, blocks: blocks.to_vec() }],
            chunks: vec![Chunk { sequence, tokens: rows as u32 }],
            lease_ms: LONG_MS,
            ..StepPlan::default()
        }
    };
    let ends = run_shape(&model, Shape::tensor(2), Kind::Shm, KvType::F16, |events| {
        let mut first = Driver::attach(events, 1);
        let expected = first.generate(&[same(1, 0)], 1).remove(0);
        let answer: Vec<u32> = expected.iter().map(|(token, _)| *token).collect();
        // One goes on by itself; one that begins with its blocks is read in part when the driver is lost.
        first.send(enter(same(1, 0), &[0, 1, 2, 3], PROMPT));
        first.report();
        first.send(enter(same(2, 2 * BLOCK_SIZE), &[0, 1, 4, 5], 2));
        let (mut second, held) = Driver::adopt(events, 2);
        assert_eq!(held.iter().map(|held| held.sequence).collect::<Vec<_>>(), [1, 2]);
        assert_eq!((held[1].cached, &held[1].blocks[..]), (2 * BLOCK_SIZE + 2, &[0, 1, 4, 5][..]));
        // The rest of it, and a third that copies the block where the prompt ends.
        let mut plan = enter(same(3, PROMPT - 1), &[0, 1, 7, 8], 1);
        plan.copies = vec![BlockCopy { from: 2, to: 7 }];
        plan.chunks.push(Chunk { sequence: 2, tokens: 3 });
        second.send(plan);
        let (mut third, held) = Driver::adopt(events, 3);
        let mut ended = held.iter().filter(|held| held.sequence > 1 && held.end.is_some()).count();
        while ended < 2 {
            let report = third.next().expect("it goes on");
            assert_eq!((report.number, report.unplanned), (0, true));
            ended += report.outputs.iter().filter(|o| o.sequence > 1 && o.end.is_some()).count();
        }
        // All that were said, whoever heard it.
        let (_, held) = Driver::adopt(events, 4);
        assert_eq!(held.len(), 3);
        for held in held {
            assert_eq!(held.tokens[PROMPT..], answer, "sequence {}", held.sequence);
            let told = held.outputs.iter().map(|output| (output.token, output.logprob.map(f32::to_bits)));
            assert!(told.eq(expected.iter().copied()), "sequence {}", held.sequence);
            assert_eq!(held.end, Some(SequenceEnd::Length));
        }
    });
    assert!(ends[0].is_ok(), "{ends:?}");
}

#[test]
fn a_driver_that_wants_nothing_finds_nothing() {
    let (model, _) = golden("llama");
    let ends = run_shape(&model, Shape::tensor(2), Kind::Shm, KvType::F32, |events| {
        let mut expected = None;
        for epoch in [1, 2] {
            // Whatever was held would be an error here, and so would the name.
            let mut driver = Driver::attach(events, epoch);
            driver.send(StepPlan {
                joins: vec![join(1, &[1, 2, 3], 9, 0.0)],
                grants: vec![Grant { sequence: 1, blocks: vec![3] }],
                chunks: vec![Chunk { sequence: 1, tokens: 3 }],
                lease_ms: LONG_MS,
                ..StepPlan::default()
            });
            let outputs = driver.report().outputs;
            assert_eq!(expected.get_or_insert(outputs.clone()), &outputs);
        }
        let (_, held) = Driver::adopt(events, 3);
        assert_eq!(held.len(), 1);
    });
    assert!(ends[0].is_ok(), "{ends:?}");
}
