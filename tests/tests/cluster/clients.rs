//! Clients that others wrote, and that know nothing of this project.

use std::process::Command;

use foggara_tests::process::text;
use foggara_tests::{machine, paths};

use crate::shared::SMOL;

/// Runs a script of `tests/clients` with the address it should use.
fn run(script: &str, address: &str) {
    let path = paths::root().join("tests/clients").join(script);
    let output =
        Command::new(paths::python()).arg(&path).args([address, "smol"]).output().expect("python starts");
    assert!(output.status.success(), "{script}: {}", text(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openai_sdk() {
    let _machine = machine::shared().await;
    let cluster = SMOL.get().await;
    // Either port answers both protocols.
    run("openai_client.py", &cluster.http(0));
    run("openai_client.py", &format!("http://{}", cluster.grpc(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_through_reflection_alone() {
    let _machine = machine::shared().await;
    let cluster = SMOL.get().await;
    run("reflection_client.py", &cluster.grpc(0));
    run("reflection_client.py", cluster.http(1).trim_start_matches("http://"));
}
