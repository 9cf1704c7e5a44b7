//! Leaders that go on by themselves, and batchers that take over from others, against the model of the leader.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use foggara_proto::sequence::SequenceRequest;
use foggara_proto::step::{HeldSequence, SequenceId};
use proptest::prelude::*;

use super::shadow::{ModelLeader, expected};
use super::tests::{LIMITS, Lcg, request};
use super::{AdoptionError, Batcher, Limits, ReportError};

const LEASED: Limits = Limits { lease_ms: 2_000, ..LIMITS };

/// What happened in a run.
#[derive(Debug, Default)]
struct Outcome {
    unplanned: u64,
    skipped: u64,
    preemptions: u64,
    adopted: usize,
    accepted: u64,
}

/// A driver as far as the batcher needs one: sequences by id, what has come of them, and what they are asked for.
struct World {
    limits: Limits,
    random: Lcg,
    epoch: u64,
    batcher: Batcher,
    leader: ModelLeader,
    sent: VecDeque<foggara_proto::step::StepPlan>,
    requests: BTreeMap<SequenceId, SequenceRequest>,
    got: BTreeMap<SequenceId, Vec<u32>>,
    ended: BTreeSet<SequenceId>,
    cancelled: BTreeSet<SequenceId>,
    outcome: Outcome,
}

impl World {
    fn new(limits: Limits, seed: u64) -> Self {
        Self {
            limits,
            random: Lcg(seed),
            epoch: 1,
            batcher: Batcher::new(1, limits),
            leader: ModelLeader::new(limits),
            sent: VecDeque::new(),
            requests: BTreeMap::new(),
            got: BTreeMap::new(),
            ended: BTreeSet::new(),
            cancelled: BTreeSet::new(),
            outcome: Outcome::default(),
        }
    }

    fn submit(&mut self, id: SequenceId, request: SequenceRequest) {
        if self.batcher.submit(id, request.clone(), None).is_ok() {
            self.requests.insert(id, request);
        }
    }

    fn take(&mut self, report: foggara_proto::step::StepReport) {
        for (id, event) in self.batcher.report(report).expect("reports come in order") {
            assert!(!self.ended.contains(&id), "{id}: news after its end");
            self.got.entry(id).or_default().extend(event.tokens.iter().map(|token| token.token));
            if event.end.is_some() {
                self.ended.insert(id);
            }
        }
        assert_eq!(self.batcher.audit(), Ok(()));
    }

    /// One plan, or a step without.
    fn step(&mut self) {
        while let Some(plan) = self.batcher.plan() {
            assert_eq!(plan.lease_ms, self.limits.lease_ms);
            self.sent.push_back(plan);
        }
        for _ in 0..self.random.below(4) {
            if let Some(report) = self.leader.go_on() {
                self.take(report);
            }
        }
        if let Some(plan) = self.sent.pop_front() {
            let report = self.leader.execute(&plan);
            self.take(report);
        }
    }

    /// The driver dies with its plans and the reports on their way; another one takes over what the leader holds, and those who
    /// waited come again.
    fn take_over(&mut self) {
        for _ in 0..self.random.below(3) {
            self.leader.go_on();
        }
        self.outcome.preemptions += self.batcher.occupancy().preemptions;
        self.epoch += 1;
        self.sent.clear();
        self.batcher = Batcher::new(self.epoch, self.limits);
        let mut known = BTreeSet::new();
        for held in self.leader.attach(self.epoch) {
            self.adopt(&mut known, held);
        }
        assert_eq!(self.batcher.audit(), Ok(()));
        let waiting: Vec<SequenceId> = self.requests.keys().copied().collect();
        for id in waiting {
            if !known.contains(&id) && !self.ended.contains(&id) && !self.cancelled.contains(&id) {
                let mut request = self.requests[&id].clone();
                request.tokens.extend(self.got.get(&id).into_iter().flatten());
                self.batcher.submit(id, request, None).expect("it fitted before");
            }
        }
    }

    fn adopt(&mut self, known: &mut BTreeSet<SequenceId>, held: HeldSequence) {
        let id = held.sequence;
        if self.cancelled.contains(&id) || self.ended.contains(&id) || held.reading_prompt {
            self.batcher.discard(id);
            // Its name is taken until it is dropped: in its own name it cannot come again before.
            if held.reading_prompt {
                self.cancelled.insert(id);
            }
            return;
        }
        known.insert(id);
        let generated = held.tokens[held.prompt_len..].to_vec();
        let got = self.got.entry(id).or_default();
        assert!(generated.starts_with(got), "{id}: what was told is what there is");
        *got = generated;
        if held.end.is_some() {
            self.ended.insert(id);
            self.batcher.discard(id);
            return;
        }
        let (tokens, prompt_len, params) = (held.tokens.clone(), held.prompt_len, held.params.clone());
        let request =
            SequenceRequest::from_envelope(&held.envelope, tokens, prompt_len, params).expect("as it joined");
        self.batcher.adopt(held, request).expect("it fits");
        self.outcome.adopted += 1;
    }

    fn finish(mut self) -> Outcome {
        let mut steps = 0;
        while !self.batcher.is_idle() {
            steps += 1;
            assert!(steps < 10_000, "no progress: {:?}", self.batcher.occupancy());
            self.step();
        }
        for (id, request) in self.requests.iter().filter(|(id, _)| !self.cancelled.contains(*id)) {
            assert!(self.ended.contains(id), "{id} never ended");
            let wanted = expected(&request.tokens, request.params.max_tokens as usize);
            assert_eq!(self.got.get(id), Some(&wanted), "sequence {id}");
        }
        let rest = self.batcher.occupancy();
        let all = self.limits.kv_blocks * self.limits.pools;
        assert_eq!((rest.live_blocks, rest.free_blocks + rest.cached_blocks), (0, all));
        self.outcome.preemptions += rest.preemptions;
        let ModelLeader { unplanned, skipped, accepted, .. } = self.leader;
        Outcome { unplanned, skipped, accepted, ..self.outcome }
    }
}

/// Random requests, cancellations, pauses and deaths of drivers.
fn run(limits: Limits, seed: u64, count: u64, deaths: u64) -> Outcome {
    let mut world = World::new(limits, seed);
    let mut next_id = 0;
    while next_id < count {
        while next_id < count && world.random.below(3) == 0 {
            let start = world.random.below(3) as u32;
            let length = 1 + world.random.below(30) as u32;
            let prompt: Vec<u32> = (0..length).map(|i| 1 + (start * 5 + i) % 20).collect();
            let max_tokens = 1 + world.random.below(60) as u32;
            let mut request = request(&prompt, max_tokens);
            request.params.prompt_logprobs = world.random.below(9) == 0;
            world.submit(next_id, request);
            next_id += 1;
        }
        if world.random.below(15) == 0 {
            let id = world.random.below(count);
            if world.requests.contains_key(&id) {
                world.batcher.cancel(id);
                world.cancelled.insert(id);
            }
        }
        if deaths > 0 && world.random.below(deaths) == 0 {
            world.take_over();
        }
        world.step();
    }
    world.finish()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whoever_goes_on_and_whoever_takes_over_sequences_come_out_as_if_alone(
        seed in any::<u64>(),
        pools in 1u32..4,
        kv_blocks in 24u32..80,
        step_rows in 8u32..24,
        lease_ms in prop_oneof![Just(0u32), Just(3), Just(2_000)],
        drafts in prop_oneof![Just(0u32), Just(2), Just(9)],
        deaths in prop_oneof![Just(0u64), Just(30), Just(6)],
    ) {
        run(Limits { kv_blocks, pools, step_rows, lease_ms, drafts, ..LIMITS }, seed, 60, deaths);
    }
}

#[test]
fn random_workloads_go_on_skip_preempt_and_are_taken_over() {
    let mut sum = Outcome::default();
    for seed in 0..20 {
        let limits = Limits { kv_blocks: 26, lease_ms: 2_000, drafts: 3, ..LIMITS };
        let outcome = run(limits, seed, 60, 20);
        sum.unplanned += outcome.unplanned;
        sum.skipped += outcome.skipped;
        sum.preemptions += outcome.preemptions;
        sum.adopted += outcome.adopted;
        sum.accepted += outcome.accepted;
    }
    let all = sum.accepted > 1_000
        && sum.unplanned > 100
        && sum.skipped > 20
        && sum.preemptions > 20
        && sum.adopted > 20;
    assert!(all, "the test does not test what it should: {sum:?}");
}

#[test]
fn blocks_reach_as_far_as_the_lease_but_never_past_the_end_nor_the_share() {
    // So long that it is the bound on tokens that counts.
    let limits = Limits { kv_blocks: 4_096, lease_ms: 60_000, ..LIMITS };
    let blocks = |max_tokens: u32, limits: Limits| {
        let (mut batcher, mut leader) = (Batcher::new(1, limits), ModelLeader::new(limits));
        batcher.submit(1, request(&[7; 8], max_tokens), None).expect("room");
        let mut granted = 0;
        for _ in 0..3 {
            let plan = batcher.plan().expect("work");
            granted += plan.grants.iter().map(|grant| grant.blocks.len()).sum::<usize>();
            batcher.report(leader.execute(&plan)).expect("in order");
        }
        granted
    };
    assert_eq!(blocks(9, limits), 4, "16 positions are all it can come to");
    let reach = 9 + super::lease::MOST_AHEAD;
    assert_eq!(blocks(2_000, limits), reach.div_ceil(4), "as far as a lease of short steps");
    assert_eq!(blocks(2_000, Limits { kv_blocks: 512, ..limits }), 3 + 512 / 8, "an eighth of the pool");
    assert_eq!(blocks(2_000, Limits { lease_ms: 0, ..limits }), 3, "as it comes to them");
}

#[test]
fn whoever_waits_for_room_goes_before_leases() {
    let limits = Limits { kv_blocks: 16, lease_ms: 2_000, ..LIMITS };
    let (mut batcher, mut leader) = (Batcher::new(1, limits), ModelLeader::new(limits));
    batcher.submit(1, request(&[3; 40], 20), None).expect("room");
    for _ in 0..4 {
        let plan = batcher.plan().expect("work");
        batcher.report(leader.execute(&plan)).expect("in order");
    }
    let before = batcher.occupancy().live_blocks;
    batcher.submit(2, request(&[4; 40], 20), None).expect("it can wait");
    let plan = batcher.plan().expect("work");
    assert!(plan.joins.is_empty(), "there is no room");
    assert_eq!(batcher.occupancy().live_blocks, before, "what is free is kept for it");
}

#[test]
fn unplanned_steps_are_reported_right_after_the_last_planned_one() {
    let (mut batcher, mut leader) = (Batcher::new(1, LEASED), ModelLeader::new(LEASED));
    batcher.submit(1, request(&[7; 8], 30), None).expect("room");
    let plan = batcher.plan().expect("work");
    batcher.report(leader.execute(&plan)).expect("in order");
    let report = leader.go_on().expect("it decodes");
    let wrong = foggara_proto::step::StepReport { number: 2, ..report.clone() };
    assert_eq!(batcher.report(wrong), Err(ReportError::OutOfOrder { got: 2, expected: Some(1) }));
    let news = batcher.report(report).expect("in order");
    assert_eq!(news.len(), 1);
}

#[test]
fn what_cannot_be_taken_over_is_refused() {
    let mut leader = ModelLeader::new(LEASED);
    let mut first = Batcher::new(1, LEASED);
    first.submit(1, request(&[7; 30], 30), None).expect("room");
    let plan = first.plan().expect("work");
    first.report(leader.execute(&plan)).expect("in order");
    let held = leader.attach(2).remove(0);
    let adopt = |held: HeldSequence| {
        let request = SequenceRequest::from_envelope(
            &held.envelope,
            held.tokens.clone(),
            held.prompt_len,
            held.params.clone(),
        );
        Batcher::new(2, LEASED).adopt(held, request.expect("as it joined"))
    };
    let few = HeldSequence { blocks: held.blocks[..2].to_vec(), ..held.clone() };
    assert_eq!(adopt(few), Err(AdoptionError::Room { cached: 16, blocks: 2 }));
    let stray = HeldSequence { blocks: [&held.blocks[..], &[64]].concat(), ..held.clone() };
    assert_eq!(adopt(stray), Err(AdoptionError::Block(64)));
    assert_eq!(adopt(held), Ok(()));
}
