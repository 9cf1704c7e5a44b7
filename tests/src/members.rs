//! Coordinators alone, each a process that the test starts, kills and starts again on the same folder.

use crate::client::Client;
use crate::ports;
use crate::process::{Process, long_running};
use crate::scratch::Scratch;

/// Three coordinators without workers.
#[derive(Debug)]
pub struct Members {
    base: u16,
    // Before the folder: processes end before their files go.
    processes: Vec<Option<Process>>,
    starts: usize,
    folder: Scratch,
}

/// How many there are.
pub const MEMBERS: u16 = 3;

impl Members {
    /// Starts all of them.
    pub fn start(name: &str) -> Self {
        let processes = (0..MEMBERS).map(|_| None).collect();
        let mut members = Self { base: ports::block(), processes, starts: 0, folder: Scratch::new(name) };
        (0..MEMBERS).for_each(|number| members.restart(number));
        members
    }

    /// gRPC address of the `number`-th (from 0; its id is one more).
    pub fn grpc(&self, number: u16) -> String {
        format!("127.0.0.1:{}", self.base + 10 * number)
    }

    /// A client of the `number`-th.
    pub fn client(&self, number: u16) -> Client {
        Client::new(&self.grpc(number))
    }

    /// Process id of the `number`-th, which must run.
    pub fn pid(&self, number: u16) -> u32 {
        self.processes[usize::from(number)].as_ref().expect("it runs").pid()
    }

    /// `kill -9`.
    pub fn kill(&mut self, number: u16) {
        self.processes[usize::from(number)] = None;
    }

    /// Starts the `number`-th, on the folder it had before.
    pub fn restart(&mut self, number: u16) {
        let peers: Vec<String> = (0..MEMBERS).map(|n| format!("{}={}", n + 1, self.grpc(n))).collect();
        let data = self.folder.path().join(format!("coordinator-{}", number + 1));
        let http = format!("127.0.0.1:{}", self.base + 10 * number + 1);
        let arguments = [
            "coordinator",
            "--id",
            &(number + 1).to_string(),
            "--peers",
            &peers.join(","),
            "--grpc",
            &self.grpc(number),
            "--http",
            &http,
            "--data-dir",
            data.to_str().expect("UTF-8"),
        ]
        .map(str::to_owned);
        self.starts += 1;
        let log = self.folder.path().join(format!("coordinator-{}.{}.log", number + 1, self.starts));
        let name = format!("coordinator {}", number + 1);
        self.processes[usize::from(number)] = Some(Process::start(&name, long_running(&arguments), &log));
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.processes.iter().flatten().for_each(Process::show_log);
        }
    }
}
