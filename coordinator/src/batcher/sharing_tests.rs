//! Blocks that several sequences have: by the prefix cache, as choices for one prompt, after a preemption.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use foggara_proto::sequence::{SequenceEvent, SequenceParams, SequenceRequest};
use foggara_proto::step::{BlockCopy, SequenceId, StepPlan};
use proptest::prelude::*;

use super::shadow::{ModelLeader, expected};
use super::tests::{LIMITS, Lcg, params, request};
use super::{Batcher, CacheTokens, Limits, Refusal};

/// A batcher and the leader it drives, step by step.
struct Rig {
    batcher: Batcher,
    leader: ModelLeader,
    told: BTreeMap<SequenceId, Vec<SequenceEvent>>,
}

impl Rig {
    fn new(limits: Limits) -> Self {
        Self { batcher: Batcher::new(1, limits), leader: ModelLeader::new(limits), told: BTreeMap::new() }
    }

    fn submit(&mut self, id: SequenceId, request: SequenceRequest) {
        self.batcher.submit(id, request, None).expect("fits");
    }

    /// The next plan, run and reported.
    fn step(&mut self) -> StepPlan {
        let plan = self.batcher.plan().expect("there is work");
        self.report(&plan);
        plan
    }

    fn report(&mut self, plan: &StepPlan) {
        let report = self.leader.execute(plan);
        for (id, event) in self.batcher.report(report).expect("in order") {
            self.told.entry(id).or_default().push(event);
        }
        assert_eq!(self.batcher.audit(), Ok(()));
    }

    /// Runs until a sequence enters; returns how many of its tokens are in the cache then.
    fn enters(&mut self, id: SequenceId) -> usize {
        loop {
            let plan = self.step();
            if let Some(join) = plan.joins.iter().find(|join| join.sequence == id) {
                return join.cached;
            }
        }
    }

    /// Runs until nothing is left.
    fn finish(&mut self) {
        while let Some(plan) = self.batcher.plan() {
            self.report(&plan);
        }
        assert!(self.batcher.is_idle());
    }

    fn tokens(&self, id: SequenceId) -> Vec<u32> {
        self.told[&id].iter().flat_map(|event| event.tokens.iter().map(|token| token.token)).collect()
    }

    /// What the first event of a sequence said of the cache, and that no other did.
    fn cached(&self, id: SequenceId) -> Option<u32> {
        assert!(self.told[&id][1..].iter().all(|event| event.cached_tokens.is_none()));
        self.told[&id][0].cached_tokens
    }
}

fn prompt(length: u32) -> Vec<u32> {
    (1..=length).collect()
}

#[test]
fn a_prompt_that_was_there_before_is_not_computed_again() {
    let mut rig = Rig::new(Limits { step_rows: 64, ..LIMITS });
    rig.submit(1, request(&prompt(36), 6));
    let plan = rig.step();
    assert_eq!((plan.joins[0].cached, plan.chunks[0].tokens), (0, 36));
    rig.finish();
    let first = rig.tokens(1);
    // Its whole blocks, less the one with the last token, which is computed again for its logits.
    rig.submit(2, request(&prompt(36), 6));
    let plan = rig.step();
    assert_eq!((plan.joins[0].cached, plan.chunks[0].tokens), (32, 4));
    rig.finish();
    assert_eq!(rig.tokens(2), first);
    assert_eq!((rig.cached(1), rig.cached(2)), (Some(0), Some(32)));
    // What was generated can be found too: as when a conversation goes on.
    let longer = [prompt(36), first, vec![7; 9]].concat();
    rig.submit(3, request(&longer, 6));
    assert_eq!(rig.step().joins[0].cached, 40, "of 36 and 5 that went through the model");
    rig.finish();
    let asked = 36 + 36 + longer.len() as u64;
    assert_eq!(rig.batcher.occupancy().prefix, CacheTokens { asked, found: 32 + 40 });
}

#[test]
fn blocks_are_found_only_when_the_step_that_filled_them_is_done() {
    let mut rig = Rig::new(Limits { step_rows: 64, ..LIMITS });
    rig.submit(1, request(&prompt(16), 9));
    let first = rig.batcher.plan().expect("there is work");
    rig.submit(2, request(&prompt(16), 9));
    let second = rig.batcher.plan().expect("one ahead");
    assert_eq!(second.joins[0].cached, 0, "the first step is on its way");
    rig.report(&first);
    rig.report(&second);
    rig.submit(3, request(&prompt(16), 9));
    assert_eq!(rig.enters(3), 12, "though both are still running");
    rig.finish();
    assert_eq!(rig.tokens(1), rig.tokens(3));
}

#[test]
fn nothing_is_found_under_another_salt_or_by_another_tenant() {
    let with = |tenant: &str, salt: Option<&str>| SequenceRequest {
        tenant: tenant.into(),
        cache_salt: salt.map(str::to_owned),
        ..request(&prompt(20), 4)
    };
    let mut rig = Rig::new(Limits { step_rows: 64, ..LIMITS });
    let cases = [
        (with("a", None), 0),
        (with("b", None), 16),
        (with("a", Some("")), 0),
        (with("a", Some("x")), 0),
        (with("a", Some("y")), 0),
        (with("b", Some("x")), 0),
        (with("ax", Some("")), 0),
        (with("a", Some("x")), 16),
        (with("a", None), 16),
    ];
    for (id, (request, found)) in (0..).zip(cases) {
        rig.submit(id, request);
        assert_eq!(rig.step().joins[0].cached, found, "request {id}");
        rig.finish();
    }
}

#[test]
fn who_wants_the_probabilities_of_its_prompt_computes_all_of_it() {
    let mut rig = Rig::new(Limits { step_rows: 64, ..LIMITS });
    let echo = SequenceParams { prompt_logprobs: true, ..params(4) };
    for (id, params, found) in [(1, params(4), 0), (2, echo.clone(), 0), (3, params(4), 16)] {
        rig.submit(id, SequenceRequest { params, ..request(&prompt(20), 4) });
        assert_eq!(rig.step().joins[0].cached, found, "request {id}");
        rig.finish();
    }
    assert_eq!(rig.batcher.occupancy().prefix.asked, 40, "two of three asked");
    let mut other = Rig::new(Limits { step_rows: 64, ..LIMITS });
    other.submit(1, SequenceRequest { params: echo, ..request(&prompt(20), 4) });
    other.finish();
    other.submit(2, request(&prompt(20), 4));
    assert_eq!(other.step().joins[0].cached, 16, "what it computed is there for others");
}

#[test]
fn choices_share_the_blocks_of_their_prompt_and_copy_the_last() {
    for (length, cached, shared, copies) in
        [(18, 17, 4, true), (17, 16, 4, false), (16, 15, 3, true), (3, 2, 0, true)]
    {
        let mut rig = Rig::new(Limits { step_rows: 64, ..LIMITS });
        rig.submit(1, request(&prompt(length), 9));
        for id in 2..4 {
            rig.batcher.submit(id, request(&prompt(length), 9), Some(1)).expect("fits");
        }
        let first = rig.batcher.plan().expect("there is work");
        assert_eq!(first.joins.len(), 1, "the others wait for the first");
        // Before the first step is reported: the second comes after it.
        let second = rig.batcher.plan().expect("one ahead");
        let blocks = &first.grants[0].blocks;
        let joins: Vec<_> = second.joins.iter().map(|join| (join.sequence, join.cached)).collect();
        assert_eq!(joins, [(2, cached), (3, cached)], "a prompt of {length}");
        assert!(second.chunks.iter().all(|chunk| chunk.tokens == 1));
        let grants: Vec<_> = second.grants.iter().filter(|grant| grant.sequence > 1).collect();
        let mut expected_copies = vec![];
        for grant in grants {
            assert_eq!(grant.blocks[..shared], blocks[..shared], "a prompt of {length}");
            assert!(grant.blocks[shared..].iter().all(|block| !blocks.contains(block)));
            if copies {
                expected_copies.push(BlockCopy { from: blocks[shared], to: grant.blocks[shared] });
            }
        }
        assert_eq!(second.copies, expected_copies, "a prompt of {length}");
        rig.report(&first);
        rig.report(&second);
        rig.finish();
        let answer = expected(&prompt(length), 9);
        assert!((1..4).all(|id| rig.tokens(id) == answer));
        assert_eq!(rig.cached(3), Some(cached as u32));
    }
}

#[test]
fn a_choice_whose_first_has_gone_comes_by_itself() {
    let mut rig = Rig::new(Limits { step_rows: 64, ..LIMITS });
    rig.submit(1, request(&prompt(18), 3));
    rig.finish();
    rig.batcher.submit(2, request(&prompt(18), 3), Some(1)).expect("fits");
    let plan = rig.step();
    assert_eq!((plan.joins[0].cached, plan.copies.len()), (16, 0), "as anybody finds it");
    rig.finish();
    // One that was cancelled while it waited.
    let mut rig = Rig::new(Limits { step_rows: 64, ..LIMITS });
    rig.submit(1, request(&prompt(18), 3));
    rig.batcher.submit(2, request(&prompt(18), 3), Some(1)).expect("fits");
    rig.batcher.cancel(1);
    assert_eq!(rig.step().joins[0].sequence, 2);
    rig.finish();
    assert_eq!(rig.tokens(2), expected(&prompt(18), 3));
}

#[test]
fn a_choice_gets_nothing_of_a_first_that_is_not_its_own() {
    let mut rig = Rig::new(Limits { step_rows: 64, ..LIMITS });
    rig.leader.salts = BTreeMap::from([(3, 5)]);
    rig.submit(1, request(&prompt(18), 3));
    let other = [prompt(10), vec![3; 8]].concat();
    rig.batcher.submit(2, request(&other, 3), Some(1)).expect("fits");
    let salted = SequenceRequest { cache_salt: Some("x".into()), ..request(&prompt(18), 3) };
    rig.batcher.submit(3, salted, Some(1)).expect("fits");
    rig.step();
    let plan = rig.step();
    let joins: Vec<_> = plan.joins.iter().map(|join| (join.sequence, join.cached)).collect();
    assert_eq!(joins, [(2, 10)], "as far as it is the same; and the salted one came at once");
    rig.finish();
}

#[test]
fn choices_that_wait_for_their_first_hold_nobody_up() {
    // The first takes three steps for its prompt.
    let mut rig = Rig::new(Limits { step_rows: 16, ..LIMITS });
    rig.submit(1, request(&prompt(40), 3));
    for id in 2..5 {
        rig.batcher.submit(id, request(&prompt(40), 3), Some(1)).expect("fits");
    }
    rig.submit(9, request(&[8; 5], 3));
    let joined: Vec<Vec<SequenceId>> =
        (0..4).map(|_| rig.step().joins.iter().map(|join| join.sequence).collect()).collect();
    assert_eq!(joined, [vec![1], vec![9], vec![], vec![2, 3, 4]]);
    rig.finish();
}

#[test]
fn a_preempted_sequence_finds_its_blocks_again() {
    // Two that grow until one has to go; the other ends soon after.
    let limits = Limits { kv_blocks: 10, step_rows: 64, ..LIMITS };
    let mut rig = Rig::new(limits);
    rig.submit(1, request(&[prompt(20), vec![1]].concat(), 12));
    rig.submit(2, request(&[prompt(20), vec![5]].concat(), 20));
    let mut joins = Vec::new();
    while let Some(plan) = rig.batcher.plan() {
        joins.extend(plan.joins.iter().map(|join| (join.sequence, join.cached)));
        rig.report(&plan);
    }
    let again: Vec<usize> = joins.iter().filter(|(id, _)| *id == 2).map(|(_, cached)| *cached).collect();
    assert!(rig.batcher.occupancy().preemptions > 0, "{joins:?}");
    assert!(again.len() > 1 && again[1..].iter().all(|cached| *cached >= 16), "{joins:?}");
    assert_eq!(rig.tokens(2), expected(&[prompt(20), vec![5]].concat(), 20));
    assert_eq!(rig.cached(2), Some(20), "told once, of its first entry");
}

#[test]
fn the_cheapest_is_preempted() {
    // Three decode; the first needs a block and there is none: of the others the shorter goes, though the longer came last.
    let limits = Limits { kv_blocks: 12, step_rows: 64, ..LIMITS };
    let mut rig = Rig::new(limits);
    rig.submit(1, request(&[3; 12], 12));
    rig.submit(2, request(&[12; 7], 12));
    rig.submit(3, request(&[5; 14], 12));
    let mut first_drop = None;
    while first_drop.is_none() {
        let plan = rig.step();
        first_drop = plan.drops.first().copied();
    }
    assert_eq!((first_drop, rig.batcher.occupancy().preemptions), (Some(2), 1));
    rig.finish();
}

#[test]
fn a_pool_where_the_prompt_is_known_is_preferred_within_reason() {
    let limits = Limits { pools: 2, step_rows: 64, sequences: 20, ..LIMITS };
    let mut rig = Rig::new(limits);
    rig.submit(1, request(&prompt(16), 2));
    rig.finish();
    let mut pools = Vec::new();
    for id in 2..7 {
        rig.submit(id, request(&[prompt(12), vec![id as u32; 4]].concat(), 30));
        // (Others may be granted a block to go on with before it.)
        let entered = loop {
            let plan = rig.step();
            if let Some(grant) = plan.grants.into_iter().find(|grant| grant.sequence == id) {
                break grant;
            }
        };
        pools.push(entered.blocks[0] / limits.kv_blocks);
        // Until its prompt is there, and can be found.
        (0..4).for_each(|_| drop(rig.step()));
    }
    assert_eq!(pools, [0, 0, 0, 1, 1], "the other one is not left idle, and then has more room");
    rig.finish();
}

/// What a random workload came to.
struct Outcome {
    preemptions: u64,
    prefix: CacheTokens,
    copies: usize,
}

/// Sequences that begin alike, under a few salts, some of them choices, with cancellations and reports that come late: every
/// one comes out as if alone, the model leader finds in every block what should be there, and blocks add up at each step.
fn run(limits: Limits, seed: u64, count: u64) -> Outcome {
    let mut random = Lcg(seed);
    let (mut batcher, mut leader) = (Batcher::new(3, limits), ModelLeader::new(limits));
    let mut requests: BTreeMap<SequenceId, SequenceRequest> = BTreeMap::new();
    let (mut cancelled, mut ended, mut got) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
    let mut sent = VecDeque::new();
    let (mut next_id, mut steps, mut copies) = (0, 0, 0);
    while next_id < count || !batcher.is_idle() {
        steps += 1;
        assert!(steps < 100_000, "no progress: {:?}", batcher.occupancy());
        while next_id < count && random.below(3) == 0 {
            let first = next_id.checked_sub(1 + random.below(3)).filter(|_| random.below(3) == 0);
            let beside = first.and_then(|first| requests.get(&first).cloned());
            let new = beside.unwrap_or_else(|| random_request(&mut random));
            if let Some(salt) = &new.cache_salt {
                leader.salts.insert(next_id, salt.len() as u64 + 1);
            }
            match batcher.submit(next_id, new.clone(), first) {
                Ok(()) => drop(requests.insert(next_id, new)),
                Err(refusal) => assert!(matches!(refusal, Refusal::TooLong { .. }), "{refusal}"),
            }
            next_id += 1;
        }
        if random.below(12) == 0 {
            let id = random.below(count);
            batcher.cancel(id);
            cancelled.insert(id);
        }
        while let Some(plan) = batcher.plan() {
            copies += plan.copies.len();
            sent.push_back(plan);
            assert_eq!(batcher.audit(), Ok(()));
        }
        // Sometimes one step, sometimes all that are on their way.
        for _ in 0..=random.below(2) {
            let Some(plan) = sent.pop_front() else { break };
            for (id, event) in batcher.report(leader.execute(&plan)).expect("reports come in order") {
                assert!(!ended.contains(&id), "{id}: news after its end");
                let tokens: &mut Vec<u32> = got.entry(id).or_default();
                assert_eq!(event.cached_tokens.is_some(), tokens.is_empty(), "{id}: told once");
                tokens.extend(event.tokens.iter().map(|token| token.token));
                if event.end.is_some() {
                    ended.insert(id);
                }
            }
            assert_eq!(batcher.audit(), Ok(()));
        }
    }
    for (id, request) in requests.iter().filter(|(id, _)| !cancelled.contains(*id)) {
        assert!(ended.contains(id), "{id} never ended");
        let wanted = expected(&request.tokens, request.params.max_tokens as usize);
        assert_eq!(got.remove(id).unwrap_or_default(), wanted, "sequence {id}");
    }
    let rest = batcher.occupancy();
    let all = limits.kv_blocks * limits.pools;
    assert_eq!((rest.live_blocks, rest.free_blocks + rest.cached_blocks), (0, all));
    Outcome { preemptions: rest.preemptions, prefix: rest.prefix, copies }
}

/// One of a few beginnings, then a few tokens of its own.
fn random_request(random: &mut Lcg) -> SequenceRequest {
    let start = random.below(3) as u32;
    let mut prompt: Vec<u32> = (0..random.below(20) as u32).map(|i| 1 + (start * 7 + i) % 20).collect();
    prompt.extend((0..=random.below(4)).map(|_| 1 + random.below(3) as u32));
    let salt = ["a", "bb"].get(random.below(4) as usize).map(|salt| (*salt).to_owned());
    let mut request = SequenceRequest { cache_salt: salt, ..request(&prompt, random.below(30) as u32) };
    request.params.prompt_logprobs = random.below(8) == 0;
    request
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn shared_blocks_are_what_they_should_be_and_add_up(
        seed in any::<u64>(),
        pools in 1u32..4,
        kv_blocks in 13u32..40,
        step_rows in 3u32..24,
        sequences in 1u32..9,
    ) {
        let limits = Limits { kv_blocks, pools, step_rows, sequences, ..LIMITS };
        run(limits, seed, 60);
    }

    #[test]
    fn blocks_of_one_token_are_shared_too(seed in any::<u64>(), kv_blocks in 50u32..90) {
        run(Limits { kv_blocks, block_size: 1, ..LIMITS }, seed, 30);
    }
}

#[test]
fn random_workloads_share_copy_and_preempt() {
    let limits = Limits { kv_blocks: 18, ..LIMITS };
    let outcomes: Vec<Outcome> = (0..20).map(|seed| run(limits, seed, 80)).collect();
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    let (preemptions, copies) = (sum(|o| o.preemptions), sum(|o| o.copies as u64));
    let (asked, found) = (sum(|o| o.prefix.asked), sum(|o| o.prefix.found));
    assert!(preemptions > 20 && copies > 20 && found * 10 > asked, "{preemptions} {copies} {found}/{asked}");
}
