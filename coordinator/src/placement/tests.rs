//! Placement on small clusters.

use std::collections::BTreeMap;

use foggara_proto::shape::Shape;

use super::facts::{Bits, HeldBits, Kind, LayerFacts, ModelFacts};
use super::*;
use crate::cluster::state::{
    Capabilities, ClusterState, CollectiveKind, Command, Deployment, Device, DeviceKind, Envelope, Formation,
    Member, Outcome, Worker,
};

/// A small dense model: 4 key heads of 2 bytes, 2 layers.
fn model() -> ModelFacts {
    ModelFacts {
        hidden: 4,
        heads: 4,
        kv_heads: 4,
        kv_bytes: 8,
        layers: vec![LayerFacts { attention: 60, dense: 40, experts: None }; 2],
        embedding: 20,
        tied: true,
        vocab: 5,
        context: 64,
        bits: HeldBits {
            cpu: Bits { layers: 16.0, embedding: 16.0 },
            gpu: Bits { layers: 16.0, embedding: 16.0 },
        },
        adapters: 0,
    }
}

fn deployment(tp: u32, replicas: u32) -> Deployment {
    Deployment {
        model_path: "/m".into(),
        shape: Shape { tp, dp: 1, pp: 1, ep: 1 },
        replicas,
        kv_tokens: 0,
        kv_dtype: "auto".into(),
        collective: "auto".into(),
        quantize: "none".into(),
        created: 0,
        manifest: String::new(),
    }
}

/// A cluster of workers on hosts, three coordinators, and deployment "m".
fn cluster(hosts: &[&str], tp: u32, replicas: u32, memory: u64) -> (ClusterState, Surroundings) {
    let mut state = ClusterState::default();
    let mut around = Surroundings { leader: 1, ..Surroundings::default() };
    for (i, host) in hosts.iter().enumerate() {
        join(&mut state, &mut around, &i.to_string(), host, memory);
    }
    for id in 1..=3 {
        let member = Member { addr: "a".into(), http_addr: "h".into(), pid: 1, draining: false };
        apply(&mut state, Command::RegisterMember { id, member });
        around.coordinators.insert(id);
    }
    apply(&mut state, Command::PutDeployment { name: "m".into(), deployment: deployment(tp, replicas) });
    around.models.insert("m".into(), model());
    (state, around)
}

fn join(state: &mut ClusterState, around: &mut Surroundings, name: &str, host: &str, memory: u64) -> u64 {
    join_as(state, around, name, host, Capabilities { memory_bytes: memory, ..Capabilities::default() })
}

/// The same, on a GPU of this UUID, which has a gibibyte more than is free.
fn join_gpu(
    state: &mut ClusterState,
    around: &mut Surroundings,
    name: &str,
    place: (&str, &str),
    memory_bytes: u64,
) -> u64 {
    let (host, unique_id) = place;
    let device = Device {
        kind: DeviceKind::Cuda,
        name: "G1".into(),
        unique_id: unique_id.into(),
        total_bytes: memory_bytes + (1 << 30),
        quantize: vec!["none".into(), "fp8".into()],
        kv_dtypes: vec!["f16".into()],
        data_parallel: false,
    };
    let capabilities = Capabilities {
        memory_bytes,
        read_bytes_per_second: 1_000_000_000,
        flops: 1_000_000_000_000,
        device,
        ..Capabilities::default()
    };
    join_as(state, around, name, host, capabilities)
}

fn join_as(
    state: &mut ClusterState,
    around: &mut Surroundings,
    name: &str,
    host: &str,
    capabilities: Capabilities,
) -> u64 {
    let worker = Worker {
        addr: "a".into(),
        collective_addr: "c".into(),
        host: host.into(),
        pid: 1,
        incarnation: name.into(),
        capabilities,
        group: None,
    };
    let Outcome::Worker(id) = apply(state, Command::RegisterWorker(Box::new(worker))) else {
        panic!("refused")
    };
    around.workers.insert(id);
    id
}

/// Does what the placement says.
fn do_all(state: &mut ClusterState, around: &Surroundings) {
    for step in plan(state, around) {
        if let Step::Do(command) = step {
            let outcome = apply(state, command.clone());
            assert!(!matches!(outcome, Outcome::Refused(_)), "{command:?}: {outcome:?}");
        }
    }
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
    let fixed = 60 << 20;
    for memory in [0, 1 << 20, 2 * fixed, 3 * fixed, 1 << 40] {
        let (state, around) = cluster(&["a", "a"], 2, 1, memory);
        match &plan(&state, &around)[..] {
            [Step::Do(Command::FormGroup(Formation { kv_blocks, block_size, .. }))] => {
                // Two workers share the host's memory; each has half the heads.
                let bytes = u64::from(kv_blocks * block_size) * 8 + fixed;
                assert!(bytes <= memory / 2, "{bytes} of {memory}");
                assert!(u64::from(kv_blocks * block_size) <= 65_536);
            }
            [Step::Missing { reason, .. }] => assert!(reason.contains("memory"), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn adapters_are_left_room_beside_the_cache() {
    let memory = 200 << 20;
    let blocks = |adapters: u64| {
        let (state, mut around) = cluster(&["a"], 1, 1, memory);
        around.models.insert("m".into(), ModelFacts { adapters, kv_bytes: 8 << 10, ..model() });
        match &plan(&state, &around)[..] {
            [Step::Do(Command::FormGroup(Formation { kv_blocks, block_size, .. }))] => {
                Some(u64::from(kv_blocks * block_size) * (16 << 10))
            }
            [Step::Missing { .. }] => None,
            other => panic!("{other:?}"),
        }
    };
    let (without, with) = (blocks(0).expect("it fits"), blocks(50 << 20).expect("it fits, too"));
    assert!(without - with >= 50 << 20, "{without} bytes of cache, and {with}");
    assert_eq!(blocks(memory), None, "adapters alone are too much");
}

#[test]
fn what_others_hold_on_a_host_is_taken_off() {
    // The first deployment takes one worker and a third of the memory as its cache; two more come to the host.
    let memory = 1 << 30;
    let (mut state, mut around) = cluster(&["a"], 1, 1, memory);
    let deployment = Deployment { kv_tokens: (memory / 3) / 16, ..state.deployments["m"].clone() };
    apply(&mut state, Command::RemoveDeployment { name: "m".into() });
    apply(&mut state, Command::PutDeployment { name: "m".into(), deployment: deployment.clone() });
    do_all(&mut state, &around);
    assert_eq!(state.groups.len(), 1);
    for name in ["b", "c"] {
        join(&mut state, &mut around, name, "a", memory);
    }
    let idle = idle_workers(&state, &around);
    let left = (memory - memory / 3 - (60 << 20)) / 2;
    assert!(idle.iter().all(|worker| worker.memory_bytes.abs_diff(left) < 1 << 20), "{idle:?} {left}");
    for (kv_tokens, fits) in [(memory / 3 / 16, false), (memory / 8 / 16, true)] {
        let deployment = Deployment { kv_tokens, ..deployment.clone() };
        apply(&mut state, Command::PutDeployment { name: "n".into(), deployment });
        around.models.insert("n".into(), model());
        let steps = plan(&state, &around);
        assert_eq!(formed(&steps).len(), usize::from(fits), "{steps:?}");
        apply(&mut state, Command::RemoveDeployment { name: "n".into() });
    }
}

#[test]
fn a_worker_is_given_no_more_than_it_is_allowed_and_the_others_of_its_host_the_rest() {
    const GIB: u64 = 1 << 30;
    // Those that are limited have found that there is less.
    for (limits, expected) in [
        (&[None, None, None][..], &[3 * GIB, 3 * GIB, 3 * GIB][..]),
        (&[Some(GIB), None, None], &[GIB, 4 * GIB, 4 * GIB]),
        (&[None, Some(2 * GIB), Some(GIB)], &[6 * GIB, 2 * GIB, GIB]),
        // More than its part.
        (&[Some(5 * GIB), None, None], &[3 * GIB, 3 * GIB, 3 * GIB]),
        (&[Some(GIB), Some(GIB), Some(GIB)], &[GIB / 3, GIB / 3, GIB / 3 + 1]),
    ] {
        let (mut state, mut around) = cluster(&[], 1, 0, 0);
        for (i, limit) in limits.iter().enumerate() {
            let id = join(&mut state, &mut around, &i.to_string(), "a", limit.unwrap_or(9 * GIB));
            around.limits.extend(limit.map(|limit| (id, limit)));
        }
        let memory: Vec<u64> = idle_workers(&state, &around).iter().map(|w| w.memory_bytes).collect();
        assert!(
            memory.iter().zip(expected).all(|(got, expected)| got.abs_diff(*expected) <= 1),
            "{limits:?}: {memory:?}"
        );
    }
}

/// What the planner adds to what a worker on a GPU says is free: its own process.
const PROCESS: u64 = 600 << 20;

#[test]
fn a_gpu_is_its_workers_own_and_a_shared_one_is_divided() {
    const GIB: u64 = 1 << 30;
    for (gpus, expected) in [
        // Two on a host: each whole, whatever the host has.
        (&[("a", "u1"), ("a", "u2")][..], vec![80 * GIB + PROCESS; 2]),
        // One for two, also where their containers look like two hosts; the third has its own.
        (&[("a", "u1"), ("b", "u1"), ("a", "u2")], vec![40 * GIB + PROCESS / 2; 2]),
        // Whose GPU does not say which it is.
        (&[("a", ""), ("a", "")], vec![80 * GIB + PROCESS; 2]),
    ] {
        let (mut state, mut around) = cluster(&["a", "a"], 1, 0, 10 * GIB);
        for (i, place) in gpus.iter().enumerate() {
            // Who came second to a GPU has found less of it.
            let free = 80 * GIB - if i == 1 && gpus[0].1 == place.1 && !place.1.is_empty() { GIB } else { 0 };
            join_gpu(&mut state, &mut around, &format!("g{i}"), *place, free);
        }
        let idle = idle_workers(&state, &around);
        let memory = |kind| idle.iter().filter(move |w| w.kind == kind).map(|w| w.memory_bytes);
        assert_eq!(memory(Kind::Cpu).collect::<Vec<_>>(), [5 * GIB; 2], "the host's, of its CPUs alone");
        assert_eq!(memory(Kind::Gpu).take(2).collect::<Vec<_>>(), expected, "{gpus:?}");
        assert!(memory(Kind::Gpu).skip(2).all(|bytes| bytes == 80 * GIB + PROCESS));
    }
    // Never more than there is.
    let (mut state, mut around) = cluster(&[], 1, 0, 0);
    let id = join_gpu(&mut state, &mut around, "g", ("a", "u"), 80 * GIB);
    state.workers.get_mut(&id).expect("joined").capabilities.device.total_bytes = 80 * GIB + 5;
    assert_eq!(idle_workers(&state, &around)[0].memory_bytes, 80 * GIB + 5);
}

#[test]
fn what_a_rank_holds_of_a_shared_gpu_is_taken_off_and_of_another_is_not() {
    let memory = 8 << 30;
    let (mut state, mut around) = cluster(&[], 1, 1, 0);
    for (name, unique_id) in [("x", "u1"), ("y", "u1"), ("z", "u2")] {
        join_gpu(&mut state, &mut around, name, ("a", unique_id), memory);
    }
    // A gibibyte of cache.
    let deployment = Deployment { kv_tokens: (1 << 30) / 16, ..state.deployments["m"].clone() };
    apply(&mut state, Command::RemoveDeployment { name: "m".into() });
    apply(&mut state, Command::PutDeployment { name: "m".into(), deployment });
    do_all(&mut state, &around);
    let [group] = &state.groups.values().collect::<Vec<_>>()[..] else { panic!("{:?}", state.groups) };
    let idle = idle_workers(&state, &around);
    let left: BTreeMap<u64, u64> = idle.iter().map(|worker| (worker.id, worker.memory_bytes)).collect();
    let ids: Vec<u64> = state.workers.keys().copied().collect();
    assert_eq!(group.ranks, [ids[2]], "where most is left");
    assert_eq!((left[&ids[0]], left[&ids[1]]), ((memory + PROCESS) / 2, (memory + PROCESS) / 2));
    // The next one takes a part of the shared GPU, and leaves the rest to its sharer.
    let deployment = state.deployments["m"].clone();
    apply(&mut state, Command::PutDeployment { name: "n".into(), deployment });
    around.models.insert("n".into(), model());
    do_all(&mut state, &around);
    let rest = idle_workers(&state, &around);
    let taken = (1 << 30) + PROCESS + ((32 + 272) << 20);
    assert_eq!(rest.len(), 1);
    assert!(rest[0].memory_bytes.abs_diff(memory + PROCESS - taken) < 1 << 20, "{rest:?}");
}

#[test]
fn workers_of_both_kinds_are_not_put_into_one_group() {
    let (mut state, mut around) = cluster(&["a"], 2, 1, 1 << 30);
    let gpu = join_gpu(&mut state, &mut around, "x", ("a", "u1"), 1 << 30);
    let steps = plan(&state, &around);
    let Some(Step::Missing { reason, .. }) = steps.last() else { panic!("{steps:?}") };
    assert_eq!(
        reason,
        "on GPUs (2 idle workers are needed, there are 1), nor on CPUs (2 idle workers are needed, there are 1)"
    );
    let other = join_gpu(&mut state, &mut around, "y", ("a", "u2"), 1 << 30);
    assert_eq!(formed(&plan(&state, &around)), [(vec![gpu, other], CollectiveKind::Shm)]);
    // Its cache is one that only CPUs keep.
    let deployment = Deployment { kv_dtype: "q8_0".into(), ..deployment(1, 1) };
    apply(&mut state, Command::RemoveDeployment { name: "m".into() });
    apply(&mut state, Command::PutDeployment { name: "m".into(), deployment });
    assert_eq!(formed(&plan(&state, &around)), [(vec![1], CollectiveKind::Solo)]);
    // And this one only GPUs keep: the cluster's say f16 only.
    let deployment = Deployment { kv_dtype: "fp8".into(), ..self::deployment(1, 1) };
    apply(&mut state, Command::RemoveDeployment { name: "m".into() });
    apply(&mut state, Command::PutDeployment { name: "m".into(), deployment });
    let steps = plan(&state, &around);
    let Some(Step::Missing { reason, .. }) = steps.last() else { panic!("{steps:?}") };
    assert_eq!(
        reason,
        "on GPUs (kv_dtype: a fp8 KV cache is not kept on GPUs; use f16), nor on CPUs (kv_dtype: a fp8 KV cache is \
         not kept on CPUs; use q8_0)"
    );
}

#[test]
fn the_same_gpus_are_as_fast_whatever_is_in_the_host() {
    let (mut state, mut around) = cluster(&["a"], 1, 0, 1 << 30);
    let slow = join_gpu(&mut state, &mut around, "x", ("a", "u1"), 1 << 30);
    let capabilities =
        Capabilities { cpu: "another".into(), threads: 7, ..state.workers[&slow].capabilities.clone() };
    let fast = Capabilities { read_bytes_per_second: 1_300_000_000, ..capabilities };
    join_as(&mut state, &mut around, "y", "b", fast);
    let idle = idle_workers(&state, &around);
    let speeds: Vec<u64> = idle.iter().map(|worker| worker.speeds.bytes_per_second).collect();
    assert_eq!(speeds, [0, 1_300_000_000, 1_300_000_000]);
}

#[test]
fn a_number_left_open_is_chosen_and_those_that_wait_share_the_workers() {
    let (mut state, mut around) = cluster(&["a"; 4], 0, 1, 1 << 40);
    let deployment = state.deployments["m"].clone();
    apply(&mut state, Command::PutDeployment { name: "n".into(), deployment });
    around.models.insert("n".into(), model());
    for step in plan(&state, &around) {
        let Step::Do(Command::FormGroup(formation)) = step else { panic!("{step:?}") };
        assert!(formation.shape.is_fixed() && formation.ranks.len() <= 2, "{formation:?}");
        assert_eq!(formation.shape.ranks() as usize, formation.ranks.len());
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

proptest::proptest! {
    /// Workers and deployments come and go: whatever is in place and still has its workers and its deployment stays.
    #[test]
    fn nothing_in_place_moves(events in proptest::collection::vec((0u8..5, 0u64..12, 0u32..4, 1u32..3), 1..25)) {
        let (mut state, mut around) = cluster(&["a", "a", "b"], 1, 1, 1 << 30);
        let mut names = 0;
        for (kind, which, tp, replicas) in events {
            match kind {
                0 | 1 => {
                    names += 1;
                    join(&mut state, &mut around, &format!("w{names}"), ["a", "b", "c"][which as usize % 3], 1 << 30);
                }
                2 => {
                    let id = state.workers.keys().nth(which as usize).copied();
                    if let Some(id) = id {
                        apply(&mut state, Command::WorkerLost { id });
                        around.workers.remove(&id);
                    }
                }
                3 => {
                    let name = format!("d{which}");
                    let shape = Shape { tp, dp: 1, pp: 1, ep: 1 };
                    let deployment = Deployment { shape, replicas, ..deployment(1, 1) };
                    apply(&mut state, Command::PutDeployment { name: name.clone(), deployment });
                    around.models.insert(name, model());
                }
                _ => {
                    apply(&mut state, Command::RemoveDeployment { name: format!("d{which}") });
                }
            }
            let before = state.groups.clone();
            let steps = plan(&state, &around);
            proptest::prop_assert_eq!(&steps, &plan(&state, &around), "deterministic");
            do_all(&mut state, &around);
            for (id, group) in before {
                proptest::prop_assert_eq!(state.groups.get(&id), Some(&group), "moved");
            }
            let again: Vec<Step> = plan(&state, &around);
            proptest::prop_assert!(formed(&again).is_empty(), "nothing is left to form: {again:?}");
        }
    }
}
