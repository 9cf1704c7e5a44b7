//! Where a request's time went can be seen afterwards, whatever coordinators it went through; and tracing systems are told.

use foggara_proto::wire::admin::StatusResponse;
use foggara_tests::answer::Answer;
use foggara_tests::ask::Ask;
use foggara_tests::cluster::Cluster;
use foggara_tests::collector::{Collector, Received};
use foggara_tests::process::{self, foggara, text};
use foggara_tests::setup::Setup;
use foggara_tests::{http, machine, paths, wait};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::failover::BEFORE;

/// More than a step reads at once.
const PROMPT: usize = 400;
/// A client's span.
const CLIENT: &str = "00f067aa0ba902b7";

/// What `foggara trace` says at the `number`-th coordinator.
fn trace(cluster: &Cluster, number: u16, arguments: &[&str]) -> std::process::Output {
    let endpoint = format!("http://{}", cluster.grpc(number));
    foggara(&[&["trace", "--endpoint", &endpoint], arguments].concat())
}

/// The timeline of a request that has ended everywhere.
async fn whole(cluster: &Cluster, number: u16, id: &str) -> Value {
    wait::until("the whole timeline", async || {
        let output = trace(cluster, number, &[id, "--json"]);
        assert!(output.status.success(), "{}", text(&output));
        let shown: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let driven = shown["driven"].as_array()?;
        // A driver tells the end a moment before it puts its part away.
        let ended = driven.iter().all(|part| !part["ended_at_us"].is_null()) && !driven.is_empty();
        (ended && shown["end"] != "running").then(|| shown.clone())
    })
    .await
}

/// Who drives the one group of a model, and somebody else, as numbers from 0.
fn doors(status: &StatusResponse, model: &str) -> (u16, u16) {
    let group = status.groups.iter().find(|group| group.deployment == model).expect("it is served");
    let driver = u16::try_from(group.driver).expect("one of three") - 1;
    (driver, (driver + 1) % 3)
}

fn numbers(list: &Value, key: &str) -> Vec<u64> {
    list.as_array().expect("a list").iter().map(|entry| entry[key].as_u64().expect("a number")).collect()
}

/// What a request that nothing disturbed must show: `prompt` tokens read in the order of steps, and `tokens` generated.
fn check(shown: &Value, (door, driver): (u16, u16), prompt: u64, tokens: u64) {
    assert_eq!(
        (&shown["prompt_tokens"], &shown["completion_tokens"]),
        (&json!(prompt), &json!(tokens)),
        "{shown}"
    );
    assert_eq!((&shown["end"], &shown["silent_coordinators"]), (&json!("length"), &json!([])), "{shown}");
    let (front, driven) = (&shown["fronts"][0], &shown["driven"][0]);
    assert_eq!(
        (&front["coordinator"], &driven["coordinator"]),
        (&json!(door + 1), &json!(driver + 1)),
        "{shown}"
    );
    assert_eq!(front["placements"][0]["coordinator"], json!(driver + 1), "{shown}");
    let phases: Vec<_> = driven["phases"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|phase| phase["name"].as_str().expect("a name"))
        .collect();
    assert_eq!(phases, ["queue", "prefill", "decode"], "{shown}");
    let (rows, steps): (Vec<u64>, Vec<&Value>) = (
        numbers(&driven["chunks"], "rows"),
        driven["chunks"].as_array().expect("a list").iter().map(|chunk| &chunk["step"]).collect(),
    );
    assert_eq!(
        rows.iter().sum::<u64>() + driven["cached_tokens"].as_u64().expect("a number"),
        prompt,
        "{shown}"
    );
    let order: Vec<u64> = steps.iter().map(|step| step["number"].as_u64().expect("a number")).collect();
    assert!(order.is_sorted() && steps.iter().all(|step| step["compute_us"].as_u64() > Some(0)), "{shown}");
    assert_eq!(
        (&driven["tokens"], &driven["gaps"]["count"], &driven["end"]),
        (&json!(tokens), &json!(tokens - 1), &json!("length")),
        "{shown}"
    );
    let parts = &shown["parts"];
    let us = |part: &str| parts[part]["us"].as_u64().expect("a number");
    assert!(us("prefill") > 0 && us("decode") > 0, "{shown}");
}

/// The spans of one request: the server's, and those below it, once all have come.
async fn spans(collector: &Collector, trace_id: &str) -> (Received, Vec<Received>) {
    wait::until("the spans of a request", async || {
        let all = collector.of(trace_id);
        let server = all.iter().find(|received| received.parent_id() == CLIENT)?.clone();
        let below: Vec<_> =
            all.into_iter().filter(|received| received.parent_id() == server.span_id()).collect();
        let has = |name: &str| below.iter().any(|received| received.span.name == name);
        (has("queue") && has("prefill") && has("decode")).then_some((server, below))
    })
    .await
}

/// A request over HTTP in a trace of its client's.
async fn over_http(cluster: &Cluster, door: u16, id: &str, traceparent: &str) {
    let prompt: Vec<usize> = (0..PROMPT).map(|place| 10 + place % 300).collect();
    let body =
        json!({"model": "tiny", "prompt": prompt, "max_tokens": 12, "ignore_eos": true, "temperature": 0});
    let url = format!("{}/v1/completions", cluster.http(door));
    let headers = [("x-request-id", id), ("traceparent", traceparent), ("tracestate", "vendor=1")];
    let reply = wait::for_end("an answer", http::post_with(&url, &headers, &body)).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let (told, asked) = (reply.header("traceresponse"), &traceparent[..36]);
    assert!(told.starts_with(asked) && !told.contains(CLIENT), "the same trace, a span of its own: {told}");
    assert_eq!(told[53..], traceparent[53..], "sampled or not as the client says");
}

async fn over_grpc(cluster: &Cluster, door: u16, id: &str, traceparent: &str) {
    let ask = Ask::tokens("tiny", &[5, 6, 7, 8]).exactly(9).id(id).build();
    let mut request = tonic::Request::new(ask);
    request.metadata_mut().insert("traceparent", traceparent.parse().expect("ASCII"));
    let response = cluster.client(door).inference().generate(request).await.expect("accepted");
    let told =
        response.metadata().get("traceresponse").expect("it is there").to_str().expect("ASCII").to_owned();
    assert!(told.starts_with(&traceparent[..36]), "{told}");
    wait::for_end("an answer", Answer::collect(response.into_inner())).await.expect("no error");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeline_has_the_parts_of_all_coordinators_and_spans_reach_a_collector() {
    let _machine = machine::shared().await;
    let collector = Collector::start().await;
    // One of its own for each: the answers of the second are slow enough to be disturbed.
    let setup =
        Setup::new("traced").model("tiny", &paths::golden("llama")).model("smol", &paths::smol_gguf());
    let setup = setup.workers(2).coordinators(3);
    let setup = setup.variable("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url());
    let cluster = setup.variable("OTEL_BSP_SCHEDULE_DELAY", 100).start().await;
    let (driver, other) = doors(&cluster.status().await, "tiny");
    let third = (other + 1) % 3;
    let traces = [
        "4bf92f3577b34da6a3ce929d0e0e4736",
        "0af7651916cd43dd8448eb211c80319c",
        "00000000000000000000000000000001",
    ];
    // One that its client does not record goes first: were it sent, it would come first.
    over_http(&cluster, other, "quiet", &format!("00-{}-{CLIENT}-00", traces[2])).await;
    over_http(&cluster, other, "by-http", &format!("00-{}-{CLIENT}-01", traces[0])).await;
    over_grpc(&cluster, driver, "by-grpc", &format!("00-{}-{CLIENT}-01", traces[1])).await;
    let quiet = whole(&cluster, third, "quiet").await;
    check(&quiet, (other, driver), PROMPT as u64, 12);
    assert!(
        quiet["driven"][0]["chunks"].as_array().expect("a list").len() > 1,
        "too long for one step: {quiet}"
    );
    check(&whole(&cluster, third, "by-http").await, (other, driver), PROMPT as u64, 12);
    check(&whole(&cluster, third, "by-grpc").await, (driver, driver), 4, 9);
    for (trace_id, id, door) in [(traces[0], "by-http", other), (traces[1], "by-grpc", driver)] {
        let (server, below) = spans(&collector, trace_id).await;
        assert_eq!(server.attribute("gen_ai.response.id"), id);
        assert_eq!(server.of_resource("service.name"), "foggara");
        assert_eq!(server.of_resource("service.instance.id"), format!("coordinator-{}", door + 1));
        let theirs = format!("coordinator-{}", driver + 1);
        assert!(below.iter().all(|span| span.of_resource("service.instance.id") == theirs), "{below:?}");
        let shown = whole(&cluster, third, id).await;
        assert_eq!(shown["fronts"][0]["trace_id"], json!(trace_id));
    }
    assert!(collector.of(traces[2]).is_empty(), "its client does not record it");
    lists(&cluster, third);
    moved(&cluster).await;
}

/// Several requests; one that is not known; and what people read.
fn lists(cluster: &Cluster, number: u16) {
    let ids = |arguments: &[&str]| -> Vec<String> {
        let output = trace(cluster, number, arguments);
        assert!(output.status.success(), "{}", text(&output));
        let shown: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let list = shown["requests"].as_array().expect("a list");
        list.iter().map(|entry| entry["request_id"].as_str().expect("a text").to_owned()).collect()
    };
    assert_eq!(ids(&["--json", "--last", "2"]), ["by-grpc", "by-http"], "of whatever coordinator");
    let mut slowest = ids(&["--json", "--slowest"]);
    slowest.sort();
    assert_eq!(slowest, ["by-grpc", "by-http", "quiet"]);
    let said = text(&trace(cluster, number, &["by-http"]));
    assert!(said.contains("request by-http: tiny, 400 prompt tokens, 12 generated, length"), "{said}");
    let unknown = trace(cluster, number, &["nobody"]);
    let said = text(&unknown);
    assert!(
        !unknown.status.success() && said.contains("no coordinator knows `nobody`") && said.contains("4096"),
        "{said}"
    );
}

/// The driving coordinator is killed in the middle of an answer: the timeline shows who took it over.
async fn moved(cluster: &Cluster) {
    let status = cluster.status().await;
    let (driver, other) = doors(&status, "smol");
    let third = (other + 1) % 3;
    let victim = status.coordinators.iter().find(|c| c.id == u64::from(driver) + 1).expect("a member").pid;
    let ask = Ask::tokens("smol", &[9, 8, 7]).exactly(150).id("moved").build();
    let mut stream = cluster.client(other).stream(ask).await.expect("accepted");
    let mut answer = Answer::default();
    let read = async {
        while answer.token_ids.len() < BEFORE {
            assert!(answer.next(&mut stream).await.expect("nothing happened yet"), "ended too early");
        }
        process::signal(victim, Signal::KILL);
        while answer.next(&mut stream).await.expect("it goes on") {}
    };
    wait::for_end("the disturbed answer", read).await;
    let shown = whole(cluster, third, "moved").await;
    assert_eq!((&shown["completion_tokens"], &shown["end"]), (&json!(150), &json!("length")), "{shown}");
    let went = numbers(&shown["fronts"][0]["placements"], "coordinator");
    assert_eq!(went.first(), Some(&(u64::from(driver) + 1)), "{shown}");
    assert!(went.len() > 1, "handed over at least once more: {shown}");
    let adopted = shown["driven"].as_array().expect("a list").iter().find(|part| part["origin"] == "adopted");
    let adopted = adopted.unwrap_or_else(|| panic!("somebody took it over: {shown}"));
    let (known, tokens) = (adopted["known_tokens"].as_u64(), adopted["tokens"].as_u64());
    assert!(
        known > Some(0) && known.zip(tokens).is_some_and(|(known, tokens)| known + tokens == 150),
        "{shown}"
    );
}
