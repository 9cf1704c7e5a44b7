//! An engine without a model: it keeps a leader's books, and charges for what a step does.

use std::collections::{BTreeMap, BTreeSet};

use foggara_proto::sequence::{SequenceEnd, TokenOutput};
use foggara_proto::step::{BlockId, Join, SequenceId, SequenceOutput, StepPlan, StepReport, StepTiming};

use crate::batcher::Limits;
use crate::batcher::tests::Lcg;

/// What steps of an engine cost, in microseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Costs {
    pub(super) fixed: f64,
    pub(super) row: f64,
    pub(super) sampled: f64,
    pub(super) attended: f64,
}

impl Costs {
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn of(&self, rows: usize, sampled: usize, attended: usize) -> f64 {
        self.fixed + self.row * rows as f64 + self.sampled * sampled as f64 + self.attended * attended as f64
    }

    /// A request by itself, its prompt in steps of `step_rows`.
    pub(super) fn alone(&self, prompt: usize, answer: usize, step_rows: usize) -> f64 {
        let prefill: f64 = (0..prompt)
            .step_by(step_rows)
            .map(|start| {
                let rows = step_rows.min(prompt - start);
                self.of(rows, 0, rows * start + rows * (rows + 1) / 2)
            })
            .sum();
        prefill + (prompt..prompt + answer).map(|context| self.of(1, 1, context)).sum::<f64>()
    }
}

struct Held {
    prompt_len: usize,
    joined_with: usize,
    known: usize,
    cached: usize,
    /// Tokens after which it ends: its parameters' seed, or `max_tokens`.
    answer: usize,
    stops: bool,
    blocks: Vec<BlockId>,
    ended: bool,
}

impl Held {
    fn new(join: &Join) -> Self {
        let most = join.params.max_tokens as usize;
        let answer = usize::try_from(join.params.seed).unwrap_or(most).clamp(1, most);
        Self {
            prompt_len: join.prompt_len,
            joined_with: join.tokens.len(),
            known: join.tokens.len(),
            cached: join.cached,
            answer,
            stops: answer < most,
            blocks: Vec::new(),
            ended: false,
        }
    }
}

/// A step as it was executed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Executed {
    pub(super) rows: usize,
    pub(super) prefill: usize,
    pub(super) sampled: usize,
    pub(super) attended: usize,
    pub(super) micros: f64,
}

pub(super) struct Engine {
    pub(super) costs: Costs,
    limits: Limits,
    /// Steps take up to this part more or less.
    noise: f64,
    random: Lcg,
    held: BTreeMap<SequenceId, Held>,
    last: u64,
    /// Sequences in the order in which they entered, and with how many tokens.
    pub(super) entered: Vec<SequenceId>,
    /// Prompt rows and sampled tokens of each sequence so far.
    pub(super) given: BTreeMap<SequenceId, (usize, usize)>,
}

impl Engine {
    pub(super) fn new(costs: Costs, limits: Limits, noise: f64, seed: u64) -> Self {
        let (held, given) = (BTreeMap::new(), BTreeMap::new());
        Self { costs, limits, noise, random: Lcg(seed), held, last: 0, entered: Vec::new(), given }
    }

    pub(super) fn execute(&mut self, plan: &StepPlan) -> (StepReport, Executed) {
        assert_eq!(plan.number, self.last + 1, "plans are numbered without gaps");
        self.last = plan.number;
        for id in &plan.drops {
            assert!(self.held.remove(id).is_some(), "drop of an unknown sequence {id}");
        }
        for join in &plan.joins {
            self.entered.push(join.sequence);
            assert!(
                self.held.insert(join.sequence, Held::new(join)).is_none(),
                "{} joined twice",
                join.sequence
            );
        }
        for grant in &plan.grants {
            let held = self.held.get_mut(&grant.sequence).expect("granted to a known sequence");
            held.blocks.extend(&grant.blocks);
        }
        self.check_blocks();
        let chunks: BTreeMap<_, _> = plan.chunks.iter().map(|c| (c.sequence, c.tokens as usize)).collect();
        assert_eq!(chunks.len(), plan.chunks.len(), "one chunk for a sequence");
        assert!(chunks.keys().all(|id| self.held.contains_key(id)), "chunk of an unknown sequence");
        let mut done = Executed::default();
        let mut outputs = Vec::new();
        for (id, held) in &mut self.held {
            let decodes = !held.ended && held.cached >= held.joined_with && held.cached < held.known;
            let chunk = chunks.get(id).copied();
            let rows = chunk.unwrap_or(usize::from(decodes));
            if rows == 0 {
                continue;
            }
            done.rows += rows;
            done.prefill += chunk.unwrap_or(0);
            done.attended += rows * held.cached + rows * (rows + 1) / 2;
            let given = self.given.entry(*id).or_default();
            given.0 += chunk.unwrap_or(0);
            held.cached += rows;
            assert!(held.cached <= held.known && !held.ended, "{id}: more rows than tokens");
            assert!(
                held.cached <= held.blocks.len() * self.limits.block_size as usize,
                "{id}: no block for it"
            );
            if held.cached == held.known {
                held.known += 1;
                done.sampled += 1;
                given.1 += 1;
                held.ended = held.known - held.prompt_len >= held.answer;
                let end = if held.stops { SequenceEnd::StopToken } else { SequenceEnd::Length };
                let tokens = vec![TokenOutput { token: 1, logprob: None, top: vec![] }];
                let end = held.ended.then_some(end);
                outputs.push(SequenceOutput { sequence: *id, prompt: vec![], tokens, end });
            }
        }
        assert!(done.rows <= self.limits.step_rows as usize, "{} rows in a step", done.rows);
        if done.rows > 0 {
            #[allow(clippy::cast_precision_loss)]
            let noise = 1.0 + self.noise * (self.random.below(2_001) as f64 / 1_000.0 - 1.0);
            done.micros = self.costs.of(done.rows, done.sampled, done.attended) * noise;
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let timing =
            StepTiming { rows: done.rows as u32, compute_us: done.micros as u32, ..StepTiming::default() };
        let (driver_epoch, number) = (plan.driver_epoch, plan.number);
        (StepReport { driver_epoch, number, outputs, timing, ..StepReport::default() }, done)
    }

    fn check_blocks(&self) {
        let mut seen = BTreeSet::new();
        for (id, block) in self.held.iter().flat_map(|(id, held)| held.blocks.iter().map(move |b| (id, b))) {
            assert!(*block < self.limits.kv_blocks * self.limits.pools, "block {block} does not exist");
            assert!(seen.insert(*block), "block {block} of {id} is held twice");
        }
    }
}
