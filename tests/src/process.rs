//! One process under test.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::paths;

/// Lines of a log that are shown when a test fails.
const SHOWN_LINES: usize = 60;

/// A running process. Killed when dropped, and by itself when the test process ends in whatever way.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    lines: Mutex<Receiver<String>>,
}

/// `foggara` with these arguments, told to end with this process. For commands that run until they are stopped.
pub fn long_running(arguments: &[String]) -> Command {
    long_running_of(&paths::foggara(), arguments)
}

/// The same of another `program`.
pub fn long_running_of(program: &Path, arguments: &[String]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).args(["--exit-with-parent", &std::process::id().to_string()]);
    command
}

/// Runs `foggara` to its end.
pub fn foggara(arguments: &[&str]) -> Output {
    let mut command = Command::new(paths::foggara());
    command.args(arguments).stdin(Stdio::null()).output().expect("the program can be started")
}

/// What a program wrote, for messages.
pub fn text(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{}\n{out}{err}", output.status)
}

impl Process {
    /// Starts it; what it says on standard error goes to `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Self {
        let file = std::fs::File::create(log).expect("the log can be written");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("starting {command:?}: {e}"));
        let (sender, lines) = channel();
        let stdout = child.stdout.take().expect("it is piped");
        // Ends with the process.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                sender.send(line).ok();
            }
        });
        Self { name: name.into(), child, log: log.into(), lines: Mutex::new(lines) }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said on standard error so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Shows the end of its log, for failures.
    pub fn show_log(&self) {
        eprintln!("--- {}: {}\n{}", self.name, self.log.display(), tail(&self.log));
    }

    /// The next line on its standard output.
    pub fn line(&mut self, deadline: Duration) -> String {
        let said = self.lines.get_mut().expect("nobody panicked with it").recv_timeout(deadline);
        match said {
            Ok(line) => line,
            Err(reason) => {
                let status = self.child.try_wait().ok().flatten();
                panic!(
                    "{} said nothing ({reason}, {status:?}); its log ends:\n{}",
                    self.name,
                    tail(&self.log)
                );
            }
        }
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let until = Instant::now() + deadline;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status;
            }
            assert!(Instant::now() < until, "{} has not ended; its log:\n{}", self.name, tail(&self.log));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a signal to a process that belongs to a cluster of ours.
pub fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, signal).unwrap_or_else(|e| panic!("signalling process {pid:?}: {e}"));
}

/// `kill -9`.
pub fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

/// Processes that stand still until this is dropped, also where a test fails.
#[derive(Debug)]
pub struct Stopped(Vec<u32>);

impl Stopped {
    /// Stops them.
    pub fn new(pids: &[u32]) -> Self {
        pids.iter().for_each(|pid| signal(*pid, Signal::STOP));
        Self(pids.to_vec())
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // One that has ended meanwhile is no reason to end a failing test.
        for pid in self.0.iter().filter(|pid| is_alive(**pid)) {
            signal(*pid, Signal::CONT);
        }
    }
}

/// Whether a process is stopped, as by SIGSTOP.
pub fn is_stopped(pid: u32) -> bool {
    // The state follows the name, which is in parentheses.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
}

/// Whether a process exists and has not ended: any of its threads, since one that is still writing to disk keeps the
/// process's files and ports while the others are gone.
pub fn is_alive(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.into_iter().any(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // The state follows the name, which is in parentheses and may hold anything.
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        state.is_some_and(|state| !"ZX".contains(state))
    })
}

/// The processes started by `pid` that still run.
pub fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    children
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Open files.
    pub files: usize,
    /// Threads.
    pub threads: usize,
    /// Resident memory.
    pub resident_bytes: usize,
    /// Of it, what is its own (not of mapped files).
    pub anonymous_bytes: usize,
}

/// Reads what a process holds (proc(5)).
pub fn held(pid: u32) -> Held {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let number = |key: &str| -> usize {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .unwrap_or_else(|| panic!("{key} {status}"))
    };
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the process is ours").count();
    let bytes = |key| number(key) * 1024;
    Held {
        files,
        threads: number("Threads:"),
        resident_bytes: bytes("VmRSS:"),
        anonymous_bytes: bytes("RssAnon:"),
    }
}

/// The file that a process's standard error goes to.
pub fn log_of(pid: u32) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/fd/2")).expect("the process is ours")
}

/// The end of a file.
pub fn tail(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let (before, last) = lines.split_at(lines.len().saturating_sub(SHOWN_LINES));
    // Beside the last: what is not said of every request.
    let told = |line: &&&str| [" WARN ", " ERROR ", " DEBUG "].iter().any(|level| line.contains(level));
    before.iter().filter(told).take(SHOWN_LINES).chain(last).copied().collect::<Vec<_>>().join("\n")
}
