//! A few requests whose answers must be the same wherever and beside whatever they are asked.

use foggara_tests::answer::{Answer, TokenBits};
use foggara_tests::ask::Ask;
use foggara_tests::client::Client;
use foggara_tests::reference::Smol;
use futures::future::join_all;

/// Tokens and log-probabilities, as bits.
pub type Bits = (Vec<u32>, Vec<TokenBits>);

/// Greedy, sampled, and a long prompt with the probabilities of each of its tokens. For a model of the SmolLM2 vocabulary.
pub fn smol(model: &str) -> Vec<Ask> {
    let reference = Smol::load();
    let chat = &reference.chat[1].prompt_tokens;
    let long: Vec<u32> =
        reference.teacher_forced.iter().flat_map(|text| text.tokens.clone()).cycle().take(500).collect();
    vec![
        Ask::tokens(model, chat).exactly(32).logprobs(5),
        Ask::tokens(model, chat).exactly(32).logprobs(3).sampled(0.9, 0.95, 7),
        Ask::tokens(model, &long).exactly(8).logprobs(2).echo(),
    ]
}

/// The same for the tiny checkpoints.
pub fn tiny(model: &str) -> Vec<Ask> {
    let prompt = |len: u32| (0..len).map(|i| 3 + (i * 37) % 300).collect::<Vec<u32>>();
    vec![
        Ask::tokens(model, &prompt(20)).exactly(64).logprobs(5),
        Ask::tokens(model, &prompt(33)).exactly(64).logprobs(3).sampled(0.9, 0.95, 7),
        Ask::tokens(model, &prompt(400)).exactly(16).logprobs(2).echo(),
    ]
}

/// Asks them one after the other.
pub async fn one_by_one(client: &Client, asks: &[Ask]) -> Vec<Bits> {
    let mut answers = Vec::new();
    for ask in asks {
        answers.push(client.ask(ask.clone()).await.bits());
    }
    answers
}

/// Asks them all at once.
pub async fn together(client: &Client, asks: &[Ask]) -> Vec<Answer> {
    join_all(asks.iter().map(|ask| client.ask(ask.clone()))).await
}
