//! What is told of adapters, and for how long.

use std::collections::BTreeSet;

use foggara_proto::shape::Shape;

use super::super::Metrics;
use super::*;
use crate::cluster::state::adapters::Adapter;
use crate::cluster::state::{CollectiveKind, Group};

fn group(ready: bool) -> Group {
    Group {
        deployment: "m".into(),
        epoch: 1,
        shape: Shape::SOLO,
        ranks: vec![1],
        rank_weights: vec![],
        experts: vec![],
        ready: if ready { [0].into() } else { BTreeSet::new() },
        collective: CollectiveKind::Solo,
        kv_blocks: 1,
        block_size: 1,
        key: [0; 16],
        driver: None,
    }
}

fn state() -> ClusterState {
    let mut state = ClusterState::default();
    let adapter =
        Adapter { id: 5, deployment: "m".into(), path: "/a".into(), manifest: String::new(), created: 0 };
    state.adapters.insert("a".into(), adapter);
    for (id, ready) in [(1, true), (2, true), (3, false)] {
        state.groups.insert(id, group(ready));
    }
    for (group, failed) in [(1, false), (2, true)] {
        let load = state.adapters_loaded.entry(group).or_default().entry(5).or_default();
        match failed {
            false => drop(load.ready.insert(0)),
            true => drop(load.failed.insert(0, "no file".into())),
        }
    }
    state
}

#[test]
fn where_adapters_are_and_who_uses_them_is_told() {
    let metrics = Metrics::new().with_vllm_names(true);
    let mut driver = metrics.driver(1, 1, "m");
    driver.adapter(5, AdapterUse { running: 2, waiting: 1 });
    driver.adapter(9, AdapterUse { running: 4, waiting: 0 });
    let told = |state: &ClusterState| {
        metrics.cluster(state, &BTreeMap::new());
        metrics.render()
    };
    let text = told(&state());
    for line in [
        r#"foggara_adapter_ready_replicas{adapter="a",deployment="m"} 1"#,
        r#"foggara_adapter_failed_replicas{adapter="a",deployment="m"} 1"#,
        r#"foggara_adapter_sequences{adapter="a",deployment="m",state="running"} 2"#,
        r#"foggara_adapter_sequences{adapter="a",deployment="m",state="waiting"} 1"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    let labels = r#"max_lora="256",running_lora_adapters="a",waiting_lora_adapters="a""#;
    assert!(text.contains(&format!("vllm:lora_requests_info{{{labels}}} 1")), "{text}");
    drop(driver);
    let text = told(&state());
    assert!(!text.contains("foggara_adapter_sequences{"), "nobody drives it here");
    assert!(text.contains(r#"running_lora_adapters="",waiting_lora_adapters="""#), "{text}");
    let text = told(&ClusterState::default());
    assert!(!text.contains("foggara_adapter_ready_replicas{") && !text.contains("lora"), "{text}");
}

#[test]
fn the_counters_of_an_adapter_outlive_it_for_a_while() {
    let metrics = Metrics::new();
    metrics.adapters.finished("m", "a", 7, 3);
    let now = Instant::now();
    let counted = |state: &ClusterState, at: Duration| {
        metrics.adapters.set(state, metrics.driven(), now + at);
        metrics.render().contains(r#"foggara_adapter_prompt_tokens_total{adapter="a",deployment="m"} 7"#)
    };
    assert!(counted(&state(), Duration::ZERO));
    let none = ClusterState::default();
    assert!(counted(&none, 2 * KEPT), "it has just been removed");
    assert!(counted(&none, 3 * KEPT));
    assert!(!counted(&none, 3 * KEPT + Duration::from_millis(1)));
}
