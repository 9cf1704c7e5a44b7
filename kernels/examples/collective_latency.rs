//! Prints how long an all-reduce between two processes takes, through shared memory and through TCP on this host.
//!
//! `cargo run --release -p foggara-kernels --example collective_latency`

#![allow(clippy::print_stdout)]

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use foggara_kernels::collective::{Collective, SpinPolicy, shm, tcp};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Elements of a vector, and how often it is summed in one of the rounds.
const SIZES: [(usize, u32); 2] = [(576, 2_000), (262_144, 40)];
const ROUNDS: usize = 9;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const POLICIES: [(&str, SpinPolicy); 2] =
    [("spin 20 µs", SpinPolicy::Spin(Duration::from_micros(20))), ("park", SpinPolicy::Park)];

/// Ends the second process with the first.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        // It has usually ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn main() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let ours = listener.local_addr()?;
    if let Some(address) = std::env::args().nth(1) {
        let first: SocketAddr = address.parse()?;
        println!("{ours}");
        let pid = std::env::args().nth(2).ok_or("the first process's id is missing")?;
        return measure(1, &listener, vec![first, ours], &pid);
    }
    let pid = std::process::id().to_string();
    let child = Command::new(std::env::current_exe()?)
        .args([ours.to_string(), pid.clone()])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut peer = Peer(child);
    let mut line = String::new();
    BufReader::new(peer.0.stdout.take().ok_or("no output to read")?).read_line(&mut line)?;
    let second: SocketAddr = line.trim().parse()?;
    measure(0, &listener, vec![ours, second], &pid)?;
    if !peer.0.wait()?.success() {
        return Err("the second process failed".into());
    }
    Ok(())
}

/// Both ranks run this; rank 0 prints.
fn measure(rank: usize, listener: &TcpListener, peers: Vec<SocketAddr>, pid: &str) -> Result<()> {
    for (number, (policy, spin)) in POLICIES.into_iter().enumerate() {
        let name = format!("foggara-latency-{pid}-{number}");
        let shm = shm::connect(&shm::ShmConfig {
            spin,
            connect_timeout: CONNECT_TIMEOUT,
            ..shm::ShmConfig::new(name, rank, 2)
        })?;
        let tcp = tcp::connect(&tcp::TcpConfig {
            rank,
            group_key: [number as u8; 16],
            peers: peers.clone(),
            listener: listener.try_clone()?,
            spin,
            connect_timeout: CONNECT_TIMEOUT,
            cancelled: Default::default(),
        })?;
        for mut collective in [shm, tcp] {
            for (len, times) in SIZES {
                let (median, waiting) = all_reduce(&mut *collective, len, times)?;
                if rank == 0 {
                    println!(
                        "{} {policy:10} {len:6} floats: {median:8.1} µs an all-reduce, {waiting:3.0} % of it waiting",
                        collective.kind()
                    );
                    std::io::stdout().flush()?;
                }
            }
        }
    }
    Ok(())
}

/// Microseconds of one all-reduce in the median round, and the percentage of all time that was waiting.
fn all_reduce(collective: &mut dyn Collective, len: usize, times: u32) -> Result<(f64, f64)> {
    let mut data = vec![0.0f32; len];
    let mut rounds = Vec::with_capacity(ROUNDS);
    let before = collective.stats();
    for _ in 0..ROUNDS {
        collective.barrier()?;
        let started = Instant::now();
        for _ in 0..times {
            collective.all_reduce(&mut data)?;
        }
        rounds.push(started.elapsed().as_secs_f64() * 1e6 / f64::from(times));
    }
    rounds.sort_by(f64::total_cmp);
    let after = collective.stats();
    let share = (after.wait_nanos - before.wait_nanos) as f64 / (after.nanos - before.nanos) as f64;
    Ok((rounds[ROUNDS / 2], share * 100.0))
}
