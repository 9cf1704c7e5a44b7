//! A thousand requests leave nothing behind: no file, no thread, no block, no memory.

use foggara_tests::ask::Ask;
use foggara_tests::client::Client;
use foggara_tests::cluster::Cluster;
use foggara_tests::process::{Held, held};
use foggara_tests::setup::Setup;
use foggara_tests::{http, machine, paths, wait};
use serde_json::json;

/// Until caches, pools and the allocator have reached their size.
const WARM_UP: usize = 400;
/// Of each process; what an allocator keeps for itself varies a little.
const MEMORY: usize = 8 << 20;
/// Tokens; the model takes 512.
const LONG_PROMPT: usize = 500;
/// Positions of a KV block.
const BLOCK_SIZE: usize = 16;
/// Connections and pool threads come and go.
const SLACK: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_requests_leave_nothing_behind() {
    let _machine = machine::alone().await;
    let cluster = Setup::new("growth").model("tiny", &paths::golden("llama")).workers(2).start().await;
    let pids = cluster.pids();
    let clients: Vec<Client> = (0..3).map(|number| cluster.client(number)).collect();
    for number in 0..WARM_UP {
        request(&cluster, &clients, number).await;
    }
    touch_every_block(&cluster, &clients[0]).await;
    cluster.wait_idle("tiny").await;
    let before: Vec<Held> = pids.iter().map(|pid| held(*pid)).collect();
    for number in 0..machine::rounds(1000, 20_000) {
        request(&cluster, &clients, number).await;
    }
    cluster.wait_idle("tiny").await;
    assert_eq!(pids, cluster.pids(), "no process was restarted");
    wait::until("files and threads are as few as before", async || {
        let grown = pids.iter().zip(&before).any(|(pid, before)| {
            let now = held(*pid);
            now.files > before.files + SLACK || now.threads > before.threads + SLACK
        });
        (!grown).then_some(())
    })
    .await;
    for (pid, before) in pids.iter().zip(&before) {
        let now = held(*pid);
        eprintln!("process {pid}: {before:?} before, {now:?} after");
        assert!(
            now.anonymous_bytes <= before.anonymous_bytes + MEMORY,
            "process {pid}: {before:?} before, {now:?} after"
        );
    }
}

/// The memory of a block comes when it is first written to, and what is free goes before what is cached: as many prompts
/// with nothing in common as fill the cache.
async fn touch_every_block(cluster: &Cluster, client: &Client) {
    let blocks = cluster.status().await.groups[0].kv_blocks as usize;
    for number in 0..blocks.div_ceil(LONG_PROMPT / BLOCK_SIZE) as u32 {
        let prompt: Vec<u32> =
            [3 + number / 300, 3 + number % 300].into_iter().cycle().take(LONG_PROMPT).collect();
        client.ask(Ask::tokens("tiny", &prompt).exactly(1)).await;
    }
}

/// Of every kind, through every coordinator: gRPC on an open connection, HTTP on a new one, streamed or whole, refused,
/// hung up on.
async fn request(cluster: &Cluster, clients: &[Client], number: usize) {
    let door = number % 3;
    let prompt: Vec<u32> = (0..1 + number as u32 % 50).map(|i| 3 + i % 300).collect();
    let url = format!("{}/v1/completions", cluster.http(u16::try_from(door).unwrap()));
    match number % 10 {
        0 => {
            let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 6, "ignore_eos": true});
            let reply = http::post(&url, &body).await;
            assert_eq!((reply.status, reply.json()["usage"]["completion_tokens"].as_u64()), (200, Some(6)));
        }
        1 => {
            let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 6, "ignore_eos": true, "stream": true});
            let reply = http::post(&url, &body).await;
            assert!(reply.status == 200 && reply.events().1, "{}", reply.text);
        }
        2 => {
            let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 400, "ignore_eos": true, "stream": true});
            http::post_and_hang_up(&url, &body, |text| text.contains("data: ")).await;
        }
        3 => {
            clients[door].try_ask(Ask::tokens("tiny", &[999])).await.unwrap_err();
        }
        4 => {
            let mut stream =
                clients[door].stream(Ask::tokens("tiny", &prompt).exactly(400).build()).await.unwrap();
            stream.message().await.unwrap();
        }
        _ => {
            let answer = clients[door].ask(Ask::tokens("tiny", &prompt).exactly(6).logprobs(2)).await;
            assert_eq!(answer.token_ids.len(), 6);
        }
    }
}
