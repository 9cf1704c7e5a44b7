//! Adapters beside a model: each answers for itself, whatever runs beside it and whatever dies, and they come and go while it serves.

use std::path::{Path, PathBuf};
use std::process::Output;

use foggara_proto::wire::admin::{Adapter, StatusResponse};
use foggara_tests::answer::Answer;
use foggara_tests::ask::Ask;
use foggara_tests::cluster::Cluster;
use foggara_tests::process::{foggara, text};
use foggara_tests::prometheus::Prometheus;
use foggara_tests::reference::Golden;
use foggara_tests::scratch::Scratch;
use foggara_tests::setup::Setup;
use foggara_tests::{http, machine, paths, process, wait};
use rustix::process::Signal;
use serde_json::json;
use tonic::Code;

use crate::failover::{interrupted, pid_of_rank, same};
use crate::probe::together;

/// Times of alerts are so many times shorter here.
const ALARM: u32 = 30;
/// Of an answer that something happens in the middle of.
const TOKENS: u32 = 450;

/// Names, and where their golden files are: the model alone, then its adapters.
const SERVED: [(&str, &str); 3] =
    [("tiny", "llama"), ("all", "adapters/llama"), ("attention", "adapters/llama-attention")];

async fn start(name: &str) -> Cluster {
    Setup::new(name).model("tiny", &paths::golden("llama")).workers(2).start().await
}

/// `foggara` with these arguments, typed by the operator.
fn operate(cluster: &Cluster, words: &[&str]) -> Output {
    let endpoint = format!("http://{}", cluster.grpc(1));
    tokio::task::block_in_place(|| foggara(&[words, &["--endpoint", &endpoint]].concat()))
}

/// The same; what it prints.
fn done(cluster: &Cluster, words: &[&str]) -> String {
    let output = operate(cluster, words);
    assert!(output.status.success(), "{words:?}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn add(cluster: &Cluster, name: &str, path: &Path) {
    let said =
        done(cluster, &["adapter", "add", name, "--deployment", "tiny", "--path", path.to_str().unwrap()]);
    assert!(
        said.contains(&format!("added {name} to tiny")) && said.contains(&format!("{name}: ready")),
        "{said}"
    );
    // A front door may hear of it a moment later than the one that was asked.
}

/// Every coordinator knows a model by this name.
async fn known(cluster: &Cluster, name: &str, is: bool) {
    for number in 0..cluster.coordinators() {
        wait::until(&format!("coordinator {} knows `{name}`: {is}", number + 1), async || {
            let found = http::get(&format!("{}/v1/models/{name}", cluster.http(number))).await.status;
            (found == if is { 200 } else { 404 }).then_some(())
        })
        .await;
    }
}

fn adapter<'a>(status: &'a StatusResponse, name: &str) -> Option<&'a Adapter> {
    status.adapters.iter().find(|adapter| adapter.name == name)
}

/// The golden requests of all that is served, mixed, and what each is to be answered.
fn golden() -> (Vec<Ask>, Vec<Vec<u32>>) {
    let cases = |name: &'static str, folder: &str| {
        Golden::load(folder).cases.into_iter().map(move |case| {
            let ask = Ask::tokens(name, &case.prompt).exactly(case.greedy.len() as u32);
            (ask, case.greedy)
        })
    };
    let mut all: Vec<_> = SERVED.iter().flat_map(|(name, folder)| cases(name, folder)).collect();
    // Neighbours in the batch are of different adapters.
    all.sort_by_key(|(_, greedy)| greedy[1]);
    all.into_iter().unzip()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adapters_answer_side_by_side_as_alone_and_come_and_go() {
    let _machine = machine::shared().await;
    let cluster = start("adapters").await;
    let client = cluster.client(0);
    let long = || Ask::tokens("tiny", &[3, 4, 5]).exactly(TOKENS);
    // What is being answered goes on while adapters are added.
    let mut stream = client.stream(long().build()).await.unwrap();
    let mut beside = Answer::default();
    while beside.token_ids.len() < 3 {
        assert!(beside.next(&mut stream).await.unwrap());
    }
    for (name, folder) in &SERVED[1..] {
        add(&cluster, name, &paths::golden(folder));
        known(&cluster, name, true).await;
    }
    while beside.next(&mut stream).await.unwrap() {}
    assert_eq!(beside.token_ids, client.ask(long()).await.token_ids);

    let (asks, expected) = golden();
    let answers = together(&client, &asks).await;
    for ((answer, greedy), ask) in answers.iter().zip(&expected).zip(&asks) {
        assert_eq!(&answer.token_ids, greedy, "{:?}", answer.started);
        assert_eq!(answer.started.model, ask.clone().build().model, "under the name that was asked for");
    }
    // Alone, through another coordinator.
    for (ask, greedy) in asks.iter().zip(&expected) {
        assert_eq!(&cluster.client(2).ask(ask.clone()).await.token_ids, greedy);
    }

    let list = http::get(&format!("{}/v1/models", cluster.http(0))).await.json();
    let root = paths::golden("adapters/llama").canonicalize().unwrap();
    let one = list["data"].as_array().unwrap().iter().find(|model| model["id"] == "all").unwrap();
    assert_eq!((&one["parent"], &one["root"]), (&json!("tiny"), &json!(root.to_str().unwrap())), "{list}");
    let body = json!({"model": "attention", "prompt": [232], "max_tokens": 4, "temperature": 0, "return_token_ids": true});
    let reply = http::post(&format!("{}/v1/completions", cluster.http(1)), &body).await.json();
    assert_eq!(reply["model"], "attention", "{reply}");
    assert_eq!(
        reply["choices"][0]["token_ids"],
        json!(Golden::load("adapters/llama-attention").cases[0].greedy[..4])
    );
    let asked = cluster
        .sum("foggara_adapter_requests_total", &[("deployment", "tiny"), ("adapter", "attention")])
        .await;
    assert_eq!(asked, 7.0);
    let table = done(&cluster, &["status"]);
    assert!(table.contains("adapters") && table.contains("attention"), "{table}");
    let status: serde_json::Value = serde_json::from_str(&done(&cluster, &["status", "--json"])).unwrap();
    assert_eq!(
        (&status["adapters"][0]["name"], &status["adapters"][0]["ready_replicas"]),
        (&json!("all"), &json!(1))
    );

    // Whoever is being answered goes on when the adapter is removed; nobody new gets it.
    let long = || Ask::tokens("all", &[3, 4, 5]).exactly(TOKENS);
    let undisturbed = client.ask(long()).await;
    let mut stream = client.stream(long().build()).await.unwrap();
    let mut answer = Answer::default();
    while answer.token_ids.len() < 3 {
        assert!(answer.next(&mut stream).await.unwrap());
    }
    done(&cluster, &["adapter", "remove", "all"]);
    while answer.next(&mut stream).await.unwrap() {}
    assert_eq!(answer.token_ids, undisturbed.token_ids);
    known(&cluster, "all", false).await;
    let gone = client.try_ask(long()).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound, "{gone:?}");
    let list = done(&cluster, &["adapter", "list"]);
    assert!(list.contains("attention") && !list.contains("all "), "{list}");
    cluster.wait_idle("tiny").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_prefix_cache_is_not_shared_between_adapters() {
    let _machine = machine::shared().await;
    let cluster = start("adapters-cache").await;
    for (name, folder) in &SERVED[1..] {
        add(&cluster, name, &paths::golden(folder));
        known(&cluster, name, true).await;
    }
    let client = cluster.client(0);
    let prompt: Vec<u32> = (10..110).collect();
    for (name, _) in SERVED {
        let ask = || Ask::tokens(name, &prompt).exactly(4);
        let cached = |answer: &Answer| answer.end().usage.unwrap().cached_tokens;
        let (first, second) = (client.ask(ask()).await, client.ask(ask()).await);
        assert_eq!(cached(&first), 0, "{name}: nobody else's blocks");
        assert!(cached(&second) > 0, "{name}: its own");
        assert_eq!(first.token_ids, second.token_ids, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_an_adapter_outlive_what_serves_them() {
    let _machine = machine::shared().await;
    let cluster = start("adapters-failover").await;
    add(&cluster, "all", &paths::golden("adapters/llama"));
    known(&cluster, "all", true).await;
    let ask = || Ask::tokens("all", &[7, 8, 9]).exactly(TOKENS).sampled(0.8, 0.95, 11).logprobs(2);
    let whole = async || {
        for number in 0..cluster.coordinators() {
            cluster.wait_ready(number).await;
        }
        let ready = |status: &StatusResponse| {
            let loaded = adapter(status, "all").is_some_and(|adapter| adapter.state == "ready");
            let alive = status.workers.len() == 2 && status.workers.iter().all(|w| w.state == "ready");
            let driven = status.groups.iter().any(|g| status.coordinators.iter().any(|c| c.id == g.driver));
            (loaded && alive && driven && status.coordinators.iter().all(|c| process::is_alive(c.pid)))
                .then(|| status.clone())
        };
        cluster.wait_status(0, "the adapter is there", ready).await
    };
    whole().await;
    let undisturbed = cluster.client(0).ask(ask()).await;
    assert_eq!(undisturbed.token_ids.len(), TOKENS as usize);
    for rank in [0, 1] {
        let status = whole().await;
        let answer = interrupted(&cluster, ask(), 0, &[pid_of_rank(&status, rank)], Signal::KILL).await;
        same(&answer, &undisturbed, &format!("rank {rank} killed"));
    }
    let status = whole().await;
    let driver = status.groups[0].driver;
    let victim = status.coordinators.iter().find(|c| c.id == driver).unwrap().pid;
    let elsewhere = u16::try_from(driver).unwrap() % cluster.coordinators();
    let answer = interrupted(&cluster, ask(), elsewhere, &[victim], Signal::KILL).await;
    same(&answer, &undisturbed, "driving coordinator killed");
    whole().await;
    // A front door dies, and its client goes on elsewhere.
    let status = whole().await;
    let driver = u16::try_from(status.groups[0].driver - 1).unwrap();
    let (door, other) = ((driver + 1) % 3, (driver + 2) % 3);
    let elsewhere = cluster.client(other);
    let mut answer = Answer::default();
    let mut stream = cluster.client(door).stream(ask().id("attached").build()).await.unwrap();
    while answer.token_ids.len() < 3 {
        assert!(answer.next(&mut stream).await.unwrap());
    }
    process::kill(status.coordinators.iter().find(|c| c.id == u64::from(door) + 1).unwrap().pid);
    while answer.next(&mut stream).await.is_ok_and(|more| more) {}
    let received = u32::try_from(answer.token_ids.len()).unwrap();
    let mut rest = elsewhere.attach("attached", &[received]).await.unwrap();
    let mut attached = Answer::default();
    while attached.next(&mut rest).await.unwrap() {}
    assert_eq!(attached.started.model, "all");
    assert_eq!([answer.token_ids, attached.token_ids].concat(), undisturbed.token_ids, "attached elsewhere");
    whole().await;
    cluster.wait_idle("tiny").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_that_cannot_be_loaded_is_told_with_its_reason_and_tried_again() {
    let _machine = machine::shared().await;
    let cluster = start("adapters-failing").await;
    let scratch = Scratch::new("adapters-failing-files");
    let folder: PathBuf = scratch.path().join("mine");
    std::fs::create_dir_all(&folder).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(paths::golden("adapters/llama").join(file), folder.join(file)).unwrap();
    }
    add(&cluster, "mine", &folder);
    known(&cluster, "mine", true).await;
    let ask = || Ask::tokens("mine", &[232]).exactly(8);
    let before = cluster.client(0).ask(ask()).await.token_ids;
    let prometheus = Prometheus::start(&cluster, ALARM).await;
    // Its file goes, and then the workers that had it in memory.
    let (file, away) = (folder.join("adapter_model.safetensors"), folder.join("away"));
    std::fs::rename(&file, &away).unwrap();
    let status = cluster.status().await;
    process::kill(pid_of_rank(&status, 0));
    let failed = |status: &StatusResponse| {
        adapter(status, "mine")
            .filter(|adapter| adapter.state == "failed")
            .map(|adapter| adapter.reason.clone())
    };
    let reason = cluster.wait_status(1, "it cannot be loaded", failed).await;
    assert!(reason.contains("adapter_model.safetensors"), "{reason}");
    let refused = cluster.client(1).try_ask(ask()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().contains("its adapter could not be loaded"), "{refused:?}");
    assert_eq!(cluster.client(1).ask(Ask::tokens("tiny", &[232]).exactly(3)).await.token_ids.len(), 3);
    let list = done(&cluster, &["adapter", "list"]);
    assert!(list.contains("failed: rank"), "{list}");
    let metric = cluster.metrics(0).await;
    assert_eq!(metric.sum("foggara_adapter_failed_replicas", &[("adapter", "mine")]), 1.0);
    prometheus.wait_firing(&["FoggaraAdapterFailed"]).await;
    // It is tried again by itself.
    std::fs::rename(&away, &file).unwrap();
    let ready = |status: &StatusResponse| adapter(status, "mine").filter(|a| a.state == "ready").map(drop);
    cluster.wait_status(1, "it is loaded", ready).await;
    prometheus.wait_clear(&["FoggaraAdapterFailed"]).await;
    assert_eq!(cluster.client(1).ask(ask()).await.token_ids, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_adapter_or_has_no_place_is_refused() {
    let _machine = machine::shared().await;
    let cluster = start("adapters-refused").await;
    let (here, model) = (paths::golden("adapters/llama"), paths::golden("llama"));
    let (here, model) = (here.to_str().unwrap(), model.to_str().unwrap());
    let other = paths::golden("adapters/mixtral");
    for (words, says) in [
        (&["adapter", "add", "a", "--path", "/none"][..], "/none"),
        (&["adapter", "add", "a", "--path", model], "is a model, not an adapter"),
        (&["adapter", "add", "a", "--path", other.to_str().unwrap()], "does not fit `tiny`"),
        (&["adapter", "add", "tiny", "--path", here], "a deployment is called `tiny`"),
        (&["adapter", "add", "a", "--deployment", "none", "--path", here], "no deployment is called `none`"),
        (&["adapter", "remove", "a"], "no adapter is called `a`"),
        (&["models", "add", &format!("a={here}")], "foggara adapter add"),
    ] {
        let output = operate(&cluster, words);
        assert!(!output.status.success() && text(&output).contains(says), "{words:?}: {}", text(&output));
    }
    assert!(cluster.status().await.adapters.is_empty());
    add(&cluster, "a", Path::new(here));
    let output = operate(&cluster, &["models", "add", &format!("a={model}")]);
    assert!(
        !output.status.success() && text(&output).contains("an adapter is called `a`"),
        "{}",
        text(&output)
    );
    // With its deployment it goes.
    done(&cluster, &["models", "remove", "tiny"]);
    known(&cluster, "a", false).await;
    assert!(cluster.status().await.adapters.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_may_begin_with_adapters_whose_experts_are_spread() {
    let _machine = machine::shared().await;
    let folder = paths::golden("adapters/mixtral");
    let setup = Setup::new("adapters-up").model("tiny", &paths::golden("mixtral")).workers(2);
    let setup =
        setup.option("tp", 2).option("ep", 2).option("adapter", format!("experts={}", folder.display()));
    let cluster = setup.start().await;
    let line = cluster.ready_line();
    assert!(line.ends_with("models tiny,experts"), "{line}");
    for (name, folder) in [("tiny", "mixtral"), ("experts", "adapters/mixtral")] {
        known(&cluster, name, true).await;
        for case in Golden::load(folder).cases {
            let ask = Ask::tokens(name, &case.prompt).exactly(case.greedy.len() as u32);
            assert_eq!(cluster.client(0).ask(ask).await.token_ids, case.greedy, "{name}");
        }
    }
}
