//! A model of the leader for tests: it executes plans as the step protocol says, and knows of every place in every block which
//! tokens, under which salt, it holds the keys and values of. Reading anything else, or writing to what others hold, fails.

use std::collections::BTreeMap;

use foggara_proto::sequence::{SequenceEnd, TokenOutput};
use foggara_proto::step::{BlockId, Join, SequenceId, SequenceOutput, StepPlan, StepReport};

use super::Limits;

/// What a leader would hold of a sequence.
struct Held {
    tokens: Vec<u32>,
    prompt_len: usize,
    max_tokens: usize,
    salt: u64,
    cached: usize,
    prefilled: bool,
    blocks: Vec<BlockId>,
    ended: bool,
}

/// A leader that samples `next(tokens)` and ends sequences at token 0 or at their length.
pub(crate) struct ModelLeader {
    limits: Limits,
    held: BTreeMap<SequenceId, Held>,
    /// For each place of each block, what stands there: see [`digests`].
    contents: Vec<Vec<u64>>,
    last: u64,
    /// Of the last step.
    pub(super) rows: usize,
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
        Self { limits, held: BTreeMap::new(), contents, last: 0, rows: 0, salts: BTreeMap::new() }
    }

    pub(crate) fn execute(&mut self, plan: &StepPlan) -> StepReport {
        assert_eq!(plan.number, self.last + 1, "plans are numbered without gaps");
        self.last = plan.number;
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
        self.rows = 0;
        let ids: Vec<SequenceId> = self.held.keys().copied().collect();
        let outputs = ids.into_iter().filter_map(|id| self.run(id, chunks.get(&id).copied())).collect();
        let most = self.limits.step_rows as usize;
        assert!(self.rows <= most, "{} rows in a step of {most}", self.rows);
        StepReport { driver_epoch: plan.driver_epoch, number: plan.number, outputs, ..StepReport::default() }
    }

    fn join(&mut self, join: &Join) {
        assert!(join.cached < join.tokens.len(), "{}: nothing left to compute", join.sequence);
        assert!(join.cached == 0 || !join.params.prompt_logprobs, "{}: rows without logits", join.sequence);
        let held = Held {
            tokens: join.tokens.clone(),
            prompt_len: join.prompt_len,
            max_tokens: join.params.max_tokens as usize,
            salt: self.salts.get(&join.sequence).copied().unwrap_or(0),
            cached: join.cached,
            prefilled: false,
            blocks: vec![],
            ended: false,
        };
        assert!(self.held.insert(join.sequence, held).is_none(), "{} joined twice", join.sequence);
    }

    /// The rows of one sequence, `named` of prefill or one if it decodes.
    fn run(&mut self, id: SequenceId, named: Option<usize>) -> Option<SequenceOutput> {
        let held = &self.held[&id];
        let rows = match named {
            Some(rows) => rows,
            None if held.ended || !held.prefilled || held.cached + 1 != held.tokens.len() => return None,
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
        let generated = held.tokens.len() - held.prompt_len;
        let token = (generated < held.max_tokens).then(|| next(&held.tokens));
        held.tokens.extend(token);
        let end = match token {
            Some(0) => Some(SequenceEnd::StopToken),
            _ if generated + 1 >= held.max_tokens => Some(SequenceEnd::Length),
            _ => None,
        };
        held.ended = end.is_some();
        let token = token.map(|token| TokenOutput { token, logprob: None, top: vec![] });
        Some(SequenceOutput { sequence: id, prompt: vec![], token, end })
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
