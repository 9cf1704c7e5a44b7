//! SmolLM2, and Mixtrals made of it, through the cluster say what the reference implementation says, at every degree of parallelism.

use std::path::Path;

use foggara_proto::wire::inference::{ChatMessage, ChatRequest, SamplingParams};
use foggara_tests::answer::Answer;
use foggara_tests::ask::Ask;
use foggara_tests::client::Client;
use foggara_tests::cluster::Cluster;
use foggara_tests::reference::{Chat, Smol};
use foggara_tests::setup::Setup;
use foggara_tests::{machine, paths};

use crate::probe::together;

/// How close is close enough.
struct Bounds {
    /// Below this distance between the best and the second logit the order may flip.
    margin: f64,
    /// Positions at or above it.
    positions: usize,
    /// Mean negative log-likelihood of each text, and of all together.
    nll: f64,
    pooled_nll: f64,
}

/// Weights of 4 bits, activations quantized to 8 bits in blocks of 32.
const QUANTIZED: Bounds = Bounds { margin: 0.5, positions: 286, nll: 0.03, pooled_nll: 0.01 };
/// Weights in bf16.
const EXACT: Bounds = Bounds { margin: 0.05, positions: 336, nll: 0.003, pooled_nll: 0.003 };

/// The same of the Mixtral.
const MIXTRAL: Bounds = Bounds { positions: 268, ..EXACT };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gguf_tp1() {
    agrees(&paths::smol_gguf(), &[("tp", "1")], &Smol::load(), &QUANTIZED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gguf_tp2() {
    agrees(&paths::smol_gguf(), &[("tp", "2")], &Smol::load(), &QUANTIZED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gguf_tp3() {
    agrees(&paths::smol_gguf(), &[("tp", "3")], &Smol::load(), &QUANTIZED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bf16_tp1() {
    agrees(&paths::smol_bf16(), &[("tp", "1")], &Smol::load(), &EXACT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bf16_tp2() {
    agrees(&paths::smol_bf16(), &[("tp", "2")], &Smol::load(), &EXACT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bf16_tp3() {
    agrees(&paths::smol_bf16(), &[("tp", "3")], &Smol::load(), &EXACT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bf16_pp2() {
    agrees(&paths::smol_bf16(), &[("tp", "1"), ("pp", "2")], &Smol::load(), &EXACT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mixtral_tp2() {
    agrees(&paths::smol_mixtral(), &[("tp", "2")], &Smol::load_mixtral(), &MIXTRAL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mixtral_tp2_ep2() {
    let shape = [("tp", "2"), ("ep", "2")];
    agrees(&paths::smol_mixtral(), &shape, &Smol::load_mixtral(), &MIXTRAL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mixtral_dp2_ep2() {
    let shape = [("tp", "1"), ("dp", "2"), ("ep", "2")];
    agrees(&paths::smol_mixtral(), &shape, &Smol::load_mixtral(), &MIXTRAL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mixtral_of_equal_experts_is_the_dense_model() {
    let shape = [("tp", "2"), ("ep", "2")];
    agrees(&paths::smol_mixtral_same(), &shape, &Smol::load(), &EXACT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_values_of_eight_bits() {
    let _machine = machine::shared().await;
    let bounds = Bounds { nll: 0.02, pooled_nll: 0.01, ..EXACT };
    let cluster = serve(&paths::smol_bf16(), &[("tp", "2"), ("kv-dtype", "q8_0")]).await;
    likelihood_of_texts(&cluster.client(0), &Smol::load(), &bounds, "KV q8_0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quantized_at_load() {
    let mixtral = Smol::load_mixtral();
    for (quantize, nll, pooled_nll) in
        [("bf16", 0.03, 0.01), ("q8_0", 0.03, 0.01), ("q4_0", 1.0, 0.30), ("q4_k", 1.0, 0.30)]
    {
        let _machine = machine::shared().await;
        let bounds = Bounds { nll, pooled_nll, ..MIXTRAL };
        let shape = [("tp", "2"), ("ep", "2"), ("quantize", quantize)];
        let cluster = serve(&paths::smol_mixtral(), &shape).await;
        likelihood_of_texts(&cluster.client(0), &mixtral, &bounds, quantize).await;
    }
}

/// A cluster of one coordinator and as many workers as a replica needs.
async fn serve(model: &Path, options: &[(&str, &str)]) -> Cluster {
    let degrees = options.iter().filter(|(name, _)| ["tp", "dp", "pp"].contains(name));
    let ranks = degrees.map(|(_, n)| n.parse::<usize>().expect("a number")).product();
    let mut setup = Setup::new("reference").model("smol", model).coordinators(1).workers(ranks);
    for (name, value) in options {
        setup = setup.option(name, value);
    }
    setup.start().await
}

async fn agrees(model: &Path, options: &[(&str, &str)], reference: &Smol, bounds: &Bounds) {
    let _machine = machine::shared().await;
    let cluster = serve(model, options).await;
    let client = cluster.client(0);
    let what = format!("{} {options:?}", model.file_name().unwrap_or_default().display());
    prompts_are_rendered_alike(&client, &reference.chat).await;
    most_likely_tokens(&client, &reference.chat, bounds, &what).await;
    greedy_tokens(&client, &reference.chat, bounds, &what).await;
    likelihood_of_texts(&client, reference, bounds, &what).await;
}

async fn prompts_are_rendered_alike(client: &Client, chats: &[Chat]) {
    for chat in chats {
        let sampling = SamplingParams { max_tokens: Some(1), ..SamplingParams::default() };
        let message = ChatMessage { role: "user".into(), content: chat.user.clone() };
        let request =
            ChatRequest { messages: vec![message], sampling: Some(sampling), ..ChatRequest::default() };
        let stream = client.inference().chat(request).await.unwrap().into_inner();
        let answer = Answer::collect(stream).await.unwrap();
        assert_eq!(answer.started.prompt_token_ids, chat.prompt_tokens, "the template on `{}`", chat.user);
    }
}

/// Fed the reference's own tokens, the most likely token is the reference's.
async fn most_likely_tokens(client: &Client, chats: &[Chat], bounds: &Bounds, what: &str) {
    let fed = |chat: &Chat| Ask::tokens("smol", &[&chat.prompt_tokens[..], &chat.greedy_tokens].concat());
    let asks: Vec<Ask> = chats.iter().map(|chat| fed(chat).echo().logprobs(1).max_tokens(0)).collect();
    let (mut checked, mut flips, mut differ) = (0, 0, Vec::new());
    for (chat, answer) in chats.iter().zip(together(client, &asks).await) {
        assert_eq!(answer.logprobs.len(), chat.prompt_tokens.len() + chat.greedy_tokens.len());
        let answered = &answer.logprobs[chat.prompt_tokens.len()..];
        for (i, (token, expected)) in answered.iter().zip(&chat.greedy_tokens).enumerate() {
            let (same, margin) = (token.top[0].token_id == *expected, chat.top1_top2_margin[i]);
            if margin >= bounds.margin {
                checked += 1;
                if !same {
                    differ.push(format!(
                        "`{}` token {i}: {:?} for {expected}, margin {margin}",
                        chat.user, token.top[0]
                    ));
                }
            } else if !same {
                flips += 1;
            }
        }
    }
    eprintln!("{what}: {checked} positions agree; {flips} flips among nearer ties");
    assert!(differ.is_empty(), "{what}: {differ:#?}");
    assert_eq!(checked, bounds.positions, "{what}: positions with a margin of at least {}", bounds.margin);
}

/// Left to itself, it says the same until the first near tie.
async fn greedy_tokens(client: &Client, chats: &[Chat], bounds: &Bounds, what: &str) {
    let asks: Vec<Ask> =
        chats.iter().map(|chat| Ask::text("smol", &chat.prompt_text).max_tokens(64)).collect();
    for (chat, answer) in chats.iter().zip(together(client, &asks).await) {
        assert_eq!(answer.started.prompt_token_ids, chat.prompt_tokens, "{what}: tokens of `{}`", chat.user);
        let tie = chat.top1_top2_margin.iter().position(|margin| *margin < bounds.margin);
        let sure = tie.unwrap_or(chat.greedy_tokens.len());
        let said = &answer.token_ids[..sure.min(answer.token_ids.len())];
        assert_eq!(said, &chat.greedy_tokens[..sure], "{what}: `{}`", chat.user);
        if tie.is_none() {
            assert_eq!(answer.text, chat.greedy_text, "{what}: `{}`", chat.user);
        }
    }
}

async fn likelihood_of_texts(client: &Client, reference: &Smol, bounds: &Bounds, what: &str) {
    let texts = &reference.teacher_forced;
    let ask = |tokens: &[u32]| Ask::tokens("smol", tokens).echo().logprobs(0).max_tokens(0);
    let asks: Vec<Ask> = texts.iter().map(|text| ask(&text.tokens)).collect();
    let (mut ours, mut theirs, mut count) = (0.0, 0.0, 0.0);
    for (text, answer) in texts.iter().zip(together(client, &asks).await) {
        assert_eq!(answer.logprobs[0].logprob, None, "nothing precedes the first token");
        let logprobs: Vec<f64> =
            answer.logprobs[1..].iter().map(|token| f64::from(token.logprob.unwrap())).collect();
        assert_eq!(logprobs.len(), text.token_logprobs.len());
        let tokens = logprobs.len() as f64;
        let nll = -logprobs.iter().sum::<f64>() / tokens;
        let worst = logprobs.iter().zip(&text.token_logprobs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let off = nll - text.mean_nll;
        eprintln!(
            "{what}: mean NLL {nll:.5} ({off:+.5}), worst token off by {worst:.4}: {:.30}",
            text.text.escape_debug().to_string()
        );
        assert!(
            off.abs() <= bounds.nll,
            "{what}: mean NLL {nll}, reference {}: {}",
            text.mean_nll,
            text.text
        );
        ours += nll * tokens;
        theirs += text.mean_nll * tokens;
        count += tokens;
    }
    let off = (ours - theirs) / count;
    eprintln!("{what}: pooled mean NLL off by {off:+.5}");
    assert!(off.abs() <= bounds.pooled_nll, "{what}: pooled mean NLL off by {off}");
}
