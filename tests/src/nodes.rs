//! Coordinators and workers started one by one, as on machines of their own.

use std::path::{Path, PathBuf};
use std::process::Command;

use foggara_proto::wire::admin::StatusResponse;
use rustix::process::Signal;

use crate::client::Client;
use crate::control_group::ControlGroup;
use crate::process::{Process, long_running_of};
use crate::scratch::Scratch;
use crate::{paths, ports, wait};

/// Shown by operators and by its processes to each other.
pub const TOKEN: &str = "between-nodes";

/// Where ports of HTTP begin, counted from the first of gRPC.
const HTTP: u16 = 20;
/// And those of workers, which whoever takes a worker's place has, too.
const WORKERS: u16 = 40;

/// A cluster that no `foggara up` supervises. Killed when dropped; when a test fails, the end of its logs is shown.
#[derive(Debug)]
pub struct Nodes {
    // Processes end before their files go.
    processes: Vec<Process>,
    scratch: Scratch,
    base: u16,
    coordinators: u16,
    workers: u16,
}

impl Nodes {
    /// That many coordinators; `arguments` are for each of them.
    pub fn start(name: &str, coordinators: u16, arguments: &[&str]) -> Self {
        let (scratch, base) = (Scratch::new(name), ports::block());
        let mut nodes = Self { processes: Vec::new(), scratch, base, coordinators, workers: 0 };
        for number in 0..coordinators {
            let started = nodes.coordinator(number, &paths::foggara(), arguments);
            nodes.processes.push(started);
        }
        nodes
    }

    /// A process of the `number`-th coordinator that runs `program`.
    fn coordinator(&self, number: u16, program: &Path, arguments: &[&str]) -> Process {
        let peers: Vec<String> =
            (0..self.coordinators).map(|i| format!("{}={}", i + 1, self.grpc(i))).collect();
        let (id, data) = ((number + 1).to_string(), self.scratch.path().join(format!("data-{number}")));
        let (grpc, http, data) = (self.grpc(number), self.http(number), data.display().to_string());
        let own = ["coordinator", "--id", &id, "--peers", &peers.join(","), "--grpc", &grpc];
        let own = [&own[..], &["--http", &http, "--data-dir", &data], arguments].concat();
        self.process(&format!("coordinator-{id}"), program, &own)
    }

    /// Stops the `number`-th coordinator as an administrator would, and waits until it has ended.
    pub fn stop_coordinator(&mut self, number: u16) {
        let process = &mut self.processes[usize::from(number)];
        crate::process::signal(process.pid(), Signal::TERM);
        let status = process.wait(wait::PATIENCE);
        assert!(status.success(), "coordinator {}: {status}", number + 1);
    }

    /// Starts the `number`-th coordinator again, or another `program` in its place.
    pub fn start_coordinator(&mut self, number: u16, program: &Path) {
        self.processes[usize::from(number)] = self.coordinator(number, program, &[]);
    }

    /// Starts the `number`-th coordinator again, with these arguments alone.
    pub fn restart_coordinator(&mut self, number: u16, arguments: &[&str]) {
        self.stop_coordinator(number);
        self.processes[usize::from(number)] = self.coordinator(number, &paths::foggara(), arguments);
    }

    /// The process of the `number`-th coordinator.
    pub fn process_of(&mut self, number: u16) -> &mut Process {
        &mut self.processes[usize::from(number)]
    }

    /// Process id of the `number`-th coordinator.
    pub fn pid(&self, number: u16) -> u32 {
        self.processes[usize::from(number)].pid()
    }

    /// Kills the worker that was started last.
    pub fn kill_last_worker(&mut self) {
        self.workers -= 1;
        self.processes.pop().expect("there is one").kill();
    }

    /// One more worker, with a thread. It remembers no hashes beyond this test.
    pub fn worker(&mut self, arguments: &[&str]) {
        self.add_worker(arguments, |command| command);
    }

    /// The same of another `program`.
    pub fn worker_of(&mut self, program: &Path, arguments: &[&str]) {
        let number = self.workers;
        self.workers += 1;
        let started = self.start_worker(number, program, arguments, |command| command);
        self.processes.push(started);
    }

    /// Address of the `number`-th worker (from 0).
    pub fn worker_addr(&self, number: u16) -> String {
        format!("127.0.0.1:{}", self.base + WORKERS + number)
    }

    /// The process of the `number`-th worker.
    pub fn process_of_worker(&mut self, number: u16) -> &mut Process {
        &mut self.processes[usize::from(self.coordinators + number)]
    }

    /// Stops the `number`-th worker as an administrator would, and starts `program` in its place when it has ended.
    pub fn replace_worker(&mut self, number: u16, program: &Path) {
        let process = self.process_of_worker(number);
        crate::process::signal(process.pid(), Signal::TERM);
        let status = process.wait(wait::PATIENCE);
        assert!(status.success(), "worker {}: {status}", number + 1);
        *self.process_of_worker(number) = self.start_worker(number, program, &[], |command| command);
    }

    /// The same in a control group.
    pub fn worker_within(&mut self, group: &ControlGroup, arguments: &[&str]) {
        self.add_worker(arguments, |command| group.within(&command));
    }

    fn add_worker(&mut self, arguments: &[&str], with: impl FnOnce(Command) -> Command) {
        let number = self.workers;
        self.workers += 1;
        let started = self.start_worker(number, &paths::foggara(), arguments, with);
        self.processes.push(started);
    }

    fn start_worker(
        &self,
        number: u16,
        program: &Path,
        arguments: &[&str],
        with: impl FnOnce(Command) -> Command,
    ) -> Process {
        let name = format!("worker-{}", number + 1);
        let cache = self.scratch.path().join(&name).display().to_string();
        let join: Vec<String> = (0..self.coordinators).map(|number| self.grpc(number)).collect();
        let (join, listen) = (join.join(","), self.worker_addr(number));
        let own = ["worker", "--join", &join, "--listen", &listen, "--threads", "1", "--cache-dir", &cache];
        let command = with(command(program, &[&own[..], arguments].concat()));
        Process::start(&name, command, &self.log(&name))
    }

    fn process(&self, name: &str, program: &Path, arguments: &[&str]) -> Process {
        Process::start(name, command(program, arguments), &self.log(name))
    }

    fn log(&self, name: &str) -> PathBuf {
        self.scratch.path().join(format!("{name}.log"))
    }

    /// A folder of this cluster's.
    pub fn folder(&self, name: &str) -> PathBuf {
        let folder = self.scratch.path().join("models").join(name);
        std::fs::create_dir_all(&folder).expect("target/tmp can be written");
        folder
    }

    /// gRPC address of the `number`-th coordinator (from 0; its id is one more).
    pub fn grpc(&self, number: u16) -> String {
        format!("127.0.0.1:{}", self.base + number)
    }

    /// HTTP base address of the `number`-th coordinator.
    pub fn http_url(&self, number: u16) -> String {
        format!("http://{}", self.http(number))
    }

    fn http(&self, number: u16) -> String {
        format!("127.0.0.1:{}", self.base + HTTP + number)
    }

    /// A client of the `number`-th coordinator that shows the token.
    pub fn client(&self, number: u16) -> Client {
        Client::with_token(&self.grpc(number), Some(TOKEN))
    }

    /// Waits until every coordinator's status is as it should be.
    pub async fn wait_status<T>(&self, what: &str, mut found: impl FnMut(&StatusResponse) -> Option<T>) -> T {
        let mut last = None;
        for number in 0..self.coordinators {
            let client = self.client(number);
            last = Some(wait::until(what, async || found(&client.try_status().await.ok()?)).await);
        }
        last.expect("there is a coordinator")
    }

    /// Waits until all its workers have joined.
    pub async fn wait_joined(&self) {
        let workers = usize::from(self.workers);
        self.wait_status("all workers have joined", |status| (status.workers.len() == workers).then_some(()))
            .await;
    }
}

/// A process that has the token.
fn command(program: &Path, arguments: &[&str]) -> Command {
    let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
    let mut command = long_running_of(program, &arguments);
    command.env("FOGGARA_CLUSTER_TOKEN", TOKEN);
    command
}

impl Drop for Nodes {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.processes.iter().for_each(Process::show_log);
        }
    }
}
