//! Placement on small clusters.

use super::*;
use crate::cluster::state::{Capabilities, Envelope, Member, Outcome};

const NEEDS: ModelNeeds = ModelNeeds { weight_bytes: 100, kv_bytes_per_token: 8, kv_heads: 4, context: 64 };

/// A cluster of workers on hosts, three coordinators, and deployment "m".
fn cluster(hosts: &[&str], tp: u32, replicas: u32, memory: u64) -> (ClusterState, Surroundings) {
    let mut state = ClusterState::default();
    let mut around = Surroundings { leader: 1, ..Surroundings::default() };
    for (i, host) in hosts.iter().enumerate() {
        let capabilities = Capabilities { memory_bytes: memory, ..Capabilities::default() };
        let worker = Worker {
            addr: "a".into(),
            collective_addr: "c".into(),
            host: host.to_string(),
            pid: 1,
            incarnation: i.to_string(),
            capabilities,
            group: None,
        };
        if let Outcome::Worker(id) = apply(&mut state, Command::RegisterWorker(worker)) {
            around.workers.insert(id);
        }
    }
    for id in 1..=3 {
        let member = Member { addr: "a".into(), http_addr: "h".into(), pid: 1, draining: false };
        apply(&mut state, Command::RegisterMember { id, member });
        around.coordinators.insert(id);
    }
    let deployment = Deployment {
        model_path: "/m".into(),
        shape: Shape::tensor(tp),
        replicas,
        kv_tokens: 0,
        kv_dtype: "auto".into(),
        collective: "auto".into(),
        quantize: "none".into(),
        created: 0,
        manifest: String::new(),
    };
    apply(&mut state, Command::PutDeployment { name: "m".into(), deployment });
    around.models.insert("m".into(), NEEDS);
    (state, around)
}

fn apply(state: &mut ClusterState, command: Command) -> Outcome {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let request_id = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string();
    state.apply(&Envelope { request_id, command })
}

fn formed(steps: &[Step]) -> Vec<(Vec<u64>, CollectiveKind)> {
    let form = |step: &Step| match step {
        Step::Do(Command::FormGroup(f)) => Some((f.ranks.clone(), f.collective)),
        _ => None,
    };
    steps.iter().filter_map(form).collect()
}

#[test]
fn replicas_are_formed_on_one_host_where_one_has_enough() {
    for (hosts, tp, replicas, expected) in [
        (&["a", "b", "b"][..], 2, 1, vec![(vec![2, 3], CollectiveKind::Shm)]),
        (&["a", "b", "c"], 2, 1, vec![(vec![1, 2], CollectiveKind::Tcp)]),
        (&["a", "a", "a"], 1, 2, vec![(vec![1], CollectiveKind::Solo), (vec![2], CollectiveKind::Solo)]),
        (
            &["a", "b", "b", "a"],
            2,
            2,
            vec![(vec![1, 4], CollectiveKind::Shm), (vec![2, 3], CollectiveKind::Shm)],
        ),
        (&["a"], 2, 1, vec![]),
    ] {
        let (state, around) = cluster(hosts, tp, replicas, 1 << 30);
        assert_eq!(formed(&plan(&state, &around)), expected, "{hosts:?} tp {tp}");
    }
}

#[test]
fn what_is_in_place_stays_and_what_is_missing_is_said() {
    let (mut state, around) = cluster(&["a", "a"], 2, 1, 1 << 30);
    for step in plan(&state, &around) {
        if let Step::Do(command) = step {
            apply(&mut state, command);
        }
    }
    assert!(plan(&state, &around).is_empty(), "loading: nothing to do");
    let (state, around) = cluster(&["a", "a"], 2, 2, 1 << 30);
    let steps = plan(&state, &around);
    let Some(Step::Missing { deployment, reason }) = steps.last() else { panic!("{steps:?}") };
    assert_eq!((deployment.as_str(), reason.contains("2 idle workers")), ("m", true));
}

#[test]
fn caches_never_go_over_memory() {
    for memory in [0, 200, 1_000, 100_000, 1 << 40] {
        let (state, around) = cluster(&["a", "a"], 2, 1, memory);
        match &plan(&state, &around)[..] {
            [Step::Do(Command::FormGroup(Formation { kv_blocks, block_size, .. }))] => {
                // Two workers share the host's memory; each has half the heads and half the weights.
                let bytes = u64::from(kv_blocks * block_size) * 4 + 50;
                assert!(bytes <= memory / 2 * 8 / 10 + 64, "{bytes} of {memory}");
                assert!(u64::from(kv_blocks * block_size) <= DEFAULT_KV_TOKENS);
            }
            [Step::Missing { reason, .. }] => assert!(reason.contains("memory"), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn leases_avoid_the_raft_leader_and_the_dead() {
    let (mut state, mut around) = cluster(&["a", "a"], 1, 2, 1 << 30);
    for step in plan(&state, &around) {
        if let Step::Do(command) = step {
            apply(&mut state, command);
        }
    }
    let groups: Vec<(u64, u64)> = state.groups.iter().map(|(id, group)| (*id, group.epoch)).collect();
    for (group, epoch) in groups {
        apply(&mut state, Command::RankReady { group, epoch, rank: 0 });
    }
    let assigned = |steps: &[Step]| -> Vec<u64> {
        let lease = |step: &Step| match step {
            Step::Do(Command::AssignDriver { coordinator, .. }) => Some(*coordinator),
            _ => None,
        };
        steps.iter().filter_map(lease).collect()
    };
    let steps = plan(&state, &around);
    assert_eq!(assigned(&steps), [2, 3]);
    for step in steps {
        if let Step::Do(command) = step {
            apply(&mut state, command);
        }
    }
    assert!(plan(&state, &around).is_empty());
    around.coordinators.remove(&2);
    assert_eq!(assigned(&plan(&state, &around)), [3]);
    around.coordinators.remove(&3);
    assert_eq!(assigned(&plan(&state, &around)), [1, 1], "better the leader than nobody");
}
