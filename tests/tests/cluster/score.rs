//! `foggara score` prints what the reference implementation computes.

use foggara_tests::ask::Ask;
use foggara_tests::process::{foggara, text};
use foggara_tests::reference::Smol;
use foggara_tests::scratch::Scratch;
use foggara_tests::setup::Setup;
use foggara_tests::{machine, paths};
use serde_json::Value;

/// Of the mean negative log-likelihood of a text, and of all. The weights are the reference's, in bf16.
const TOLERANCE: f64 = 0.003;

fn json(arguments: &[&str]) -> Value {
    let output = foggara(&[&["score", "--json"], arguments].concat());
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn ids(text: &Value) -> Vec<u32> {
    text["tokens"].as_array().unwrap().iter().map(|token| token["id"].as_u64().unwrap() as u32).collect()
}

fn logprobs(text: &Value) -> Vec<Option<f32>> {
    text["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token["logprob"].as_f64().map(|p| p as f32))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_score_as_in_the_reference() {
    let _machine = machine::shared().await;
    let setup = Setup::new("score").model("smol", &paths::smol_bf16()).coordinators(1).workers(1);
    let cluster = setup.start().await;
    let endpoint = ["--endpoint", &cluster.http(0)];
    let scratch = Scratch::new("score");
    let texts = Smol::load().teacher_forced;
    let files: Vec<String> = (0..texts.len())
        .map(|number| scratch.path().join(format!("{number}.txt")).display().to_string())
        .collect();
    for (file, text) in files.iter().zip(&texts) {
        std::fs::write(file, &text.text).unwrap();
    }
    let names: Vec<&str> = files.iter().map(String::as_str).collect();
    let whole = json(&[&endpoint[..], &names].concat());
    assert_eq!(whole["window"], 8192, "the context");
    let (mut sum, mut count) = (0.0, 0);
    for (scored, expected) in whole["texts"].as_array().unwrap().iter().zip(&texts) {
        assert_eq!(ids(scored), expected.tokens);
        let nll = scored["nll"].as_f64().unwrap();
        assert!((nll - expected.mean_nll).abs() <= TOLERANCE, "{nll} for {}", expected.mean_nll);
        assert!((scored["perplexity"].as_f64().unwrap() - nll.exp()).abs() < 1e-9);
        assert_eq!(scored["scored"], expected.token_logprobs.len());
        sum += expected.token_logprobs.iter().sum::<f64>();
        count += expected.token_logprobs.len();
    }
    let all = whole["all"]["nll"].as_f64().unwrap();
    assert!((all + sum / count as f64).abs() <= TOLERANCE, "{all} for {}", -sum / count as f64);

    // The same from token ids, on standard output for people.
    let listed = scratch.path().join("ids.json").display().to_string();
    std::fs::write(&listed, serde_json::to_string(&texts[0].tokens).unwrap()).unwrap();
    let by_ids = json(&[&endpoint[..], &["--tokens", &listed]].concat());
    assert_eq!(by_ids["texts"][0]["nll"], whole["texts"][0]["nll"]);
    let table = foggara(&[&["score"], &endpoint[..], &["--tokens", &listed]].concat());
    let nll = format!("{:.4}", by_ids["texts"][0]["nll"].as_f64().unwrap());
    assert!(table.status.success() && text(&table).contains(&nll), "{}", text(&table));

    // A text longer than the window: each token has the probability that its window gives it.
    let cut = json(&[&endpoint[..], &["--window", "16", "--stride", "5", names[0]]].concat());
    let scored = &cut["texts"][0];
    let (tokens, ours) = (&texts[0].tokens, logprobs(scored));
    assert_eq!(&ids(scored), tokens);
    let windows = scored["windows"].as_array().unwrap();
    let place = |value: &Value| value.as_u64().unwrap() as usize;
    let mut from = 1;
    for (number, window) in windows.iter().enumerate() {
        let (start, end) = (place(&window["start"]), place(&window["end"]));
        assert_eq!((start, end), (5 * number, (5 * number + 16).min(tokens.len())));
        let asked = Ask::tokens("smol", &tokens[start..end]).echo().logprobs(0).max_tokens(0);
        let answer = cluster.client(0).ask(asked).await;
        let theirs: Vec<Option<f32>> = answer.logprobs[from - start..].iter().map(|t| t.logprob).collect();
        assert_eq!(ours[from..end], theirs, "window {number}");
        from = end;
    }
    assert_eq!((ours[0], from), (None, tokens.len()));
    let sum: f64 = ours.iter().flatten().map(|logprob| f64::from(*logprob)).sum();
    let nll = -sum / (tokens.len() - 1) as f64;
    assert!((scored["nll"].as_f64().unwrap() - nll).abs() < 1e-9, "{scored}");

    for (arguments, says) in [
        (["--window", "9000", names[0]], "window: 9000, must be within 2..=8192"),
        (["--stride", "9000", names[0]], "stride: 9000"),
        (["--model", "nonesuch", names[0]], "model `nonesuch` is not served here (served: smol)"),
        (["--model", "smol", "/nonesuch/file"], "/nonesuch/file"),
    ] {
        let refused = foggara(&[&["score"], &endpoint[..], &arguments].concat());
        assert!(!refused.status.success() && text(&refused).contains(says), "{}", text(&refused));
    }
}
