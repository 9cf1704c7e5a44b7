//! Over gRPC: the right code, and a message that names the field.

use foggara_proto::wire::inference::{ChatRequest, GenerateRequest, GenerateResponse};
use foggara_tests::ask::Ask;
use foggara_tests::client::Client;
use foggara_tests::machine;
use tonic::{Code, Request, Status};

use crate::shared::{SMOL, TINY};

async fn refused(client: &Client, request: GenerateRequest) -> Status {
    match client.stream(request.clone()).await {
        Err(status) => status,
        Ok(stream) => match foggara_tests::answer::Answer::collect(stream).await {
            Err(status) => status,
            Ok(answer) => panic!("was answered: {request:?}\n{answer:?}"),
        },
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_field_has_limits() {
    let _machine = machine::shared().await;
    let (tiny, smol) = (TINY.get().await, SMOL.get().await);
    let ok = || Ask::tokens("tiny", &[1, 2, 3]).max_tokens(4);
    let sampling = |temperature: f32, top_p: f32| ok().sampled(temperature, top_p, 1);
    let stop = |stops: Vec<String>| ok().sampling(|sampling| sampling.stop = stops);
    let stop_ids = |ids: Vec<u32>| ok().sampling(|sampling| sampling.stop_token_ids = ids);
    for (ask, code, names) in [
        (Ask::tokens("nonesuch", &[1]), Code::NotFound, "nonesuch"),
        (Ask::tokens("tiny", &[]), Code::InvalidArgument, "prompt"),
        (Ask::tokens("tiny", &[1; 513]), Code::InvalidArgument, "prompt"),
        (Ask::tokens("tiny", &[1; 512]), Code::InvalidArgument, "prompt"),
        (Ask::tokens("tiny", &[1, 320]), Code::InvalidArgument, "prompt"),
        (Ask::tokens("tiny", &[u32::MAX]), Code::InvalidArgument, "prompt"),
        (Ask::text("tiny", "text without a tokenizer"), Code::InvalidArgument, "prompt"),
        (ok().max_tokens(0), Code::InvalidArgument, "max_tokens"),
        (ok().max_tokens(510), Code::InvalidArgument, "max_tokens"),
        (ok().max_tokens(u32::MAX), Code::InvalidArgument, "max_tokens"),
        (sampling(-0.5, 1.0), Code::InvalidArgument, "temperature"),
        (sampling(f32::NAN, 1.0), Code::InvalidArgument, "temperature"),
        (sampling(f32::INFINITY, 1.0), Code::InvalidArgument, "temperature"),
        (sampling(1.0, 0.0), Code::InvalidArgument, "top_p"),
        (sampling(1.0, 1.5), Code::InvalidArgument, "top_p"),
        (ok().logprobs(21), Code::InvalidArgument, "logprobs"),
        (stop(vec![String::new()]), Code::InvalidArgument, "stop"),
        (stop(vec!["x".into(); 17]), Code::InvalidArgument, "stop"),
        (stop_ids(vec![320]), Code::InvalidArgument, "stop_token_ids"),
        (stop_ids(vec![1; 65]), Code::InvalidArgument, "stop_token_ids"),
        (ok().id("two words"), Code::InvalidArgument, "request_id"),
        (ok().id(&"x".repeat(129)), Code::InvalidArgument, "request_id"),
    ] {
        let request = ask.build();
        let status = refused(&tiny.client(0), request.clone()).await;
        assert_eq!(status.code(), code, "{} for {request:?}", status.message());
        assert!(status.message().contains(names), "`{}` does not name {names}", status.message());
    }
    let none = GenerateRequest { prompt: None, ..ok().build() };
    assert_eq!(refused(&tiny.client(0), none).await.code(), Code::InvalidArgument);
    let empty = refused(&smol.client(0), Ask::text("smol", "").build()).await;
    assert!(
        empty.code() == Code::InvalidArgument && empty.message().contains("prompt"),
        "{}",
        empty.message()
    );
    let chat = ChatRequest { model: "smol".into(), ..ChatRequest::default() };
    let status = smol.client(0).inference().chat(chat).await.unwrap_err();
    assert!(
        status.code() == Code::InvalidArgument && status.message().contains("messages"),
        "{}",
        status.message()
    );
    tiny.client(0).ask(ok()).await;
    tiny.wait_idle("tiny").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_id_is_answered_once_at_a_time() {
    let _machine = machine::shared().await;
    let cluster = SMOL.get().await;
    let ask = || Ask::tokens("smol", &[1, 2]).exactly(4000).id("the-same").build();
    let mut first = cluster.client(0).stream(ask()).await.unwrap();
    while !matches!(
        first.message().await.unwrap().and_then(|message| message.event),
        Some(foggara_proto::wire::inference::generate_response::Event::Delta(_))
    ) {}
    // For another request, whichever coordinator is asked. (The same request would listen to the same answer.)
    for number in 0..3 {
        let other = Ask::tokens("smol", &[1, 3]).exactly(4000).id("the-same").build();
        let status = refused(&cluster.client(number), other).await;
        assert_eq!(status.code(), Code::AlreadyExists, "{}", status.message());
        assert!(status.message().contains("the-same"), "{}", status.message());
        assert_eq!(status.message().matches("already").count(), 1, "said once: {}", status.message());
    }
    drop(first);
    cluster.wait_idle("smol").await;
}

/// A `GenerateRequest` whose text may be any bytes.
#[derive(Clone, PartialEq, prost::Message)]
struct RawRequest {
    #[prost(bytes = "vec", tag = "2")]
    text: Vec<u8>,
}

async fn send_raw(client: &Client, text: Vec<u8>) -> Status {
    let mut grpc = tonic::client::Grpc::new(client.channel());
    grpc.ready().await.expect("a connection");
    let codec = tonic_prost::ProstCodec::<RawRequest, GenerateResponse>::default();
    let path = "/foggara.inference.v1.Inference/Generate".parse().expect("a path");
    grpc.server_streaming(Request::new(RawRequest { text }), path, codec)
        .await
        .map(drop)
        .expect_err("is refused")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_none() {
    let _machine = machine::shared().await;
    let cluster = SMOL.get().await;
    let client = cluster.client(0);
    let status = send_raw(&client, b"caf\xe9 \xff\xfe".to_vec()).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{}", status.message());
    assert!(status.message().contains("UTF-8"), "{}", status.message());
    let status = send_raw(&client, vec![b'x'; 100 << 20]).await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{}", status.message());
    let answer = client.ask(Ask::text("smol", "Still here?").max_tokens(2)).await;
    assert!(!answer.token_ids.is_empty());
}
