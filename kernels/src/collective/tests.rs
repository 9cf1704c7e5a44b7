//! Both implementations against the same expectations: results, order, faults.

mod exchange;

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::*;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Shm,
    Tcp,
}

/// Connects a group in one process and runs `f` on every rank's thread.
fn group<R: Send>(kind: Kind, size: usize, f: impl Fn(Box<dyn Collective>) -> R + Sync) -> Vec<R> {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("foggara-test-{}-{number}", std::process::id());
    let listeners: Vec<_> =
        (0..size).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    let peers: Vec<_> = listeners.iter().map(|l| l.local_addr().expect("bound")).collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = listeners
            .into_iter()
            .enumerate()
            .map(|(rank, listener)| {
                let (peers, name, f) = (peers.clone(), name.clone(), &f);
                scope.spawn(move || {
                    let collective = match kind {
                        Kind::Shm => shm::connect(&shm::ShmConfig::new(name, rank, size)),
                        Kind::Tcp => tcp::connect(&tcp::TcpConfig {
                            rank,
                            group_key: [7; 16],
                            peers,
                            listener,
                            spin: SpinPolicy::default(),
                            connect_timeout: Duration::from_secs(30),
                            cancelled: Arc::default(),
                        }),
                    };
                    f(collective.expect("the group connects"))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no rank panics")).collect()
    })
}

/// Of many sizes and both signs, so that another order of additions gives other bits.
fn value(rank: usize, i: usize) -> f32 {
    let mixed = (i as u32).wrapping_mul(0x9e37_79b1) ^ (rank as u32 + 1).wrapping_mul(0x85eb_ca6b);
    let mixed = (mixed ^ (mixed >> 15)).wrapping_mul(0x2c1b_3c6d);
    (mixed as i32 as f32) * 2f32.powi(-((mixed >> 7) as i32 & 31))
}

/// The sum that everyone must get, as bits.
fn sums(len: usize, ranks: impl Iterator<Item = usize> + Clone) -> Vec<u32> {
    let mut rest = ranks;
    let first = rest.next().expect("at least one rank");
    (0..len).map(|i| rest.clone().fold(value(first, i), |sum, rank| sum + value(rank, i)).to_bits()).collect()
}

#[test]
fn all_reduce_sums_in_rank_order_bit_for_bit() {
    assert!(sums(100, 0..3) != sums(100, (0..3).rev()), "these values show the order");
    for size in 1..=5 {
        for len in [0, 1, 7, 576, 16_384, 16_385, 100_003, 2_000_000] {
            let expected = sums(len, 0..size);
            for kind in [Kind::Shm, Kind::Tcp] {
                let agrees = group(kind, size, |mut c| {
                    let mut data: Vec<f32> = (0..len).map(|i| value(c.rank(), i)).collect();
                    c.all_reduce(&mut data).expect("all ranks are there");
                    data.iter().map(|x| x.to_bits()).eq(expected.iter().copied())
                });
                assert!(agrees.iter().all(|agrees| *agrees), "{kind:?} {size} ranks, {len} elements");
            }
        }
    }
}

#[test]
fn parts_cover_a_vector_once() {
    for len in [0, 1, 15, 16, 17, 576, 100_003] {
        for size in 1..=5 {
            let mut next = 0;
            for part in (0..size).map(|r| part_of(len, size, r)) {
                assert!(part.start == next && part.end >= next, "{len} over {size}");
                assert!(part.start.is_multiple_of(16) || part.start == len, "{len} over {size}");
                next = part.end;
            }
            assert_eq!(next, len, "over {size}");
        }
    }
}

#[test]
fn lengths_that_do_not_belong_together_are_refused_before_anything_is_sent() {
    let refusals = |mut c: Box<dyn Collective>| {
        let (size, rank) = (c.size(), c.rank());
        let room = if rank == 0 { 2 * size } else { 0 };
        let mut refused = vec![
            ("a count too few", c.gather(&[0.0; 2], &vec![2; size - 1], &mut vec![0.0; room])),
            ("a count too many", c.gather(&[0.0; 2], &vec![2; size + 1], &mut vec![0.0; room])),
            ("another count", c.gather(&[0.0; 3], &vec![2; size], &mut vec![0.0; room])),
        ];
        if rank == 0 {
            let counts = vec![2; size];
            refused.push(("no room", c.gather(&[0.0; 2], &counts, &mut vec![0.0; room - 1])));
            refused.push(("too much room", c.gather(&[0.0; 2], &counts, &mut vec![0.0; room + 1])));
            refused.push(("a long broadcast", c.broadcast(&mut vec![0; MAX_BROADCAST + 1])));
        }
        for (what, outcome) in refused {
            assert!(matches!(outcome, Err(CollectiveError::Io { .. })), "{what}: {outcome:?}");
        }
        let mut longest = if rank == 0 { vec![3; MAX_BROADCAST] } else { vec![] };
        c.broadcast(&mut longest).expect("the group still works");
        assert!(longest.len() == MAX_BROADCAST && longest.iter().all(|byte| *byte == 3));
        c.barrier().expect("the group still works");
    };
    refusals(Box::<Solo>::default());
    for kind in [Kind::Shm, Kind::Tcp] {
        group(kind, 2, refusals);
    }
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let long = "x".repeat(shm::MAX_NAME + 1);
    for (name, rank, size) in
        [("", 0, 1), (".", 0, 1), ("..", 0, 1), ("a/b", 0, 1), ("ü", 0, 1), (&*long, 0, 1), ("a", 2, 2)]
    {
        let outcome = shm::connect(&shm::ShmConfig::new(name, rank, size)).map(drop);
        assert!(matches!(outcome, Err(CollectiveError::Io { .. })), "{name} {rank} {size}: {outcome:?}");
    }
    let many = shm::connect(&shm::ShmConfig::new("a", 0, shm::MAX_RANKS + 1)).map(drop);
    assert!(matches!(many, Err(CollectiveError::Io { .. })), "{many:?}");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let outside = tcp::TcpConfig {
        rank: 1,
        group_key: [0; 16],
        peers: vec![listener.local_addr().expect("bound")],
        listener,
        spin: SpinPolicy::Park,
        connect_timeout: Duration::from_secs(1),
        cancelled: Arc::default(),
    };
    let outside = tcp::connect(&outside).map(drop);
    assert!(matches!(outside, Err(CollectiveError::Io { .. })), "{outside:?}");
}

#[test]
fn gather_concatenates_parts_of_any_length() {
    for kind in [Kind::Shm, Kind::Tcp] {
        for counts in [vec![3, 0, 5], vec![0, 300_000, 2], vec![1, 1], vec![0, 0]] {
            let total: usize = counts.iter().sum();
            let results = group(kind, counts.len(), |mut c| {
                let send: Vec<f32> = (0..counts[c.rank()]).map(|i| value(c.rank(), i)).collect();
                let mut recv = vec![0.0; if c.rank() == 0 { total } else { 0 }];
                c.gather(&send, &counts, &mut recv).expect("all ranks are there");
                recv
            });
            let expected: Vec<f32> = counts
                .iter()
                .enumerate()
                .flat_map(|(rank, count)| (0..*count).map(move |i| value(rank, i)))
                .collect();
            assert!(results[0] == expected, "{kind:?} {counts:?}");
        }
    }
}

#[test]
fn broadcast_and_barrier_in_any_order_and_length() {
    for kind in [Kind::Shm, Kind::Tcp] {
        let lens = [0usize, 1, 7, 1 << 20, (1 << 20) - 8, 3_000_000, 5, 0];
        group(kind, 3, |mut c| {
            for (round, len) in lens.into_iter().enumerate() {
                let message: Vec<u8> = (0..len).map(|i| (i * 7 + round) as u8).collect();
                let mut bytes = if c.rank() == 0 { message.clone() } else { vec![9; 100] };
                c.broadcast(&mut bytes).expect("all ranks are there");
                assert!(bytes == message, "{kind:?} {len}");
                if round % 2 == 0 {
                    c.barrier().expect("all ranks are there");
                }
            }
        });
    }
}

#[test]
fn thousands_of_mixed_calls_stay_in_step() {
    for kind in [Kind::Shm, Kind::Tcp] {
        group(kind, 3, |mut c| {
            for round in 0..2000usize {
                let mut data = [value(c.rank(), round), 1.0];
                c.all_reduce(&mut data).expect("all ranks are there");
                assert_eq!(
                    data[0].to_bits(),
                    ((value(0, round) + value(1, round)) + value(2, round)).to_bits()
                );
                let mut bytes = if c.rank() == 0 { vec![round as u8; round % 50] } else { vec![] };
                c.broadcast(&mut bytes).expect("all ranks are there");
                assert_eq!(bytes.len(), round % 50);
            }
            let stats = c.stats();
            assert_eq!(stats.calls, 4000);
            assert!(stats.wait_nanos <= stats.nanos, "waiting is part of a call: {stats:?}");
        });
    }
}

#[test]
fn an_abort_reaches_every_blocked_rank() {
    for kind in [Kind::Shm, Kind::Tcp] {
        let errors = group(kind, 3, |mut c| {
            if c.rank() == 1 {
                // The others sleep by now or will: either way they must come out.
                let handle = c.abort_handle();
                handle.abort("enough");
                handle.abort("the first reason stays");
                let later = [c.all_reduce(&mut []), c.all_reduce(&mut [1.0]), c.broadcast(&mut vec![])];
                let aborted = Err(CollectiveError::Aborted("enough".into()));
                assert!(later.iter().all(|later| *later == aborted), "{kind:?} {later:?}");
                return c.barrier().expect_err("aborted");
            }
            c.broadcast(&mut vec![1])
                .and_then(|()| c.barrier())
                .and_then(|()| c.barrier())
                .expect_err("the group ended")
        });
        assert_eq!(errors[1], CollectiveError::Aborted("enough".into()), "{kind:?}");
        for error in [&errors[0], &errors[2]] {
            let told = matches!(error, CollectiveError::Aborted(_) | CollectiveError::PeerLost { .. });
            assert!(told, "{kind:?}: {error}");
        }
    }
}

#[test]
fn a_rank_that_leaves_is_noticed_and_a_deadline_ends_a_wait() {
    for kind in [Kind::Shm, Kind::Tcp] {
        let errors = group(kind, 2, |mut c| {
            if c.rank() == 1 {
                return None;
            }
            Some(c.barrier().expect_err("the other rank has left"))
        });
        let error = errors[0].clone().expect("rank 0 waited");
        assert!(
            matches!(error, CollectiveError::Aborted(_) | CollectiveError::PeerLost { .. }),
            "{kind:?}: {error}"
        );
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let receiver = std::sync::Mutex::new(receiver);
        let errors = group(kind, 2, |mut c| {
            if c.rank() == 1 {
                // Stays in the group without taking part until rank 0 has given up.
                receiver.lock().expect("one rank").recv().expect("rank 0 tells");
                return None;
            }
            c.set_deadline(Some(Duration::from_millis(30)));
            let error = c.barrier().expect_err("nobody else calls");
            sender.send(()).expect("rank 1 waits");
            Some(error)
        });
        let timed_out = matches!(errors[0], Some(CollectiveError::Timeout { op: "barrier", rank: 1, .. }));
        assert!(timed_out, "{kind:?}: {:?}", errors[0]);
    }
}

#[test]
fn different_calls_are_a_mismatch() {
    for kind in [Kind::Shm, Kind::Tcp] {
        let errors = group(kind, 2, |mut c| {
            let outcome = if c.rank() == 0 { c.barrier() } else { c.all_reduce(&mut [1.0, 2.0]) };
            outcome.expect_err("they disagree")
        });
        let mismatch = errors.iter().any(|e| matches!(e, CollectiveError::Mismatch { .. }));
        assert!(mismatch, "{kind:?}: {errors:?}");
    }
}

#[test]
fn strangers_on_the_port_do_not_disturb_a_group() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let other = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let peers = vec![listener.local_addr().expect("bound"), other.local_addr().expect("bound")];
    let config = |rank: usize, listener: TcpListener, key: u8| tcp::TcpConfig {
        rank,
        group_key: [key; 16],
        peers: peers.clone(),
        listener,
        spin: SpinPolicy::Park,
        connect_timeout: Duration::from_secs(20),
        cancelled: Arc::default(),
    };
    std::thread::scope(|scope| {
        let address = peers[0];
        let mut stranger = TcpStream::connect(address).expect("the port listens");
        std::io::Write::write_all(&mut stranger, b"GET / HTTP/1.1\r\nHost: example\r\n\r\n").expect("sent");
        // More than are kept waiting, and they say nothing: each would cost seconds if it were waited for.
        let _silent: Vec<_> =
            (0..80).map(|_| TcpStream::connect(address).expect("the port listens")).collect();
        let wrong_key = config(1, other.try_clone().expect("a second handle"), 8);
        let wrong = tcp::TcpConfig { connect_timeout: Duration::from_millis(200), ..wrong_key };
        let first = scope.spawn(|| tcp::connect(&config(0, listener, 7)).expect("connects").barrier());
        assert!(tcp::connect(&wrong).is_err(), "the wrong key");
        let mut second = tcp::connect(&config(1, other, 7)).expect("connects");
        second.barrier().expect("both are there");
        first.join().expect("no panic").expect("both are there");
    });
}

#[test]
fn nothing_is_left_in_the_file_system_and_a_stale_segment_is_no_obstacle() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("left-over"), b"stale").expect("written");
    let config =
        |rank| shm::ShmConfig { dir: dir.path().into(), ..shm::ShmConfig::new("left-over", rank, 2) };
    std::thread::scope(|scope| {
        let second = scope.spawn(|| shm::connect(&config(1)).expect("connects").barrier());
        shm::connect(&config(0)).expect("connects").barrier().expect("both are there");
        second.join().expect("no panic").expect("both are there");
    });
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0);
    let started = Instant::now();
    let alone = shm::ShmConfig { connect_timeout: Duration::from_millis(50), ..config(1) };
    assert!(matches!(shm::connect(&alone), Err(CollectiveError::PeerLost { rank: 0, .. })));
    assert!(started.elapsed() >= Duration::from_millis(50));
}

#[test]
fn joining_a_group_that_never_forms_can_be_given_up() {
    let cancelled: Arc<AtomicBool> = Arc::default();
    let name = format!("foggara-cancel-test-{}", std::process::id());
    let listeners = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    let peers: Vec<_> = listeners.iter().map(|l| l.local_addr().expect("bound")).collect();
    let forever = Duration::from_secs(86_400);
    let joins: Vec<_> = (0..2)
        .map(|rank| {
            // A group of three whose third rank never comes, and one of two whose ranks have different keys.
            let shm = shm::ShmConfig {
                connect_timeout: forever,
                cancelled: Arc::clone(&cancelled),
                ..shm::ShmConfig::new(name.clone(), rank, 3)
            };
            let tcp = tcp::TcpConfig {
                rank,
                group_key: [rank as u8; 16],
                peers: peers.clone(),
                listener: listeners[rank].try_clone().expect("a second handle"),
                spin: SpinPolicy::Park,
                connect_timeout: forever,
                cancelled: Arc::clone(&cancelled),
            };
            std::thread::spawn(move || {
                std::thread::scope(|scope| {
                    let shm = scope.spawn(|| shm::connect(&shm).map(drop));
                    [tcp::connect(&tcp).map(drop), shm.join().expect("no panic")]
                })
            })
        })
        .collect();
    let segment = std::path::Path::new("/dev/shm").join(&name);
    let started = Instant::now();
    while !segment.exists() {
        assert!(started.elapsed() < Duration::from_secs(60), "rank 0 makes the segment");
        std::thread::yield_now();
    }
    cancelled.store(true, Ordering::Relaxed);
    for join in joins {
        for outcome in join.join().expect("no panic") {
            // Whoever looks second may see that the first has left.
            let told = matches!(outcome, Err(CollectiveError::Aborted(_) | CollectiveError::PeerLost { .. }));
            assert!(told, "{outcome:?}");
        }
    }
    assert!(!segment.exists(), "nothing is left");
}
