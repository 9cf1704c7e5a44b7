//! Every command, its refusals, and that the same commands give the same state.

use super::*;

pub(super) fn worker(name: &str) -> Command {
    Command::RegisterWorker(Box::new(Worker {
        addr: format!("{name}:1"),
        collective_addr: format!("{name}:2"),
        host: "h".into(),
        pid: 1,
        incarnation: name.into(),
        capabilities: Capabilities::default(),
        group: Some(99),
    }))
}

pub(super) fn deployment(tp: u32) -> Deployment {
    Deployment {
        model_path: "/m".into(),
        shape: Shape::tensor(tp),
        replicas: 1,
        kv_tokens: 0,
        kv_dtype: "auto".into(),
        collective: "auto".into(),
        quantize: NOT_QUANTIZED.into(),
        created: 5,
        manifest: String::new(),
    }
}

pub(super) fn formation(ranks: &[u64]) -> Formation {
    Formation {
        deployment: "m".into(),
        shape: Shape::tensor(ranks.len() as u32),
        ranks: ranks.to_vec(),
        rank_weights: vec![],
        experts: vec![],
        collective: CollectiveKind::Shm,
        kv_blocks: 10,
        block_size: 16,
        key: [1; 16],
    }
}

pub(super) fn form(ranks: &[u64]) -> Command {
    Command::FormGroup(formation(ranks))
}

/// Applies commands under ids of their own.
pub(super) struct Run {
    pub(super) state: ClusterState,
    count: u64,
}

impl Run {
    fn new() -> Self {
        Self { state: ClusterState::default(), count: 0 }
    }

    pub(super) fn apply(&mut self, command: Command) -> Outcome {
        self.count += 1;
        self.state.apply(&Envelope { request_id: format!("r{}", self.count), command })
    }

    /// Two workers (1, 2), deployment "m", coordinator 1 and a group (3, epoch 4).
    pub(super) fn with_group() -> Self {
        let mut run = Self::new();
        assert_eq!(run.apply(worker("a")), Outcome::Worker(1));
        assert_eq!(run.apply(worker("b")), Outcome::Worker(2));
        let put = Command::PutDeployment { name: "m".into(), deployment: deployment(2) };
        assert_eq!(run.apply(put), Outcome::Done);
        let member = Member { addr: "c:1".into(), http_addr: "c:2".into(), pid: 3, draining: false };
        assert_eq!(run.apply(Command::RegisterMember { id: 1, member }), Outcome::Done);
        assert_eq!(run.apply(form(&[1, 2])), Outcome::Group(3));
        run
    }
}

pub(super) fn refused(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused(_))
}

#[test]
fn a_group_lives_from_idle_workers_to_a_lost_one() {
    let mut run = Run::with_group();
    assert_eq!(run.state.workers[&1].group, Some(3), "what a worker claims about itself is not believed");
    let assign = |coordinator, replaces| Command::AssignDriver { group: 3, coordinator, replaces };
    assert!(refused(&run.apply(assign(1, 0))), "not ready yet");
    for (epoch, rank, ok) in [(3, 0, false), (4, 2, false), (4, 0, true), (4, 0, true), (4, 1, true)] {
        assert_eq!(refused(&run.apply(Command::RankReady { group: 3, epoch, rank })), !ok, "{epoch} {rank}");
    }
    assert_eq!(run.apply(assign(1, 0)), Outcome::Driver(DriverLease { coordinator: 1, epoch: 5 }));
    assert!(refused(&run.apply(assign(1, 0))), "somebody drives it by now");
    let second = run.apply(assign(1, 5));
    assert_eq!(second, Outcome::Driver(DriverLease { coordinator: 1, epoch: 6 }), "leases only get newer");
    assert!(refused(&run.apply(assign(9, 6))), "unknown coordinator");
    assert_eq!(run.apply(Command::WorkerLost { id: 1 }), Outcome::Done);
    assert!(run.state.groups.is_empty());
    assert_eq!(run.state.workers[&2].group, None, "the other worker is free again");
    assert!(refused(&run.apply(Command::WorkerLost { id: 1 })));
}

#[test]
fn groups_are_formed_of_distinct_idle_workers_of_a_deployment() {
    let mut run = Run::with_group();
    assert_eq!(run.apply(worker("c")), Outcome::Worker(5));
    for ranks in [&[1, 5][..], &[5, 5], &[], &[77]] {
        assert!(refused(&run.apply(form(ranks))), "{ranks:?}");
    }
    assert_eq!(run.apply(form(&[5])), Outcome::Group(6));
    assert!(refused(&run.apply(Command::DissolveGroup { group: 6, epoch: 4 })), "an old epoch");
    assert_eq!(run.apply(Command::DissolveGroup { group: 6, epoch: 7 }), Outcome::Done);
    assert_eq!(run.apply(form(&[5])), Outcome::Group(8), "ids are never used again");
    assert_eq!(run.apply(Command::RemoveDeployment { name: "m".into() }), Outcome::Done);
    assert!(run.state.groups.is_empty() && run.state.workers.values().all(|w| w.group.is_none()));
    assert!(refused(&run.apply(form(&[5]))), "no such deployment");
}

#[test]
fn a_groups_shape_weights_and_experts_fit_its_ranks() {
    let mut run = Run::new();
    run.apply(worker("a"));
    run.apply(worker("b"));
    run.apply(Command::PutDeployment { name: "m".into(), deployment: deployment(2) });
    let good = Formation {
        shape: Shape { tp: 1, dp: 2, pp: 1, ep: 2 },
        rank_weights: vec![3, 1],
        experts: vec![vec![0, 1, 1]],
        ..formation(&[1, 2])
    };
    for wrong in [
        Formation { shape: Shape { tp: 2, dp: 2, pp: 1, ep: 2 }, ..good.clone() },
        Formation { shape: Shape { dp: 0, ..good.shape }, ..good.clone() },
        Formation { shape: Shape { ep: 4, ..good.shape }, ..good.clone() },
        Formation { rank_weights: vec![1], ..good.clone() },
        Formation { experts: vec![vec![0, 2]], ..good.clone() },
    ] {
        assert!(refused(&run.apply(Command::FormGroup(wrong.clone()))), "{wrong:?}");
    }
    let Outcome::Group(id) = run.apply(Command::FormGroup(good.clone())) else { panic!("refused") };
    let group = &run.state.groups[&id];
    assert_eq!(
        (group.shape, &group.rank_weights, &group.experts),
        (good.shape, &good.rank_weights, &good.experts)
    );
}

#[test]
fn an_obstacle_is_known_until_a_group_is_ready_or_the_deployment_gone() {
    let mut run = Run::with_group();
    let note = |deployment: &str| {
        let reason = "é".repeat(2 * MAX_OBSTACLE);
        Command::NoteObstacle { deployment: deployment.into(), reason }
    };
    assert!(refused(&run.apply(note("unknown"))));
    assert_eq!(run.apply(note("m")), Outcome::Done);
    assert_eq!(run.state.obstacles["m"].chars().count(), MAX_OBSTACLE, "bounded");
    run.apply(Command::RankReady { group: 3, epoch: 4, rank: 0 });
    assert_eq!(run.state.obstacles.len(), 1, "one rank is not a group");
    run.apply(Command::RankReady { group: 3, epoch: 4, rank: 1 });
    assert!(run.state.obstacles.is_empty());
    run.apply(note("m"));
    run.apply(Command::RemoveDeployment { name: "m".into() });
    assert!(run.state.obstacles.is_empty());
}

#[test]
fn a_write_sent_twice_is_applied_once() {
    let mut state = ClusterState::default();
    let envelope = Envelope { request_id: "same".into(), command: worker("a") };
    assert_eq!(state.apply(&envelope), Outcome::Worker(1));
    let other = Envelope { command: worker("b"), ..envelope };
    assert_eq!(state.apply(&other), Outcome::Worker(1), "an id stands for one write");
    assert_eq!(state.workers.len(), 1);
    let again = Envelope { request_id: "other".into(), command: worker("a") };
    assert_eq!(state.apply(&again), Outcome::Worker(1), "the same process again");
}

#[test]
fn the_memory_of_writes_is_bounded() {
    let mut run = Run::new();
    for i in 0..REMEMBERED_REQUESTS + 10 {
        run.apply(Command::PutNote { key: format!("k{}", i % 7), value: "v".into() });
    }
    assert_eq!(run.state.remembered.len(), REMEMBERED_REQUESTS);
    assert_eq!(run.state.remembered_order.len(), REMEMBERED_REQUESTS);
}

#[test]
fn limits_are_kept() {
    let mut run = Run::new();
    let note = |key: &str, len: usize| Command::PutNote { key: key.into(), value: "x".repeat(len) };
    assert!(refused(&run.apply(note("", 1))));
    assert!(refused(&run.apply(note(&"k".repeat(257), 1))));
    assert!(refused(&run.apply(note("k", MAX_NOTE_VALUE + 1))));
    assert_eq!(run.apply(note("k", MAX_NOTE_VALUE)), Outcome::Done);
    for i in 1..MAX_NOTES {
        assert_eq!(run.apply(note(&format!("k{i}"), 1)), Outcome::Done);
    }
    assert!(refused(&run.apply(note("one more", 1))));
    assert_eq!(run.apply(note("k", 2)), Outcome::Done, "a known key may change");
    let mut big = Run::new();
    for i in 0..MAX_NOTES_BYTES / MAX_NOTE_VALUE - 1 {
        assert_eq!(big.apply(note(&i.to_string(), MAX_NOTE_VALUE)), Outcome::Done);
    }
    assert_eq!(big.apply(note("0", MAX_NOTE_VALUE)), Outcome::Done, "it replaces as much");
    assert!(refused(&big.apply(note("last", MAX_NOTE_VALUE))), "too much altogether");
    assert_eq!(big.apply(note("0", 1)), Outcome::Done);
    assert_eq!(big.apply(note("last", MAX_NOTE_VALUE)), Outcome::Done);
    let put = |tp| Command::PutDeployment { name: "m".into(), deployment: deployment(tp) };
    assert_eq!(run.apply(put(1)), Outcome::Done);
    assert_eq!(run.apply(put(1)), Outcome::Done);
    assert!(refused(&run.apply(put(2))), "another one of that name");
}

#[test]
fn the_same_commands_give_the_same_bytes_and_snapshots_come_back() {
    let (a, b) = (Run::with_group().state, Run::with_group().state);
    for format in [4, 5] {
        let bytes = super::super::codec::encode(&a, format).expect("small");
        assert_eq!(bytes, super::super::codec::encode(&b, format).expect("small"));
        assert_eq!(super::super::codec::decode::<ClusterState>(&bytes, 5).as_ref(), Ok(&a));
    }
}
