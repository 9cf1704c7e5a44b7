//! The services through real connections.

use std::time::Duration;

use axum::body::Body;
use axum::http::Request as HttpRequest;
use foggara_proto::auth::ClusterToken;
use foggara_proto::wire::admin::admin_client::AdminClient;
use foggara_proto::wire::inference::inference_client::InferenceClient;
use foggara_proto::wire::{admin, inference as wire};
use tonic::Code;
use tonic::transport::Channel;
use tower::ServiceExt;

use crate::front_door::MAX_BODY_BYTES;
use crate::front_door::fixture::{FakeGenerator, Fixture};
use crate::router::GenerateError;

async fn connect(fixture: &Fixture) -> Channel {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let router = fixture.door.router();
    tokio::spawn(async move {
        crate::front_door::serve(listener, router, stopped).await;
        drop(stop);
    });
    Channel::from_shared(format!("http://{addr}")).expect("valid").connect().await.expect("it listens")
}

fn generate(text: &str) -> wire::GenerateRequest {
    wire::GenerateRequest {
        model: "m".into(),
        prompt: Some(wire::generate_request::Prompt::Text(text.into())),
        ..Default::default()
    }
}

/// All events, or the status that ended them.
async fn run(
    channel: Channel,
    request: wire::GenerateRequest,
) -> Result<Vec<wire::generate_response::Event>, tonic::Status> {
    let mut client = InferenceClient::new(channel).max_encoding_message_size(usize::MAX);
    let mut stream = client.generate(request).await?.into_inner();
    let mut events = Vec::new();
    while let Some(message) = stream.message().await? {
        events.extend(message.event);
    }
    Ok(events)
}

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

#[tokio::test]
async fn messages_that_are_too_large_or_no_text_are_refused() {
    let fixture = Fixture::new(FakeGenerator::default());
    let huge = generate(&"x".repeat(MAX_BODY_BYTES + 1));
    let status = run(connect(&fixture).await, huge).await.expect_err("refused");
    assert!([Code::OutOfRange, Code::ResourceExhausted].contains(&status.code()), "{status:?}");
    assert!(status.message().contains("too large"), "{}", status.message());
    // Field 2 (`text`), two bytes that are no text.
    let message = [18, 2, 0xff, 0xfe];
    let frame: Vec<u8> = [0, 0, 0, 0, message.len() as u8].into_iter().chain(message).collect();
    let request = HttpRequest::post("/foggara.inference.v1.Inference/Generate")
        .header("content-type", "application/grpc");
    let request = request.body(Body::from(frame)).expect("valid");
    let response = fixture.door.router().oneshot(request).await.expect("never fails");
    assert_eq!(response.headers()["grpc-status"], "3", "{:?}", response.headers());
    let message = response.headers()["grpc-message"].to_str().expect("ASCII");
    assert!(message.contains("UTF-8"), "{message}");
}

#[tokio::test]
async fn operators_read_their_own_writes() {
    let fixture = Fixture::new(FakeGenerator::default());
    let mut client = AdminClient::new(connect(&fixture).await);
    for (key, value) in [("a/1", "one"), ("a/2", "two"), ("b", "three")] {
        let note = admin::PutNoteRequest { key: key.into(), value: value.into(), request_id: String::new() };
        client.put_note(note).await.expect("written");
    }
    let get = |key: &str| admin::GetNoteRequest { key: key.into() };
    assert_eq!(client.get_note(get("a/2")).await.expect("read").into_inner().value.as_deref(), Some("two"));
    assert_eq!(client.get_note(get("none")).await.expect("read").into_inner().value, None);
    let listed = client.list_notes(admin::ListNotesRequest { prefix: "a/".into() }).await.expect("read");
    assert_eq!(listed.into_inner().notes.len(), 2);
    let refused = |status: tonic::Status| (status.code(), status.message().to_owned());
    let empty = admin::PutNoteRequest { key: String::new(), ..Default::default() };
    assert_eq!(refused(client.put_note(empty).await.expect_err("no key")).0, Code::FailedPrecondition);
    let remove = admin::RemoveDeploymentRequest { name: "none".into(), ..Default::default() };
    assert_eq!(refused(client.remove_deployment(remove).await.expect_err("none")).0, Code::NotFound);
    for (deployment, says) in [
        (None, "deployment"),
        (Some(admin::Deployment::default()), "name"),
        (Some(admin::Deployment { name: "m".into(), ..Default::default() }), "replicas"),
        (Some(admin::Deployment { name: "m".into(), tp: 65, ..Default::default() }), "tp"),
        (
            Some(admin::Deployment {
                name: "m".into(),
                tp: 2,
                dp: 1,
                replicas: 1,
                ep: 4,
                ..Default::default()
            }),
            "ep",
        ),
        (
            Some(admin::Deployment {
                name: "m".into(),
                tp: 1,
                replicas: 1,
                quantize: "q3".into(),
                ..Default::default()
            }),
            "quantize",
        ),
        (Some(admin::Deployment { name: "m".into(), tp: 1, ..Default::default() }), "replicas"),
        (
            Some(admin::Deployment {
                name: "m".into(),
                tp: 1,
                replicas: 1,
                kv_dtype: "x".into(),
                ..Default::default()
            }),
            "kv_dtype",
        ),
        (
            Some(admin::Deployment {
                name: "m".into(),
                tp: 1,
                replicas: 1,
                model_path: "/none".into(),
                ..Default::default()
            }),
            "model_path",
        ),
    ] {
        let put = admin::PutDeploymentRequest { deployment, request_id: String::new() };
        let (code, message) = refused(client.put_deployment(put).await.expect_err("refused"));
        assert!(code == Code::InvalidArgument && message.starts_with(says), "{says}: {message}");
    }
    let path = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/llama");
    let dense = admin::Deployment {
        name: "m2".into(),
        replicas: 1,
        model_path: path.to_string_lossy().into_owned(),
        ..Default::default()
    };
    let plan = admin::PlanDeploymentRequest { deployment: Some(dense.clone()), sequence_tokens: 0 };
    let plan = client.plan_deployment(plan).await.expect("answered").into_inner();
    assert_eq!(plan.missing, "1 idle worker is needed, there are 0");
    let experts = admin::Deployment { tp: 2, ep: 2, ..dense };
    let put = admin::PutDeploymentRequest { deployment: Some(experts), request_id: String::new() };
    let (_, message) = refused(client.put_deployment(put).await.expect_err("no experts"));
    assert_eq!(message, "ep: 2, but the model has no experts: only 1 is possible");
    let status = client.status(admin::StatusRequest {}).await.expect("answered").into_inner();
    assert_eq!((status.cluster_id.as_str(), status.answered_by, status.leader), ("test", 1, 1));
}

#[tokio::test]
async fn operators_show_the_cluster_token_and_clients_need_none() {
    let fixture = Fixture::with_token(FakeGenerator::default(), ClusterToken::new(Some("secret")));
    let channel = connect(&fixture).await;
    let status =
        AdminClient::new(channel.clone()).status(admin::StatusRequest {}).await.expect_err("refused");
    assert_eq!(status.code(), Code::Unauthenticated);
    let mut client =
        AdminClient::with_interceptor(channel.clone(), ClusterToken::new(Some("secret")).shown());
    client.status(admin::StatusRequest {}).await.expect("admitted");
    run(channel, generate("hi")).await.expect("clients have no token");
}

#[tokio::test]
async fn one_connection_carries_hundreds_of_streams() {
    let fixture = Fixture::new(FakeGenerator { hangs: Some(1), ..FakeGenerator::default() });
    let channel = connect(&fixture).await;
    let mut streams = Vec::new();
    for i in 0..600 {
        let request = wire::GenerateRequest { request_id: format!("r{i}"), ..generate("hi") };
        let mut client = InferenceClient::new(channel.clone());
        let stream = tokio::time::timeout(Duration::from_secs(60), client.generate(request)).await;
        let mut stream = stream.expect("none waits for another to end").expect("taken").into_inner();
        stream.message().await.expect("no error").expect("started");
        streams.push(stream);
    }
    assert_eq!(fixture.door.metrics.requests_in_progress(), 600);
    drop(streams);
    while fixture.door.metrics.requests_in_progress() > 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
