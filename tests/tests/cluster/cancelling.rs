//! Clients that leave at any moment take nothing from those who stay, and leave nothing behind.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;

use foggara_tests::answer::Answer;
use foggara_tests::ask::Ask;
use foggara_tests::choice::Choice;
use foggara_tests::client::Client;
use foggara_tests::cluster::Cluster;
use foggara_tests::setup::Setup;
use foggara_tests::{machine, paths, wait};
use futures::{StreamExt, stream};
use serde_json::json;

use crate::probe;

const REQUESTS: usize = 1000;
/// At once: more than a group has places for, so that some leave while they wait.
const AT_ONCE: usize = 120;
/// Tokens of an answer that is heard to its end.
const TOKENS: u32 = 100;

/// When a client leaves.
#[derive(Debug, Clone, Copy)]
enum Leaves {
    /// After it has looked so many times whether there is an answer: while it is on its way, or waits.
    Early(usize),
    /// As soon as the answer has begun, which is before the first token.
    WithoutToken,
    /// With so many tokens.
    With(usize),
}

/// Of each kind a third.
fn leaves(choice: &mut Choice) -> Leaves {
    match choice.below(3) {
        0 => Leaves::Early(1 + choice.below(4)),
        1 => Leaves::WithoutToken,
        // Half of them in the last tenth.
        _ => Leaves::With(match choice.below(2) {
            0 => 1 + choice.below(TOKENS as usize - 1),
            _ => TOKENS as usize - 1 - choice.below(TOKENS as usize / 10),
        }),
    }
}

/// `future`, given up after `looks` looks at it.
async fn given_up<T>(future: impl Future<Output = T>, looks: usize) -> Option<T> {
    let (mut future, mut left) = (pin!(future), looks);
    std::future::poll_fn(move |context| match future.as_mut().poll(context) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

async fn over_grpc(client: &Client, prompt: &[u32], leaves: Leaves) {
    let mut answer = Answer::default();
    let begin = client.stream(Ask::tokens("tiny", prompt).exactly(TOKENS).build());
    let looks = if let Leaves::Early(looks) = leaves { looks } else { usize::MAX };
    let Some(stream) = given_up(begin, looks).await else { return };
    let mut stream = stream.unwrap();
    let enough = match leaves {
        Leaves::Early(_) => return,
        Leaves::WithoutToken => 0,
        Leaves::With(tokens) => tokens,
    };
    while answer.started.request_id.is_empty() || answer.token_ids.len() < enough {
        assert!(answer.next(&mut stream).await.unwrap(), "ended before {enough} tokens");
    }
}

async fn over_http(http: &reqwest::Client, url: &str, prompt: &[u32], leaves: Leaves) {
    let body =
        json!({"model": "tiny", "prompt": prompt, "max_tokens": TOKENS, "ignore_eos": true, "stream": true});
    let looks = if let Leaves::Early(looks) = leaves { looks } else { usize::MAX };
    let Some(response) = given_up(http.post(url).json(&body).send(), looks).await else { return };
    let mut chunks = response.unwrap().bytes_stream();
    let enough = match leaves {
        // The response begins with the first token, so there is no moment between.
        Leaves::Early(_) | Leaves::WithoutToken => return,
        Leaves::With(tokens) => tokens,
    };
    let mut text = String::new();
    while text.matches("data: ").count() < enough {
        text.push_str(&String::from_utf8_lossy(&chunks.next().await.expect("goes on").unwrap()));
    }
}

/// Every other request over HTTP, every third one through the same coordinator.
async fn leave(cluster: &Cluster, clients: &[Client], http: &reqwest::Client, number: usize) {
    let mut choice = Choice::seeded(number as u64);
    let len = 1 + choice.below(350);
    let (prompt, leaves) = (choice.tiny_prompt(len), leaves(&mut choice));
    let door = choice.below(clients.len());
    let run = async {
        match choice.below(2) {
            0 => over_grpc(&clients[door], &prompt, leaves).await,
            _ => {
                let url = format!("{}/v1/completions", cluster.http(door as u16));
                over_http(http, &url, &prompt, leaves).await;
            }
        }
    };
    wait::for_end(&format!("request {number}, which leaves {leaves:?}"), run).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_cancellations() {
    let _machine = machine::alone().await;
    let cluster = Setup::new("storm").model("tiny", &paths::golden("llama")).workers(2).start().await;
    let clients: Vec<Client> = (0..3).map(|number| cluster.client(number)).collect();
    let http = foggara_tests::http::client();
    let asks = probe::tiny("tiny");
    let alone = probe::one_by_one(&clients[0], &asks).await;
    let before = cluster.status().await;

    let storm = async {
        let requests = (0..machine::rounds(REQUESTS, 20 * REQUESTS))
            .map(|number| leave(&cluster, &clients, &http, number));
        stream::iter(requests).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    };
    let mut storm = pin!(storm);
    // Beside it, for as long as it lasts: requests that must be answered as ever.
    let mut heard = 0;
    loop {
        let beside = probe::together(&clients[heard % 3], &asks);
        let (beside, over) = tokio::select! {
            biased;
            beside = beside => (Some(beside), false),
            () = &mut storm => (None, true),
        };
        for (number, (alone, beside)) in alone.iter().zip(beside.iter().flatten()).enumerate() {
            assert!(*alone == beside.bits(), "round {heard}: request {number} in the storm");
        }
        if over {
            break;
        }
        heard += 1;
    }
    eprintln!("{heard} rounds of {} requests were answered in the storm", asks.len());
    assert!(heard > 0, "nobody was answered in the storm");

    cluster.wait_idle("tiny").await;
    wait::until("no request is in progress", async || {
        (cluster.sum("foggara_requests_in_progress", &[("model", "tiny")]).await == 0.0).then_some(())
    })
    .await;
    // A driver whose blocks do not add up when it is idle gives its lease up.
    let after = cluster.status().await;
    assert_eq!(after.groups[0].driver_epoch, before.groups[0].driver_epoch, "the driver is the same");
    let pids = |status: &foggara_proto::wire::admin::StatusResponse| {
        status.workers.iter().map(|w| w.pid).collect::<Vec<_>>()
    };
    assert_eq!(pids(&after), pids(&before), "the workers are the same");
    assert!(alone == probe::one_by_one(&clients[0], &asks).await, "afterwards");
    let cancelled =
        cluster.sum("foggara_requests_total", &[("model", "tiny"), ("status", "cancelled")]).await;
    eprintln!("{cancelled} requests were cancelled");
    assert!(cancelled >= REQUESTS as f64 / 2.0, "only {cancelled} requests were cancelled");
}
