//! However the ranks reach each other, every bit is the same.

use std::time::Duration;

use foggara_proto::wire::admin::{Deployment, StatusResponse};
use foggara_tests::client::Client;
use foggara_tests::netns::{ADDRESSES, TwoHosts};
use foggara_tests::process::{Process, long_running};
use foggara_tests::scratch::Scratch;
use foggara_tests::setup::Setup;
use foggara_tests::{machine, paths, wait};

use crate::probe;
use crate::shared::SMOL;

const TOKEN: &str = "between-two-hosts";

fn collective(status: &StatusResponse, model: &str) -> String {
    status.groups.iter().find(|group| group.deployment == model).expect("a group").collective.clone()
}

/// Three ranks of a model with three key heads, over both collectives on this host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_and_shared_memory_on_one_host() {
    let _machine = machine::shared().await;
    let mut answers = Vec::new();
    for kind in ["shm", "tcp"] {
        let setup =
            Setup::new(kind).model("odd", &paths::golden("llama-odd-heads")).coordinators(1).workers(3);
        let cluster = setup.option("tp", 3).option("collective", kind).start().await;
        assert_eq!(collective(&cluster.status().await, "odd"), kind);
        answers.push(probe::one_by_one(&cluster.client(0), &probe::tiny("odd")).await);
    }
    assert_eq!(answers[0], answers[1]);
}

/// SmolLM2 with one rank on each of two hosts gives what shared memory gives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_between_two_hosts() {
    let _machine = machine::shared().await;
    let cluster = SMOL.get().await;
    assert_eq!(collective(&cluster.status().await, "smol"), "shm", "`auto` on one host");
    let one_host = probe::one_by_one(&cluster.client(0), &probe::smol("smol")).await;

    let scratch = Scratch::new("two-hosts");
    let hosts = TwoHosts::new();
    let start = |host: usize, name: &str, arguments: &str| {
        let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
        let command = hosts.on(host, &long_running(&arguments));
        Process::start(name, command, &scratch.path().join(format!("{name}.log")))
    };
    let [a, b] = ADDRESSES;
    let data = scratch.path().join("data").display().to_string();
    let _coordinator = start(
        0,
        "coordinator",
        &format!(
            "coordinator --id 1 --peers 1={a}:8081 --grpc {a}:8081 --http {a}:8080 --data-dir {data} --cluster-token {TOKEN}"
        ),
    );
    let worker = |host: usize, name, addr| {
        start(
            host,
            name,
            &format!("worker --join {a}:8081 --listen {addr}:0 --threads 1 --cluster-token {TOKEN}"),
        )
    };
    let _workers = [worker(0, "worker-1", a), worker(1, "worker-2", b)];
    let two_hosts = hosts.inside(0, async || {
        let client = Client::with_token(&format!("{a}:8081"), Some(TOKEN));
        wait::until("both workers have joined", async || {
            let status = client.try_status().await.ok()?;
            (status.workers.len() == 2).then_some(())
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
        let status = client.status().await;
        assert_eq!(collective(&status, "smol"), "tcp");
        let addresses: Vec<&str> = status.workers.iter().filter_map(|w| w.addr.split(':').next()).collect();
        assert_eq!(addresses, ADDRESSES, "a rank on each host");
        let without = Client::new(&format!("{a}:8081")).try_status().await.unwrap_err();
        assert_eq!(
            without.code(),
            tonic::Code::Unauthenticated,
            "operators show the token: {}",
            without.message()
        );
        probe::one_by_one(&client, &probe::smol("smol")).await
    });
    assert_eq!(one_host, two_hosts);
    let mut stranger =
        start(1, "stranger", &format!("worker --join {a}:8081 --listen {b}:0 --cluster-token wrong"));
    assert!(
        !stranger.wait(Duration::from_secs(60)).success(),
        "a worker with another token is refused, and says so"
    );
}
