//! Many at once: everyone is answered, or told at once to come back later; who leaves is forgotten.

use foggara_tests::ask::Ask;
use foggara_tests::cluster::Cluster;
use foggara_tests::setup::Setup;
use foggara_tests::{http, machine, paths, wait};
use futures::future::join_all;
use serde_json::json;
use tonic::Code;

use crate::shared::SMOL;

/// Sequences of a group at once, and the queue of the cluster that is filled up.
const SEQUENCES: usize = 64;
const QUEUE: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_streams_finish() {
    let _machine = machine::alone().await;
    let cluster = SMOL.get().await;
    let clients: Vec<_> = (0..3).map(|number| cluster.client(number)).collect();
    let ask = |i: usize| {
        let ask = Ask::text("smol", &format!("The number {i} is")).exactly(16 + (i % 16) as u32);
        clients[i % 3].ask(ask)
    };
    let answers = join_all((0..SEQUENCES).map(ask)).await;
    for (i, answer) in answers.iter().enumerate() {
        assert_eq!(answer.token_ids.len(), 16 + i % 16, "stream {i}");
        assert!(answer.ended_by_length() && !answer.text.is_empty(), "stream {i}: {answer:?}");
    }
    cluster.wait_idle("smol").await;
}

async fn sequences(cluster: &Cluster, state: &str) -> f64 {
    cluster.sum("foggara_sequences", &[("model", "smol"), ("state", state)]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_with_a_hint_and_who_leaves_is_forgotten() {
    let _machine = machine::alone().await;
    let setup = Setup::new("full").model("smol", &paths::smol_gguf()).coordinators(2 + 1).workers(2);
    let cluster = setup.option("queue", QUEUE).start().await;
    let client = cluster.client(0);
    // None of these ends during the test.
    let endless = |i: usize| Ask::tokens("smol", &[1, 100 + i as u32]).exactly(8000);
    let mut streams = Vec::new();
    for i in 0..SEQUENCES {
        streams.push(client.stream(endless(i).build()).await.unwrap());
    }
    wait::until("every place is taken", async || {
        (sequences(&cluster, "running").await == SEQUENCES as f64).then_some(())
    })
    .await;
    for i in 0..QUEUE {
        streams.push(client.stream(endless(i).build()).await.unwrap());
    }
    wait::until("the queue is full", async || {
        (sequences(&cluster, "waiting").await == QUEUE as f64).then_some(())
    })
    .await;

    // One more is refused, through every coordinator and protocol, with a hint when to come back.
    for number in 0..3 {
        let refused = cluster.client(number).try_ask(endless(0)).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{}", refused.message());
        assert!(
            refused.message().contains("queue") && refused.message().contains("smol"),
            "{}",
            refused.message()
        );
        let hint = refused.metadata().get("retry-after").expect("a retry hint").to_str().unwrap().to_owned();
        assert!(hint.parse::<u64>().is_ok_and(|seconds| seconds >= 1), "{hint}");
        for stream in [false, true] {
            let body = json!({"model": "smol", "prompt": [1, 2], "max_tokens": 8000, "stream": stream});
            let reply = http::post(&format!("{}/v1/completions", cluster.http(number)), &body).await;
            assert_eq!(reply.status, 429, "{}", reply.text);
            assert!(reply.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds >= 1));
            assert_eq!(reply.json()["error"]["code"], "queue_full");
        }
    }

    // Clients that go away leave nothing: those in the queue, those at work, over gRPC and over HTTP.
    streams.drain(..QUEUE + 1);
    wait::until("the queue has moved up", async || {
        (sequences(&cluster, "waiting").await == 0.0).then_some(())
    })
    .await;
    drop(streams);
    cluster.wait_idle("smol").await;
    let body =
        json!({"model": "smol", "prompt": [1, 2], "max_tokens": 8000, "stream": true, "ignore_eos": true});
    for number in 0..3 {
        let url = format!("{}/v1/completions", cluster.http(number));
        let got_some = |text: &str| text.matches("data: ").count() > 5;
        http::post_and_hang_up(&url, &body, got_some).await;
        cluster.wait_idle("smol").await;
    }
    // Also one that waits for a whole answer.
    let waits = http::client().post(format!("{}/v1/completions", cluster.http(1)));
    let waits =
        waits.json(&json!({"model": "smol", "prompt": [1, 2], "max_tokens": 8000, "ignore_eos": true}));
    let waits = tokio::spawn(waits.send());
    wait::until("it is at work", async || (sequences(&cluster, "running").await == 1.0).then_some(())).await;
    waits.abort();
    cluster.wait_idle("smol").await;
    let cancelled =
        cluster.sum("foggara_requests_total", &[("model", "smol"), ("status", "cancelled")]).await;
    assert_eq!(cancelled, (SEQUENCES + QUEUE + 3 + 1) as f64, "each was counted as cancelled");
    client.ask(Ask::tokens("smol", &[1, 2]).exactly(4)).await;
}
