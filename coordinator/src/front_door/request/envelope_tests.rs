//! A request that has been through its envelope is the same request.

use std::sync::Arc;

use foggara_proto::sequence::SequenceRequest;
use futures::StreamExt;
use serde_json::json;

use super::*;
use crate::cluster::state::adapters::Adapter;
use crate::front_door::fixture::{FakeGenerator, Fixture, model};
use crate::front_door::generation::{self, Event};
use crate::front_door::http::tests as http;
use crate::metrics::Metrics;
use crate::router::Generator;
use crate::text::fixture::byte_tokenizer;

fn found(sequence: &SequenceRequest, group: Option<u64>) -> foggara_proto::sequence::FoundRequest {
    let (prompt, envelope) = (sequence.tokens.clone(), sequence.envelope.clone());
    foggara_proto::sequence::FoundRequest { model: "m".into(), group, prompt, envelope }
}

fn rebuilt(sequence: &SequenceRequest) -> GenerationRequest {
    let model = Arc::new(model(Some(byte_tokenizer())));
    rebuild(model, found(sequence, None)).map_err(|e| e.message).expect("valid")
}

/// Everything that comes of it.
async fn events(request: GenerationRequest) -> Vec<(usize, Event)> {
    let (generator, metrics): (Arc<dyn Generator>, _) =
        (Arc::new(FakeGenerator::default()), Arc::new(Metrics::new()));
    let mut events: Vec<_> =
        generation::run(&generator, &metrics, &crate::traces::Timelines::default(), "test", request)
            .map(|event| event.map_err(|e| e.message).expect("no failure"))
            .collect()
            .await;
    // Choices come in any order among themselves.
    events.sort_by_key(|(index, _)| *index);
    events
}

#[tokio::test]
async fn every_field_survives() {
    let some = |text: &str| vec![text.to_owned()];
    let none = Ask::default;
    let text = || Prompt::Text("hi there".into());
    let special = || Prompt::Tokens(vec![104, 256, 105]);
    for (prompt, ask) in [
        (text(), none()),
        (text(), Ask { n: Some(3), seed: Some(u64::MAX), ..none() }),
        (
            text(),
            Ask { max_tokens: Some(7), min_tokens: 3, temperature: Some(0.25), top_p: Some(0.5), ..none() },
        ),
        (text(), Ask { default_max_tokens: Some(16), top_k: Some(4), min_p: Some(0.125), ..none() }),
        (text(), Ask { repetition_penalty: Some(1.5), presence_penalty: Some(-1.0), ..none() }),
        (text(), Ask { frequency_penalty: Some(0.5), logit_bias: vec![(3, -4.0), (9, 1.5)], ..none() }),
        (
            text(),
            Ask {
                allowed_token_ids: vec![104, 7],
                banned_token_ids: vec![9],
                bad_words: some("x y"),
                ..none()
            },
        ),
        (text(), Ask { stop: some("lo"), stop_token_ids: vec![119], include_stop: true, ..none() }),
        (text(), Ask { ignore_eos: true, special: true, min_tokens: 2, max_tokens: Some(20), ..none() }),
        (text(), Ask { logprobs: Some(2), prompt_logprobs: Some(1), n: Some(2), ..none() }),
        (text(), Ask { echo: true, ..none() }),
        (text(), Ask { echo: true, logprobs: Some(1), max_tokens: Some(0), ..none() }),
        (text(), Ask { echo: true, prompt_logprobs: Some(0), n: Some(2), ..none() }),
        (special(), Ask { echo: true, ..none() }),
        (special(), Ask { echo: true, special: true, ..none() }),
        // Its text is not what its tokens say: the special token has none.
        (Prompt::Text("h<|end|>i".into()), Ask { echo: true, ..none() }),
        (text(), Ask { priority: -9, cache_salt: Some("s".into()), deadline_ms: Some(5000), ..none() }),
        (text(), Ask { session: Some("a chat".into()), ..none() }),
    ] {
        let ask = Ask { request_id: "mine".into(), ..ask };
        let model = Arc::new(model(Some(byte_tokenizer())));
        let first = check(model, None, prompt, ask.clone(), true);
        let mut first = first.map_err(|e| e.message).expect("valid");
        first.sequence.named = true;
        let again = rebuilt(&first.sequence);
        assert_eq!(again.sequences(), first.sequences(), "{ask:?}");
        assert_eq!((again.prompt_text.clone(), again.n), (first.prompt_text.clone(), first.n), "{ask:?}");
        assert_eq!(events(again).await, events(first).await, "{ask:?}");
    }
}

#[tokio::test]
async fn chats_and_http_requests_survive() {
    let fixture = Fixture::new(FakeGenerator::default());
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "n": 2, "temperature": 0.5,
        "logprobs": true, "top_logprobs": 3, "prompt_cache_key": "a chat"});
    http::answer(&fixture, http::CHAT, chat).await;
    assert!(!fixture.generator.asked.lock().expect("no panic")[0].named, "no client has named it");
    let several = json!({"prompt": ["x", [121, 122]], "echo": true, "logprobs": 1, "stop": ["wor"], "seed": -3,
        "skip_special_tokens": false, "max_tokens": 9});
    http::answer(&fixture, http::COMPLETIONS, several).await;
    let mut asked = fixture.generator.asked.lock().expect("no panic").clone();
    // Whoever attaches knows the name.
    asked.iter_mut().for_each(|asked| asked.named = true);
    let firsts: Vec<&SequenceRequest> = asked.iter().filter(|asked| asked.sibling_of.is_none()).collect();
    assert_eq!(firsts.len(), 3, "each prompt is a request of its own");
    assert_ne!(firsts[1].request_id, firsts[2].request_id);
    for first in firsts {
        let sequences = rebuilt(first).sequences();
        assert_eq!(&sequences[0], first);
        let siblings: Vec<SequenceRequest> = asked
            .iter()
            .filter(|asked| asked.sibling_of.as_ref() == Some(&first.request_id))
            .cloned()
            .collect();
        assert_eq!(sequences[1..], siblings);
    }
}

#[test]
fn defaults_are_filled_in_and_the_group_is_kept_to() {
    let first = check(
        Arc::new(model(Some(byte_tokenizer()))),
        Some(20),
        Prompt::Text("hi".into()),
        Ask { request_id: "r".into(), n: Some(2), default_max_tokens: Some(50), ..Ask::default() },
        true,
    );
    let first = first.map_err(|e| e.message).expect("valid").sequence;
    let wire = foggara_proto::wire::inference::GenerateRequest::from_envelope(&first.envelope).expect("one");
    let sampling = wire.sampling.expect("filled in");
    assert_eq!((sampling.max_tokens, sampling.seed), (Some(19), Some(first.params.seed)));
    assert_eq!((sampling.temperature, sampling.top_p, sampling.n), (Some(1.0), Some(1.0), Some(2)));
    assert_eq!((wire.model.as_str(), wire.prompt), ("m", None));
    let model = Arc::new(model(Some(byte_tokenizer())));
    let again = rebuild(model.clone(), found(&first, Some(7))).map_err(|e| e.message).expect("valid");
    let sequences = again.sequences();
    assert_eq!((sequences[0].at, sequences[1].at), (Some(7), Some(7)));
    assert!(!sequences[0].envelope.is_empty() && sequences[1].envelope.is_empty());
    let broken = SequenceRequest { envelope: vec![255; 9], ..first };
    let error = rebuild(model, found(&broken, None)).err().expect("no envelope");
    assert!(error.message.contains("cannot be read"), "{}", error.message);
}

#[test]
fn an_adapters_request_is_found_under_the_name_its_client_used() {
    let adapter =
        Adapter { id: 5, deployment: "m".into(), path: "/a".into(), manifest: String::new(), created: 9 };
    let served = ServedModel { name: "a".into(), adapter: Some(adapter), ..model(None) };
    let ask = Ask { request_id: "r".into(), ..Ask::default() };
    let asked = check(Arc::new(served.clone()), None, Prompt::Tokens(vec![1, 2]), ask, false);
    let sequence = asked.map_err(|e| e.message).expect("valid").sequence;
    assert_eq!(sequence.params.adapter, Some(5));
    let found = found(&sequence, Some(3));
    assert_eq!(model_of(&found), "a");
    let again = rebuild(Arc::new(served), found.clone()).map_err(|e| e.message).expect("valid");
    assert_eq!((again.sequence.params, again.sequence.at), (sequence.params, Some(3)));
    let unreadable = foggara_proto::sequence::FoundRequest { envelope: vec![255], ..found };
    assert_eq!(model_of(&unreadable), "m");
}
