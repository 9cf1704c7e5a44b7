//! A whole cluster: `foggara up` and the processes it starts.

use std::time::Duration;

use foggara_proto::wire::admin::{Group, StatusResponse};
use foggara_tls::{Dialer, Trust};

use crate::client::Client;
use crate::metrics::Metrics;
use crate::process::{self, Process};
use crate::scratch::Scratch;
use crate::setup::Setup;
use crate::{http, ports, wait};

/// A running cluster. Killed when dropped; when a test fails, the end of its logs is shown.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    coordinators: u16,
    base: u16,
    // Before the folder: processes end before their files go.
    up: Process,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    folder: Scratch,
    ready_line: String,
    dialer: Dialer,
    web: reqwest::Client,
}

impl Cluster {
    pub(crate) async fn start(setup: &Setup) -> Self {
        let folder = Scratch::new(&setup.name);
        let base = ports::block();
        let mut arguments: Vec<String> = vec!["up".into()];
        let data = folder.path().join("data");
        for (option, value) in [
            ("--http", format!("127.0.0.1:{base}")),
            ("--grpc", format!("127.0.0.1:{}", base + 1)),
            ("--data-dir", data.display().to_string()),
            ("--coordinators", setup.coordinators.to_string()),
        ] {
            arguments.extend([option.to_owned(), value]);
        }
        arguments.extend(setup.arguments.iter().cloned());
        let variables = setup.variables.clone();
        let up = run(&arguments, &variables, &folder);
        let name = setup.name.clone();
        let coordinators = setup.coordinators;
        let trust = setup.tls.as_ref().map(|files| Trust::of_client(Some(&files.ca)).expect("an authority"));
        let web = http::trusting(trust.as_ref().unwrap_or(&Trust::nobody()));
        let (dialer, ready_line) = (Dialer::new(trust), String::new());
        let mut cluster =
            Self { name, coordinators, base, up, arguments, variables, folder, ready_line, dialer, web };
        cluster.wait_until_it_serves().await;
        cluster
    }

    /// Starts it again on the folder it had, after it has ended in whatever way.
    pub async fn start_again(&mut self) {
        self.wait_for_its_processes();
        self.up = run(&self.arguments, &self.variables, &self.folder);
        self.wait_until_it_serves().await;
    }

    async fn wait_until_it_serves(&mut self) {
        self.ready_line = tokio::task::block_in_place(|| self.up.line(wait::PATIENCE));
        for number in 0..self.coordinators {
            self.wait_ready(number).await;
        }
    }

    /// Kills `up`, and waits until the processes it had started have ended too.
    fn wait_for_its_processes(&mut self) {
        let pids = self.pids();
        self.up.kill();
        let started = std::time::Instant::now();
        while pids.iter().any(|pid| process::is_alive(*pid)) && started.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The one line that says that it serves.
    pub fn ready_line(&self) -> &str {
        &self.ready_line
    }

    /// How many coordinators it has.
    pub fn coordinators(&self) -> u16 {
        self.coordinators
    }

    /// HTTP base address of the `number`-th coordinator (from 0; its id is one more).
    pub fn http(&self, number: u16) -> String {
        format!("{}://127.0.0.1:{}", self.dialer.scheme(), self.base + 10 * number)
    }

    /// gRPC address of the `number`-th coordinator.
    pub fn grpc(&self, number: u16) -> String {
        format!("127.0.0.1:{}", self.base + 1 + 10 * number)
    }

    /// A client of the `number`-th coordinator.
    pub fn client(&self, number: u16) -> Client {
        Client::by(&self.dialer, &self.grpc(number), None)
    }

    /// Waits until the `number`-th coordinator can serve everything that is deployed.
    pub async fn wait_ready(&self, number: u16) {
        let url = format!("{}/readyz", self.http(number));
        wait::until(&format!("{url} says so"), async || {
            let response = self.web.get(&url).send().await.ok()?;
            response.status().is_success().then_some(())
        })
        .await;
    }

    /// What the cluster is, from whichever coordinator answers.
    pub async fn status(&self) -> StatusResponse {
        wait::until("a coordinator that answers", async || {
            for number in 0..self.coordinators {
                if let Ok(status) = self.client(number).try_status().await {
                    return Some(status);
                }
            }
            None
        })
        .await
    }

    /// Waits until the status, as the `number`-th coordinator knows it, is as it should be.
    pub async fn wait_status<T>(
        &self,
        number: u16,
        what: &str,
        mut found: impl FnMut(&StatusResponse) -> Option<T>,
    ) -> T {
        let client = self.client(number);
        wait::until(what, async || found(&client.try_status().await.ok()?)).await
    }

    /// The metrics of the `number`-th coordinator.
    pub async fn metrics(&self, number: u16) -> Metrics {
        let reply = http::get_by(&self.web, &format!("{}/metrics", self.http(number))).await;
        Metrics::parse(&reply.text).unwrap_or_else(|line| panic!("/metrics: {line}"))
    }

    /// A gauge or counter summed over all coordinators.
    pub async fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let mut sum = 0.0;
        for number in 0..self.coordinators {
            sum += self.metrics(number).await.sum(name, labels);
        }
        sum
    }

    /// Waits until no sequence of `model` is left and nobody holds a KV block of its groups.
    pub async fn wait_idle(&self, model: &str) {
        wait::until("no sequence is left and nobody holds a block", async || {
            let status = self.status().await;
            // Each part of a divided batch has as many.
            let parts = |g: &Group| u64::from(g.shape.map_or(1, |shape| shape.dp));
            let groups = status.groups.iter().filter(|g| g.deployment == model);
            let total: u64 = groups.map(|g| g.kv_blocks * parts(g)).sum();
            let free = self.sum("foggara_kv_blocks", &[("model", model), ("state", "free")]).await;
            let live = self.sum("foggara_kv_blocks", &[("model", model), ("state", "live")]).await;
            let cached = self.sum("foggara_kv_blocks", &[("model", model), ("state", "cached")]).await;
            let sequences = self.sum("foggara_sequences", &[("model", model)]).await;
            (live == 0.0 && sequences == 0.0 && free + cached == total as f64).then_some(())
        })
        .await;
    }

    /// `foggara up` itself.
    pub fn up(&mut self) -> &mut Process {
        &mut self.up
    }

    /// Every process of it: `up`, coordinators, workers.
    pub fn pids(&self) -> Vec<u32> {
        let up = self.up.pid();
        [up].into_iter().chain(process::children(up)).collect()
    }

    /// Asks it to stop, and waits until it has.
    pub fn stop(&mut self) -> std::process::ExitStatus {
        process::signal(self.up.pid(), rustix::process::Signal::INT);
        self.up.wait(Duration::from_secs(60))
    }

    /// Everything its processes logged, for failures.
    pub fn show_logs(&self) {
        let mut logs = vec![self.folder.path().join("up.log")];
        let data = std::fs::read_dir(self.folder.path().join("data/logs")).into_iter().flatten().flatten();
        logs.extend(data.map(|entry| entry.path()));
        logs.sort();
        for log in logs {
            eprintln!("--- {}: {}\n{}", self.name, log.display(), process::tail(&log));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        // Their files may go only then.
        self.wait_for_its_processes();
    }
}

fn run(arguments: &[String], variables: &[(String, String)], folder: &Scratch) -> Process {
    let mut command = process::long_running(arguments);
    command.envs(variables.iter().cloned());
    Process::start("foggara up", command, &folder.path().join("up.log"))
}
