//! The tiny checkpoints, with odd heads and scaled rotations, through the cluster at every degree of parallelism.

use foggara_tests::ask::Ask;
use foggara_tests::reference::{Case, Golden};
use foggara_tests::setup::Setup;
use foggara_tests::{machine, paths};

use crate::probe::together;

const CHECKPOINTS: [&str; 3] = ["llama", "llama-odd-heads", "llama3-rope"];
/// Of log-probabilities. Everything is computed in f32.
const TOLERANCE: f64 = 1e-3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn golden_checkpoints_at_every_tp() {
    let _machine = machine::shared().await;
    for tp in [1, 2, 3] {
        let mut setup = Setup::new("golden").coordinators(1).workers(CHECKPOINTS.len() * tp).option("tp", tp);
        for name in CHECKPOINTS {
            setup = setup.model(name, &paths::golden(name));
        }
        let cluster = setup.start().await;
        let client = cluster.client(0);
        for name in CHECKPOINTS {
            let cases = Golden::load(name).cases;
            let ask = |case: &Case| {
                Ask::tokens(name, &case.prompt).exactly(case.greedy.len() as u32).echo().logprobs(20)
            };
            let asks: Vec<Ask> = cases.iter().map(ask).collect();
            for (number, (case, answer)) in cases.iter().zip(together(&client, &asks).await).enumerate() {
                let what = format!("{name} tp {tp} case {number}");
                let (prompt, answered) = answer.logprobs.split_at(case.prompt.len());
                assert_eq!(
                    (prompt[0].logprob, prompt.len()),
                    (None, 1 + case.prompt_logprobs.len()),
                    "{what}"
                );
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
}

fn close(what: &str, ours: f32, expected: f64) {
    assert!((f64::from(ours) - expected).abs() <= TOLERANCE, "{what}: {ours} for {expected}");
}
