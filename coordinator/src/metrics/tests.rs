//! What a scrape shows.

use foggara_proto::shape::Shape;
use foggara_proto::step::{RankUse, StepTiming};

use super::*;
use crate::batcher::CacheTokens;
use crate::cluster::state::Deployment;
use crate::cluster::{PeerProgress, Role};

fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

#[test]
fn every_family_the_operators_watch_is_there() {
    let metrics = Metrics::new();
    metrics.requests.with_label_values(&["m", "chat", "stop"]).inc();
    metrics.time_to_first_token.with_label_values(&["m"]).observe(0.2);
    metrics.inter_token_latency.with_label_values(&["m"]).observe(0.02);
    let mut driver = metrics.driver(1, 1, "m");
    let occupancy = Occupancy {
        running: 3,
        waiting: 2,
        free_blocks: 5,
        live_blocks: 4,
        cached_blocks: 6,
        preemptions: 1,
        prefix: CacheTokens { asked: 90, found: 30 },
    };
    driver.occupancy(occupancy, None);
    let told = RankUse { rank: 1, steps: 4, compute_us: 1_500_000, dispatched_rows: 6, ..RankUse::default() };
    driver.step(&StepReport {
        timing: StepTiming { rows: 9, wait_us: 10, compute_us: 2000, collective_us: 300, sample_us: 100 },
        ranks: vec![told, RankUse { rank: 99, ..told }],
        drafted: 6,
        accepted: 2,
        ..StepReport::default()
    });
    driver.queued(Duration::from_millis(3));
    let leads = RaftStatus {
        role: Role::Leader,
        term: 4,
        commit: 9,
        applied: 8,
        syncs: 5,
        peers: vec![PeerProgress { id: 2, matched: 7, active: true }],
        ..RaftStatus::default()
    };
    metrics.raft(&RaftStatus { syncs: 3, ..leads.clone() });
    metrics.raft(&leads);
    let text = metrics.render();
    for (series, expected) in [
        (r#"foggara_requests_total{api="chat",model="m",status="stop"}"#, 1.0),
        (r#"foggara_time_to_first_token_seconds_count{model="m"}"#, 1.0),
        (r#"foggara_inter_token_latency_seconds_bucket{model="m",le="0.025"}"#, 1.0),
        (r#"foggara_inter_token_latency_seconds_bucket{model="m",le="0.01"}"#, 0.0),
        (r#"foggara_sequences{model="m",state="running"}"#, 3.0),
        (r#"foggara_sequences{model="m",state="waiting"}"#, 2.0),
        (r#"foggara_kv_blocks{model="m",state="free"}"#, 5.0),
        (r#"foggara_kv_blocks{model="m",state="live"}"#, 4.0),
        (r#"foggara_kv_blocks{model="m",state="cached"}"#, 6.0),
        (r#"foggara_preemptions_total{model="m"}"#, 1.0),
        (r#"foggara_prefix_cache_query_tokens_total{model="m"}"#, 90.0),
        (r#"foggara_prefix_cache_hit_tokens_total{model="m"}"#, 30.0),
        (r#"foggara_queue_wait_seconds_count{model="m"}"#, 1.0),
        (r#"foggara_queue_oldest_seconds{model="m"}"#, 0.0),
        (r#"foggara_steps_total{model="m"}"#, 1.0),
        (r#"foggara_step_rows_sum{model="m"}"#, 9.0),
        (r#"foggara_draft_tokens_total{model="m"}"#, 6.0),
        (r#"foggara_accepted_draft_tokens_total{model="m"}"#, 2.0),
        (r#"foggara_step_sample_seconds_count{model="m"}"#, 1.0),
        (r#"foggara_rank_steps_total{model="m",rank="1"}"#, 4.0),
        (r#"foggara_rank_seconds_total{model="m",phase="compute",rank="1"}"#, 1.5),
        (r#"foggara_rank_seconds_total{model="m",phase="wait",rank="1"}"#, 0.0),
        (r#"foggara_expert_dispatch_rows_total{model="m",rank="1"}"#, 6.0),
        (r#"foggara_expert_dispatch_bytes_total{model="m",rank="1"}"#, 0.0),
        ("foggara_raft_is_leader", 1.0),
        ("foggara_raft_syncs_total", 5.0),
        ("foggara_raft_term", 4.0),
        ("foggara_raft_commit_index", 9.0),
        ("foggara_raft_applied_index", 8.0),
        (r#"foggara_raft_follower_lag_entries{follower="2"}"#, 2.0),
        (r#"foggara_raft_follower_active{follower="2"}"#, 1.0),
    ] {
        assert_eq!(value(&text, series), Some(expected), "{series}\n{text}");
    }
    assert!(!text.contains(r#"rank="99""#), "there are no such ranks");
    for family in [
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_threads",
        "process_cpu_seconds_total",
        "process_start_time_seconds",
        "raft_sync_seconds_total",
    ] {
        assert!(value(&text, &format!("foggara_{family}")).is_some_and(|value| value >= 0.0), "{family}");
    }
}

#[test]
fn gauges_sum_over_the_drivers_of_a_model_and_forget_those_that_end() {
    let metrics = Metrics::new();
    let (mut one, mut two) = (metrics.driver(1, 1, "m"), metrics.driver(2, 1, "m"));
    one.occupancy(Occupancy { running: 3, free_blocks: 7, ..Occupancy::default() }, None);
    two.occupancy(Occupancy { running: 4, free_blocks: 1, preemptions: 2, ..Occupancy::default() }, None);
    two.occupancy(Occupancy { running: 1, free_blocks: 2, preemptions: 3, ..Occupancy::default() }, None);
    let running = r#"foggara_sequences{model="m",state="running"}"#;
    assert_eq!(value(&metrics.render(), running), Some(4.0));
    drop(one);
    assert_eq!(value(&metrics.render(), running), Some(1.0));
    drop(two);
    let text = metrics.render();
    assert_eq!(value(&text, running), Some(0.0));
    assert_eq!(value(&text, r#"foggara_kv_blocks{model="m",state="free"}"#), Some(0.0));
    assert_eq!(value(&text, r#"foggara_preemptions_total{model="m"}"#), Some(3.0), "counters only grow");
}

#[test]
fn who_leads_no_more_tells_nothing_of_followers() {
    let metrics = Metrics::new();
    let peers = vec![PeerProgress { id: 2, matched: 7, active: false }];
    metrics.raft(&RaftStatus { peers, commit: 9, ..RaftStatus::default() });
    assert!(metrics.render().contains("follower_active{"));
    metrics.raft(&RaftStatus::default());
    assert!(!metrics.render().contains("follower_active{"));
}

#[test]
fn deployments_are_told_while_they_are_there() {
    let metrics = Metrics::new();
    let mut state = ClusterState::default();
    let deployment = Deployment {
        model_path: "/m".into(),
        shape: Shape::tensor(1),
        replicas: 2,
        kv_tokens: 0,
        kv_dtype: "auto".into(),
        collective: "auto".into(),
        quantize: "none".into(),
        created: 0,
        manifest: String::new(),
    };
    state.deployments.insert("m".into(), deployment);
    metrics.cluster(&state, &BTreeMap::new());
    let wanted = r#"foggara_replicas{model="m",state="wanted"}"#;
    assert_eq!(value(&metrics.render(), wanted), Some(2.0));
    assert_eq!(value(&metrics.render(), r#"foggara_replicas{model="m",state="ready"}"#), Some(0.0));
    state.deployments.clear();
    metrics.cluster(&state, &BTreeMap::new());
    assert_eq!(value(&metrics.render(), wanted), None);
}

#[test]
fn the_reference_page_is_what_the_families_are() {
    let metrics = Metrics::new();
    let (page, made) = (include_str!("../../../docs/reference/metrics.md"), reference(metrics.families()));
    assert!(page == made, "docs/reference/metrics.md should be:\n{made}");
    let names: Vec<_> = metrics.families().iter().map(|family| family.name.as_str()).collect();
    for family in metrics.registry.gather() {
        assert!(names.contains(&family.name()), "{} was not declared", family.name());
    }
}
