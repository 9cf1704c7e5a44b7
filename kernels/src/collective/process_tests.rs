//! Groups of real processes, and what the others see when one is killed.
//!
//! The test starts its own binary once for each rank, with the rank in an environment variable; there it runs
//! [`rank_process`] instead of the test.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use super::*;

const RANK: &str = "FOGGARA_TEST_COLLECTIVE_RANK";
const SIZE: usize = 3;
const KILLED: usize = 1;

/// A rank's process: killed when the test ends, however it ends.
struct RankProcess {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Drop for RankProcess {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl RankProcess {
    fn start(test: &str, rank: usize) -> Self {
        let this = std::env::current_exe().expect("a test has a binary");
        let mut child = Command::new(this)
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(RANK, rank.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test binary starts");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, out }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().expect("piped"), "{line}").expect("the rank reads");
    }

    /// What the rank says after `tag`; the test runner's own lines are passed over.
    fn hear(&mut self, tag: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(
                self.out.read_line(&mut line).expect("text"),
                0,
                "the rank ended before it said `{tag}`"
            );
            if let Some((_, said)) = line.split_once(tag) {
                return said.trim_end().to_owned();
            }
        }
    }
}

fn hear_parent() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("text");
    line.trim_end().to_owned()
}

/// One rank: connects, sums, and waits for the others in a last barrier, except for the one that is to be killed.
#[expect(clippy::print_stdout, reason = "the parent test reads it")]
fn rank_process(rank: usize, connect: impl Fn(usize, TcpListener, &str) -> Box<dyn Collective>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    println!("@address {}", listener.local_addr().expect("bound"));
    let mut c = connect(rank, listener, &hear_parent());
    let mut data = vec![rank as f32; 100_000];
    c.all_reduce(&mut data).expect("all ranks are there");
    assert!(data.iter().all(|x| *x == 3.0), "0 + 1 + 2");
    println!("@summed");
    if rank != KILLED {
        let error = c.barrier().expect_err("one rank is killed");
        println!("@error {error:?}");
    }
    // Rank 1 is killed here. The others stay, so that nobody takes them for the lost one.
    hear_parent();
}

fn a_killed_process_is_noticed(
    test: &str,
    connect: impl Fn(usize, TcpListener, &str) -> Box<dyn Collective>,
) {
    if let Ok(rank) = std::env::var(RANK) {
        return rank_process(rank.parse().expect("the parent gives a number"), connect);
    }
    let mut ranks: Vec<_> = (0..SIZE).map(|rank| RankProcess::start(test, rank)).collect();
    let addresses: Vec<_> = ranks.iter_mut().map(|rank| rank.hear("@address ")).collect();
    let unique = std::process::id();
    for rank in &mut ranks {
        rank.tell(&format!("{unique} {}", addresses.join(" ")));
    }
    for rank in &mut ranks {
        rank.hear("@summed");
    }
    // SIGKILL; not waited for, so it is a zombie when the others look.
    ranks[KILLED].child.kill().expect("it runs");
    for (rank, process) in ranks.iter_mut().enumerate().filter(|(rank, _)| *rank != KILLED) {
        let error = process.hear("@error ");
        assert!(error.starts_with(&format!("PeerLost {{ rank: {KILLED},")), "rank {rank} saw {error}");
    }
}

#[test]
fn a_killed_process_is_noticed_through_shared_memory() {
    let test = "collective::process_tests::a_killed_process_is_noticed_through_shared_memory";
    a_killed_process_is_noticed(test, |rank, _, told| {
        let unique = told.split(' ').next().expect("the parent says it");
        let config = shm::ShmConfig::new(format!("foggara-kill-test-{unique}"), rank, SIZE);
        shm::connect(&config).expect("all ranks are there")
    });
    // Gone since all ranks had joined, so also after the death of any of them.
    let name = format!("/dev/shm/foggara-kill-test-{}", std::process::id());
    assert!(!std::path::Path::new(&name).exists(), "{name} is left");
}

#[test]
fn a_killed_process_is_noticed_through_tcp() {
    let test = "collective::process_tests::a_killed_process_is_noticed_through_tcp";
    a_killed_process_is_noticed(test, |rank, listener, told| {
        let peers: Vec<SocketAddr> =
            told.split(' ').skip(1).map(|address| address.parse().expect("an address")).collect();
        let connect_timeout = Duration::from_secs(30);
        let spin = SpinPolicy::Park;
        let cancelled = Default::default();
        let config =
            tcp::TcpConfig { rank, group_key: [5; 16], peers, listener, spin, connect_timeout, cancelled };
        tcp::connect(&config).expect("all ranks are there")
    });
}
