//! All-to-all, passes, and processes that are in several groups.

use super::*;

/// Lengths of the parts in one exchange: `lengths[from][to]`.
fn exchange_cases() -> Vec<Vec<Vec<usize>>> {
    let slot = 1 << 18;
    let even = |size: usize, len: usize| vec![vec![len; size]; size];
    let mut cases: Vec<_> = (1..=5).flat_map(|size| [even(size, 0), even(size, 1), even(size, 33)]).collect();
    cases.extend([
        vec![vec![3, 0], vec![7, 5]],
        // Only one rank sends, and more than three slots.
        vec![vec![0, 1, 3 * slot + 5], vec![0; 3], vec![0; 3]],
        // A slot to the element, with the lengths that precede the first part, and one more.
        vec![vec![9, slot - 2], vec![slot - 1, 0]],
        vec![vec![0, slot - 3, 0], vec![slot, 5, slot - 3], vec![2 * slot - 3, 0, 1]],
        (0..5).map(|from| (0..5).map(|to| (from * 70_001 + to * 130_003) % 300_007).collect()).collect(),
        (0..4).map(|from| (0..4).map(|to| if to == 2 { 40 * from } else { 0 }).collect()).collect(),
    ]);
    cases
}

#[test]
fn all_to_all_brings_every_part_to_its_rank() {
    let sent = |from: usize, to: usize, len: usize| -> Vec<f32> {
        (0..len).map(|i| value(from * 8 + to, i)).collect()
    };
    for kind in [Kind::Shm, Kind::Tcp] {
        for lengths in exchange_cases() {
            group(kind, lengths.len(), |mut c| {
                let (rank, size) = (c.rank(), c.size());
                let parts: Vec<_> = (0..size).map(|to| sent(rank, to, lengths[rank][to])).collect();
                let send: Vec<&[f32]> = parts.iter().map(Vec::as_slice).collect();
                // What lies there from before does not matter.
                let mut recv = vec![vec![7.0; 50]; size];
                for round in 0..2 {
                    c.all_to_all(&send, &mut recv).expect("all ranks are there");
                    for (from, got) in recv.iter().enumerate() {
                        let expected = sent(from, rank, lengths[from][rank]);
                        assert!(*got == expected, "{kind:?} {lengths:?}: {from} to {rank}, round {round}");
                    }
                }
                c.barrier().expect("the group is in step");
                let peers = (0..size).filter(|to| *to != rank);
                let bytes: usize = peers.map(|to| 4 + 4 * lengths[rank][to]).sum();
                assert_eq!(c.stats().bytes, 2 * bytes as u64, "{kind:?} {lengths:?}");
            });
        }
    }
    let mut recv = vec![vec![1.0; 9]];
    Solo::default().all_to_all(&[&[2.0, 3.0]], &mut recv).expect("nobody else is needed");
    assert_eq!(recv, [[2.0, 3.0]]);
}

#[test]
fn a_pass_brings_data_of_any_length_from_the_first_rank_to_the_second() {
    for kind in [Kind::Shm, Kind::Tcp] {
        group(kind, 2, |mut c| {
            for len in [0, 1, 576, 1 << 18, (1 << 18) + 1, 1_000_003] {
                let expected: Vec<f32> = (0..len).map(|i| value(3, i)).collect();
                let mut data = if c.rank() == 0 { expected.clone() } else { vec![0.0; len] };
                c.pass(&mut data).expect("both are there");
                assert!(data == expected, "{kind:?} {len}");
                let mut sum = [1.0];
                c.all_reduce(&mut sum).expect("both are there");
                assert_eq!(sum, [2.0]);
            }
        });
        let refused = group(kind, 3, |mut c| c.pass(&mut [1.0]));
        assert!(refused.iter().all(|r| matches!(r, Err(CollectiveError::Io { .. }))), "{kind:?} {refused:?}");
    }
    assert!(matches!(Solo::default().pass(&mut []), Err(CollectiveError::Io { .. })));
}

#[test]
fn the_first_rank_of_a_pass_does_not_wait_for_the_second() {
    for kind in [Kind::Shm, Kind::Tcp] {
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let receiver = std::sync::Mutex::new(receiver);
        group(kind, 2, |mut c| {
            let mut data = [5.0, 6.0];
            if c.rank() == 0 {
                c.pass(&mut data).expect("there is room");
                data[0] = 7.0;
                c.pass(&mut data).expect("there is room");
                sender.send(()).expect("rank 1 waits");
            } else {
                // Were rank 0 waiting for this rank, it would never say so.
                receiver.lock().expect("one rank").recv().expect("rank 0 tells");
                for first in [5.0, 7.0] {
                    data = [0.0; 2];
                    c.pass(&mut data).expect("it was sent");
                    assert_eq!(data, [first, 6.0]);
                }
            }
            c.barrier().expect("the group is in step");
        });
    }
}

#[test]
fn exchanges_and_passes_of_other_shapes_or_beside_other_calls_are_refused() {
    let refused = |c: &mut dyn Collective| {
        let size = c.size();
        let part: &[f32] = &[1.0];
        for (send, recv) in [(size + 1, size), (size - 1, size), (size, size + 1), (size, size - 1)] {
            let outcome = c.all_to_all(&vec![part; send], &mut vec![Vec::new(); recv]);
            assert!(matches!(outcome, Err(CollectiveError::Io { .. })), "{send} {recv}: {outcome:?}");
        }
        c.barrier().expect("the group still works");
    };
    refused(&mut Solo::default());
    for kind in [Kind::Shm, Kind::Tcp] {
        group(kind, 3, |mut c| refused(&mut *c));
        let mismatch = |f: &(dyn Fn(&mut dyn Collective) -> Result<(), CollectiveError> + Sync)| {
            let outcomes = group(kind, 2, |mut c| f(&mut *c));
            let seen = outcomes.iter().any(|o| matches!(o, Err(CollectiveError::Mismatch { .. })));
            assert!(seen, "{kind:?}: {outcomes:?}");
        };
        mismatch(&|c| match c.rank() {
            0 => c.all_to_all(&[&[1.0], &[2.0]], &mut [vec![], vec![]]),
            _ => c.all_reduce(&mut [1.0]),
        });
        mismatch(&|c| match c.rank() {
            0 => c.barrier(),
            _ => c.pass(&mut [1.0]),
        });
        mismatch(&|c| if c.rank() == 0 { c.pass(&mut [1.0, 2.0]) } else { c.pass(&mut [1.0]) });
    }
}

#[test]
fn one_handle_ends_several_groups() {
    for kind in [Kind::Shm, Kind::Tcp] {
        let handles = std::sync::Mutex::new(Vec::new());
        let both_blocked = |c: &mut dyn Collective| {
            if c.rank() == 0 {
                handles.lock().expect("no panic").push(c.abort_handle());
                return c.all_to_all(&[&[1.0], &[2.0]], &mut [vec![], vec![]]).expect_err("aborted");
            }
            let started = Instant::now();
            while handles.lock().expect("no panic").len() < 2 {
                assert!(started.elapsed() < Duration::from_secs(60), "both groups come");
                std::thread::yield_now();
            }
            let all = AbortHandle::all(handles.lock().expect("no panic").clone());
            all.abort("enough");
            CollectiveError::Aborted("by this rank".into())
        };
        std::thread::scope(|scope| {
            let groups = [0, 1].map(|_| scope.spawn(|| group(kind, 2, |mut c| both_blocked(&mut *c))));
            for group in groups {
                let errors = group.join().expect("no panic");
                assert_eq!(errors[0], CollectiveError::Aborted("enough".into()), "{kind:?}");
            }
        });
    }
}

#[test]
fn processes_are_in_several_groups_over_one_listener() {
    let listeners: Vec<_> = (0..4).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    let addresses: Vec<_> = listeners.iter().map(|l| l.local_addr().expect("bound")).collect();
    // In this order everywhere, though not everyone is in each.
    let groups: [&[usize]; 6] = [&[0, 1, 2, 3], &[2, 3], &[0, 2], &[1, 3], &[3, 0], &[1, 2, 0]];
    for round in 0..5u8 {
        std::thread::scope(|scope| {
            for (process, listener) in listeners.iter().enumerate() {
                let addresses = &addresses;
                scope.spawn(move || {
                    let mut joined: Vec<Box<dyn Collective>> = Vec::new();
                    for (number, members) in groups.iter().enumerate() {
                        let Some(rank) = members.iter().position(|member| *member == process) else {
                            continue;
                        };
                        let tcp = tcp::TcpConfig {
                            rank,
                            group_key: tcp::key_of_part(&[round; 16], number as u64),
                            peers: members.iter().map(|member| addresses[*member]).collect(),
                            listener: listener.try_clone().expect("a second handle"),
                            spin: SpinPolicy::Park,
                            connect_timeout: Duration::from_secs(60),
                            cancelled: Arc::default(),
                        };
                        let name = format!("foggara-several-{}-{round}-{number}", std::process::id());
                        joined.push(tcp::connect(&tcp).expect("connects"));
                        joined.push(
                            shm::connect(&shm::ShmConfig::new(name, rank, members.len())).expect("connects"),
                        );
                    }
                    for c in &mut joined {
                        let mut sum = [1.0];
                        c.all_reduce(&mut sum).expect("all ranks are there");
                        assert_eq!(sum, [c.size() as f32]);
                    }
                });
            }
        });
    }
}
