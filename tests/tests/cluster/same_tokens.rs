//! A sequence's tokens and probabilities are a function of weights, prompt, parameters and seed: never of the batch.

use foggara_tests::ask::Ask;
use foggara_tests::cluster::Cluster;
use foggara_tests::setup::Setup;
use foggara_tests::{machine, paths, wait};
use futures::future::join_all;

use crate::probe;
use crate::shared::{SMOL, TINY};

/// Requests that are answered beside the one looked at.
const COMPANY: u64 = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smol_alone_and_in_company() {
    let _machine = machine::alone().await;
    let cluster = SMOL.get().await;
    let company = |i: u64| {
        let prompt = format!("Tell me about the number {i}. {}", "It is a nice number. ".repeat(i as usize));
        Ask::text("smol", &prompt).exactly(60).sampled(1.0, 1.0, i)
    };
    alone_and_in_company(&cluster, "smol", &probe::smol("smol"), company).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tiny_alone_and_in_company_again_and_again() {
    let _machine = machine::shared().await;
    let cluster = TINY.get().await;
    for round in 0..machine::rounds(5, 200) as u64 {
        let company = |i: u64| {
            let prompt: Vec<u32> = (0..1 + i * 20).map(|k| 3 + ((k + round) * 31 % 300) as u32).collect();
            Ask::tokens("tiny", &prompt).exactly(100 + i as u32).sampled(1.0, 1.0, i)
        };
        alone_and_in_company(&cluster, "tiny", &probe::tiny("tiny"), company).await;
    }
}

async fn alone_and_in_company(cluster: &Cluster, model: &str, asks: &[Ask], company: impl Fn(u64) -> Ask) {
    let client = cluster.client(0);
    let alone = probe::one_by_one(&client, asks).await;
    let steps_beyond_8_rows = async || {
        let labels = [("model", model)];
        let all = cluster.sum("foggara_step_rows_count", &labels).await;
        let small = cluster.sum("foggara_step_rows_bucket", &[("model", model), ("le", "8")]).await;
        all - small
    };
    let before = steps_beyond_8_rows().await;
    // The company first, and all of it at work, so that each request looked at comes into a busy group.
    let mut streams = Vec::new();
    for i in 0..COMPANY {
        streams.push(client.stream(company(i).build()).await.unwrap());
    }
    let company = async {
        let drain = |stream| async move { foggara_tests::answer::Answer::collect(stream).await.unwrap() };
        join_all(streams.into_iter().map(drain)).await
    };
    let (beside, company) =
        wait::for_end("all answers", futures::future::join(probe::together(&client, asks), company)).await;
    assert_eq!(company.len() as u64, COMPANY);
    assert!(steps_beyond_8_rows().await > before + 8.0, "the requests did not share steps");
    for (number, (alone, beside)) in alone.iter().zip(&beside).enumerate() {
        assert_eq!(*alone, beside.bits(), "{model}: request {number} alone, and beside {COMPANY} others");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_seed_alone_decides() {
    let _machine = machine::shared().await;
    let cluster = TINY.get().await;
    let client = cluster.client(1);
    let ask = |seed| Ask::tokens("tiny", &[5, 6, 7]).exactly(40).sampled(1.5, 1.0, seed);
    let first = client.ask(ask(1)).await.bits();
    assert_eq!(first, client.ask(ask(1)).await.bits(), "the same seed");
    assert_eq!(first, cluster.client(2).ask(ask(1)).await.bits(), "the same seed elsewhere");
    assert_ne!(first, client.ask(ask(2)).await.bits(), "another seed");
    // Without a seed the request's id decides.
    let unseeded = |id: &str| ask(0).sampling(|sampling| sampling.seed = None).id(id);
    let named = client.ask(unseeded("a-name")).await.bits();
    assert_eq!(named, client.ask(unseeded("a-name")).await.bits(), "the same id");
    assert_ne!(named, client.ask(unseeded("another-name")).await.bits(), "another id");
}

/// The first time everything is computed; afterwards most of the prompt is found in the cache.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_warm_prefix_cache_as_with_a_cold_one() {
    let _machine = machine::shared().await;
    for workers in [1, 2] {
        let setup = Setup::new(&format!("warm-{workers}")).model("smol", &paths::smol_gguf());
        let cluster = setup.coordinators(1).workers(workers).start().await;
        let client = cluster.client(0);
        let found = async || cluster.sum("foggara_prefix_cache_hit_tokens_total", &[("model", "smol")]).await;
        // Prompts of which none begins as another does.
        let ask = |i: u64| {
            let prompt = format!("{i} times: {}", "all work and no play. ".repeat(3 + 4 * i as usize));
            let ask = Ask::text("smol", &prompt).exactly(24).logprobs(3);
            if i < 3 { ask } else { ask.sampled(0.9, 0.95, i) }
        };
        let asks: Vec<Ask> = (1..5).map(ask).collect();
        let cold = probe::one_by_one(&client, &asks).await;
        assert_eq!(found().await, 0.0, "nothing to find yet");
        let warm = probe::one_by_one(&client, &asks).await;
        let once = found().await;
        assert!(once >= 100.0, "only {once} tokens were found");
        assert!(cold == warm, "tp {workers}: one after the other");
        let together = probe::together(&client, &asks).await;
        for (number, (cold, warm)) in cold.iter().zip(&together).enumerate() {
            assert!(*cold == warm.bits(), "tp {workers}: request {number} beside the others");
        }
        let usage = together.iter().filter_map(|answer| answer.finished.as_ref()?.usage.as_ref());
        let told: u32 = usage.map(|usage| usage.cached_tokens).sum();
        assert_eq!((told > 0, f64::from(told)), (true, found().await - once), "what clients are told");
        cluster.wait_idle("smol").await;
    }
}

/// Too few KV blocks for all: some sequences make room and are computed again, and nobody can tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn preempted_sequences_go_on_with_the_same_tokens() {
    let _machine = machine::shared().await;
    let setup = Setup::new("preempt").model("tiny", &paths::golden("llama")).coordinators(1).workers(2);
    let cluster = setup.option("kv-tokens", 1024).start().await;
    let client = cluster.client(0);
    let ask = |i: u32| {
        let prompt: Vec<u32> = (0..10 + 7 * i).map(|k| 3 + (k * (i + 11)) % 300).collect();
        Ask::tokens("tiny", &prompt).exactly(250).logprobs(1).sampled(1.0, 0.9, u64::from(i))
    };
    let asks: Vec<Ask> = (0..12).map(ask).collect();
    let alone = probe::one_by_one(&client, &asks).await;
    let preempted = async || cluster.sum("foggara_preemptions_total", &[("model", "tiny")]).await;
    assert_eq!(preempted().await, 0.0);
    for (number, (alone, beside)) in alone.iter().zip(probe::together(&client, &asks).await).enumerate() {
        assert_eq!(*alone, beside.bits(), "sequence {number}");
    }
    let preempted = preempted().await;
    eprintln!("{preempted} preemptions");
    assert!(preempted > 0.0, "12 sequences of 300 tokens do not fit 1024");
    cluster.wait_idle("tiny").await;
    let long = client.try_ask(Ask::tokens("tiny", &[3; 400]).max_tokens(100)).await.unwrap();
    assert!(!long.token_ids.is_empty(), "one that fits alone is served");
}
