//! At the limits of context and KV cache: what just fits is served, what does not is refused by the field's name.

use foggara_tests::ask::Ask;
use foggara_tests::choice::Choice;
use foggara_tests::client::Client;
use foggara_tests::cluster::Cluster;
use foggara_tests::setup::Setup;
use foggara_tests::{http, machine, paths, wait};
use futures::future::join_all;
use serde_json::json;
use tonic::Code;

use crate::shared::TINY;

/// Of the tiny checkpoint.
const CONTEXT: usize = 512;
/// A KV cache that is smaller: sixteen blocks.
const KV_TOKENS: usize = 256;

fn ask(prompt: usize, max_tokens: u32) -> Ask {
    let ask = Ask::tokens("tiny", &Choice::seeded(prompt as u64).tiny_prompt(prompt)).logprobs(1);
    // Without tokens there is only the prompt to tell.
    if max_tokens == 0 { ask.max_tokens(0).echo() } else { ask.exactly(max_tokens) }
}

async fn fits(client: &Client, prompt: usize, max_tokens: u32) {
    let answer = client.ask(ask(prompt, max_tokens)).await;
    let echoed = if max_tokens == 0 { prompt } else { 0 };
    assert_eq!(answer.token_ids.len(), echoed + max_tokens as usize, "{prompt} + {max_tokens}");
    assert_eq!(answer.logprobs.len(), answer.token_ids.len(), "{prompt} + {max_tokens}");
    assert!(answer.ended_by_length());
    let usage = answer.end().usage.unwrap();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (prompt as u32, max_tokens));
}

/// Refused over both protocols, with a message that names all of `names`.
async fn does_not_fit(cluster: &Cluster, prompt: usize, max_tokens: u32, field: &str, names: &[&str]) {
    let refused = cluster.client(0).try_ask(ask(prompt, max_tokens)).await.unwrap_err();
    let message = refused.message();
    assert_eq!(refused.code(), Code::InvalidArgument, "{message}");
    let ids = Choice::seeded(prompt as u64).tiny_prompt(prompt);
    let body = json!({"model": "tiny", "prompt": ids, "max_tokens": max_tokens, "echo": max_tokens == 0, "logprobs": 1});
    let reply = http::post(&format!("{}/v1/completions", cluster.http(0)), &body).await;
    assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!(field)), "{}", reply.text);
    for text in [message, &reply.text] {
        for name in names.iter().chain([&field]) {
            assert!(text.contains(name), "{prompt} + {max_tokens}: `{text}` does not say {name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_the_context() {
    let _machine = machine::shared().await;
    let cluster = TINY.get().await;
    let client = cluster.client(0);
    // Twice: from a cold cache, and with all but the last block in it.
    for _ in 0..2 {
        fits(&client, CONTEXT - 1, 1).await;
        fits(&client, CONTEXT, 0).await;
        fits(&client, CONTEXT - 100, 100).await;
    }
    does_not_fit(&cluster, CONTEXT, 1, "prompt", &["512"]).await;
    does_not_fit(&cluster, CONTEXT + 1, 1, "prompt", &["513", "512"]).await;
    does_not_fit(&cluster, CONTEXT + 1, 0, "prompt", &["513", "512"]).await;
    does_not_fit(&cluster, CONTEXT - 1, 2, "max_tokens", &["511", "512"]).await;
    cluster.wait_idle("tiny").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_the_cache() {
    let _machine = machine::shared().await;
    for workers in [1, 2] {
        let setup = Setup::new("cache-limit").model("tiny", &paths::golden("llama")).coordinators(1);
        let cluster = setup.workers(workers).option("kv-tokens", KV_TOKENS).start().await;
        let client = cluster.client(0);
        for _ in 0..2 {
            fits(&client, KV_TOKENS, 0).await;
            // The last token is never fed back, and needs no place.
            fits(&client, KV_TOKENS, 1).await;
            fits(&client, KV_TOKENS - 1, 2).await;
            fits(&client, 1, KV_TOKENS as u32).await;
        }
        let names = ["KV cache", "256"];
        does_not_fit(&cluster, KV_TOKENS + 1, 1, "prompt", &names).await;
        does_not_fit(&cluster, KV_TOKENS + 1, 0, "prompt", &names).await;
        does_not_fit(&cluster, KV_TOKENS, 2, "max_tokens", &names).await;
        does_not_fit(&cluster, 1, KV_TOKENS as u32 + 1, "max_tokens", &names).await;
        // Each needs all of it: they take turns.
        let alone = client.ask(ask(KV_TOKENS - 20, 21)).await.bits();
        let several = join_all((0..6).map(|_| client.ask(ask(KV_TOKENS - 20, 21))));
        for answer in wait::for_end("those that take turns", several).await {
            assert!(answer.bits() == alone, "beside others that need the whole cache");
        }
        // And those who find their prompt there but have no room to go on together.
        let choices = ask(KV_TOKENS - 20, 21).sampling(|sampling| sampling.n = Some(3));
        let mut stream = client.stream(choices.build()).await.unwrap();
        let mut tokens = 0;
        let read = async {
            while let Some(message) = stream.message().await.unwrap() {
                if let Some(foggara_proto::wire::inference::generate_response::Event::Delta(delta)) =
                    message.event
                {
                    tokens += delta.token_ids.len();
                }
            }
        };
        wait::for_end("three choices, each of the whole cache", read).await;
        assert_eq!(tokens, 3 * 21);
        cluster.wait_idle("tiny").await;
    }
}
