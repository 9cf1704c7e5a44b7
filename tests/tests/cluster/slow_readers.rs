//! Clients that do not read hold nobody up: neither those on the same coordinator, nor the group that answers them.

use std::time::Duration;

use foggara_proto::wire::inference::GenerateResponse;
use foggara_proto::wire::inference::inference_client::InferenceClient;
use foggara_tests::answer::Answer;
use foggara_tests::ask::Ask;
use foggara_tests::choice::Choice;
use foggara_tests::cluster::Cluster;
use foggara_tests::process::held;
use foggara_tests::setup::Setup;
use foggara_tests::{machine, paths, wait};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::probe::{self, Bits};

/// Over gRPC, through a coordinator that does not drive the group. What their answers come to, some 110 KB each on their way
/// to it, is beyond what a connection between two coordinators lets wait (5 MiB).
const SLOW: usize = 60;
/// Through the one that does; and over HTTP through each, of which the system buffers much.
const SLOW_HERE: usize = 10;
const SLOW_HTTP: usize = 5;
/// What a slow client lets be on its way to it.
const WINDOW: u32 = 1024;
/// Tokens of each answer, with as many alternatives as there may be.
const TOKENS: u32 = 480;
const ALTERNATIVES: u32 = 20;
/// Different ones.
const KINDS: usize = 4;
/// What a coordinator may hold for one answer of which nobody reads anything.
const UNREAD: usize = 700 << 10;

fn prompt(kind: usize) -> Vec<u32> {
    Choice::seeded(kind as u64).tiny_prompt(20)
}

fn ask(kind: usize) -> Ask {
    Ask::tokens("tiny", &prompt(kind)).exactly(TOKENS).logprobs(ALTERNATIVES)
}

/// A stream of which only the beginning has been read, and its connection.
async fn slow_grpc(addr: &str, kind: usize) -> (Streaming<GenerateResponse>, Channel) {
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).unwrap();
    let endpoint = endpoint.initial_stream_window_size(WINDOW).connect_timeout(Duration::from_secs(10));
    let channel = endpoint.connect().await.unwrap();
    let answer = InferenceClient::new(channel.clone()).generate(ask(kind).build()).await.unwrap();
    (answer.into_inner(), channel)
}

/// A connection over which a streamed answer comes that nobody reads.
async fn slow_http(url: &str, kind: usize) -> TcpStream {
    let host = url.trim_start_matches("http://");
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(host.parse().unwrap()).await.unwrap();
    let body = json!({"model": "tiny", "prompt": prompt(kind), "max_tokens": TOKENS, "temperature": 0,
        "ignore_eos": true, "stream": true, "logprobs": ALTERNATIVES, "return_token_ids": true})
    .to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n\
        content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    stream
}

/// The token ids of an answer over HTTP, chunked encoding and all.
async fn read(mut stream: TcpStream) -> Vec<u32> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("data: [DONE]"), "{}", &text[..200]);
    let data = text.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    let ids = |data: &str| -> Vec<u32> {
        let event: Value = serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {data}"));
        let ids = event["choices"][0]["token_ids"].as_array();
        ids.into_iter().flatten().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    data.flat_map(ids).collect()
}

/// Answers through the `number`-th coordinator that nobody reads.
struct Unread {
    grpc: Vec<(Streaming<GenerateResponse>, Channel)>,
    http: Vec<TcpStream>,
}

async fn begin(cluster: &Cluster, number: u16, slow: usize) -> Unread {
    let mut unread = Unread { grpc: Vec::new(), http: Vec::new() };
    for kind in (0..slow).map(|i| i % KINDS) {
        unread.grpc.push(slow_grpc(&cluster.grpc(number), kind).await);
    }
    for kind in (0..SLOW_HTTP).map(|i| i % KINDS) {
        unread.http.push(slow_http(&cluster.http(number), kind).await);
    }
    unread
}

async fn answered_as_ever(cluster: &Cluster, number: u16, alone: &[Bits]) {
    let client = cluster.client(number);
    let asks = probe::tiny("tiny");
    let beside = wait::for_end("answers beside slow readers", probe::together(&client, &asks)).await;
    for (alone, beside) in alone.iter().zip(beside) {
        assert!(*alone == beside.bits(), "through coordinator {number}, beside slow readers");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_holds_nobody_up() {
    let _machine = machine::alone().await;
    let cluster = Setup::new("slow").model("tiny", &paths::golden("llama")).workers(2).start().await;
    let status = cluster.status().await;
    let asks = probe::tiny("tiny");
    let alone = probe::one_by_one(&cluster.client(0), &asks).await;
    let whole: Vec<Ask> = (0..KINDS).map(ask).collect();
    let whole = probe::one_by_one(&cluster.client(0), &whole).await;
    let held_now = || status.coordinators.iter().map(|c| held(c.pid).anonymous_bytes).collect::<Vec<usize>>();
    let before = held_now();

    // Through the coordinator that drives the group, and through one that does not.
    let driver = status.groups[0].driver as u16 - 1;
    let mut unread = Vec::new();
    for (door, slow) in [(driver, SLOW_HERE), ((driver + 1) % 3, SLOW)] {
        unread.push(begin(&cluster, door, slow).await);
        // Whoever reads is answered, wherever he asks; those who do not are computed to their end, and give room.
        for number in 0..3 {
            answered_as_ever(&cluster, number, &alone).await;
        }
        cluster.wait_idle("tiny").await;
        for number in 0..3 {
            answered_as_ever(&cluster, number, &alone).await;
        }
    }
    let in_progress = cluster.sum("foggara_requests_in_progress", &[("model", "tiny")]).await;
    eprintln!("{in_progress} answers have not been read to their end");
    assert!(
        in_progress >= (SLOW_HERE + SLOW) as f64,
        "{in_progress} answers have not been read to their end"
    );
    for (coordinator, (before, now)) in status.coordinators.iter().zip(before.iter().zip(held_now())) {
        let of_one = now.saturating_sub(*before) / (SLOW + SLOW_HTTP);
        eprintln!("coordinator {}: {before} bytes before, {now} now: {of_one} for each", coordinator.id);
        assert!(of_one <= UNREAD, "coordinator {}: {of_one} bytes for each unread answer", coordinator.id);
    }

    // At last they read, and have missed nothing.
    for Unread { grpc, http } in unread {
        for (i, (stream, _channel)) in grpc.into_iter().enumerate() {
            let answer = wait::for_end("a late reader over gRPC", Answer::collect(stream)).await.unwrap();
            assert!(answer.bits() == whole[i % KINDS], "slow reader {i} over gRPC");
        }
        for (i, stream) in http.into_iter().enumerate() {
            let ids = wait::for_end("a late reader over HTTP", read(stream)).await;
            assert!(ids == whole[i % KINDS].0, "slow reader {i} over HTTP: {} tokens", ids.len());
        }
    }
    cluster.wait_idle("tiny").await;
}
