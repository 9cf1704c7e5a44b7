//! Generating, and what is refused.

use std::time::Duration;

use foggara_proto::wire::inference as wire;
use foggara_proto::wire::inference::inference_client::InferenceClient;
use tonic::Code;

use super::{connect, generate, run};
use crate::front_door::fixture::{FakeGenerator, Fixture};
use crate::router::GenerateError;

#[tokio::test]
async fn a_stream_starts_tells_and_finishes() {
    use wire::generate_response::Event;
    let fixture = Fixture::new(FakeGenerator { text: "ab".into(), ..FakeGenerator::default() });
    let channel = connect(&fixture).await;
    let output = wire::OutputOptions { logprobs: Some(1), echo: true, ..Default::default() };
    let request = wire::GenerateRequest { output: Some(output), request_id: "r-1".into(), ..generate("hi") };
    let events = run(channel.clone(), request).await.expect("answered");
    let [
        Event::Started(started),
        Event::Delta(echo),
        Event::Delta(a),
        Event::Delta(_),
        Event::Delta(end),
        Event::Finished(last),
    ] = &events[..]
    else {
        panic!("{events:?}")
    };
    assert_eq!((started.request_id.as_str(), &started.prompt_token_ids[..]), ("r-1", &[104, 105][..]));
    assert_eq!((echo.text.as_str(), &echo.token_ids[..]), ("hi", &[104, 105][..]));
    assert_eq!((echo.logprobs[0].logprob, echo.logprobs[1].logprob), (None, Some(-0.5)));
    assert_eq!((a.text.as_str(), a.logprobs[0].token.as_str(), a.logprobs[0].top.len()), ("a", "a", 1));
    assert_eq!((end.text.as_str(), &end.token_ids[..]), ("", &[256][..]));
    assert_eq!(last.reason(), wire::FinishReason::Stop);
    assert_eq!(last.stop_token_id, Some(256));
    assert_eq!(last.usage, Some(wire::Usage { prompt_tokens: 2, cached_tokens: 0, completion_tokens: 3 }));

    let message =
        |role: &str, content: &str| wire::ChatMessage { role: role.into(), content: content.into() };
    let chat = wire::ChatRequest { messages: vec![message("user", "hi")], ..Default::default() };
    let mut stream = InferenceClient::new(channel.clone()).chat(chat).await.expect("taken").into_inner();
    let mut text = String::new();
    while let Some(message) = stream.message().await.expect("no error") {
        if let Some(Event::Delta(delta)) = message.event {
            text.push_str(&delta.text);
        }
    }
    assert_eq!(text, "ab");
    let named: Vec<bool> =
        fixture.generator.asked.lock().expect("no panic").iter().map(|a| a.named).collect();
    assert_eq!(named, [true, false], "who chose the request id");
    let models = InferenceClient::new(channel).list_models(wire::ListModelsRequest {}).await.expect("listed");
    let models = models.into_inner().models;
    assert_eq!((models[0].name.as_str(), models[0].context, models[0].ready_replicas), ("m", 100, 0));
}

#[tokio::test]
async fn several_choices_come_in_one_stream() {
    use wire::generate_response::Event;
    let fixture = Fixture::new(FakeGenerator { text: "ab".into(), ..FakeGenerator::default() });
    let sampling = wire::SamplingParams { n: Some(2), logit_bias: [(5, 1.5)].into(), ..Default::default() };
    let output = wire::OutputOptions { prompt_logprobs: Some(1), ..Default::default() };
    let request = wire::GenerateRequest {
        sampling: Some(sampling),
        output: Some(output),
        priority: 7,
        cache_salt: Some("s".into()),
        prompt_cache_key: Some("a chat".into()),
        ..generate("hi")
    };
    let events = run(connect(&fixture).await, request).await.expect("answered");
    let (mut texts, mut scored, mut usage) = ([String::new(), String::new()], [0, 0], Vec::new());
    for event in events {
        match event {
            Event::Started(_) => {}
            Event::Delta(delta) => {
                let index = delta.index as usize;
                texts[index].push_str(&delta.text);
                scored[index] += delta.prompt_logprobs.len();
                assert!(delta.logprobs.is_empty());
            }
            Event::Finished(finished) => usage.push((finished.index, finished.usage.expect("told"))),
        }
    }
    assert_eq!((texts, scored), (["ab".to_owned(), "ab".to_owned()], [2, 2]));
    usage.sort_by_key(|(index, _)| *index);
    let expected = |prompt_tokens| wire::Usage { prompt_tokens, cached_tokens: 0, completion_tokens: 3 };
    assert_eq!(usage, [(0, expected(2)), (1, expected(0))]);
    let asked = fixture.generator.asked.lock().expect("no panic")[0].clone();
    assert_eq!((asked.priority, asked.cache_salt.as_deref()), (7, Some("s")));
    assert_eq!(asked.session.as_deref(), Some("a chat"));
    assert_eq!(asked.params.logit_bias, [(5, 1.5)]);
}

#[tokio::test]
async fn every_mistake_has_its_code() {
    let fixture = Fixture::new(FakeGenerator::default());
    let channel = connect(&fixture).await;
    let sampling = |s: wire::SamplingParams| wire::GenerateRequest { sampling: Some(s), ..generate("hi") };
    let tokens = |ids: &[u32]| wire::GenerateRequest {
        prompt: Some(wire::generate_request::Prompt::Tokens(wire::TokenIds { ids: ids.to_vec() })),
        ..generate("")
    };
    let none = wire::SamplingParams::default;
    for (request, code, says) in [
        (wire::GenerateRequest { model: "other".into(), ..generate("hi") }, Code::NotFound, "`other`"),
        (generate(""), Code::InvalidArgument, "prompt"),
        (tokens(&[]), Code::InvalidArgument, "prompt"),
        (tokens(&[1, 300]), Code::InvalidArgument, "token id 300"),
        (wire::GenerateRequest { prompt: None, ..generate("") }, Code::InvalidArgument, "prompt"),
        (generate(&"x".repeat(101)), Code::InvalidArgument, "context of 100"),
        (
            wire::GenerateRequest { request_id: "a b".into(), ..generate("hi") },
            Code::InvalidArgument,
            "request_id",
        ),
        (
            sampling(wire::SamplingParams { max_tokens: Some(0), ..none() }),
            Code::InvalidArgument,
            "max_tokens",
        ),
        (
            sampling(wire::SamplingParams { max_tokens: Some(u32::MAX), ..none() }),
            Code::InvalidArgument,
            "max_tokens",
        ),
        (
            sampling(wire::SamplingParams { temperature: Some(-0.5), ..none() }),
            Code::InvalidArgument,
            "temperature",
        ),
        (
            sampling(wire::SamplingParams { stop_token_ids: vec![500], ..none() }),
            Code::InvalidArgument,
            "stop_token_ids",
        ),
        (sampling(wire::SamplingParams { n: Some(17), ..none() }), Code::InvalidArgument, "n: 17"),
        (
            sampling(wire::SamplingParams { logit_bias: [(1, f32::NAN)].into(), ..none() }),
            Code::InvalidArgument,
            "logit_bias",
        ),
        (wire::GenerateRequest { priority: 1001, ..generate("hi") }, Code::InvalidArgument, "priority"),
        (
            wire::GenerateRequest { cache_salt: Some(String::new()), ..generate("hi") },
            Code::InvalidArgument,
            "cache_salt",
        ),
    ] {
        let status = run(channel.clone(), request.clone()).await.expect_err("refused");
        assert_eq!(status.code(), code, "{request:?}: {status:?}");
        assert!(status.message().contains(says), "{}", status.message());
    }
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let full = GenerateError::QueueFull { model: "m".into(), limit: 3, retry_after: Duration::from_secs(7) };
    let fixture = Fixture::new(FakeGenerator { fails: Some((0, full)), ..FakeGenerator::default() });
    let status = run(connect(&fixture).await, generate("hi")).await.expect_err("refused");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.metadata().get("retry-after").map(|value| value.as_bytes()), Some(&b"7"[..]));
}
