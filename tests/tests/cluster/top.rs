//! Where a step's time goes, on every rank, as Prometheus and `foggara top` show it.

use foggara_tests::ask::Ask;
use foggara_tests::cluster::Cluster;
use foggara_tests::process::{foggara, text};
use foggara_tests::setup::Setup;
use foggara_tests::{machine, paths, wait};
use serde_json::{Value, json};

/// A mixture whose batch is in two parts: rows travel between its ranks.
async fn start() -> Cluster {
    let setup = Setup::new("top").model("tiny", &paths::golden("mixtral")).coordinators(3).workers(2);
    setup.option("tp", 1).option("dp", 2).option("ep", 2).start().await
}

/// What the `number`-th coordinator says of the cluster.
fn top(cluster: &Cluster, number: u16) -> Value {
    let endpoint = format!("http://{}", cluster.grpc(number));
    let output = foggara(&["top", "--json", "--interval", "0.6", "--endpoint", &endpoint]);
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rank_is_seen_from_every_coordinator() {
    let _machine = machine::shared().await;
    let cluster = start().await;
    let client = cluster.client(0);
    // A task of its own: each look holds this one up.
    let busy = tokio::spawn(async move {
        // One for each part of the batch, again and again.
        loop {
            let ask = |seed| Ask::tokens("tiny", &[5, 6, 7]).exactly(400).sampled(1.0, 1.0, seed);
            futures::future::join(client.ask(ask(1)), client.ask(ask(2))).await;
        }
    });
    for number in 0..3 {
        let seen = wait::until("a look at ranks at work", async || {
            let view = tokio::task::block_in_place(|| top(&cluster, number));
            // Ranks tell twice a second; a look between two requests may find nothing at work.
            let ranks = view["groups"][0]["ranks"].as_array()?.clone();
            let told = |rank: &Value| rank["compute_ms"].as_f64().is_some_and(|ms| ms > 0.0);
            let busy = view["groups"][0]["running"].as_u64() > Some(0);
            // On a crowded machine a coordinator may be late once.
            let all = view["silent_coordinators"] == json!([]);
            (all && busy && ranks.iter().all(told)).then_some(view)
        })
        .await;
        check(&seen, number);
    }
    busy.abort();
    in_metrics(&cluster).await;
    // For people, and without anything to do.
    cluster.wait_idle("tiny").await;
    let endpoint = format!("http://{}", cluster.grpc(0));
    let output = foggara(&["top", "--once", "--interval", "0.1", "--endpoint", &endpoint]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("0.0 tokens/s generated, 0 sequences running") && said.contains("tiny"), "{said}");
}

fn check(view: &Value, number: u16) {
    assert_eq!(view["answered_by"], json!(number + 1));
    let group = &view["groups"][0];
    assert_eq!(
        (&group["deployment"], &group["shape"]),
        (&json!("tiny"), &json!("tp1·dp2·pp1·ep2")),
        "{view}"
    );
    for positive in ["generated_tokens_per_second", "rows_per_second", "steps_per_second"] {
        assert!(group[positive].as_f64().is_some_and(|rate| rate > 0.0), "{positive}: {view}");
    }
    assert!(group["rows_per_step"].as_f64().is_some_and(|rows| rows >= 1.0), "{view}");
    let kv = |state: &str| group["kv_blocks"][state].as_u64().expect("a number");
    assert!(kv("live") > 0, "{view}");
    assert_eq!(kv("free") + kv("live") + kv("cached"), kv("total"), "{view}");
    let ranks = group["ranks"].as_array().expect("a list");
    assert_eq!(ranks.len(), 2, "{view}");
    for rank in ranks {
        assert!(rank["collective_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{view}");
        assert!(rank["wait_ms"].as_f64().is_some_and(|ms| ms >= 0.0), "{view}");
    }
    assert!(
        ranks[0]["sample_ms"].as_f64() > Some(0.0) && ranks[1]["sample_ms"].as_f64() == Some(0.0),
        "{view}"
    );
}

/// The same for Prometheus, at the coordinator that drives.
async fn in_metrics(cluster: &Cluster) {
    for rank in ["0", "1"] {
        let labels = [("model", "tiny"), ("rank", rank)];
        for family in ["rank_steps", "expert_dispatch_rows", "expert_dispatch_bytes"] {
            let name = format!("foggara_{family}_total");
            assert!(cluster.sum(&name, &labels).await > 0.0, "{name} of rank {rank}");
        }
        for phase in ["wait", "compute", "collective"] {
            let labels = [labels[0], labels[1], ("phase", phase)];
            assert!(cluster.sum("foggara_rank_seconds_total", &labels).await > 0.0, "{phase} of rank {rank}");
        }
    }
    for family in ["step_wait", "step", "step_collective", "step_sample"] {
        let name = format!("foggara_{family}_seconds_count");
        assert!(cluster.sum(&name, &[("model", "tiny")]).await > 0.0, "{name}");
    }
}
