//! A worker's rank from assignment to release, with the test as its coordinator.

use std::path::{Path, PathBuf};

use foggara_kernels::Threads;
use foggara_kernels::cuda::testing::losing_twin;
use foggara_models::manifest::{Described, Hashes};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;

/// Far more than loading takes, and less than ranks wait for each other.
const PATIENCE: Duration = Duration::from_secs(45);

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/llama")
}

fn host() -> (GroupHost, UnboundedReceiver<wire::WorkerMessage>) {
    host_on(None)
}

fn host_on(device: Option<Device>) -> (GroupHost, UnboundedReceiver<wire::WorkerMessage>) {
    let (news, received) = unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    (
        GroupHost::new(
            listener,
            Threads::anywhere(1),
            device,
            Models::default(),
            Residence::default(),
            0,
            news,
        ),
        received,
    )
}

fn assign(group: u64, size: u32) -> wire::Assign {
    wire::Assign {
        group,
        epoch: 7,
        rank: 0,
        size,
        model_path: model().to_string_lossy().into_owned(),
        collective: "shm".into(),
        peers: vec![],
        kv_blocks: 8,
        block_size: 16,
        kv_dtype: "auto".into(),
        max_step_rows: 64,
        threads_on_host: 1,
        group_key: std::process::id().to_be_bytes().repeat(4),
        ..wire::Assign::default()
    }
}

fn attach(group: u64, driver_epoch: u64) -> wire::Attach {
    wire::Attach { group, group_epoch: 7, driver_epoch, fresh: false }
}

/// The next news but for progress.
fn hear(news: &mut UnboundedReceiver<wire::WorkerMessage>) -> wire::worker_message::Message {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match news.try_recv().ok().and_then(|message| message.message) {
            Some(wire::worker_message::Message::Progress(_)) => {}
            Some(message) => return message,
            None => {
                assert!(Instant::now() < deadline, "no news");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

fn is_ready(message: &wire::worker_message::Message, group: u64) -> bool {
    matches!(message, wire::worker_message::Message::Ready(ready) if ready.group == group)
}

#[test]
fn a_rank_loads_and_says_so_and_drivers_take_over_from_each_other() {
    let (host, mut news) = host();
    assert!(host.held().is_none());
    host.assign(assign(1, 1));
    assert!(is_ready(&hear(&mut news), 1));
    let held = host.held().expect("it holds a rank");
    assert_eq!((held.group, held.epoch, held.rank, held.ready), (1, 7, 0, true));
    host.assign(assign(1, 1));
    assert!(is_ready(&hear(&mut news), 1), "the same again is only answered");

    let limits = host.attach(&attach(1, 3)).expect("the first driver").1;
    assert_eq!((limits.kv_blocks, limits.block_size, limits.max_step_rows), (8, 16, 64));
    let refused = |attach: &wire::Attach| host.attach(attach).map(drop).expect_err("refused");
    assert!(matches!(refused(&attach(1, 2)), AttachError::OldDriver { epoch: 2, newer: 3 }));
    assert!(matches!(refused(&attach(2, 4)), AttachError::NotHere { group: 2, .. }));
    let other_epoch = wire::Attach { group_epoch: 6, ..attach(1, 4) };
    assert!(matches!(refused(&other_epoch), AttachError::NotHere { epoch: 6, .. }));
    host.attach(&attach(1, 4)).expect("a newer driver");

    host.release(1, 6, "another epoch");
    assert!(host.held().is_some());
    host.release(1, 7, "enough");
    assert!(host.held().is_none());
    assert!(matches!(refused(&attach(1, 5)), AttachError::NotHere { .. }));
    host.assign(assign(2, 1));
    assert!(is_ready(&hear(&mut news), 2), "and the next one");
    host.assign(assign(3, 1));
    assert!(is_ready(&hear(&mut news), 3), "without a release too");
    host.shut_down();
    assert!(news.try_recv().is_err(), "ranks that were let go are not failures");
}

#[test]
fn what_cannot_be_held_is_told_with_the_reason() {
    let (host, mut news) = host();
    let missing = PathBuf::from("/no/such/model");
    let cases = [
        (
            wire::Assign { model_path: missing.to_string_lossy().into_owned(), ..assign(1, 1) },
            "/no/such/model",
        ),
        (wire::Assign { quantize: "q3".into(), ..assign(1, 1) }, "none, bf16, q8_0"),
        (wire::Assign { quantize: "fp8".into(), ..assign(1, 1) }, "on GPUs only; use q8_0"),
        (wire::Assign { kv_dtype: "int3".into(), ..assign(1, 1) }, "`int3`"),
        (wire::Assign { rank: 2, ..assign(1, 2) }, "rank 2 of 2"),
        (wire::Assign { size: 0, ..assign(1, 1) }, "rank 0 of 0"),
        (wire::Assign { block_size: 12, ..assign(1, 1) }, "block size"),
        (wire::Assign { kv_blocks: u32::MAX, block_size: 1 << 31, ..assign(1, 1) }, "KV blocks"),
        (wire::Assign { kv_blocks: u32::MAX, ..assign(1, 1) }, "KV blocks"),
        (wire::Assign { group_key: vec![1], ..assign(1, 2) }, "group key"),
        (
            wire::Assign { collective: "tcp".into(), peers: vec!["nowhere".into(); 2], ..assign(1, 2) },
            "`nowhere`",
        ),
    ];
    for (wrong, said) in cases {
        host.assign(wrong);
        let wire::worker_message::Message::Failed(failed) = hear(&mut news) else {
            panic!("{said}: not told")
        };
        assert_eq!((failed.group, failed.epoch), (1, 7));
        assert!(failed.reason.contains(said), "`{said}` is not in: {}", failed.reason);
        assert!(host.held().is_none(), "{said}");
    }
    host.assign(assign(1, 1));
    assert!(is_ready(&hear(&mut news), 1), "the same group again, now as it should be");
    host.shut_down();
}

#[test]
fn a_rank_that_waits_for_others_is_let_go_at_once() {
    let (host, mut news) = host();
    // Rank 0 of a group whose other rank never comes, through shared memory …
    let waiting = assign(1, 2);
    let key: String = waiting.group_key.iter().map(|byte| format!("{byte:02x}")).collect();
    let segment = Path::new("/dev/shm").join(format!("foggara-1-7-{key}"));
    host.assign(waiting);
    let deadline = Instant::now() + PATIENCE;
    while !segment.exists() {
        assert!(Instant::now() < deadline, "it makes the segment");
        std::thread::sleep(Duration::from_millis(2));
    }
    host.release(1, 7, "the other rank is lost");
    // … and rank 1 of one whose rank 0 listens but says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let peers = vec![silent.local_addr().expect("bound").to_string(); 2];
    host.assign(wire::Assign { rank: 1, collective: "tcp".into(), peers, ..assign(2, 2) });
    let _connection = silent.accept().expect("it dials");
    assert!(!segment.exists(), "nothing is left of the first");
    host.assign(assign(3, 1));
    assert!(is_ready(&hear(&mut news), 3));
    host.shut_down();
}

/// A device that is lost while weights are loaded, in the check of the group, or between.
#[tokio::test]
async fn a_lost_device_is_told_and_ends_the_worker() {
    let enough = 1 << 40;
    let (device, left) = losing_twin(enough);
    let (host, mut news) = host_on(Some(device));
    host.assign(assign(1, 1));
    assert!(is_ready(&hear(&mut news), 1));
    let needed = enough - left.load(Ordering::SeqCst);
    assert!(needed > 100, "{needed} calls of the device");
    let soon = Duration::from_millis(50);
    assert!(tokio::time::timeout(soon, host.device_lost()).await.is_err(), "it works");
    host.shut_down();
    for calls in [0, needed / 2, needed - 1] {
        let (host, mut news) = host_on(Some(losing_twin(calls).0));
        host.assign(assign(1, 1));
        let wire::worker_message::Message::Failed(failed) = hear(&mut news) else {
            panic!("not told after {calls} of {needed} calls")
        };
        assert!(failed.reason.contains("illegal memory access") && !failed.files, "{}", failed.reason);
        let lost = tokio::time::timeout(PATIENCE, host.device_lost()).await.expect("the worker hears of it");
        assert!(lost.lost && lost.to_string().contains("illegal memory access"), "{lost}");
        host.shut_down();
    }
}

fn golden_adapter(name: &str) -> PathBuf {
    model().parent().expect("a folder").join("adapters").join(name)
}

fn load(adapter: u64, folder: &Path) -> wire::LoadAdapter {
    let described = Described::of(folder, &Hashes::default(), &mut |_, _, _| true).expect("an adapter");
    let (path, manifest) = (folder.to_string_lossy().into_owned(), described.manifest.to_text());
    wire::LoadAdapter { group: 1, epoch: 7, adapter, path, manifest }
}

/// What became of the adapter that was loaded next.
fn loaded(news: &mut UnboundedReceiver<wire::WorkerMessage>) -> (u64, String) {
    match hear(news) {
        wire::worker_message::Message::AdapterLoaded(loaded) => {
            assert_eq!((loaded.group, loaded.epoch, loaded.rank), (1, 7, 0));
            (loaded.adapter, loaded.failed)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn adapters_come_while_a_rank_is_held_and_what_cannot_be_used_is_told() {
    let (host, mut news) = host();
    host.load_adapter(load(4, &golden_adapter("llama")));
    host.assign(assign(1, 1));
    // Before its weights are there: it is loaded after them.
    host.load_adapter(load(5, &golden_adapter("llama")));
    host.load_adapter(wire::LoadAdapter { epoch: 6, ..load(6, &golden_adapter("llama")) });
    assert!(is_ready(&hear(&mut news), 1));
    assert_eq!(loaded(&mut news), (5, String::new()), "those of no rank and of another are passed over");
    host.load_adapter(load(5, &golden_adapter("llama")));
    assert_eq!(loaded(&mut news), (5, String::new()), "it is here already");

    let folder = tempfile::tempdir().expect("a folder");
    let copy = |name: &str| {
        let to = folder.path().join(name);
        std::fs::copy(golden_adapter("llama-attention").join(name), &to).expect("copied");
        to
    };
    copy("adapter_config.json");
    let tensors = copy("adapter_model.safetensors");
    let whole = load(7, folder.path());
    let mut bytes = std::fs::read(&tensors).expect("there");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&tensors, bytes).expect("written");
    for (load, said) in [
        (whole.clone(), "differs"),
        (wire::LoadAdapter { manifest: "x".into(), ..whole.clone() }, "not a manifest"),
        (load(7, &golden_adapter("mixtral")), "has no such matrix"),
    ] {
        host.load_adapter(load);
        let (adapter, failed) = loaded(&mut news);
        assert!(adapter == 7 && failed.contains(said), "{failed}");
    }
    copy("adapter_model.safetensors");
    host.load_adapter(whole);
    assert_eq!(loaded(&mut news), (7, String::new()), "the file is whole again");
    host.shut_down();
    assert!(news.try_recv().is_err());
}
