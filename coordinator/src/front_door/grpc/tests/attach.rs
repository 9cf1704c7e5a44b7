//! Going on with requests of other coordinators.

use std::sync::atomic::Ordering;
use std::time::Duration;

use foggara_proto::sequence::FoundRequest;
use foggara_proto::wire::inference as wire;
use foggara_proto::wire::inference::generate_response::Event;
use foggara_proto::wire::inference::inference_client::InferenceClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::{connect, generate, run};
use crate::cluster::Command;
use crate::cluster::state::Member;
use crate::front_door::api_error::Kind;
use crate::front_door::fixture::{FakeGenerator, Fixture};
use crate::front_door::grpc::attach;
use crate::router::fake_peer::FakePeer;

/// All events, or the status that ended them.
async fn attached(
    channel: &Channel,
    request_id: &str,
    tokens_received: &[u32],
) -> Result<Vec<Event>, Status> {
    let mut client = InferenceClient::new(channel.clone());
    let request =
        wire::AttachRequest { request_id: request_id.into(), tokens_received: tokens_received.into() };
    let mut stream = client.attach(request).await?.into_inner();
    let mut events = Vec::new();
    while let Some(message) = stream.message().await? {
        events.extend(message.event);
    }
    Ok(events)
}

/// A front door beside another coordinator.
async fn beside(fixture: &Fixture) -> FakePeer {
    let peer = FakePeer::start().await;
    let member = Member { addr: peer.addr.clone(), http_addr: "h".into(), pid: 2, draining: false };
    fixture.door.cluster.propose(Command::RegisterMember { id: 2, member }).await.expect("written");
    peer
}

/// What a driver knows of the request that this front door was last asked for.
fn known(fixture: &Fixture, group: Option<u64>) -> FoundRequest {
    let asked = fixture.generator.asked.lock().expect("no panic");
    let first = asked.iter().rfind(|asked| asked.sibling_of.is_none()).expect("some").clone();
    FoundRequest { model: "m".into(), group, prompt: first.tokens, envelope: first.envelope }
}

/// Of answer `index`: texts, number of token ids, whether the end was told.
fn of(events: &[Event], index: u32) -> (Vec<&str>, usize, bool) {
    let (mut texts, mut ids, mut ended) = (Vec::new(), 0, false);
    for event in events {
        match event {
            Event::Delta(delta) if delta.index == index => {
                texts.push(delta.text.as_str());
                ids += delta.token_ids.len();
            }
            Event::Finished(finished) if finished.index == index => ended = true,
            _ => {}
        }
    }
    (texts, ids, ended)
}

/// How the answers ended.
fn ends(events: &[Event]) -> Vec<wire::Finished> {
    let finished = |event: &Event| match event {
        Event::Finished(finished) => Some(finished.clone()),
        _ => None,
    };
    let mut ends: Vec<_> = events.iter().filter_map(finished).collect();
    ends.sort_by_key(|finished| finished.index);
    ends
}

#[tokio::test]
async fn a_request_goes_on_where_its_client_is() {
    let fixture = Fixture::new(FakeGenerator { text: "日b".into(), ..FakeGenerator::default() });
    let (channel, peer) = (connect(&fixture).await, beside(&fixture).await);
    let sampling = wire::SamplingParams { n: Some(2), ..Default::default() };
    let output = wire::OutputOptions { echo: true, ..Default::default() };
    let asked = wire::GenerateRequest {
        request_id: "r-1".into(),
        sampling: Some(sampling),
        output: Some(output),
        ..generate("hi")
    };
    let whole = run(channel.clone(), asked).await.expect("answered");
    peer.knows(Some(known(&fixture, Some(7))));
    for (received, first, second) in [
        (vec![], (vec!["hi", "", "", "日", "b", ""], 5), (vec!["hi", "", "", "日", "b", ""], 5)),
        (vec![2], (vec!["日", "b", ""], 3), (vec!["hi", "", "", "日", "b", ""], 5)),
        (vec![3, 4], (vec!["b", ""], 2), (vec![""], 1)),
        (vec![0, 5], (vec!["hi", "", "", "日", "b", ""], 5), (vec![], 0)),
        (vec![5, 5], (vec![], 0), (vec![], 0)),
    ] {
        let events = attached(&channel, "r-1", &received).await.expect("answered");
        assert_eq!(events[0], whole[0], "it starts as it started");
        assert_eq!(of(&events, 0), (first.0, first.1, true), "{received:?}");
        assert_eq!(of(&events, 1), (second.0, second.1, true), "{received:?}");
        assert_eq!(ends(&events), ends(&whole), "the usage is the whole answer's");
        let groups: Vec<_> = {
            let asked = fixture.generator.asked.lock().expect("no panic");
            asked.iter().rev().take(2).map(|asked| asked.at).collect()
        };
        assert_eq!(groups, [Some(7), Some(7)], "where it is");
    }
    let Event::Started(started) = &whole[0] else { panic!("{whole:?}") };
    assert_eq!(started.n, 2);
    let counted = fixture.door.metrics.requests.with_label_values(&["m", "attach", "stop"]).get();
    assert_eq!(counted, 5);
}

#[tokio::test]
async fn what_cannot_be_gone_on_with_is_refused_by_name() {
    let fixture = Fixture::new(FakeGenerator::default());
    let (channel, peer) = (connect(&fixture).await, beside(&fixture).await);
    let sampling = wire::SamplingParams { n: Some(2), max_tokens: Some(6), ..Default::default() };
    run(channel.clone(), wire::GenerateRequest { sampling: Some(sampling), ..generate("hi") })
        .await
        .expect("answered");
    peer.knows(Some(known(&fixture, None)));
    for (request_id, received, says) in [
        ("", vec![], "request_id: is missing"),
        ("a b", vec![], "request_id: must be"),
        ("r", vec![1, 2, 3], "tokens_received: 3 numbers, but the request has 2 answers"),
        ("r", vec![1, 7], "tokens_received: 7 of answer 1, which has 6 tokens at most"),
    ] {
        let status = attached(&channel, request_id, &received).await.expect_err("refused");
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().starts_with(says), "{}", status.message());
    }
    peer.knows(Some(FoundRequest { model: "other".into(), ..known(&fixture, None) }));
    let status = attached(&channel, "r", &[]).await.expect_err("not served any more");
    assert_eq!(status.code(), Code::NotFound);
    fixture.door.draining.store(true, Ordering::SeqCst);
    let status = attached(&channel, "r", &[]).await.expect_err("stopping");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.metadata().contains_key("retry-after"));
}

#[tokio::test]
async fn a_request_is_looked_for_until_its_driver_is_there() {
    let fixture = Fixture::new(FakeGenerator::default());
    let (channel, peer) = (connect(&fixture).await, beside(&fixture).await);
    run(channel.clone(), generate("hi")).await.expect("answered");
    let found = known(&fixture, None);
    let mut asked = std::pin::pin!(attached(&channel, "r", &[3]));
    let early = tokio::time::timeout(Duration::from_millis(100), asked.as_mut()).await;
    assert!(early.is_err(), "nobody knows it yet, and nobody may know it a little later");
    peer.knows(Some(found));
    let events =
        tokio::time::timeout(Duration::from_secs(60), asked).await.expect("found").expect("answered");
    assert_eq!(of(&events, 0).0.concat(), "lo world");
}

#[tokio::test]
async fn what_nobody_has_is_not_found_and_it_is_said_what_to_do() {
    let fixture = Fixture::new(FakeGenerator::default());
    let _peer = beside(&fixture).await;
    let asked = wire::AttachRequest { request_id: "gone".into(), tokens_received: vec![] };
    let refused = attach::request(&fixture.door, asked, Duration::ZERO).await.err().expect("nobody has it");
    assert_eq!((refused.error.kind, refused.error.field), (Kind::NotFound, Some("request_id")));
    let message = refused.error.message;
    assert!(message.contains("`gone`") && message.contains("same request_id"), "{message}");
}
