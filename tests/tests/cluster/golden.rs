//! The tiny checkpoints, with odd heads and scaled rotations, through the cluster at every degree of parallelism.

use foggara_models::testing::{GOLDEN_DENSE, GOLDEN_WITH_EXPERTS};
use foggara_tests::ask::Ask;
use foggara_tests::reference::{Case, Golden};
use foggara_tests::setup::Setup;
use foggara_tests::{machine, paths};

use crate::probe::together;

/// Of log-probabilities. Everything is computed in f32.
const TOLERANCE: f64 = 1e-3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn golden_checkpoints_at_several_tp() {
    let _machine = machine::shared().await;
    let all = [&GOLDEN_DENSE[..], &GOLDEN_WITH_EXPERTS].concat();
    agree(&all, &[("tp", 2)]).await;
    agree(&["llama-odd-heads", "gemma2", "gpt-oss", "deepseek-v3"], &[("tp", 3)]).await;
    agree(&["llama", "qwen3-moe"], &[("tp", 4)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn golden_checkpoints_in_stages() {
    let _machine = machine::shared().await;
    agree(&[&GOLDEN_DENSE[..], &GOLDEN_WITH_EXPERTS].concat(), &[("pp", 2)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn golden_checkpoints_with_experts_spread() {
    let _machine = machine::shared().await;
    agree(&GOLDEN_WITH_EXPERTS, &[("tp", 2), ("ep", 2)]).await;
    agree(&GOLDEN_WITH_EXPERTS, &[("dp", 2), ("ep", 2)]).await;
    agree(&["mixtral", "deepseek-v3"], &[("tp", 2), ("pp", 2), ("ep", 2)]).await;
    agree(&["mixtral", "qwen3-moe"], &[("tp", 2), ("dp", 2), ("ep", 4)]).await;
}

/// Each checkpoint, served in this shape, says what the reference says.
async fn agree(names: &[&str], shape: &[(&str, usize)]) {
    let ranks: usize = shape.iter().filter(|(degree, _)| *degree != "ep").map(|(_, n)| n).product();
    let mut setup = Setup::new("golden").coordinators(1).workers(names.len() * ranks);
    // Left out, tp is what the workers allow.
    if !shape.iter().any(|(degree, _)| *degree == "tp") {
        setup = setup.option("tp", 1);
    }
    for (degree, n) in shape {
        setup = setup.option(degree, n);
    }
    for name in names {
        setup = setup.model(name, &paths::golden(name));
    }
    let cluster = setup.start().await;
    let client = cluster.client(0);
    for name in names {
        let cases = Golden::load(name).cases;
        let ask = |case: &Case| {
            Ask::tokens(name, &case.prompt).exactly(case.greedy.len() as u32).echo().logprobs(20)
        };
        let asks: Vec<Ask> = cases.iter().map(ask).collect();
        for (number, (case, answer)) in cases.iter().zip(together(&client, &asks).await).enumerate() {
            let what = format!("{name} {shape:?} case {number}");
            let (prompt, answered) = answer.logprobs.split_at(case.prompt.len());
            assert_eq!((prompt[0].logprob, prompt.len()), (None, 1 + case.prompt_logprobs.len()), "{what}");
            for (token, expected) in prompt[1..].iter().zip(&case.prompt_logprobs) {
                close(&what, token.logprob.expect("something precedes it"), *expected);
            }
            let total = case.logits_last.iter().map(|logit| logit.exp()).sum::<f64>().ln();
            for top in &answered[0].top {
                close(&what, top.logprob, case.logits_last[top.token_id as usize] - total);
            }
            let said: Vec<u32> = answered.iter().map(|token| token.token_id).collect();
            assert_eq!(said, case.greedy, "{what}");
            assert!(answer.ended_by_length(), "{what}");
        }
    }
}

fn close(what: &str, ours: f32, expected: f64) {
    assert!((f64::from(ours) - expected).abs() <= TOLERANCE, "{what}: {ours} for {expected}");
}
