//! A group over two hosts (network namespaces): the same bits as on one, and a network that fails.

use std::time::Duration;

use foggara_proto::wire::admin::{Deployment, StatusResponse};
use foggara_tests::answer::Answer;
use foggara_tests::ask::Ask;
use foggara_tests::client::Client;
use foggara_tests::netns::{ADDRESSES, TwoHosts};
use foggara_tests::process::{Process, long_running};
use foggara_tests::scratch::Scratch;
use foggara_tests::{machine, paths, wait};

use crate::collective::collective;
use crate::probe;
use crate::shared::SMOL;

const TOKEN: &str = "between-two-hosts";

/// A coordinator and a worker on the first host, a worker on the second.
struct Cluster {
    // Processes end before their network and their files go.
    processes: Vec<Process>,
    hosts: TwoHosts,
    scratch: Scratch,
}

impl Cluster {
    fn start(name: &str) -> Self {
        let mut cluster = Self { processes: Vec::new(), hosts: TwoHosts::new(), scratch: Scratch::new(name) };
        let [a, b] = ADDRESSES;
        let data = cluster.scratch.path().join("data").display().to_string();
        let coordinator = format!(
            "coordinator --id 1 --peers 1={a}:8081 --grpc {a}:8081 --http {a}:8080 --data-dir {data} --cluster-token {TOKEN}"
        );
        let worker =
            |addr| format!("worker --join {a}:8081 --listen {addr}:0 --threads 1 --cluster-token {TOKEN}");
        for (host, name, arguments) in
            [(0, "coordinator", coordinator), (0, "worker-1", worker(a)), (1, "worker-2", worker(b))]
        {
            let process = cluster.run(host, name, &arguments);
            cluster.processes.push(process);
        }
        cluster
    }

    fn run(&self, host: usize, name: &str, arguments: &str) -> Process {
        let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
        let command = self.hosts.on(host, &long_running(&arguments));
        Process::start(name, command, &self.scratch.path().join(format!("{name}.log")))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.processes.iter().for_each(Process::show_log);
        }
    }
}

/// The client of the first host's coordinator, when SmolLM2 is served with a rank on each host.
async fn serving() -> Client {
    let [a, _] = ADDRESSES;
    let client = Client::with_token(&format!("{a}:8081"), Some(TOKEN));
    wait::until("both workers have joined", async || {
        (client.try_status().await.ok()?.workers.len() == 2).then_some(())
    })
    .await;
    let deployment = Deployment {
        name: "smol".into(),
        model_path: paths::smol_gguf().display().to_string(),
        tp: 2,
        replicas: 1,
        collective: "tcp".into(),
        ..Deployment::default()
    };
    client.deploy(deployment).await;
    client
}

/// SmolLM2 with one rank on each of two hosts gives what shared memory gives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_between_hosts_gives_the_bits_of_shared_memory() {
    let _machine = machine::shared().await;
    let shared = SMOL.get().await;
    assert_eq!(collective(&shared.status().await, "smol"), "shm", "`auto` on one host");
    let one_host = probe::one_by_one(&shared.client(0), &probe::smol("smol")).await;

    let cluster = Cluster::start("two-hosts");
    let two_hosts = cluster.hosts.inside(0, async || {
        let client = serving().await;
        let status = client.status().await;
        assert_eq!(collective(&status, "smol"), "tcp");
        let mut addresses: Vec<&str> =
            status.workers.iter().filter_map(|w| w.addr.split(':').next()).collect();
        addresses.sort_unstable();
        assert_eq!(addresses, ADDRESSES, "a rank on each host");
        let without = Client::new(&format!("{}:8081", ADDRESSES[0])).try_status().await.unwrap_err();
        assert_eq!(
            without.code(),
            tonic::Code::Unauthenticated,
            "operators show the token: {}",
            without.message()
        );
        probe::one_by_one(&client, &probe::smol("smol")).await
    });
    assert_eq!(one_host, two_hosts);
    let [a, b] = ADDRESSES;
    let stranger = format!("worker --join {a}:8081 --listen {b}:0 --cluster-token wrong");
    let mut stranger = cluster.run(1, "stranger", &stranger);
    assert!(
        !stranger.wait(Duration::from_secs(60)).success(),
        "a worker with another token is refused, and says so"
    );
}

/// The network between the ranks goes away in the middle of an answer and comes back: the answer goes on, unchanged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_outlives_a_cut_between_the_ranks() {
    let _machine = machine::shared().await;
    let cluster = Cluster::start("cut");
    cluster.hosts.inside(0, async || {
        let client = serving().await;
        let ask = || Ask::text("smol", "Once upon a time").exactly(120).sampled(0.9, 0.95, 3).logprobs(1);
        let undisturbed = client.ask(ask()).await;
        let epoch = client.status().await.groups[0].epoch;
        let mut stream = client.stream(ask().build()).await.unwrap();
        let mut answer = Answer::default();
        while answer.token_ids.len() < 20 {
            assert!(answer.next(&mut stream).await.unwrap(), "ended too early");
        }
        cluster.hosts.cut();
        let lost =
            |status: StatusResponse| (status.workers.len() == 1 && status.groups.is_empty()).then_some(());
        wait::until("the worker beyond the cut is given up", async || lost(client.try_status().await.ok()?))
            .await;
        cluster.hosts.mend();
        let rest = async { while answer.next(&mut stream).await.unwrap() {} };
        wait::for_end("the rest of the answer", rest).await;
        assert_eq!(answer.bits(), undisturbed.bits());
        assert!(client.status().await.groups[0].epoch > epoch, "the group was formed anew");
    });
}
