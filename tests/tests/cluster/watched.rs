//! What Prometheus sees of a cluster: rules and configuration as they are shipped, alerts that come when something is wrong and
//! go when it is right again.

use std::collections::BTreeSet;

use foggara_proto::wire::admin::PutNoteRequest;
use foggara_tests::ask::Ask;
use foggara_tests::process::Stopped;
use foggara_tests::prometheus::{Prometheus, promtool};
use foggara_tests::setup::Setup;
use foggara_tests::{http, machine, paths, process, wait};

/// Times are so many times shorter here.
const TIMES: u32 = 30;

fn shipped(path: &str) -> String {
    std::fs::read_to_string(paths::root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[test]
fn rules_and_configuration_are_as_prometheus_wants_them() {
    promtool(&["check", "config", "prometheus.yml"], None);
    promtool(&["check", "rules", "rules/recording.yml", "rules/alerts.yml"], None);
    promtool(&["test", "rules", "tests/alerts.yml"], None);
}

#[test]
fn rules_name_metrics_that_exist_and_alerts_have_runbooks() {
    let reference = shipped("docs/reference/metrics.md");
    let there: BTreeSet<&str> =
        reference.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert!(there.contains("foggara_requests_total") && there.len() > 40, "{there:?}");
    let rules =
        shipped("deploy/prometheus/rules/recording.yml") + &shipped("deploy/prometheus/rules/alerts.yml");
    let names = rules.lines().filter(|line| !line.contains("record:")).flat_map(|line| {
        line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
            .filter(|word| word.starts_with("foggara_"))
    });
    for name in names {
        let family =
            ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        assert!(there.contains(family) || there.contains(name), "{name} is no metric");
    }
    let alerts: BTreeSet<String> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ").map(str::to_owned)).collect();
    let pages = std::fs::read_dir(paths::root().join("docs/runbooks")).expect("the runbooks");
    let pages: BTreeSet<String> =
        pages.filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_str()?.to_owned())).collect();
    assert_eq!(alerts, pages, "an alert for each page, and a page for each alert");
    let here = [include_str!("watched.rs"), include_str!("encrypted.rs"), include_str!("adapters.rs")];
    let causes = here.concat() + crate::alarmed::CAUSES;
    for alert in &alerts {
        assert!(rules.contains(&format!("runbook: docs/runbooks/{alert}.md")), "{alert}");
        assert!(causes.contains(&format!("\"{alert}\"")), "no test makes {alert} fire");
    }
}

#[test]
fn dashboards_are_as_grafana_wants_them() {
    let files: Vec<_> = dashboards().into_iter().map(|(path, _)| path).collect();
    let script = paths::root().join("tests/clients/grafana_schema.py");
    let output =
        std::process::Command::new(paths::python()).arg(script).args(&files).output().expect("Python runs");
    assert!(output.status.success(), "{}", process::text(&output));
}

/// Every dashboard that is shipped.
fn dashboards() -> Vec<(std::path::PathBuf, serde_json::Value)> {
    let folder = paths::root().join("deploy/grafana/dashboards");
    let files =
        std::fs::read_dir(folder).expect("the dashboards").map(|entry| entry.expect("can be read").path());
    let read = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(&path).expect("can be read");
        let value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        (path, value)
    };
    let all: Vec<_> = files.map(read).collect();
    assert!(all.len() >= 5, "{} dashboards", all.len());
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_panel_shows_something_of_a_busy_cluster() {
    let _machine = machine::shared().await;
    let setup = Setup::new("panels").model("moe", &paths::golden("mixtral")).workers(2).option("tp", 2);
    let adapter = format!("adapted={}", paths::golden("adapters/mixtral").display());
    let cluster = setup.option("ep", 2).option("adapter", adapter).start().await;
    let prometheus = Prometheus::start(&cluster, TIMES).await;
    let busy = async {
        // The same prompt is found in the prefix cache; notes are written to Raft's log.
        let prompt: Vec<u32> = (1..40).collect();
        for round in 0_u32.. {
            for model in ["moe", "adapted"] {
                cluster.client(0).ask(Ask::tokens(model, &prompt).exactly(8)).await;
            }
            let note = PutNoteRequest {
                key: "round".into(),
                value: round.to_string(),
                request_id: format!("round-{round}"),
            };
            cluster.client(0).admin().put_note(note).await.expect("is written");
        }
    };
    let shown = async {
        for (path, dashboard) in dashboards() {
            for panel in dashboard["panels"].as_array().expect("panels") {
                // This cluster has an adapter, and nothing loads by the time that Prometheus looks.
                let said = panel["fieldConfig"]["defaults"]["noValue"].is_string();
                let may_be_empty = said && panel["title"] != "Adapters";
                for target in panel["targets"].as_array().expect("targets") {
                    let expression = target["expr"].as_str().expect("an expression");
                    let asked = expression
                        .replace("$cluster", ".*")
                        .replace("$model", ".*")
                        .replace("$__rate_interval", "10s");
                    assert!(!asked.contains('$'), "{asked}");
                    let what = format!("{}: {}: {asked} shows something", path.display(), panel["title"]);
                    wait::until(&what, async || {
                        let series = prometheus.query(&asked).await?;
                        (may_be_empty || series.iter().any(|(_, value)| value.is_finite())).then_some(())
                    })
                    .await;
                }
            }
        }
    };
    tokio::select! {
        () = busy => {}
        () = shown => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_come_and_go_with_their_causes() {
    let _machine = machine::alone().await;
    let setup = Setup::new("watched").model("tiny", &paths::golden("llama")).workers(1).option("tp", 1);
    let cluster = setup.option("queue", 1).start().await;
    cluster.client(0).ask(Ask::tokens("tiny", &[1, 2, 3]).exactly(5)).await;
    let page = http::get(&format!("{}/metrics", cluster.http(0))).await.text;
    let folder = foggara_tests::scratch::Scratch::new("scrape");
    let file = folder.path().join("metrics");
    std::fs::write(&file, page).expect("can be written");
    promtool(&["check", "metrics"], Some(&file));
    let prometheus = Prometheus::start(&cluster, TIMES).await;
    // Before its first scrapes Prometheus knows of no leader.
    wait::until("nothing is wrong", async || prometheus.firing().await?.is_empty().then_some(())).await;

    // A follower that does not answer.
    let status = cluster.status().await;
    let pid_of = |id: u64| status.coordinators.iter().find(|c| c.id == id).expect("it is there").pid;
    let followers: Vec<u64> =
        status.coordinators.iter().map(|c| c.id).filter(|id| *id != status.leader).collect();
    let away = ["FoggaraCoordinatorDown", "FoggaraFollowerAway"];
    let stopped = Stopped::new(&[pid_of(followers[0])]);
    prometheus.wait_firing(&away).await;
    drop(stopped);
    prometheus.wait_clear(&away).await;

    // No majority.
    let stopped = Stopped::new(&[pid_of(followers[0]), pid_of(followers[1])]);
    prometheus.wait_firing(&["FoggaraNoLeader"]).await;
    drop(stopped);
    prometheus.wait_clear(&["FoggaraNoLeader", "FoggaraCoordinatorDown"]).await;

    // A worker that does not answer, and no other: nothing serves the model.
    let gone = ["FoggaraModelDown", "FoggaraReplicasMissing"];
    let worker = cluster.status().await.workers.first().expect("there is one").pid;
    let stopped = Stopped::new(&[worker]);
    prometheus.wait_firing(&gone).await;
    drop(stopped);
    prometheus.wait_clear(&gone).await;
    wait::until("it serves again", async || {
        let answer = cluster.client(0).try_ask(Ask::tokens("tiny", &[1, 2, 3]).exactly(2)).await;
        answer.is_ok().then_some(())
    })
    .await;
}
