//! Troubles of coordinators: leaders that do not last, a slow disk, one that was stopped and does not come back, an upgrade that
//! is not ended, and requests that fail.

use std::time::Duration;

use foggara_proto::wire::admin::PutNoteRequest;
use foggara_tests::ask::Ask;
use foggara_tests::client::Client;
use foggara_tests::nodes::{Nodes, TOKEN};
use foggara_tests::process::{Stopped, foggara, text};
use foggara_tests::prometheus::{Prometheus, Rules};
use foggara_tests::{machine, paths, release, wait};
use tokio::task::JoinSet;

use super::{Delayed, Watch};

/// Times are so many times shorter here, but for that of versions, which is an hour.
const TIMES: u32 = 30;
const TIMES_OF_VERSIONS: u32 = 100;
/// Between two requests of a client, and between two changes.
const PAUSE: Duration = Duration::from_millis(200);
/// The one that is upgraded last.
const OLD: u16 = 2;

/// Leaders are stopped by turns, each until there is another.
async fn unsteady(nodes: &Nodes) {
    let leader = async |except: Option<u64>| {
        wait::until("a leader", async || {
            for number in (0..3).filter(|number| Some(u64::from(*number) + 1) != except) {
                if let Ok(status) = nodes.client(number).try_status().await
                    && status.leader != 0
                    && Some(status.leader) != except
                {
                    return Some(status.leader);
                }
            }
            None
        })
        .await
    };
    loop {
        let now = leader(None).await;
        let stopped = Stopped::new(&[nodes.pid(now as u16 - 1)]);
        leader(Some(now)).await;
        drop(stopped);
    }
}

/// Something to be written again and again.
async fn changes(nodes: &Nodes) {
    loop {
        let note = PutNoteRequest { key: "n".into(), value: "v".into(), request_id: String::new() };
        nodes.client(0).admin().put_note(note).await.ok();
        tokio::time::sleep(PAUSE).await;
    }
}

/// A client that asks whatever comes of it, each request by itself.
async fn clients(client: Client) {
    let mut open = JoinSet::new();
    loop {
        let client = client.clone();
        open.spawn(async move { client.try_ask(Ask::tokens("tiny", &[1, 2, 3]).exactly(5)).await.is_ok() });
        tokio::time::sleep(PAUSE).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_wrong_with_coordinators_alarms() {
    let _machine = machine::shared().await;
    let mut nodes = Nodes::start("coordinators", 3, &[]);
    let old = release::another(&nodes.folder("before"), |build| build.version = "0.0.0".into());
    nodes.stop_coordinator(OLD);
    nodes.start_coordinator(OLD, &old);
    nodes.worker(&[]);
    nodes.wait_joined().await;
    let (endpoint, model) = (nodes.http_url(0), format!("tiny={}", paths::golden("llama").display()));
    let added = foggara(&["models", "add", "--endpoint", &endpoint, "--cluster-token", TOKEN, &model]);
    assert!(added.status.success(), "{}", text(&added));
    let doors: Vec<String> = (0..3).map(|number| nodes.http_url(number)).collect();
    let rules = Rules::shorter(TIMES).alert("FoggaraVersions", TIMES_OF_VERSIONS);
    let prometheus = Prometheus::of(&doors, &rules).await;
    let watch = Watch::new(&prometheus);
    nodes.client(0).ask(Ask::tokens("tiny", &[1, 2, 3]).exactly(5)).await;

    // Nothing serves the model from now on. Clients are told after a minute.
    nodes.kill_last_worker();
    let mut asking = JoinSet::new();
    asking.spawn(clients(nodes.client(0)));
    tokio::select! {
        () = unsteady(&nodes) => {}
        () = watch.firing(&["FoggaraElections"]) => {}
    }
    let disk = Delayed::begin(nodes.pid(1), "fdatasync", Duration::from_millis(200), 1).await;
    tokio::select! {
        () = changes(&nodes) => {}
        () = watch.firing(&["FoggaraSlowDisk"]) => {}
    }
    drop(disk);
    tokio::select! {
        () = changes(&nodes) => {}
        () = watch.clear(&["FoggaraElections", "FoggaraSlowDisk"]) => {}
    }
    watch.firing(&["FoggaraVersions"]).await;
    nodes.stop_coordinator(OLD);
    watch.firing(&["FoggaraDraining", "FoggaraErrors"]).await;
    nodes.start_coordinator(OLD, &paths::foggara());
    nodes.worker(&[]);
    let all = ["FoggaraDraining", "FoggaraVersions", "FoggaraErrors"];
    watch.clear(&all).await;
    // Nor does anything that came of it stay.
    watch.clear(&["FoggaraCoordinatorDown", "FoggaraFollowerAway", "FoggaraModelDown"]).await;
}
