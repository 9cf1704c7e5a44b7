//! Groups in one process, for tests: every rank on a thread of its own, connected as real ones are.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use foggara_kernels::ThreadPool;
use foggara_kernels::collective::{Collective, Solo, SpinPolicy, shm, tcp};
use foggara_kernels::cuda::Device;
use foggara_kernels::op::kv_cache::KvType;
use foggara_models::{Adapter, Checkpoint, Cut, Quantize, Shape};
use serde_json::Value;

use crate::adapters::Adapters;
use crate::decoder::{BlockTables, CacheConfig, Comms, Decoder, DeviceDecoder, Forward};
use crate::engine::{Engine, OwnUse, Told};
use crate::weights::{OnDevice, RankWeights};

/// KV blocks of every rank, and positions in each.
pub(crate) const BLOCKS: usize = 40;
pub(crate) const BLOCK_SIZE: usize = 16;
/// Rows of a step.
pub(crate) const MAX_ROWS: usize = 512;

/// How ranks are connected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Shm,
    Tcp,
}

/// A small model with random weights, and what transformers makes of it.
pub(crate) fn golden(name: &str) -> (Checkpoint, Value) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
    let expected = std::fs::read_to_string(folder.join("expected.json")).expect("the fixture is there");
    (
        Checkpoint::open(&folder).expect("a valid checkpoint"),
        serde_json::from_str(&expected).expect("valid JSON"),
    )
}

/// An adapter of one of these, and what PEFT and transformers make of the two.
pub(crate) fn golden_adapter(name: &str) -> (Adapter, Value) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/adapters").join(name);
    let expected = std::fs::read_to_string(folder.join("expected.json")).expect("the fixture is there");
    (Adapter::open(&folder).expect("a valid adapter"), serde_json::from_str(&expected).expect("valid JSON"))
}

/// A list of numbers in a fixture.
pub(crate) fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|v| v.as_f64().expect("a number")).collect()
}

/// A list of token ids in a fixture.
pub(crate) fn tokens(value: &Value) -> Vec<u32> {
    numbers(value).into_iter().map(|token| token as u32).collect()
}

/// Loads `model` cut to `shape` and runs `f` on every rank's thread; returns what each gave.
pub(crate) fn group<R: Send>(
    model: &Checkpoint,
    shape: Shape,
    kind: Kind,
    ty: KvType,
    f: impl Fn(Engine) -> R + Sync,
) -> Vec<R> {
    group_on(model, shape, Quantize::None, kind, ty, &|_| None, f)
}

/// The same with a device for each rank: `None` is the CPU. `quantize` says how weights are held.
pub(crate) fn group_on<R: Send>(
    model: &Checkpoint,
    shape: Shape,
    quantize: Quantize,
    kind: Kind,
    ty: KvType,
    device: &(dyn Fn(usize) -> Option<Device> + Sync),
    f: impl Fn(Engine) -> R + Sync,
) -> Vec<R> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("foggara-worker-test-{}-{number}", std::process::id());
    let plan = model.slices(&Cut::even(shape), quantize).expect("can be cut");
    let listeners: Vec<_> =
        (0..shape.ranks()).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    let peers: Vec<_> = listeners.iter().map(|l| l.local_addr().expect("bound")).collect();
    std::thread::scope(|scope| {
        let ranks: Vec<_> = listeners
            .into_iter()
            .enumerate()
            .map(|(rank, listener)| {
                let (plan, name, peers, f) = (&plan, name.clone(), peers.clone(), &f);
                scope.spawn(move || {
                    let connect = |members: &[usize], number: u64| -> Box<dyn Collective> {
                        let place = members.iter().position(|member| *member == rank).expect("a member");
                        match kind {
                            _ if members.len() == 1 => Box::<Solo>::default(),
                            Kind::Shm => shm::connect(&shm::ShmConfig {
                                spin: SpinPolicy::Park,
                                ..shm::ShmConfig::new(format!("{name}-{number:x}"), place, members.len())
                            })
                            .expect("connects"),
                            Kind::Tcp => tcp::connect(&tcp::TcpConfig {
                                rank: place,
                                group_key: tcp::key_of_part(&[9; 16], number),
                                peers: members.iter().map(|member| peers[*member]).collect(),
                                listener: listener.try_clone().expect("a listener can be shared"),
                                spin: SpinPolicy::Park,
                                connect_timeout: Duration::from_secs(60),
                                cancelled: Default::default(),
                            })
                            .expect("connects"),
                        }
                    };
                    let all = connect(&(0..shape.ranks()).collect::<Vec<_>>(), 0);
                    let join = |part: &crate::decoder::Part| Ok::<_, ()>(connect(&part.ranks, part.number));
                    let comms = Comms::join(shape, all, join).expect("connects");
                    let cache = CacheConfig { blocks: BLOCKS, block_size: BLOCK_SIZE, ty };
                    // One rank computes with helpers, so that both ways are tested.
                    let pool = ThreadPool::with_spin(if rank == 0 { 2 } else { 1 }, false);
                    let adapters = Adapters::default();
                    let decoder: Box<dyn Forward> = match device(rank) {
                        None => {
                            let weights =
                                RankWeights::load(model, plan, rank, quantize, &pool, &mut |_, _| true)
                                    .expect("loads");
                            let adapters = adapters.clone();
                            let spec = model.spec();
                            let decoder = Decoder::new(spec, plan, rank, weights, cache, adapters, pool);
                            Box::new(decoder.expect("fits in memory"))
                        }
                        Some(device) => {
                            let store = OnDevice(device.clone());
                            let weights = RankWeights::load_to(
                                &store,
                                model,
                                plan,
                                rank,
                                quantize,
                                &pool,
                                &mut |_, _| true,
                            )
                            .expect("loads");
                            let spec = model.spec();
                            let decoder =
                                DeviceDecoder::new(&device, spec, plan, rank, weights, cache, MAX_ROWS);
                            Box::new(decoder.expect("fits on the device"))
                        }
                    };
                    f(Engine {
                        decoder,
                        tables: BlockTables::new(shape.dp, BLOCKS),
                        comms,
                        adapters,
                        block_size: BLOCK_SIZE,
                        max_rows: MAX_ROWS,
                        own: OwnUse::default(),
                        told: Told::default(),
                    })
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().expect("no rank panics")).collect()
    })
}
