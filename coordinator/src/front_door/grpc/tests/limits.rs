//! Sizes and numbers of calls.

use std::time::Duration;

use axum::body::Body;
use axum::http::Request as HttpRequest;
use foggara_proto::wire::inference as wire;
use foggara_proto::wire::inference::inference_client::InferenceClient;
use tonic::Code;
use tower::ServiceExt;

use super::{connect, generate, run};
use crate::front_door::MAX_BODY_BYTES;
use crate::front_door::fixture::{FakeGenerator, Fixture};

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
