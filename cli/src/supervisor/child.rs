//! One supervised process.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio::sync::{mpsc, watch};

use super::backoff::{Backoff, End, LONGEST_PAUSE};

/// Lines of a log shown when its process cannot be kept running.
const TAIL_LINES: usize = 8;
const TAIL_BYTES: u64 = 4096;

/// What to run.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// For people: `coordinator 1`.
    pub(crate) name: String,
    /// What is run; none: this very binary. Looked up at each start, so one that has been replaced is the new one.
    pub(crate) program: Option<PathBuf>,
    /// Never given up, however often it ends.
    pub(crate) forever: bool,
    /// Subcommand and flags of it.
    pub(crate) arguments: Vec<String>,
    /// Secrets travel here: arguments can be read by every user of the machine.
    pub(crate) environment: Vec<(String, String)>,
    /// Gets standard output and error.
    pub(crate) log: PathBuf,
}

/// A process that cannot be kept running.
#[derive(Debug, Clone)]
pub(crate) struct ChildFailed {
    /// Which, why, and the end of its log.
    pub(crate) reason: String,
}

/// A process that is started again when it ends.
pub(crate) struct Child {
    pid: watch::Receiver<Option<u32>>,
    stopping: watch::Sender<bool>,
}

impl Child {
    /// Starts `spec` and keeps it running until [`stop`](Self::stop). `failures` hears of it if that cannot be done.
    pub(crate) fn start(spec: Spec, failures: mpsc::UnboundedSender<ChildFailed>) -> Self {
        let (stopping, stop) = watch::channel(false);
        let (pid_out, pid) = watch::channel(None);
        tokio::spawn(async move {
            if let Err(reason) = keep_running(&spec, &pid_out, stop).await {
                let reason = format!("{} {reason}{}", spec.name, tail(&spec.log));
                failures.send(ChildFailed { reason }).ok();
            }
        });
        Self { pid, stopping }
    }

    /// Asks it to stop (SIGTERM), kills it after `patience`, and waits for its end.
    pub(crate) async fn stop(&self, patience: Duration) {
        self.stopping.send_replace(true);
        self.signal(Signal::TERM);
        if tokio::time::timeout(patience, self.ended()).await.is_err() {
            self.signal(Signal::KILL);
            self.ended().await;
        }
    }

    /// Completes when the task that keeps it running has ended, and with it the sender of its pids.
    async fn ended(&self) {
        let mut pid = self.pid.clone();
        while pid.changed().await.is_ok() {}
    }

    /// Kills it at once, for good.
    pub(crate) fn kill(&self) {
        self.stopping.send_replace(true);
        self.signal(Signal::KILL);
    }

    /// Its process id, while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        *self.pid.borrow()
    }

    fn signal(&self, which: Signal) {
        signal(*self.pid.borrow(), which);
    }
}

/// Signals a process that has not been waited for yet (else its number could be another's).
fn signal(pid: Option<u32>, which: Signal) {
    let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended by itself.
        kill_process(pid, which).ok();
    }
}

/// Returns when asked to stop, or with the reason why the process cannot be kept running.
async fn keep_running(
    spec: &Spec,
    pid: &watch::Sender<Option<u32>>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), String> {
    let mut backoff = Backoff::default();
    loop {
        let started = Instant::now();
        let mut process = match spawn(spec) {
            Ok(process) => process,
            Err(error) if spec.forever => {
                eprintln!("{} cannot be started: {error}; trying again", spec.name);
                tokio::select! {
                    () = tokio::time::sleep(LONGEST_PAUSE) => continue,
                    _ = stop.wait_for(|stop| *stop) => return Ok(()),
                }
            }
            Err(error) => return Err(format!("cannot be started: {error}")),
        };
        pid.send_replace(process.id());
        if *stop.borrow() {
            // Asked while it was being started.
            signal(process.id(), Signal::TERM);
        }
        let status = process.wait().await.map_err(|e| format!("cannot be waited for: {e}"))?;
        pid.send_replace(None);
        if *stop.borrow() {
            return Ok(());
        }
        let end = if status.code().is_some() { End::Exited } else { End::Killed };
        let pause = match backoff.after(started.elapsed(), end) {
            Some(pause) => pause,
            None if spec.forever => LONGEST_PAUSE,
            None => return Err(format!("keeps ending ({status})")),
        };
        eprintln!("{} ended ({status}); starting it again", spec.name);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
        }
    }
}

fn spawn(spec: &Spec) -> std::io::Result<tokio::process::Child> {
    let log = OpenOptions::new().create(true).append(true).open(&spec.log)?;
    let program = spec.program.clone().map_or_else(std::env::current_exe, Ok)?;
    let mut command = Command::new(program);
    if spec.environment.iter().any(|(name, _)| name == "FOGGARA_CLUSTER_TOKEN") {
        // The same token in two ways would be an error.
        command.env_remove("FOGGARA_CLUSTER_TOKEN_FILE");
    }
    command
        .args(&spec.arguments)
        .args(["--exit-with-parent", &std::process::id().to_string()])
        // What is said to this process alone: its file, and whom it notifies.
        .env_remove("FOGGARA_CONFIG")
        .env_remove("NOTIFY_SOCKET")
        .envs(spec.environment.iter().cloned())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // A Ctrl-C on the terminal is for the supervisor, which stops everything in order.
        .process_group(0)
        .spawn()
}

/// The end of a log, to be shown under an error.
fn tail(log: &std::path::Path) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    if last.is_empty() {
        return String::new();
    }
    format!("; its log {} ends:\n  {}", log.display(), last.join("\n  "))
}
