//! Ten thousand requests at once: each is answered, rightly, and the memory that waiting took is given back.

use foggara_tests::ask::Ask;
use foggara_tests::choice::Choice;
use foggara_tests::client::Client;
use foggara_tests::process::held;
use foggara_tests::setup::Setup;
use foggara_tests::{http, machine, paths, wait};
use futures::future::join_all;
use serde_json::json;

use crate::probe;

const REQUESTS: usize = 10_000;
/// Of them, those over HTTP: each has a connection of its own.
const OVER_HTTP: usize = 300;
/// Different ones.
const KINDS: usize = 40;
/// What a coordinator may hold afterwards, beyond what it had before: about 13 KiB for each that waited. Some answers
/// and timelines are kept for a while.
const KEPT: usize = 128 << 20;

fn prompt(kind: usize) -> Vec<u32> {
    Choice::seeded(kind as u64).tiny_prompt(1 + kind % 12)
}

fn ask(kind: usize) -> Ask {
    Ask::tokens("tiny", &prompt(kind)).exactly(1 + (kind % 4) as u32).logprobs(1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_wait_and_are_answered() {
    let _machine = machine::alone().await;
    let setup = Setup::new("ten-thousand").model("tiny", &paths::golden("llama")).workers(2);
    let cluster = setup.option("queue", REQUESTS).start().await;
    let clients: Vec<Client> = (0..3).map(|number| cluster.client(number)).collect();
    let asks: Vec<Ask> = (0..KINDS).map(ask).collect();
    let alone = probe::one_by_one(&clients[0], &asks).await;
    // Connections are made before the crowd comes: making one in it may take longer than a client waits for that.
    for client in &clients {
        client.ask(ask(0)).await;
    }
    let over_http = http::client();
    let coordinators: Vec<u32> = cluster.status().await.coordinators.iter().map(|c| c.pid).collect();
    let memory = || coordinators.iter().map(|pid| held(*pid).anonymous_bytes).collect::<Vec<usize>>();

    let all_at_once = async |round: usize| {
        let grpc = (OVER_HTTP..REQUESTS).map(|number| {
            let (kind, client) = (number % KINDS, &clients[number % 3]);
            let asked = client.try_ask(asks[kind].clone());
            async move { (kind, asked.await) }
        });
        let plain = (0..OVER_HTTP).map(|number| {
            let url = format!("{}/v1/completions", cluster.http((number % 3) as u16));
            let body = json!({"model": "tiny", "prompt": prompt(number % KINDS), "max_tokens": 2,
                "temperature": 0, "ignore_eos": true, "return_token_ids": true});
            let request = over_http.post(url).json(&body);
            async move { http::Reply::read(request.send().await.expect("an answer")).await }
        });
        let both = futures::future::join(join_all(grpc), join_all(plain));
        let (grpc, plain) = wait::for_end("ten thousand answers", both).await;
        for (number, (kind, answer)) in grpc.into_iter().enumerate() {
            let answer = answer.unwrap_or_else(|s| panic!("round {round}: request {number}: {s:?}"));
            assert!(answer.bits() == alone[kind], "round {round}: request {number}");
        }
        for (number, reply) in plain.into_iter().enumerate() {
            let ids = &reply.json()["choices"][0]["token_ids"];
            let expected = &alone[number % KINDS].0;
            // Those who were asked for fewer alone know the first of them.
            let known = expected.len().min(2);
            assert_eq!(reply.status, 200, "{}", reply.text);
            for place in 0..known {
                assert_eq!(ids[place], json!(expected[place]), "round {round}: over HTTP, {number}");
            }
        }
        cluster.wait_idle("tiny").await;
    };

    let before = memory();
    for round in 0..3 {
        all_at_once(round).await;
        // Given back within seconds; and what a round leaves does not add up.
        let within = || memory().iter().zip(&before).all(|(now, before)| *now <= before + KEPT);
        wait::until("what waiting took is given back", async || within().then_some(())).await;
        eprintln!("round {round}: coordinators have {:?} bytes, {before:?} before", memory());
    }
    let failed = cluster.sum("foggara_requests_total", &[("model", "tiny")]).await
        - cluster.sum("foggara_requests_total", &[("model", "tiny"), ("status", "stop")]).await
        - cluster.sum("foggara_requests_total", &[("model", "tiny"), ("status", "length")]).await;
    assert_eq!(failed, 0.0, "none failed");
}
