//! Checks the forward pass on GPUs, ranks connected by NCCL, against what transformers made of small models: each rank a process.
//! With one GPU all ranks share it, and NCCL takes them for different machines that only sockets connect: right, and slow.
//!
//! `cargo run --release -p foggara-worker --example gpu_golden -- RANKS EP FOLDER…`, folders as in tests/golden.

#![allow(clippy::print_stdout)]

use std::path::Path;
use std::process::{Child, Command, ExitCode};
use std::time::Instant;

use foggara_kernels::ThreadPool;
use foggara_kernels::collective::{Collective, Solo, SpinPolicy, shm};
use foggara_kernels::cuda::{Device, Gpu};
use foggara_kernels::op::kv_cache::KvType;
use foggara_kernels::op::softmax::argmax;
use foggara_models::{Checkpoint, Cut, Quantize, Shape};
use foggara_worker::decoder::{BlockTables, CacheConfig, Comms, DeviceDecoder, Forward, Segment, StepInput};
use foggara_worker::weights::{OnDevice, RankWeights};
use serde_json::Value;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const BLOCK_SIZE: usize = 16;
const BLOCKS: usize = 32;
const MAX_ROWS: usize = 256;
/// Tells a process which rank it is, and the name that all of its group know.
const RANK: &str = "GPU_GOLDEN_RANK";
const GROUP: &str = "GPU_GOLDEN_GROUP";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match std::env::var(RANK) {
        Ok(rank) => run(&arguments, &rank),
        Err(_) => start(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("FAILED {error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts a process for each rank.
fn start(arguments: &[String]) -> Result<()> {
    let ranks: usize = arguments.first().ok_or("how many ranks?")?.parse()?;
    let group = format!("foggara-gpu-golden-{}", std::process::id());
    let children: Vec<Child> = (0..ranks)
        .map(|rank| {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(arguments).env(RANK, rank.to_string()).env(GROUP, &group);
            // On one GPU: as if on machines of their own.
            command.env("NCCL_HOSTID", format!("host-{rank}")).env("NCCL_MULTI_RANK_GPU_ENABLE", "1");
            for (name, value) in [
                ("NCCL_P2P_DISABLE", "1"),
                ("NCCL_SHM_DISABLE", "1"),
                ("NCCL_NVLS_ENABLE", "0"),
                ("NCCL_NET", "Socket"),
                ("NCCL_SOCKET_IFNAME", "lo"),
            ] {
                command.env(name, value);
            }
            command.spawn()
        })
        .collect::<std::io::Result<_>>()?;
    let mut failed = false;
    for mut child in children {
        failed |= !child.wait()?.success();
    }
    if failed { Err("a rank failed".into()) } else { Ok(()) }
}

fn run(arguments: &[String], rank: &str) -> Result<()> {
    let (ranks, ep): (usize, usize) = (arguments[0].parse()?, arguments[1].parse()?);
    let (rank, group) = (rank.parse()?, std::env::var(GROUP)?);
    let device = Gpu::open(0)?;
    for (number, folder) in arguments[2..].iter().enumerate() {
        let shape = Shape { tp: ranks, dp: 1, pp: 1, ep };
        let started = Instant::now();
        let checked = check(&device, Path::new(folder), shape, rank, &format!("{group}-{number}"))?;
        if rank == 0 {
            let seconds = started.elapsed().as_secs_f64();
            println!("ok     {folder} {shape}: {checked} in {seconds:.1} s");
        }
    }
    Ok(())
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
}

fn tokens(value: &Value) -> Vec<u32> {
    numbers(value).into_iter().map(|token| token as u32).collect()
}

/// Each case: its prompt in one step, then what follows token by token.
fn check(device: &Device, folder: &Path, shape: Shape, rank: usize, name: &str) -> Result<String> {
    let model = Checkpoint::open(folder)?;
    let expected: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("expected.json"))?)?;
    let plan = model.slices(&Cut::even(shape), Quantize::None)?;
    let pool = ThreadPool::with_spin(1, false);
    let store = OnDevice(device.clone());
    let weights = RankWeights::load_to(&store, &model, &plan, rank, Quantize::None, &pool, &mut |_, _| true)?;
    let all: Box<dyn Collective> = match shape.ranks() {
        1 => Box::<Solo>::default(),
        ranks => {
            let config = shm::ShmConfig { spin: SpinPolicy::Park, ..shm::ShmConfig::new(name, rank, ranks) };
            shm::connect(&config)?
        }
    };
    let mut comms =
        Comms::join(shape, all, |_| Err::<Box<dyn Collective>, _>("a tensor-parallel group has no parts"))?;
    let cache = CacheConfig { blocks: BLOCKS, block_size: BLOCK_SIZE, ty: KvType::F32 };
    let mut decoder = DeviceDecoder::new(device, model.spec(), &plan, rank, weights, cache, MAX_ROWS)?;
    let connected = decoder.connect(&mut comms)?.is_some();
    let mut tables = BlockTables::new(1, BLOCKS);
    let all_blocks: Vec<u32> = (0..BLOCKS as u32).collect();
    tables.apply(&StepInput { grants: vec![(0, all_blocks)], ..StepInput::default() })?;
    let mut checked = 0;
    for case in expected["cases"].as_array().into_iter().flatten() {
        let (prompt, greedy) = (tokens(&case["prompt"]), tokens(&case["greedy"]));
        let mut last = Vec::new();
        let mut step = |start: usize, tokens: &[u32], last: &mut Vec<f32>| -> Result<()> {
            let len = tokens.len() as u32;
            let segments = vec![Segment { slot: 0, start: start as u32, len, logits_from: len - 1 }];
            let input = StepInput { segments, tokens: tokens.to_vec(), ..StepInput::default() };
            Ok(decoder.forward(&input, &tables, &mut comms, &mut |_, scores| {
                *last = scores.whole().unwrap_or_default().to_vec();
            })?)
        };
        step(0, &prompt, &mut last)?;
        if rank == 0 {
            let reference = numbers(&case["logits_last"]);
            let largest = reference.iter().fold(0.0f64, |a, b| a.max(b.abs()));
            for (got, reference) in last.iter().zip(reference) {
                let error = (f64::from(*got) - reference).abs();
                if error > 2e-5 * (1.0 + largest) {
                    return Err(format!("{}: {got} for {reference}", folder.display()).into());
                }
            }
        }
        for (i, token) in greedy.iter().enumerate() {
            if rank == 0 && argmax(&last) != *token as usize {
                return Err(format!("{}: greedy token {i}", folder.display()).into());
            }
            if i + 1 < greedy.len() {
                step(prompt.len() + i, &[*token], &mut last)?;
            }
            checked += 1;
        }
    }
    let by = if connected { "by NCCL" } else { "by way of the host" };
    Ok(format!("{checked} tokens, sums {by}"))
}
