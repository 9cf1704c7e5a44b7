//! Two ranks on one GPU, each a process, connected by NCCL over sockets: every collective, and what happens to the one when the
//! other dies. For correctness, not for speed: the GPU takes turns between the processes.
//!
//! `cargo run --release -p foggara-kernels --example nccl_pair [GPU [GPU]]`

#![allow(clippy::print_stdout)]

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use foggara_kernels::cuda::nccl::NcclComm;
use foggara_kernels::cuda::{Buffer, Device, DeviceError, Gpu};

const ELEMENTS: usize = 4099;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let gpus: Vec<usize> = arguments.iter().take(2).filter_map(|gpu| gpu.parse().ok()).collect();
    let (first, second) =
        (gpus.first().copied().unwrap_or(0), gpus.get(1).or(gpus.first()).copied().unwrap_or(0));
    let outcome = match std::env::var("NCCL_PAIR_ID") {
        Ok(id) => second_rank(second, &id),
        Err(_) => prepare(&arguments, first, second),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("FAILED {error}");
            ExitCode::FAILURE
        }
    }
}

/// NCCL reads the environment of its process, so that each rank is a new one.
fn prepare(arguments: &[String], first: usize, second: usize) -> Result<(), String> {
    if std::env::var_os("NCCL_PAIR_RANK").is_some() {
        return first_rank(arguments, first, second);
    }
    let status = rank("a", first == second, arguments)?.env("NCCL_PAIR_RANK", "0").status();
    let status = status.map_err(|e| e.to_string())?;
    if status.success() { Ok(()) } else { Err(format!("rank 0: {status}")) }
}

/// A process for one rank. On one GPU NCCL must take both for different machines, which only sockets connect.
fn rank(host: &str, one_gpu: bool, arguments: &[String]) -> Result<Command, String> {
    let mut command = Command::new(std::env::current_exe().map_err(|e| e.to_string())?);
    command.args(arguments);
    if one_gpu {
        let hidden = [("NCCL_P2P_DISABLE", "1"), ("NCCL_SHM_DISABLE", "1"), ("NCCL_NVLS_ENABLE", "0")];
        command.env("NCCL_HOSTID", host).env("NCCL_MULTI_RANK_GPU_ENABLE", "1").envs(hidden);
        command.env("NCCL_NET", "Socket").env("NCCL_SOCKET_IFNAME", "lo");
    }
    Ok(command)
}

fn text(error: DeviceError) -> String {
    error.to_string()
}

fn first_rank(arguments: &[String], first: usize, second: usize) -> Result<(), String> {
    let device = Gpu::open_with(first, &|notice| println!("    {notice}")).map_err(text)?;
    let id = NcclComm::unique_id().map_err(text)?;
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut other = rank("b", first == second, arguments)?;
    let mut other = other.env("NCCL_PAIR_ID", hex).spawn().map_err(|e| e.to_string())?;
    let outcome = first_rank_with(&device, &id);
    if outcome.is_err() {
        let _ = other.kill();
    }
    let _ = other.wait();
    outcome
}

fn first_rank_with(device: &Device, id: &[u8; 128]) -> Result<(), String> {
    let started = Instant::now();
    let comm = NcclComm::join(device, id, 0, 2, Duration::from_secs(60)).map_err(text)?;
    println!("ok     joined in {:.1} s", started.elapsed().as_secs_f64());
    collectives(device, &comm)?;
    // The other has gone now. A sum that needs it waits on the GPU, until this rank's part is ended.
    std::thread::sleep(Duration::from_secs(1));
    let mut buffer = device.zeros::<f32>(ELEMENTS).map_err(text)?;
    let asked = comm.all_reduce(buffer.view_mut());
    std::thread::sleep(Duration::from_secs(2));
    println!("       a sum without the other: {asked:?}; health: {:?}", comm.health());
    let ending = Instant::now();
    comm.abort();
    let ended = ending.elapsed();
    device.synchronize().map_err(text)?;
    let (ended, free) = (ended.as_secs_f64(), ending.elapsed().as_secs_f64());
    println!("ok     ended in {ended:.2} s, the GPU was free after {free:.2} s");
    buffer.view_mut().fill(0).map_err(text)?;
    device.synchronize().map_err(text)?;
    println!("ok     the GPU goes on");
    Ok(())
}

fn second_rank(gpu: usize, hex: &str) -> Result<(), String> {
    let device = Gpu::open(gpu).map_err(text)?;
    let mut id = [0_u8; 128];
    for (i, byte) in id.iter_mut().enumerate() {
        let digits = hex.get(2 * i..2 * i + 2).ok_or("a short id")?;
        *byte = u8::from_str_radix(digits, 16).map_err(|e| e.to_string())?;
    }
    let comm = NcclComm::join(&device, &id, 1, 2, Duration::from_secs(60)).map_err(text)?;
    collectives(&device, &comm)?;
    // Dies without a word to anyone.
    std::process::abort();
}

/// Every collective once to see that it is right, and the sum often to see how long it takes.
fn collectives(device: &Device, comm: &NcclComm) -> Result<(), String> {
    let (rank, other) = (comm.rank(), 1 - comm.rank());
    let own = |rank: usize| -> Vec<f32> { (0..ELEMENTS).map(|i| (i * (rank + 1)) as f32).collect() };
    let sum: Vec<f32> = own(0).iter().zip(own(1)).map(|(a, b)| a + b).collect();
    let both = [own(0), own(1)].concat();
    let expect = |name: &str, found: &Buffer<f32>, expected: &[f32]| -> Result<(), String> {
        let found = found.download().map_err(text)?;
        match found.iter().zip(expected).position(|(a, b)| a.to_bits() != b.to_bits()) {
            None => Ok(()),
            Some(i) => Err(format!("rank {rank}: {name}: element {i} is {}, not {}", found[i], expected[i])),
        }
    };
    let mut buffer = device.upload(&own(rank)).map_err(text)?;
    comm.all_reduce(buffer.view_mut()).map_err(text)?;
    expect("all_reduce", &buffer, &sum)?;

    let mine = device.upload(&own(rank)).map_err(text)?;
    let mut all = device.zeros::<f32>(2 * ELEMENTS).map_err(text)?;
    comm.all_gather(all.view_mut(), mine.view()).map_err(text)?;
    expect("all_gather", &all, &both)?;

    let mut part = device.zeros::<f32>(ELEMENTS).map_err(text)?;
    comm.reduce_scatter(part.view_mut(), all.view()).map_err(text)?;
    let doubled: Vec<f32> = own(rank).iter().map(|x| 2.0 * x).collect();
    expect("reduce_scatter", &part, &doubled)?;

    comm.broadcast(buffer.view_mut(), 1).map_err(text)?;
    let mut said = device.upload(&own(rank)).map_err(text)?;
    comm.broadcast(said.view_mut(), 1).map_err(text)?;
    expect("broadcast", &said, &own(1))?;

    // Rank 0 sends 3 to itself and 5 to rank 1; rank 1 sends 7 to rank 0 and nothing to itself.
    let sent = [[3, 5], [7, 0]];
    let received = [sent[0][rank], sent[1][rank]];
    let mut got = device.zeros::<f32>(received[0] + received[1]).map_err(text)?;
    comm.exchange(got.view_mut(), &received, mine.view(), &sent[rank]).map_err(text)?;
    let from = |r: usize| own(r)[sent[r][..rank].iter().sum()..][..sent[r][rank]].to_vec();
    expect("exchange", &got, &[from(0), from(1)].concat())?;

    device.driver().begin_capture().map_err(text)?;
    let recorded = comm.all_reduce(part.view_mut());
    let captured = device.driver().end_capture().map_err(text)?;
    recorded.map_err(text)?;
    // SAFETY: the buffer is still there.
    unsafe { device.driver().replay(&captured) }.map_err(text)?;
    let all_doubled: Vec<f32> = sum.iter().map(|x| 2.0 * x).collect();
    expect("all_reduce, recorded", &part, &all_doubled)?;
    drop(captured);

    let mut zeros = device.zeros::<f32>(ELEMENTS).map_err(text)?;
    device.synchronize().map_err(text)?;
    let started = Instant::now();
    (0..20).try_for_each(|_| comm.all_reduce(zeros.view_mut())).map_err(text)?;
    device.synchronize().map_err(text)?;
    let time = started.elapsed().as_secs_f64() / 20.0;
    println!("ok     rank {rank}: every collective with rank {other}; a sum takes {:.0} µs", time * 1e6);
    Ok(())
}
