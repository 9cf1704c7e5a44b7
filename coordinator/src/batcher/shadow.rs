//! A model of the leader for tests: it executes plans as the step protocol says, and knows of every place in every block which
//! tokens, under which salt, it holds the keys and values of. Reading anything else, or writing to what others hold, fails.

use std::collections::BTreeMap;

use foggara_proto::sequence::{SequenceEnd, SequenceParams, TokenOutput};
use foggara_proto::step::{
    BlockId, Drafts, HeldSequence, Join, SequenceId, SequenceOutput, StepPlan, StepReport,
};

use super::Limits;
use super::tests::Lcg;

/// What a leader would hold of a sequence.
struct Held {
    tokens: Vec<u32>,
    prompt_len: usize,
    params: SequenceParams,
    envelope: Vec<u8>,
    salt: u64,
    cached: usize,
    prefilled: bool,
    blocks: Vec<BlockId>,
    end: Option<SequenceEnd>,
}

impl Held {
    fn decodes(&self) -> bool {
        self.end.is_none() && self.prefilled && self.cached + 1 == self.tokens.len()
    }

    /// Its next token, unless it has all it may.
    fn sample(&mut self) -> Option<u32> {
        let generated = self.tokens.len() - self.prompt_len;
        let most = self.params.max_tokens as usize;
        let token = (generated < most).then(|| next(&self.tokens));
        self.tokens.extend(token);
        self.end = match token {
            Some(0) => Some(SequenceEnd::StopToken),
            _ if generated + 1 >= most => Some(SequenceEnd::Length),
            _ => None,
        };
        token
    }
}

/// A leader that samples `next(tokens)` and ends sequences at token 0 or at their length.
pub(crate) struct ModelLeader {
    limits: Limits,
    held: BTreeMap<SequenceId, Held>,
    /// For each place of each block, what stands there: see [`digests`].
    contents: Vec<Vec<u64>>,
    last: u64,
    driver_epoch: u64,
    /// Steps that it has run without a plan.
    pub(super) unplanned: u64,
    /// Decodes that had to be left out of plans.
    pub(super) skipped: u64,
    /// Of the last step.
    pub(super) rows: usize,
    /// What is drafted is right or wrong by chance.
    random: Lcg,
    drafts: Drafts,
    drafted: u32,
    /// Drafted tokens that were right, of all steps.
    pub(super) accepted: u64,
    rows_left: usize,
    /// Salts of sequences that have one, to be told before they join.
    pub(super) salts: BTreeMap<SequenceId, u64>,
}

/// The token that follows: a function of everything before, as greedy sampling is. 0 ends a sequence.
pub(super) fn next(tokens: &[u32]) -> u32 {
    tokens.iter().fold(17u32, |hash, token| hash.wrapping_mul(31).wrapping_add(*token)) % 23
}

/// What the undisturbed sequence would be.
pub(super) fn expected(prompt: &[u32], max_tokens: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    while tokens.len() < prompt.len() + max_tokens {
        tokens.push(next(&tokens));
        if tokens.last() == Some(&0) {
            break;
        }
    }
    tokens.split_off(prompt.len())
}

/// What stands at each position of a sequence: a number for the salt and all tokens up to there.
fn digests(salt: u64, tokens: &[u32]) -> Vec<u64> {
    let step = |state: &mut u64, token: &u32| {
        *state = (*state ^ u64::from(*token)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) + 1;
        Some(*state)
    };
    tokens.iter().scan(salt.wrapping_mul(7919) + 3, step).collect()
}

impl ModelLeader {
    pub(crate) fn new(limits: Limits) -> Self {
        let blocks = (limits.kv_blocks * limits.pools) as usize;
        let contents = vec![vec![0; limits.block_size as usize]; blocks];
        let (held, salts) = Default::default();
        let (last, driver_epoch, unplanned, skipped, rows, drafted, accepted) = (0, 0, 0, 0, 0, 0, 0);
        let (random, drafts) = (Lcg(9), Drafts::default());
        Self {
            limits,
            held,
            contents,
            last,
            driver_epoch,
            unplanned,
            skipped,
            rows,
            random,
            drafts,
            drafted,
            accepted,
            rows_left: 0,
            salts,
        }
    }

    pub(crate) fn execute(&mut self, plan: &StepPlan) -> StepReport {
        assert_eq!(plan.number, self.last + 1, "plans are numbered without gaps");
        (self.last, self.driver_epoch, self.drafts) = (plan.number, plan.driver_epoch, plan.drafts);
        for drop in &plan.drops {
            assert!(self.held.remove(drop).is_some(), "drop of an unknown sequence {drop}");
        }
        plan.joins.iter().for_each(|join| self.join(join));
        for grant in &plan.grants {
            let held = self.held.get_mut(&grant.sequence).expect("granted to a known sequence");
            held.blocks.extend(&grant.blocks);
        }
        self.check_pools();
        for copy in &plan.copies {
            assert_eq!(self.holders(copy.to), 1, "block {} is copied over", copy.to);
            self.contents[copy.to as usize] = self.contents[copy.from as usize].clone();
        }
        let chunks: BTreeMap<_, _> = plan.chunks.iter().map(|c| (c.sequence, c.tokens as usize)).collect();
        assert!(chunks.keys().all(|id| self.held.contains_key(id)), "chunk of an unknown sequence");
        let without_room: Vec<SequenceId> = self
            .held
            .iter()
            .filter(|(_, held)| held.decodes() && !self.has_room(held))
            .map(|(id, _)| *id)
            .collect();
        let skipped: Vec<SequenceId> =
            without_room.into_iter().filter(|id| !chunks.contains_key(id)).collect();
        assert!(skipped.is_empty() || self.unplanned + self.accepted > 0, "no block for {skipped:?}");
        self.skipped += skipped.len() as u64;
        StepReport { skipped, ..self.step(&chunks) }
    }

    /// A step without a plan; `None` if there is nothing that can decode.
    pub(crate) fn go_on(&mut self) -> Option<StepReport> {
        let report = self.step(&BTreeMap::new());
        self.unplanned += u64::from(self.rows > 0);
        (self.rows > 0).then_some(StepReport { unplanned: true, ..report })
    }

    /// Another driver attaches: what there is.
    pub(crate) fn attach(&mut self, driver_epoch: u64) -> Vec<HeldSequence> {
        (self.last, self.driver_epoch, self.drafts) = (0, driver_epoch, Drafts::default());
        let held = |(id, held): (&SequenceId, &Held)| HeldSequence {
            sequence: *id,
            tokens: held.tokens.clone(),
            prompt_len: held.prompt_len,
            params: held.params.clone(),
            envelope: held.envelope.clone(),
            blocks: held.blocks.clone(),
            cached: held.cached,
            outputs: vec![],
            end: held.end,
            reading_prompt: held.params.prompt_logprobs && !held.prefilled,
            decodes: held.prefilled,
        };
        self.held.iter().map(held).collect()
    }

    fn has_room(&self, held: &Held) -> bool {
        held.cached < held.blocks.len() * self.limits.block_size as usize
    }

    fn step(&mut self, chunks: &BTreeMap<SequenceId, usize>) -> StepReport {
        (self.rows, self.drafted) = (0, 0);
        let before = self.accepted;
        let decoding = |(id, held): &(&SequenceId, &Held)| held.decodes() && !chunks.contains_key(id);
        let named = self.held.iter().filter(decoding).count() + chunks.values().sum::<usize>();
        self.rows_left = (self.limits.step_rows as usize).saturating_sub(named);
        let ids: Vec<SequenceId> = self.held.keys().copied().collect();
        let outputs = ids.into_iter().filter_map(|id| self.run(id, chunks.get(&id).copied())).collect();
        let most = self.limits.step_rows as usize;
        assert!(self.rows <= most, "{} rows in a step of {most}", self.rows);
        let (driver_epoch, number) = (self.driver_epoch, self.last);
        let (drafted, accepted) = (self.drafted, (self.accepted - before) as u32);
        StepReport { driver_epoch, number, outputs, drafted, accepted, ..StepReport::default() }
    }

    fn join(&mut self, join: &Join) {
        assert!(join.cached < join.tokens.len(), "{}: nothing left to compute", join.sequence);
        assert!(join.cached == 0 || !join.params.prompt_logprobs, "{}: rows without logits", join.sequence);
        let held = Held {
            tokens: join.tokens.clone(),
            prompt_len: join.prompt_len,
            params: join.params.clone(),
            envelope: join.envelope.clone(),
            salt: self.salts.get(&join.sequence).copied().unwrap_or(0),
            cached: join.cached,
            prefilled: false,
            blocks: vec![],
            end: None,
        };
        assert!(self.held.insert(join.sequence, held).is_none(), "{} joined twice", join.sequence);
    }

    /// The rows of one sequence, `named` of prefill or one if it decodes.
    fn run(&mut self, id: SequenceId, named: Option<usize>) -> Option<SequenceOutput> {
        let held = &self.held[&id];
        let rows = match named {
            Some(rows) => rows,
            None if !held.decodes() || !self.has_room(held) => return None,
            None => 1,
        };
        let (start, end, size) = (held.cached, held.cached + rows, self.limits.block_size as usize);
        assert!(end <= held.tokens.len(), "{id}: prefill past the known tokens");
        assert!(end <= held.blocks.len() * size, "{id}: written outside its blocks");
        let wanted = digests(held.salt, &held.tokens[..end]);
        let blocks = held.blocks.clone();
        for (position, wanted) in wanted.iter().enumerate() {
            let block = blocks[position / size];
            let place = &mut self.contents[block as usize][position % size];
            if position < start {
                assert_eq!(place, wanted, "{id}: position {position} in block {block} is another's");
            } else {
                *place = *wanted;
                assert_eq!(self.holders(block), 1, "{id} writes to block {block}");
            }
        }
        self.rows += rows;
        let held = self.held.get_mut(&id).expect("looked up above");
        held.cached = end;
        if end < held.tokens.len() {
            return None;
        }
        held.prefilled = true;
        let mut tokens: Vec<u32> = held.sample().into_iter().collect();
        if named.is_none() {
            tokens.extend(self.guess(id));
        }
        let output = |token| TokenOutput { token, logprob: None, top: vec![] };
        let tokens = tokens.into_iter().map(output).collect();
        Some(SequenceOutput { sequence: id, prompt: vec![], tokens, end: self.held[&id].end })
    }

    /// The tokens after one that decodes, of rows behind its own that hold what was guessed.
    fn guess(&mut self, id: SequenceId) -> Vec<u32> {
        let (held, size) = (&self.held[&id], self.limits.block_size as usize);
        // It has been given its token already.
        let room = (held.blocks.len() * size).saturating_sub(held.cached);
        let wanted = (held.params.max_tokens as usize + held.prompt_len).saturating_sub(held.tokens.len());
        let most = room.min(wanted).min(self.rows_left).min(self.drafts.most as usize);
        let count = self.random.below(most as u64 + 1) as usize;
        (self.rows_left, self.drafted, self.rows) =
            (self.rows_left - count, self.drafted + count as u32, self.rows + count);
        let (mut tokens, mut right) = (Vec::new(), true);
        let first = held.cached;
        for position in first..first + count {
            let held = self.held.get_mut(&id).expect("looked up above");
            right &= held.end.is_none() && self.random.below(4) > 0;
            let block = held.blocks[position / size];
            let content = match right {
                true => digests(held.salt, &held.tokens)[position],
                false => self.random.below(u64::MAX),
            };
            self.contents[block as usize][position % size] = content;
            if right {
                held.cached = position + 1;
                self.accepted += 1;
                tokens.extend(held.sample());
            }
            assert_eq!(self.holders(block), 1, "{id} guesses in block {block}");
        }
        tokens
    }

    fn holders(&self, block: BlockId) -> usize {
        self.held.values().filter(|held| held.blocks.contains(&block)).count()
    }

    fn check_pools(&self) {
        for (id, held) in &self.held {
            let pool = |block: &BlockId| block / self.limits.kv_blocks;
            let first = held.blocks.first().map(pool);
            assert!(held.blocks.iter().all(|block| Some(pool(block)) == first), "{id}: blocks of two pools");
            assert!(first.is_none_or(|pool| pool < self.limits.pools), "{id}: blocks that do not exist");
            let mut blocks = held.blocks.clone();
            blocks.sort_unstable();
            blocks.dedup();
            assert_eq!(blocks.len(), held.blocks.len(), "{id} has a block twice");
        }
    }
}
