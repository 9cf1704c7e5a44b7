//! Sums over ranks that NCCL connects, bit by bit against the order of ranks: each rank a process on the same GPU, connected over
//! sockets; or each on a GPU of its own, connected as NCCL likes. With one GPU the times say nothing.
//!
//! `cargo run --release -p foggara-kernels --example nccl_sums -- RANKS [own]`

#![allow(clippy::print_stdout)]

use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use foggara_kernels::cuda::nccl::NcclComm;
use foggara_kernels::cuda::rank_sums::RankSums;
use foggara_kernels::cuda::{Buffer, Gpu};

/// Elements: of short sums, of some in parts (even and not), and of one in two pieces.
const LENGTHS: [usize; 8] =
    [1, 4099, 64 << 10, (64 << 10) + 1, 12 << 17, (1 << 20) + 7, 8 << 20, (8 << 20) + 100_000];
const RANK: &str = "NCCL_SUMS_RANK";
const ID: &str = "NCCL_SUMS_ID";

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("FAILED {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let ranks: usize = arguments.first().ok_or("how many ranks?")?.parse()?;
    let own = arguments.get(1).is_some_and(|word| word == "own");
    // NCCL reads the environment of its process, so that each rank is a new one.
    let Ok(rank) = std::env::var(RANK) else {
        return wait(start(0, own, &arguments, "")?);
    };
    let rank: usize = rank.parse()?;
    let (id, mut others) = match rank {
        0 => {
            let id = NcclComm::unique_id()?;
            let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
            let others: Result<Vec<Child>> =
                (1..ranks).map(|rank| start(rank, own, &arguments, &hex)).collect();
            (id, others?)
        }
        _ => (from_hex(&std::env::var(ID)?)?, Vec::new()),
    };
    let outcome = check(&id, rank, ranks, if own { rank } else { 0 });
    if outcome.is_err() {
        others.iter_mut().for_each(|other| drop(other.kill()));
    }
    outcome.and(others.into_iter().try_for_each(wait))
}

/// A process for one rank. On one GPU NCCL must take all for different machines, which only sockets connect.
fn start(rank: usize, own: bool, arguments: &[String], id: &str) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments).env(RANK, rank.to_string()).env(ID, id);
    if !own {
        let hidden = [("NCCL_P2P_DISABLE", "1"), ("NCCL_SHM_DISABLE", "1"), ("NCCL_NVLS_ENABLE", "0")];
        command
            .env("NCCL_HOSTID", format!("host-{rank}"))
            .env("NCCL_MULTI_RANK_GPU_ENABLE", "1")
            .envs(hidden);
        command.env("NCCL_NET", "Socket").env("NCCL_SOCKET_IFNAME", "lo");
    }
    Ok(command.spawn()?)
}

fn wait(mut child: Child) -> Result<()> {
    if child.wait()?.success() { Ok(()) } else { Err("a rank failed".into()) }
}

fn from_hex(hex: &str) -> Result<[u8; 128]> {
    let mut id = [0; 128];
    for (i, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * i..2 * i + 2).ok_or("a short id")?, 16)?;
    }
    Ok(id)
}

/// Of such sizes that another order of adding up is seen.
fn values(rank: usize, len: usize) -> Vec<f32> {
    let one = |i: usize| {
        let bits = (i as u32).wrapping_mul(0x9e37_79b9).wrapping_add((rank as u32).wrapping_mul(0x85eb_ca6b));
        let bits = (bits ^ bits >> 15).wrapping_mul(0x2c1b_3c6d);
        (bits >> 8) as f32 * [1e-9, 1e-7, 1e-4][bits as usize % 3] - 1.0
    };
    (0..len).map(one).collect()
}

fn check(id: &[u8; 128], rank: usize, ranks: usize, gpu: usize) -> Result<()> {
    let device = Gpu::open(gpu)?;
    let comm = NcclComm::join(&device, id, rank, ranks, Duration::from_secs(60))?;
    let longest = LENGTHS.into_iter().max().unwrap_or(0);
    let mut sums = RankSums::new(&device, comm, longest)?;
    for len in LENGTHS {
        let add = |sum: Vec<f32>, more: Vec<f32>| sum.iter().zip(more).map(|(a, b)| a + b).collect();
        let expected: Vec<f32> = (0..ranks).map(|rank| values(rank, len)).reduce(add).unwrap_or_default();
        let same = |found: &Buffer<f32>, what: &str| -> Result<()> {
            match found.download()?.iter().zip(&expected).position(|(a, b)| a.to_bits() != b.to_bits()) {
                None => Ok(()),
                Some(i) => Err(format!("rank {rank}: {what} of {len} elements: element {i}").into()),
            }
        };
        let mut buffer = device.upload(&values(rank, len))?;
        sums.sum(buffer.view_mut())?;
        same(&buffer, "a sum")?;
        // Recorded after it has run once, as steps are.
        let recording = device.record(|| sums.sum(buffer.view_mut()))?;
        buffer.view_mut().upload(&values(rank, len))?;
        recording.replay()?;
        same(&buffer, "a recorded sum")?;
        device.synchronize()?;
        let started = Instant::now();
        (0..20).try_for_each(|_| sums.sum(buffer.view_mut()))?;
        device.synchronize()?;
        let micros = started.elapsed().as_secs_f64() / 20.0 * 1e6;
        if rank == 0 {
            println!("ok     {ranks} ranks, {} KiB of each: {micros:.0} µs", len * size_of::<f32>() / 1024);
        }
    }
    Ok(())
}
