//! What people and machines see of a cluster.

use foggara_proto::wire::inference::ListModelsRequest;
use foggara_tests::ask::Ask;
use foggara_tests::process::{foggara, text};
use foggara_tests::{http, machine};
use serde_json::{Value, json};

use crate::shared::{SMOL, TINY};

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_as_json_has_its_fixed_shape() {
    let _machine = machine::shared().await;
    let cluster = TINY.get().await;
    for number in 0..3_u16 {
        let output =
            foggara(&["status", "--json", "--endpoint", &format!("http://{}", cluster.grpc(number))]);
        assert!(output.status.success(), "{}", text(&output));
        let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(status["answered_by"], json!(number + 1));
        let coordinators = status["coordinators"].as_array().expect("a list");
        assert_eq!(coordinators.len(), 3);
        let leaders = coordinators.iter().filter(|c| c["role"] == "leader");
        let followers = coordinators.iter().filter(|c| c["role"] == "follower");
        assert_eq!((leaders.count(), followers.count()), (1, 2), "{status}");
        for (i, coordinator) in coordinators.iter().enumerate() {
            assert_eq!(keys(coordinator), ["addr", "http_addr", "id", "pid", "role", "version"]);
            assert_eq!(coordinator["addr"], cluster.grpc(i as u16));
            assert_eq!(coordinator["http_addr"], cluster.http(i as u16).trim_start_matches("http://"));
            assert!(cluster.pids().contains(&(coordinator["pid"].as_u64().unwrap() as u32)));
        }
        // Of others it is known while they are connected.
        let own = &coordinators[usize::from(number)]["version"];
        assert!(own.as_str().is_some_and(|version| !version.is_empty()), "{status}");
        let leader = coordinators.iter().find(|c| c["role"] == "leader").map(|c| &c["id"]);
        assert_eq!(leader, Some(&status["leader"]));
        for (rank, worker) in status["workers"].as_array().expect("a list").iter().enumerate() {
            assert_eq!((&worker["rank"], &worker["state"]), (&json!(rank), &json!("ready")));
            assert_eq!(worker["group"], status["groups"][0]["id"]);
            assert!(cluster.pids().contains(&(worker["pid"].as_u64().unwrap() as u32)));
            for measured in ["threads", "memory_bytes", "read_bytes_per_second", "flops"] {
                assert!(worker[measured].as_u64().is_some_and(|value| value > 0), "{measured}: {worker}");
            }
            for named in ["addr", "host", "cpu", "version"] {
                assert!(worker[named].as_str().is_some_and(|text| !text.is_empty()), "{named}: {worker}");
            }
        }
        let group = &status["groups"][0];
        assert_eq!((&group["deployment"], &group["state"]), (&json!("tiny"), &json!("ready")), "{group}");
        assert_eq!(group["workers"].as_array().map(Vec::len), Some(2));
        assert!(group["driver"].as_u64().is_some_and(|id| (1..=3).contains(&id)), "{group}");
        let deployment = &status["deployments"][0];
        assert_eq!((&deployment["name"], &deployment["tp"]), (&json!("tiny"), &json!(2)));
        assert_eq!((&deployment["state"], &deployment["ready_replicas"]), (&json!("ready"), &json!(1)));
        for key in ["cluster_id", "term", "applied"] {
            assert!(!status[key].is_null(), "{key}: {status}");
        }
        // The same for people.
        let output = foggara(&["status", "--endpoint", &format!("http://{}", cluster.grpc(number))]);
        let said = text(&output);
        assert!(output.status.success() && said.contains("leader") && said.contains("tiny"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_readiness_and_models() {
    let _machine = machine::shared().await;
    let cluster = TINY.get().await;
    for number in 0..3 {
        let base = cluster.http(number);
        assert_eq!(http::get(&format!("{base}/healthz")).await.status, 200);
        let ready = http::get(&format!("{base}/readyz")).await;
        assert_eq!((ready.status, &ready.json()["ready"]), (200, &json!(true)));
        let models = http::get(&format!("{base}/v1/models")).await.json();
        assert_eq!((&models["object"], models["data"].as_array().map(Vec::len)), (&json!("list"), Some(1)));
        assert_eq!(
            (&models["data"][0]["id"], &models["data"][0]["max_model_len"]),
            (&json!("tiny"), &json!(512))
        );
        assert_eq!(http::get(&format!("{base}/v1/models/tiny")).await.json(), models["data"][0]);
        let list =
            cluster.client(number).inference().list_models(ListModelsRequest {}).await.unwrap().into_inner();
        let model = &list.models[0];
        assert_eq!((model.name.as_str(), model.context, model.ready_replicas), ("tiny", 512, 1));
    }
    let line = cluster.ready_line();
    assert_eq!(line, format!("ready {} grpc://{} models tiny", cluster.http(0), cluster.grpc(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_ids_come_back() {
    let _machine = machine::shared().await;
    let cluster = TINY.get().await;
    let answer = cluster.client(0).ask(Ask::tokens("tiny", &[4]).exactly(2).id("mine-1")).await;
    assert_eq!((answer.started.request_id.as_str(), answer.started.model.as_str()), ("mine-1", "tiny"));
    let made_up = cluster.client(0).ask(Ask::tokens("tiny", &[4]).exactly(2)).await;
    assert!(made_up.started.request_id.len() > 8);
    let url = format!("{}/v1/completions", cluster.http(0));
    let body = json!({"model": "tiny", "prompt": [4], "max_tokens": 2});
    let given = http::client().post(&url).header("x-request-id", "mine-2").json(&body).send().await.unwrap();
    assert_eq!(given.headers()["x-request-id"], "mine-2");
    let reply = http::post(&url, &body).await;
    assert!(reply.header("x-request-id").len() > 8, "{:?}", reply.headers);
    let refused = http::post(&url, &json!({"model": "nonesuch", "prompt": [4]})).await;
    assert!(refused.header("x-request-id").len() > 8, "errors have one too");
}

/// Text in, text out, with every option that shapes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn echo_stop_and_end_tokens() {
    let _machine = machine::shared().await;
    let cluster = SMOL.get().await;
    let client = cluster.client(2);
    let prompt = "1 2 3 4 5 6 7";
    let free = client.ask(Ask::text("smol", prompt).exactly(24)).await;
    assert!(free.ended_by_length() && free.token_ids.len() == 24 && !free.text.contains(prompt));
    assert_eq!(free.end().usage.unwrap().completion_tokens, 24);
    assert_eq!(free.end().usage.unwrap().prompt_tokens as usize, free.started.prompt_token_ids.len());
    let echoed = client.ask(Ask::text("smol", prompt).exactly(24).echo()).await;
    assert_eq!(echoed.text, format!("{prompt}{}", free.text));
    // A stop string from the middle of what it says, which need not begin or end with a token.
    let middle: String = free.text.chars().skip(9).take(5).collect();
    let before = free.text.split(&middle).next().unwrap_or_default().to_owned();
    let stopped =
        client.ask(Ask::text("smol", prompt).exactly(24).sampling(|s| s.stop = vec![middle.clone()])).await;
    assert_eq!((stopped.text, stopped.finished.unwrap().stop_string), (before, Some(middle)));
    // A token that ends the answer.
    let token = free.token_ids[12];
    let first = free.token_ids.iter().position(|id| *id == token).unwrap();
    let ended =
        client.ask(Ask::text("smol", prompt).exactly(24).sampling(|s| s.stop_token_ids = vec![token])).await;
    assert_eq!(ended.end().stop_token_id, Some(token));
    assert_eq!(ended.token_ids, free.token_ids[..=first]);
}

/// Families that dashboards rely on.
const FAMILIES: [(&str, &str); 34] = [
    ("foggara_build_info", "gauge"),
    ("foggara_requests_total", "counter"),
    ("foggara_request_duration_seconds", "histogram"),
    ("foggara_time_to_first_token_seconds", "histogram"),
    ("foggara_inter_token_latency_seconds", "histogram"),
    ("foggara_prompt_tokens_total", "counter"),
    ("foggara_generated_tokens_total", "counter"),
    ("foggara_requests_in_progress", "gauge"),
    ("foggara_sequences", "gauge"),
    ("foggara_kv_blocks", "gauge"),
    ("foggara_preemptions_total", "counter"),
    ("foggara_adopted_sequences_total", "counter"),
    ("foggara_unplanned_steps_total", "counter"),
    ("foggara_prefix_cache_query_tokens_total", "counter"),
    ("foggara_prefix_cache_hit_tokens_total", "counter"),
    ("foggara_queue_wait_seconds", "histogram"),
    ("foggara_steps_total", "counter"),
    ("foggara_step_seconds", "histogram"),
    ("foggara_step_collective_seconds", "histogram"),
    ("foggara_step_wait_seconds", "histogram"),
    ("foggara_step_rows", "histogram"),
    ("foggara_raft_term", "gauge"),
    ("foggara_raft_leader", "gauge"),
    ("foggara_raft_is_leader", "gauge"),
    ("foggara_raft_commit_index", "gauge"),
    ("foggara_raft_applied_index", "gauge"),
    ("foggara_raft_elections_total", "counter"),
    ("foggara_raft_syncs_total", "counter"),
    ("foggara_raft_sync_seconds_total", "counter"),
    ("foggara_workers", "gauge"),
    ("foggara_groups", "gauge"),
    ("foggara_process_resident_memory_bytes", "gauge"),
    ("foggara_process_open_fds", "gauge"),
    ("foggara_process_threads", "gauge"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_there_and_add_up() {
    let _machine = machine::alone().await;
    let cluster = TINY.get().await;
    let driver = cluster.status().await.groups[0].driver;
    let number = u16::try_from(driver - 1).unwrap();
    let client = cluster.client(number);
    client.ask(Ask::tokens("tiny", &[1, 2, 3]).exactly(5)).await;
    cluster.wait_idle("tiny").await;
    let before = cluster.metrics(number).await;
    for (name, kind) in FAMILIES {
        assert_eq!(before.kinds.get(name).map(String::as_str), Some(kind), "{name}");
        assert!(before.help.get(name).is_some_and(|help| help.len() > 5), "{name} has no help");
    }
    for sample in &before.samples {
        let family = before.family(&sample.name);
        assert!(before.kinds.contains_key(family), "{} belongs to no family", sample.name);
        assert!(family.starts_with("foggara_"), "{family}");
        assert_eq!(family.ends_with("_total"), before.kinds[family] == "counter", "{family}");
    }
    client.ask(Ask::tokens("tiny", &[1, 2, 3]).exactly(5)).await;
    cluster.wait_idle("tiny").await;
    let after = cluster.metrics(number).await;
    let model = ("model", "tiny");
    for (name, labels, grown) in [
        ("foggara_requests_total", vec![model, ("api", "grpc"), ("status", "length")], 1.0),
        ("foggara_prompt_tokens_total", vec![model], 3.0),
        ("foggara_generated_tokens_total", vec![model], 5.0),
        ("foggara_time_to_first_token_seconds_count", vec![model], 1.0),
        ("foggara_request_duration_seconds_count", vec![model], 1.0),
        ("foggara_inter_token_latency_seconds_count", vec![model], 4.0),
        // Three prompt tokens, then each token but the last.
        ("foggara_step_rows_sum", vec![model], 7.0),
    ] {
        assert_eq!(after.sum(name, &labels) - before.sum(name, &labels), grown, "{name}");
    }
    for name in ["foggara_step_rows", "foggara_time_to_first_token_seconds"] {
        let mut buckets =
            after.samples.iter().filter(|s| s.name == format!("{name}_bucket")).map(|s| s.value);
        assert!(
            buckets.clone().is_sorted()
                && buckets.next_back() == Some(after.sum(&format!("{name}_count"), &[])),
            "{name}"
        );
    }
    assert_eq!(cluster.sum("foggara_raft_is_leader", &[]).await, 1.0);
    assert_eq!(after.sum("foggara_workers", &[]), 2.0);
    assert_eq!(after.sum("foggara_requests_in_progress", &[]), 0.0);
}

/// A coordinator is small, whatever it has just done for whom.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_fits_in_100_megabytes() {
    let _machine = machine::shared().await;
    let cluster = SMOL.get().await;
    for number in 0..3 {
        cluster
            .client(number)
            .ask(Ask::text("smol", &"water ".repeat(300)).exactly(4).echo().logprobs(20))
            .await;
        let bytes = cluster.metrics(number).await.sum("foggara_process_resident_memory_bytes", &[]);
        eprintln!("coordinator {}: {:.1} MB", number + 1, bytes / 1e6);
        assert!(bytes > 0.0 && bytes < 100e6, "coordinator {}: {bytes} bytes", number + 1);
    }
}
