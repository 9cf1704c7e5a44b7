//! What is kept, and what spans are made of it.

use foggara_proto::sequence::{SequenceEnd, SequenceParams};
use opentelemetry::trace::{SpanKind, Status};
use opentelemetry_sdk::trace::SpanData;

use super::*;
use crate::timeline::{Held, PhaseKind, Step};

fn front(id: &str, arrived: Micros) -> Front {
    Front { request_id: id.into(), api: "chat", model: "m".into(), arrived, ..Front::default() }
}

fn request(id: &str) -> SequenceRequest {
    SequenceRequest::new(id, vec![1, 2, 3], 3, SequenceParams::default())
}

fn began(now: Micros) -> Began<'static> {
    Began {
        now,
        group: 4,
        driver_epoch: 9,
        model: "m",
        ahead: 1,
        running: 2,
        phase: PhaseKind::Queue,
        held: Held::default(),
    }
}

fn ids(fronts: &[Front]) -> Vec<&str> {
    fronts.iter().map(|front| front.request_id.as_str()).collect()
}

#[test]
fn the_last_requests_are_kept_and_no_more() {
    let timelines = Timelines::default();
    assert_eq!(timelines.oldest(), None);
    for number in 0..KEPT_REQUESTS + 10 {
        timelines.front(front(&format!("r{number}"), number as Micros)).ended("stop");
    }
    assert!(timelines.find("r9").is_none() && timelines.find("r10").is_some());
    assert_eq!(timelines.oldest(), Some(10));
    assert_eq!(timelines.list(false, usize::MAX).len(), KEPT_REQUESTS);
    assert_eq!(
        ids(&timelines.list(false, 2)),
        [format!("r{}", KEPT_REQUESTS + 9), format!("r{}", KEPT_REQUESTS + 8)]
    );
}

#[test]
fn the_slowest_come_first_also_while_they_run() {
    let timelines = Timelines::default();
    let now = timelines.now();
    for (id, arrived) in [("short", now - 10), ("long", now - 60_000_000), ("middle", now - 30_000_000)] {
        timelines.front(front(id, arrived));
    }
    timelines
        .front(front("ended", now - 90_000_000))
        .update(|front, now| front.end = Some((now - 89_000_000, "stop".into())));
    assert_eq!(ids(&timelines.list(true, 3)), ["long", "middle", "ended"]);
}

#[test]
fn one_request_has_parts_of_front_doors_and_drivers() {
    let timelines = Timelines::default();
    let recording = timelines.front(front("r", 5));
    let sibling = SequenceRequest { request_id: "r#2".into(), sibling_of: Some("r".into()), ..request("r") };
    let placement = Placement { at: 6, group: 4, coordinator: 2, driver_epoch: 9, choice: 0 };
    timelines.placed(&sibling, placement);
    timelines.placed(&request("unknown"), placement);
    let mut first = timelines.driven(&request("r"), 0, began(7));
    first.ended(End::Whole(SequenceEnd::Length));
    drop(first);
    // One that is dropped without an end has lost its driver.
    drop(timelines.driven(&sibling, 0, began(8)));
    recording.tokens(3);
    recording.ended("length");
    recording.ended("cancelled");
    let parts = timelines.find("r").expect("kept");
    let ends: Vec<_> =
        parts.driven.iter().map(|part| (part.choice, part.end.map(|(_, end)| end.name()))).collect();
    assert_eq!(ends, [(0, Some("length")), (2, Some("driver lost"))]);
    let front = &parts.fronts[0];
    assert_eq!(front.placements.first, [Placement { choice: 2, ..placement }]);
    assert_eq!(front.end.as_ref().map(|(_, how)| how.as_str()), Some("length"));
    assert!(timelines.find("unknown").is_none());
}

#[test]
fn parts_of_one_request_are_bounded() {
    let timelines = Timelines::default();
    for number in 0..100 {
        timelines.front(front("r", number));
        drop(timelines.driven(&request("r"), 0, began(number)));
    }
    let parts = timelines.find("r").expect("kept");
    assert_eq!((parts.fronts.len(), parts.driven.len(), parts.more_driven), (8, 32, 68));
    assert_eq!(parts.fronts.last().map(|front| front.arrived), Some(99), "the latest");
}

#[test]
fn a_trace_is_gone_on_with_and_none_begun_that_nobody_gets() {
    let timelines = Timelines::default();
    assert_eq!(timelines.arrival("", "a=1").trace, None);
    for (flags, sampled) in [("01", true), ("00", false)] {
        let parent = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
        let arrival = timelines.arrival(&parent, "a=1");
        let trace = arrival.trace.clone().expect("its client's");
        assert_eq!(trace.trace_id_text(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(
            (arrival.parent_span, trace.sampled, trace.state.as_str()),
            (0x00f0_67aa_0ba9_02b7, sampled, "a=1")
        );
        assert_ne!(trace.span_id, arrival.parent_span);
        let another = arrival.another().trace.expect("the same");
        assert!(another.trace_id == trace.trace_id && another.span_id != trace.span_id);
    }
}

fn attribute(span: &SpanData, key: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key.as_str() == key);
    found.map(|attribute| attribute.value.to_string()).unwrap_or_default()
}

#[test]
fn a_timeline_becomes_spans_below_the_clients() {
    let trace = TraceContext { trace_id: 77, span_id: 5, sampled: true, state: "a=1".into() };
    let mut ended = front("r", 1_000);
    (ended.trace, ended.parent_span) = (Some(trace.clone()), 3);
    (ended.prompt_tokens, ended.completion_tokens, ended.first_token) = (10, 4, Some(3_000));
    assert!(spans::front(&ended, 1).is_empty(), "it has not ended");
    for (how, status) in [("stop", Status::Unset), ("queue_full", Status::error("queue_full"))] {
        ended.end = Some((9_000, how.into()));
        let spans = spans::front(&ended, 1);
        let [span] = spans.as_slice() else { panic!("{spans:?}") };
        assert_eq!(span.span_context.trace_id(), 77_u128.into());
        assert_eq!((span.span_context.span_id(), span.parent_span_id), (5_u64.into(), 3_u64.into()));
        assert_eq!((&span.span_kind, &span.name[..], &span.status), (&SpanKind::Server, "chat m", &status));
        assert_eq!(span.span_context.trace_state().header(), "a=1");
        let duration = span.end_time.duration_since(span.start_time).expect("in order");
        assert_eq!(duration.as_micros(), 8_000);
        assert_eq!(attribute(span, "gen_ai.usage.input_tokens"), "10");
        assert_eq!(attribute(span, "gen_ai.usage.output_tokens"), "4");
        assert_eq!(attribute(span, "error.type").is_empty(), how == "stop");
    }
    let request = SequenceRequest { trace: Some(trace.clone()), ..request("r") };
    let step = Step { number: 8, rows: 3, prefill_rows: 3, ..Step::default() };
    let mut driven = Driven::new(&request, 0, began(1_100));
    driven.entered(1_200, 0, Held { memory_us: 60, ..Held::default() });
    driven.read(1_900, 3, step);
    driven.tokens(1_900, 1, step);
    driven.tokens(2_900, 1, Step { number: 9, ..step });
    driven.ended(2_950, End::Cancelled);
    let spans = spans::driven(&driven, 2);
    let told: Vec<_> =
        spans.iter().map(|span| (&span.name[..], span.parent_span_id, span.events.len())).collect();
    assert_eq!(told, [("queue", 5_u64.into(), 0), ("prefill", 5_u64.into(), 1), ("decode", 5_u64.into(), 1)]);
    assert_eq!(attribute(&spans[0], "foggara.queue.held_by_memory_us"), "60");
    assert_eq!(attribute(&spans[2], "foggara.end"), "cancelled");
    let unsampled = TraceContext { sampled: false, ..trace };
    (driven.trace, ended.trace) = (Some(unsampled.clone()), Some(unsampled));
    assert!(spans::driven(&driven, 2).is_empty() && spans::front(&ended, 1).is_empty());
}

#[tokio::test]
async fn an_exporter_needs_an_address_and_honours_its_clients_wish() {
    for wrong in ["", "collector:4317", "https://collector:4317", "grpc://x"] {
        let error = Exporter::new(wrong, 1).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("http://collector:4317"), "{wrong}: {error}");
    }
    let timelines = Timelines::default();
    // Nobody listens on this port: nothing here may wait for it.
    timelines.export(1, Exporter::new("http://127.0.0.1:9", 1).expect("an address"));
    for (flags, sampled) in [("01", true), ("00", false)] {
        let parent = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
        let trace = timelines.arrival(&parent, "").trace.expect("its client's");
        assert_eq!(trace.sampled, sampled);
    }
    let own = timelines.arrival("", "").trace.expect("traces are exported");
    assert!(own.sampled && own.trace_id != 0);
    let traced = Front { trace: Some(own), ..front("r", 5) };
    timelines.front(traced).ended("stop");
}
