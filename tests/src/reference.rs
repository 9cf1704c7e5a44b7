//! What the reference implementation says about SmolLM2-135M and the tiny golden checkpoints.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// `tests/expected/smollm2-135m.json` and its like.
#[derive(Debug, Deserialize)]
pub struct Smol {
    /// Chats answered greedily.
    pub chat: Vec<Chat>,
    /// Texts whose every token was scored.
    pub teacher_forced: Vec<Text>,
}

/// A chat and its greedy answer.
#[derive(Debug, Deserialize)]
pub struct Chat {
    /// What was asked.
    pub user: String,
    /// The chat as its template renders it.
    pub prompt_text: String,
    /// The same as tokens.
    pub prompt_tokens: Vec<u32>,
    /// The answer.
    pub greedy_tokens: Vec<u32>,
    /// The answer as text.
    pub greedy_text: String,
    /// How far the best logit is above the second, at each token of the answer.
    pub top1_top2_margin: Vec<f64>,
}

/// A text and how likely it is.
#[derive(Debug, Deserialize)]
pub struct Text {
    /// The text.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Log-probability of each token but the first.
    pub token_logprobs: Vec<f64>,
    /// Their mean, negated.
    pub mean_nll: f64,
}

/// `expected.json` of a golden checkpoint.
#[derive(Debug, Deserialize)]
pub struct Golden {
    /// Prompts.
    pub cases: Vec<Case>,
}

/// A prompt and what follows it.
#[derive(Debug, Deserialize)]
pub struct Case {
    /// Token ids.
    pub prompt: Vec<u32>,
    /// Log-probability of each but the first.
    pub prompt_logprobs: Vec<f64>,
    /// Logits after the last.
    pub logits_last: Vec<f64>,
    /// The greedy continuation, end tokens ignored.
    pub greedy: Vec<u32>,
}

impl Smol {
    /// Reads it.
    pub fn load() -> Self {
        Self::of("smollm2-135m")
    }

    /// Reads the values of the Mixtral made of it.
    pub fn load_mixtral() -> Self {
        Self::of("smolmix-8x135m")
    }

    fn of(name: &str) -> Self {
        read(&crate::paths::root().join(format!("tests/expected/{name}.json")))
    }
}

impl Golden {
    /// Reads the values of checkpoint `name`.
    pub fn load(name: &str) -> Self {
        read(&crate::paths::golden(name).join("expected.json"))
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> T {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
