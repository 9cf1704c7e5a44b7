//! The batcher against a model of the leader: every plan is executed as DESIGN's step loop says, every invariant checked.

use std::collections::{BTreeMap, BTreeSet};

use foggara_proto::sequence::{SequenceEnd, SequenceParams, TokenOutput};
use foggara_proto::step::{BlockId, SequenceId, SequenceOutput, StepPlan, StepReport};

use super::{Batcher, Limits, PLANS_AHEAD, Refusal, ReportError};

fn params(max_tokens: u32) -> SequenceParams {
    SequenceParams {
        max_tokens,
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        seed: 0,
        stop_token_ids: vec![],
        logprobs: None,
        prompt_logprobs: false,
        ..SequenceParams::default()
    }
}

const LIMITS: Limits = Limits {
    kv_blocks: 64,
    pools: 1,
    block_size: 4,
    step_rows: 16,
    prefill_rows_beside_decodes: 8,
    sequences: 8,
    queue: 100,
};

/// What a leader would hold of a sequence.
struct Held {
    tokens: Vec<u32>,
    prompt_len: usize,
    max_tokens: usize,
    cached: usize,
    blocks: Vec<BlockId>,
    ended: bool,
}

/// A leader that samples `next(tokens)` and ends sequences at token 0 or at their length.
#[derive(Default)]
struct ModelLeader {
    held: BTreeMap<SequenceId, Held>,
    last: u64,
    rows: usize,
}

/// The token that follows: a function of everything before, as greedy sampling is. 0 ends a sequence.
fn next(tokens: &[u32]) -> u32 {
    tokens.iter().fold(17u32, |hash, token| hash.wrapping_mul(31).wrapping_add(*token)) % 23
}

impl ModelLeader {
    fn execute(&mut self, plan: &StepPlan, limits: &Limits) -> StepReport {
        assert_eq!(plan.number, self.last + 1, "plans are numbered without gaps");
        self.last = plan.number;
        for drop in &plan.drops {
            assert!(self.held.remove(drop).is_some(), "drop of an unknown sequence {drop}");
        }
        for join in &plan.joins {
            let held = Held {
                tokens: join.tokens.clone(),
                prompt_len: join.prompt_len,
                max_tokens: join.params.max_tokens as usize,
                cached: 0,
                blocks: vec![],
                ended: false,
            };
            assert!(self.held.insert(join.sequence, held).is_none(), "{} joined twice", join.sequence);
        }
        for grant in &plan.grants {
            self.held
                .get_mut(&grant.sequence)
                .expect("granted to a known sequence")
                .blocks
                .extend(&grant.blocks);
        }
        self.check_blocks(limits);
        self.rows = 0;
        let mut report =
            StepReport { driver_epoch: plan.driver_epoch, number: plan.number, ..Default::default() };
        let chunks: BTreeMap<_, _> = plan.chunks.iter().map(|c| (c.sequence, c.tokens as usize)).collect();
        for chunk in chunks.keys() {
            assert!(self.held.contains_key(chunk), "chunk of an unknown sequence");
        }
        for (id, held) in &mut self.held {
            let rows = match chunks.get(id) {
                Some(&rows) => rows,
                None if held.ended || held.cached + 1 != held.tokens.len() || held.cached == 0 => continue,
                None => 1,
            };
            held.cached += rows;
            self.rows += rows;
            assert!(held.cached <= held.tokens.len(), "{id}: prefill past the known tokens");
            assert!(
                held.cached <= held.blocks.len() * limits.block_size as usize,
                "{id}: written outside its blocks"
            );
            if held.cached < held.tokens.len() {
                continue;
            }
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
            report.outputs.push(SequenceOutput { sequence: *id, prompt: vec![], token, end });
        }
        assert!(
            self.rows <= limits.step_rows as usize,
            "{} rows in a step of {}",
            self.rows,
            limits.step_rows
        );
        report
    }

    fn check_blocks(&self, limits: &Limits) {
        let mut seen = BTreeSet::new();
        for (id, held) in &self.held {
            let pools: BTreeSet<u32> = held.blocks.iter().map(|block| block / limits.kv_blocks).collect();
            assert!(pools.len() <= 1, "{id} has blocks of pools {pools:?}");
            for block in &held.blocks {
                assert!(*block < limits.kv_blocks * limits.pools, "block {block} does not exist");
                assert!(seen.insert(*block), "block {block} of {id} is held twice");
            }
        }
    }
}

/// What the undisturbed sequence would be.
fn expected(prompt: &[u32], max_tokens: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    while tokens.len() < prompt.len() + max_tokens {
        tokens.push(next(&tokens));
        if tokens.last() == Some(&0) {
            break;
        }
    }
    tokens.split_off(prompt.len())
}

/// A small deterministic generator: tests name their seed.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Runs `count` random sequences with random cancellations; every one not cancelled must come out as if alone.
fn run(limits: Limits, seed: u64, count: u64) -> u64 {
    let mut random = Lcg(seed);
    let (mut batcher, mut leader) = (Batcher::new(3, limits), ModelLeader::default());
    let mut wanted: BTreeMap<SequenceId, (Vec<u32>, usize)> = BTreeMap::new();
    let mut got: BTreeMap<SequenceId, Vec<u32>> = BTreeMap::new();
    let mut ended = BTreeSet::new();
    let mut sent = std::collections::VecDeque::new();
    let (mut next_id, mut steps) = (0, 0);
    while next_id < count || !batcher.is_idle() {
        steps += 1;
        assert!(steps < 100_000, "no progress: {:?}", batcher.occupancy());
        while next_id < count && random.below(3) == 0 {
            let prompt: Vec<u32> = (0..=random.below(30)).map(|_| 1 + random.below(20) as u32).collect();
            let max_tokens = random.below(40) as u32;
            match batcher.submit(next_id, prompt.clone(), prompt.len(), params(max_tokens)) {
                Ok(()) => drop(wanted.insert(next_id, (prompt, max_tokens as usize))),
                Err(refusal) => assert!(matches!(refusal, Refusal::TooLong { .. }), "{refusal}"),
            }
            next_id += 1;
        }
        if random.below(12) == 0 {
            let id = random.below(count);
            batcher.cancel(id);
            if !ended.contains(&id) {
                wanted.remove(&id);
            }
        }
        while let Some(plan) = batcher.plan() {
            sent.push_back(plan);
        }
        assert!(sent.len() <= PLANS_AHEAD);
        // The leader is behind by as many plans as it likes.
        if let Some(plan) = sent.pop_front() {
            let report = leader.execute(&plan, &limits);
            for (id, event) in batcher.report(report).expect("reports come in order") {
                assert!(!ended.contains(&id), "{id}: news after its end");
                got.entry(id).or_default().extend(event.tokens.iter().map(|t| t.token));
                if event.end.is_some() {
                    ended.insert(id);
                }
            }
        }
    }
    for (id, (prompt, max_tokens)) in &wanted {
        assert!(ended.contains(id), "{id} never ended");
        assert_eq!(got.remove(id).unwrap_or_default(), expected(prompt, *max_tokens), "sequence {id}");
    }
    let rest = batcher.occupancy();
    let all = limits.kv_blocks * limits.pools;
    assert_eq!((rest.free_blocks, rest.live_blocks, rest.running, rest.waiting), (all, 0, 0, 0));
    rest.preemptions
}

#[test]
fn random_workloads_come_out_as_if_alone() {
    for seed in 0..40 {
        run(LIMITS, seed, 60);
    }
}

#[test]
fn with_little_memory_sequences_are_preempted_and_still_come_out_the_same() {
    let limits = Limits { kv_blocks: 18, ..LIMITS };
    let preemptions: u64 = (0..40).map(|seed| run(limits, seed, 60)).sum();
    assert!(preemptions > 20, "only {preemptions}: the test does not test preemption");
}

#[test]
fn one_row_steps_and_one_token_blocks_work() {
    let limits = Limits {
        kv_blocks: 80,
        pools: 1,
        block_size: 1,
        step_rows: 3,
        prefill_rows_beside_decodes: 1,
        sequences: 2,
        queue: 100,
    };
    for seed in 0..10 {
        run(limits, seed, 20);
    }
}

#[test]
fn pools_are_preempted_each_for_itself_and_sequences_still_come_out_the_same() {
    for (pools, kv_blocks) in [(2, 64), (2, 18), (3, 18), (4, 20)] {
        let limits = Limits { kv_blocks, pools, ..LIMITS };
        let preemptions: u64 = (0..20).map(|seed| run(limits, seed, 60)).sum();
        assert!(kv_blocks > 18 || pools > 2 || preemptions > 10, "{pools} pools: only {preemptions}");
    }
}

proptest::proptest! {
    /// Free and live blocks add up, pool by pool, whatever comes and goes; and who enters goes where there is most room.
    #[test]
    fn pools_add_up_and_are_filled_fairly(
        pools in 1u32..5,
        kv_blocks in 4u32..20,
        events in proptest::collection::vec((0u8..4, 1usize..40, 0u64..20), 1..60),
    ) {
        let limits = Limits { kv_blocks, pools, ..LIMITS };
        let (mut batcher, mut leader) = (Batcher::new(1, limits), ModelLeader::default());
        let mut next_id = 0;
        for (kind, length, id) in events {
            match kind {
                0 => batcher.cancel(id),
                1 | 2 => {
                    batcher.submit(next_id, vec![1; length], length, params(8)).ok();
                    next_id += 1;
                }
                _ => {}
            }
            let before: Vec<usize> = held_by_pool(&batcher, limits);
            if let Some(plan) = batcher.plan() {
                if let (Some(first), true) = (plan.joins.first(), plan.drops.is_empty()) {
                    let grant = plan.grants.iter().find(|grant| grant.sequence == first.sequence).expect("granted");
                    // Decodes of this very plan may have taken a block of any pool before.
                    let decodes = plan.grants.iter().take_while(|other| *other != grant).count();
                    let pool = (grant.blocks[0] / kv_blocks) as usize;
                    let least = before.iter().min().expect("a pool");
                    proptest::prop_assert!(before[pool] <= least + decodes, "{before:?}: joined {pool}");
                }
                let report = leader.execute(&plan, &limits);
                batcher.report(report).expect("in order");
            }
            let held = held_by_pool(&batcher, limits);
            let occupancy = batcher.occupancy();
            proptest::prop_assert_eq!(occupancy.live_blocks as usize, held.iter().sum::<usize>());
            proptest::prop_assert_eq!(occupancy.live_blocks + occupancy.free_blocks, kv_blocks * pools);
            for (pool, held) in held.into_iter().enumerate() {
                proptest::prop_assert_eq!(held + batcher.pools.free(pool), kv_blocks as usize);
            }
        }
    }
}

/// Blocks of each pool that sequences hold.
fn held_by_pool(batcher: &Batcher, limits: Limits) -> Vec<usize> {
    let mut held = vec![0; limits.pools as usize];
    for block in batcher.sequences.values().flat_map(|sequence| &sequence.blocks) {
        held[(block / limits.kv_blocks) as usize] += 1;
    }
    held
}

#[test]
fn a_sequence_must_fit_one_pool() {
    let mut batcher = Batcher::new(1, Limits { pools: 4, ..LIMITS });
    let refusal = batcher.submit(1, vec![1; 200], 200, params(58));
    assert_eq!(refusal, Err(Refusal::TooLong { needed: 257, available: 256 }));
}

#[test]
fn equal_sequences_are_spread_evenly() {
    let mut batcher =
        Batcher::new(1, Limits { pools: 3, step_rows: 64, prefill_rows_beside_decodes: 64, ..LIMITS });
    for id in 0..6 {
        batcher.submit(id, vec![1; 4], 4, params(20)).expect("fits");
    }
    let plan = batcher.plan().expect("there is work");
    let pools: Vec<u32> = plan.grants.iter().map(|grant| grant.blocks[0] / LIMITS.kv_blocks).collect();
    assert_eq!(pools, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn the_queue_is_bounded() {
    let mut batcher = Batcher::new(1, Limits { sequences: 2, queue: 3, ..LIMITS });
    for id in 0..5 {
        assert_eq!(batcher.submit(id, vec![1], 1, params(4)), Ok(()), "{id}: two places and three waiting");
    }
    assert_eq!(batcher.submit(9, vec![1], 1, params(4)), Err(Refusal::QueueFull { limit: 3 }));
}

#[test]
fn what_can_never_fit_is_refused() {
    let mut batcher = Batcher::new(1, LIMITS);
    let refusal = batcher.submit(1, vec![1; 200], 200, params(58));
    assert_eq!(refusal, Err(Refusal::TooLong { needed: 257, available: 256 }));
    assert_eq!(batcher.submit(2, vec![1; 200], 200, params(57)), Ok(()));
}

#[test]
fn decodes_limit_the_prefill_beside_them() {
    let mut batcher = Batcher::new(1, LIMITS);
    batcher.submit(1, vec![1; 4], 4, params(20)).expect("fits");
    let first = batcher.plan().expect("there is work");
    assert_eq!(first.chunks.iter().map(|c| c.tokens).collect::<Vec<_>>(), [4]);
    batcher.submit(2, vec![1; 40], 40, params(20)).expect("fits");
    let second = batcher.plan().expect("one ahead");
    assert_eq!(second.chunks.iter().map(|c| c.tokens).collect::<Vec<_>>(), [8], "beside one decode");
    assert!(batcher.plan().is_none(), "two plans are in flight");
}

#[test]
fn reports_out_of_order_are_an_error_and_old_epochs_are_ignored() {
    let mut batcher = Batcher::new(5, LIMITS);
    batcher.submit(1, vec![1; 4], 4, params(20)).expect("fits");
    batcher.plan().expect("there is work");
    let report = |driver_epoch, number| StepReport { driver_epoch, number, ..Default::default() };
    assert_eq!(batcher.report(report(4, 7)), Ok(vec![]));
    assert_eq!(batcher.report(report(5, 2)), Err(ReportError::OutOfOrder { got: 2, expected: Some(1) }));
    assert_eq!(batcher.report(report(5, 1)), Ok(vec![]));
}
