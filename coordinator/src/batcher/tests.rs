//! The batcher against a model of the leader: every plan is executed as DESIGN's step loop says, every invariant checked.

use std::collections::{BTreeMap, BTreeSet};

use foggara_proto::sequence::{SequenceParams, SequenceRequest};
use foggara_proto::step::{SequenceId, StepReport};

use super::shadow::{ModelLeader, expected};
use super::{Batcher, LEAST_PLANS_AHEAD, Limits, Refusal, ReportError};

pub(super) fn params(max_tokens: u32) -> SequenceParams {
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

pub(crate) const LIMITS: Limits = Limits {
    kv_blocks: 64,
    pools: 1,
    block_size: 4,
    step_rows: 16,
    sequences: 8,
    queue: 100,
    lease_ms: 0,
    drafts: 0,
};

/// A prompt and how much to answer, and nothing else.
pub(crate) fn request(prompt: &[u32], max_tokens: u32) -> SequenceRequest {
    SequenceRequest::new("r", prompt.to_vec(), prompt.len(), params(max_tokens))
}

/// A small deterministic generator: tests name their seed.
pub(crate) struct Lcg(pub(crate) u64);

impl Lcg {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Runs `count` random sequences with random cancellations; every one not cancelled must come out as if alone.
fn run(limits: Limits, seed: u64, count: u64) -> u64 {
    let mut random = Lcg(seed);
    let (mut batcher, mut leader) = (Batcher::new(3, limits), ModelLeader::new(limits));
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
            match batcher.submit(next_id, request(&prompt, max_tokens), None) {
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
        assert!(sent.len() <= LEAST_PLANS_AHEAD);
        // The leader is behind by as many plans as it likes.
        if let Some(plan) = sent.pop_front() {
            let report = leader.execute(&plan);
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
    assert_eq!((rest.free_blocks + rest.cached_blocks, rest.live_blocks), (all, 0));
    assert_eq!((rest.running, rest.waiting, batcher.audit()), (0, 0, Ok(())));
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
        sequences: 2,
        queue: 100,
        lease_ms: 0,
        drafts: 0,
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
        let (mut batcher, mut leader) = (Batcher::new(1, limits), ModelLeader::new(limits));
        let mut next_id = 0;
        for (kind, length, id) in events {
            match kind {
                0 => batcher.cancel(id),
                1 | 2 => {
                    // Nobody begins as another does.
                    let mut prompt = vec![1; length];
                    prompt[0] = next_id as u32;
                    batcher.submit(next_id, request(&prompt, 8), None).ok();
                    next_id += 1;
                }
                _ => {}
            }
            let before: Vec<usize> = held_by_pool(&batcher, limits);
            let running: Vec<usize> = (0..pools as usize).map(|pool| batcher.running_in(pool)).collect();
            if let Some(plan) = batcher.plan() {
                // (One that was preempted may find what it left in the cache.)
                let first = plan.joins.first().filter(|join| join.cached == 0);
                if let (Some(first), true) = (first, plan.drops.is_empty()) {
                    let grant = plan.grants.iter().find(|grant| grant.sequence == first.sequence).expect("granted");
                    // Decodes of this very plan may have taken a block of any pool before.
                    let decodes = plan.grants.iter().take_while(|other| *other != grant).count();
                    let pool = (grant.blocks[0] / kv_blocks) as usize;
                    // Who runs there may want a block more each.
                    let fits = |(held, running): (&usize, &usize)| {
                        (held + decodes + grant.blocks.len() + running <= kv_blocks as usize).then_some(*held)
                    };
                    let least = before.iter().zip(&running).filter_map(fits).min().unwrap_or(before[pool]);
                    proptest::prop_assert!(before[pool] <= least + decodes, "{before:?} {running:?}: joined {pool}");
                }
                let report = leader.execute(&plan);
                batcher.report(report).expect("in order");
            }
            let held = held_by_pool(&batcher, limits);
            let occupancy = batcher.occupancy();
            proptest::prop_assert_eq!(occupancy.live_blocks as usize, held.iter().sum::<usize>());
            let idle = occupancy.free_blocks + occupancy.cached_blocks;
            proptest::prop_assert_eq!(occupancy.live_blocks + idle, kv_blocks * pools);
            proptest::prop_assert_eq!(batcher.audit(), Ok(()));
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
    let refusal = batcher.submit(1, request(&[1; 200], 58), None);
    assert_eq!(refusal, Err(Refusal::TooLong { needed: 257, available: 256 }));
}

#[test]
fn equal_sequences_are_spread_evenly() {
    let mut batcher = Batcher::new(1, Limits { pools: 3, step_rows: 64, ..LIMITS });
    for id in 0..6 {
        batcher.submit(id, request(&[1; 4], 20), None).expect("fits");
    }
    let plan = batcher.plan().expect("there is work");
    let pools: Vec<u32> = plan.grants.iter().map(|grant| grant.blocks[0] / LIMITS.kv_blocks).collect();
    assert_eq!(pools, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn the_queue_is_bounded() {
    let mut batcher = Batcher::new(1, Limits { sequences: 2, queue: 3, ..LIMITS });
    for id in 0..5 {
        assert_eq!(batcher.submit(id, request(&[1], 4), None), Ok(()), "{id}: two places and three waiting");
    }
    assert_eq!(batcher.submit(9, request(&[1], 4), None), Err(Refusal::QueueFull { limit: 3 }));
}

#[test]
fn what_can_never_fit_is_refused() {
    let mut batcher = Batcher::new(1, LIMITS);
    let refusal = batcher.submit(1, request(&[1; 200], 58), None);
    assert_eq!(refusal, Err(Refusal::TooLong { needed: 257, available: 256 }));
    assert_eq!(batcher.submit(2, request(&[1; 200], 57), None), Ok(()));
}

#[test]
fn decodes_limit_the_prefill_beside_them() {
    let mut batcher = Batcher::new(1, LIMITS);
    batcher.submit(1, request(&[1; 4], 20), None).expect("fits");
    let first = batcher.plan().expect("there is work");
    assert_eq!(first.chunks.iter().map(|c| c.tokens).collect::<Vec<_>>(), [4]);
    batcher.submit(2, request(&[1; 40], 20), None).expect("fits");
    let second = batcher.plan().expect("one ahead");
    let rows: Vec<_> = second.chunks.iter().map(|c| c.tokens).collect();
    assert!(matches!(rows[..], [1..15]), "beside one decode: {rows:?}");
    assert!(batcher.plan().is_none(), "two plans are in flight");
}

#[test]
fn reports_out_of_order_are_an_error_and_old_epochs_are_ignored() {
    let mut batcher = Batcher::new(5, LIMITS);
    batcher.submit(1, request(&[1; 4], 20), None).expect("fits");
    batcher.plan().expect("there is work");
    let report = |driver_epoch, number| StepReport { driver_epoch, number, ..Default::default() };
    assert_eq!(batcher.report(report(4, 7)), Ok(vec![]));
    assert_eq!(batcher.report(report(5, 2)), Err(ReportError::OutOfOrder { got: 2, expected: Some(1) }));
    assert_eq!(batcher.report(report(5, 1)), Ok(vec![]));
}
