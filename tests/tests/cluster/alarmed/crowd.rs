//! More comes than a group can take: its cache and its queue are full, and it is slow.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use foggara_tests::ask::Ask;
use foggara_tests::cluster::Cluster;
use foggara_tests::process::Stopped;
use foggara_tests::prometheus::Prometheus;
use foggara_tests::setup::Setup;
use foggara_tests::{machine, paths, wait};
use futures::future::join_all;
use tonic::Code;

use super::Watch;

/// Times are so many times shorter here.
const TIMES: u32 = 30;
/// Those that want long answers: they all begin, and there is room for a thirtieth of what they ask for.
const TALKERS: usize = 40;
const LONG: u32 = 1500;
const KV_TOKENS: u32 = 2048;
/// So many that whoever waits behind them waits for longer than ten seconds.
const QUEUE: usize = 100;
/// Those that want short ones: more than run and wait.
const OTHERS: usize = 180;
/// How long one who was refused stays away.
const AWAY: Duration = Duration::from_secs(1);
/// Longer than a token may take, shorter than what a rank is given up for.
const STANDSTILL: Duration = Duration::from_millis(1_200);
/// Of the tokens of a stream, one in so many comes late.
const STEPS: f64 = 8.0;

/// Asks again and again. Answers are of many lengths: at all times some end, and others enter.
async fn insists(cluster: &Cluster, asked: &AtomicU32) {
    loop {
        let number = asked.fetch_add(1, Ordering::Relaxed);
        let ask = Ask::tokens("smol", &[1, 100 + number % 1000]).exactly(8 + (number * 37) % 80);
        match cluster.client(0).try_ask(ask).await {
            Err(status) if status.code() == Code::ResourceExhausted => tokio::time::sleep(AWAY).await,
            outcome => drop(outcome.unwrap()),
        }
    }
}

/// The worker stands still between every few steps: however fast the machine is, the group is about as slow.
async fn lags(cluster: &Cluster) {
    let steps = async || cluster.sum("foggara_steps_total", &[("model", "smol")]).await;
    let worker = cluster.status().await.workers[0].pid;
    loop {
        let before = steps().await;
        wait::until("some steps", async || (steps().await >= before + STEPS).then_some(())).await;
        let stopped = Stopped::new(&[worker]);
        // Not a wait for something: how long it stands still is the disturbance itself.
        tokio::time::sleep(STANDSTILL).await;
        drop(stopped);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_before_a_slow_group_alarms() {
    let _machine = machine::shared().await;
    let setup = Setup::new("crowd").model("smol", &paths::smol_gguf()).coordinators(1).workers(1);
    let cluster = setup.option("kv-tokens", KV_TOKENS).option("queue", QUEUE).start().await;
    let prometheus = Prometheus::start(&cluster, TIMES).await;
    let watch = Watch::new(&prometheus);
    let asked = AtomicU32::new(0);
    let talkers = join_all((0..TALKERS).map(async |number| {
        let ask = Ask::tokens("smol", &[2, 100 + number as u32]).exactly(LONG);
        cluster.client(0).try_ask(ask).await.unwrap()
    }));
    let others = async {
        wait::until("those who talk are there", async || {
            let there = cluster.sum("foggara_sequences", &[("model", "smol")]).await;
            (there >= TALKERS as f64).then_some(())
        })
        .await;
        join_all((0..OTHERS).map(|_| insists(&cluster, &asked))).await
    };
    // While long answers grow they push each other out; nobody else gets in, and who waits is not heard of but by the oldest.
    let of_growth = [
        "FoggaraRequestsRefused",
        "FoggaraSlowTokens",
        "FoggaraPreemptions",
        "FoggaraKvFull",
        "FoggaraQueueLong",
    ];
    // When those who asked for them have left, others do, who have waited for long.
    let of_waiting = ["FoggaraSlowFirstToken"];
    let troubles = async {
        tokio::select! {
            _ = talkers => panic!("they talk for longer than that"),
            () = watch.firing(&of_growth) => {}
        }
        watch.firing(&of_waiting).await;
    };
    tokio::select! {
        _ = others => {}
        () = lags(&cluster) => {}
        () = troubles => {}
    }
    cluster.wait_idle("smol").await;
    // It is used, but there is room, and it does not lag.
    let usual = async {
        loop {
            cluster.client(0).ask(Ask::tokens("smol", &[1, 2]).exactly(20)).await;
        }
    };
    tokio::select! {
        () = usual => {}
        () = async {
            watch.clear(&of_growth).await;
            watch.clear(&of_waiting).await;
        } => {}
    }
}
