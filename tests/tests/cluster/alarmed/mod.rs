//! Alerts that fire because what they tell of is really so, and are over when it is not so any more. Three clusters have several
//! troubles each, most of them at once. (`watched.rs` has the alerts of what is stopped or gone.)

mod coordinators;
mod crowd;
mod engines;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use foggara_tests::process::signal;
use foggara_tests::prometheus::Prometheus;
use foggara_tests::wait;
use rustix::process::Signal;

/// The tests here, as they are written: every alert is to be named in one.
pub(crate) const CAUSES: &str =
    concat!(include_str!("coordinators.rs"), include_str!("crowd.rs"), include_str!("engines.rs"));

/// What has fired, and when: shown with the test's output.
struct Watch<'a> {
    prometheus: &'a Prometheus,
    started: Instant,
}

impl<'a> Watch<'a> {
    fn new(prometheus: &'a Prometheus) -> Self {
        Self { prometheus, started: Instant::now() }
    }

    /// Waits until each of them fires.
    async fn firing(&self, names: &[&str]) {
        for name in names {
            self.prometheus.wait_firing(&[name]).await;
            self.tell(name, "fires");
        }
    }

    /// Waits until each of them is over.
    async fn clear(&self, names: &[&str]) {
        for name in names {
            self.prometheus.wait_clear(&[name]).await;
            self.tell(name, "is over");
        }
    }

    fn tell(&self, name: &str, what: &str) {
        eprintln!("{:5.1} s: {name} {what}", self.started.elapsed().as_secs_f64());
    }
}

/// A process one of whose system calls takes longer until this is dropped.
struct Delayed(Child);

impl Delayed {
    /// Each `call` of each of its threads takes so much longer, from the `from`-th on. Returns when all are held.
    async fn begin(pid: u32, call: &str, longer: Duration, from: u32) -> Self {
        let mut command = Command::new("strace");
        command.args(["-f", "-q", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e"]);
        command.arg(format!("inject={call}:delay_enter={}:when={from}+", longer.as_micros()));
        let strace = command.args(["-p", &pid.to_string()]).stdin(Stdio::null()).spawn();
        let begun = Self(strace.unwrap_or_else(|e| panic!("`strace` cannot be run: {e}")));
        wait::until("strace holds every thread", async || is_traced(pid).then_some(())).await;
        begun
    }
}

impl Drop for Delayed {
    fn drop(&mut self) {
        // It lets go of the process then.
        signal(self.0.id(), Signal::TERM);
        self.0.wait().ok();
    }
}

/// Whether every thread of a process is traced (proc(5)).
fn is_traced(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.into_iter().all(|thread| {
        let status = std::fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() != "0"))
    })
}
