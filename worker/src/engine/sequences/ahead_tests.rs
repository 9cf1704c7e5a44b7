//! A table that follows wherever it can says what one does that takes one step after the other.

use foggara_kernels::cuda::testing::Random;
use foggara_proto::sequence::{SequenceEnd, SequenceParams};
use foggara_proto::step::{Chunk, Grant, Join};

use super::*;
use crate::decoder::Scores;

const VOCAB: u32 = 40;
const BLOCK_SIZE: usize = 4;

/// Of a sequence, in one step.
type Output = (SequenceId, Vec<u32>, Option<SequenceEnd>);

/// Runs plans; the token after another depends on the sequence, the position and that token.
struct Table {
    table: SequenceTable,
    ahead: bool,
    /// The step that runs, its rows' tokens being known to the device: of each sequence, position and token.
    running: Option<Vec<(u32, u32, u32)>>,
    wants: Vec<Want>,
    /// What each plan has come to, in order.
    told: Vec<(Vec<Output>, Vec<SequenceId>)>,
    followed: usize,
}

/// The token behind one of a slot at a position.
fn after((slot, position, token): (u32, u32, u32)) -> u32 {
    (slot * 7 + position * position * 3 + token * 11 + 1) % VOCAB
}

/// The same where text repeats, until something comes that ends it and was not to be expected.
fn again((slot, position, token): (u32, u32, u32)) -> u32 {
    if (position + slot) % 29 == 28 { 3 } else { (token + 1) % 5 + 10 }
}

impl Table {
    fn new(ahead: bool) -> Self {
        let table = SequenceTable::new(VOCAB as usize, BLOCK_SIZE, 64);
        Self { table, ahead, running: None, wants: Vec::new(), told: Vec::new(), followed: 0 }
    }

    fn plan(&mut self, plan: StepPlan, next: fn((u32, u32, u32)) -> u32) {
        if self.running.is_some() && self.table.can_follow(&plan) {
            let (mut input, fed) = self.table.follow(plan);
            let before = self.running.take().expect("it runs");
            assert!((1..=before.len()).contains(&input.segments.len()) && input.tokens.len() == fed.len());
            for (token, row) in input.tokens.iter_mut().zip(&fed) {
                if let Some(row) = row {
                    *token = next(before[*row]);
                }
            }
            let wants = std::mem::take(&mut self.wants);
            self.take(&before, &wants, next);
            self.table.next();
            self.start(&input);
            self.followed += 1;
            return;
        }
        self.finish(next);
        let input = self.table.begin(plan).expect("it makes sense");
        self.start(&input);
        let decodes = input.segments.iter().all(|segment| segment.len == 1 && segment.logits_from == 0);
        let found = self.wants.iter().all(|want| matches!(want, Want::Best(1) | Want::Drawn(_)));
        if !(self.ahead && decodes && found && !input.segments.is_empty()) {
            self.finish(next);
        }
    }

    fn start(&mut self, input: &StepInput) {
        let (mut rows, mut first) = (Vec::new(), 0);
        self.wants.clear();
        for (i, segment) in input.segments.iter().enumerate() {
            for row in segment.logits_from..segment.len {
                rows.push((segment.slot, segment.start + row, input.tokens[first + row as usize]));
                self.wants.push(input.want(i));
            }
            first += segment.len as usize;
        }
        self.running = Some(rows);
    }

    fn finish(&mut self, next: fn((u32, u32, u32)) -> u32) {
        let Some(rows) = self.running.take() else { return };
        let wants = std::mem::take(&mut self.wants);
        self.take(&rows, &wants, next);
    }

    fn take(&mut self, rows: &[(u32, u32, u32)], wants: &[Want], next: fn((u32, u32, u32)) -> u32) {
        for (i, (row, want)) in rows.iter().zip(wants).enumerate() {
            let token = next(*row);
            let mut logits = vec![0.0; VOCAB as usize];
            logits[token as usize] = 9.0;
            let others = (0..VOCAB).filter(|other| *other != token).map(|other| (other, 0.0));
            match want {
                Want::Whole => self.table.take_scores(i, Scores::Whole(&logits)),
                Want::Best(count) => {
                    let best: Vec<_> =
                        std::iter::once((token, 9.0)).chain(others).take(*count as usize).collect();
                    self.table.take_scores(i, Scores::Best(&best));
                }
                Want::Drawn(_) => self.table.take_scores(i, Scores::Drawn(token)),
            }
        }
        let outputs = self.table.finish().into_iter();
        let tokens = |output: &foggara_proto::step::SequenceOutput| {
            output.tokens.iter().map(|token| token.token).collect::<Vec<_>>()
        };
        let outputs = outputs.map(|output| (output.sequence, tokens(&output), output.end)).collect();
        self.told.push((outputs, self.table.take_skipped()));
    }

    /// What each sequence said.
    fn said(&self) -> BTreeMap<SequenceId, Vec<u32>> {
        let mut said = BTreeMap::<_, Vec<u32>>::new();
        for (id, tokens, _) in self.told.iter().flat_map(|(outputs, _)| outputs) {
            said.entry(*id).or_default().extend(tokens);
        }
        said
    }
}

fn params(random: &mut Random, id: SequenceId) -> SequenceParams {
    let kind = random.below(8);
    SequenceParams {
        max_tokens: 1 + random.below(29) as u32,
        temperature: if kind.is_multiple_of(2) { 0.0 } else { 1.0 },
        top_p: 0.9,
        seed: id,
        stop_token_ids: vec![3, 8],
        // Some of which more than a token is wanted: from some token on, or always.
        min_tokens: if kind == 2 { 4 } else { 0 },
        frequency_penalty: if kind == 3 { 0.5 } else { 0.0 },
        logprobs: (kind == 4 && random.below(3) == 0).then_some(1),
        ..SequenceParams::default()
    }
}

/// Plans as a driver sends them that knows nothing of what is found: sequences come, are given blocks (sometimes late) and are
/// dropped, `busy` of ten plans.
fn plans(seed: u64, busy: usize, drops: bool) -> Vec<StepPlan> {
    let mut random = Random::new(seed);
    let (mut plans, mut living, mut block) = (Vec::new(), Vec::<(SequenceId, usize)>::new(), 0);
    for step in 0..120 {
        let mut plan = StepPlan::default();
        if drops && !living.is_empty() && random.below(10) < busy {
            let (id, _) = living.swap_remove(random.below(living.len()));
            plan.drops.push(id);
        }
        if living.len() < 5 && step < 90 && random.below(10) < busy {
            let (id, len) = (step as u64 + 1, 1 + random.below(6));
            let tokens: Vec<u32> = (0..len).map(|_| random.below(VOCAB as usize) as u32).collect();
            let join = Join {
                sequence: id,
                prompt_len: tokens.len(),
                tokens,
                params: params(&mut random, id),
                cached: 0,
                envelope: Vec::new(),
            };
            plan.chunks.push(Chunk { sequence: id, tokens: len as u32 });
            plan.joins.push(join);
            living.push((id, 0));
        }
        for (id, blocks) in &mut living {
            let new = *blocks < 2 || random.below(3) == 0;
            if new && *blocks < 12 {
                plan.grants.push(Grant { sequence: *id, blocks: vec![block, block + 1] });
                (*blocks, block) = (*blocks + 2, block + 2);
            }
        }
        plans.push(plan);
    }
    plans
}

#[test]
fn every_plan_comes_to_the_same() {
    let (mut followed, mut skipped) = (0, 0);
    for seed in 0..60 {
        let plans = plans(seed, 1 + seed as usize % 4, true);
        let (mut table, mut expected) = (Table::new(true), Table::new(false));
        for plan in plans {
            expected.plan(plan.clone(), after);
            table.plan(plan, after);
        }
        table.finish(after);
        assert_eq!(expected.followed, 0);
        for (step, (told, expected)) in table.told.iter().zip(&expected.told).enumerate() {
            assert_eq!(told, expected, "seed {seed}, step {step}");
        }
        assert_eq!(table.told.len(), expected.told.len(), "seed {seed}");
        // A driver that took over would find the same.
        assert_eq!(table.table.held(), expected.table.held(), "seed {seed}");
        followed += table.followed;
        skipped += expected.told.iter().map(|(_, skipped)| skipped.len()).sum::<usize>();
    }
    assert!(followed > 1000 && skipped > 100, "{followed} followed, {skipped} skipped");
}

#[test]
fn what_repeats_is_drafted_and_not_followed() {
    let drafts = Drafts { most: 4, price: 100 };
    let (mut followed, mut drafted, mut right) = (0, 0, 0);
    for seed in 0..20 {
        let mut plans = plans(seed, 2, false);
        plans.iter_mut().for_each(|plan| plan.drafts = drafts);
        // Until all have ended.
        plans.extend((0..60).map(|_| StepPlan { drafts, ..StepPlan::default() }));
        let (mut table, mut expected) = (Table::new(true), Table::new(false));
        for plan in plans {
            expected.plan(plan.clone(), again);
            right += expected.table.take_drafted().1;
            table.plan(plan, again);
            drafted += table.table.take_drafted().1;
            // What an end leaves of drafts is forgotten.
            assert!(expected.table.held().iter().all(|held| held.cached < held.tokens.len()), "seed {seed}");
        }
        table.finish(again);
        assert_eq!(table.said(), expected.said(), "seed {seed}");
        let held = |table: &Table| -> Vec<_> {
            table.table.held().into_iter().map(|held| (held.tokens, held.cached, held.end)).collect()
        };
        assert_eq!(held(&table), held(&expected), "seed {seed}");
        followed += table.followed;
    }
    assert!(followed > 100 && 10 * drafted > 8 * right, "{followed} followed, {drafted} of {right} drafted");
}

#[test]
fn what_comes_or_goes_does_not_follow() {
    // A prompt of one token: its step can be begun, too.
    let begin = |frequency_penalty: f32| {
        let mut table = Table::new(true);
        let params = SequenceParams { max_tokens: 3, frequency_penalty, ..SequenceParams::default() };
        let (tokens, envelope) = (vec![1], Vec::new());
        let join = Join { sequence: 1, prompt_len: 1, tokens, params, cached: 0, envelope };
        let grants = vec![Grant { sequence: 1, blocks: vec![0, 1] }];
        let chunks = vec![Chunk { sequence: 1, tokens: 1 }];
        table.plan(StepPlan { joins: vec![join], grants, chunks, ..StepPlan::default() }, after);
        assert!(table.running.is_some());
        table
    };
    assert!(!begin(0.5).table.can_follow(&StepPlan::default()), "what is penalised is not known");
    let table = || begin(0.0);
    let grant = |sequence| vec![Grant { sequence, blocks: vec![7] }];
    let can = |plan: StepPlan| table().table.can_follow(&plan);
    assert!(can(StepPlan::default()) && can(StepPlan { grants: grant(1), ..StepPlan::default() }));
    assert!(!can(StepPlan { grants: grant(2), ..StepPlan::default() }), "nobody's");
    assert!(!can(StepPlan { drops: vec![1], ..StepPlan::default() }));
    assert!(!can(StepPlan { chunks: vec![Chunk { sequence: 1, tokens: 1 }], ..StepPlan::default() }));
    let copies = vec![foggara_proto::step::BlockCopy { from: 0, to: 1 }];
    assert!(!can(StepPlan { copies, ..StepPlan::default() }));
    // Its third token is its last: behind the second another step follows, behind the third none.
    let mut table = table();
    (0..2).for_each(|_| table.plan(StepPlan::default(), after));
    assert_eq!(table.followed, 2);
    assert!(!table.table.can_follow(&StepPlan::default()));
}
