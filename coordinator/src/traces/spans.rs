//! Timelines as spans of OpenTelemetry, with the attributes of its conventions for generative AI where it has one.
//!
//! A request is a server span; each phase that a driver saw is a span below it, so both coordinators export what they know.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use foggara_proto::trace::TraceContext;
use foggara_proto::version::Build;
use opentelemetry::trace::{Event, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::new_span_id;
use crate::timeline::{Chunk, Driven, Front, Micros, Phase, PhaseKind, SlowToken, Step};

/// Ends of a request that are its client's wish or the answer's own.
const GOOD_ENDS: [&str; 3] = ["stop", "length", "cancelled"];

fn time(at: Micros) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(at)
}

fn number(key: &'static str, value: impl TryInto<i64>) -> KeyValue {
    KeyValue::new(key, value.try_into().unwrap_or(i64::MAX))
}

/// How a request of an API is called: the conventions' `gen_ai.operation.name`.
fn operation(api: &str) -> &'static str {
    if api == "chat" { "chat" } else { "text_completion" }
}

/// The context of a span as the SDK has it.
pub(super) fn context(trace: &TraceContext, span_id: u64) -> SpanContext {
    let flags = if trace.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    let state = trace.state.parse().unwrap_or(TraceState::NONE);
    SpanContext::new(trace.trace_id.into(), span_id.into(), flags, false, state)
}

fn span(trace: &TraceContext, span_id: u64, parent: u64, name: String, from: Micros, to: Micros) -> SpanData {
    SpanData {
        span_context: context(trace, span_id),
        parent_span_id: SpanId::from(parent),
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: name.into(),
        start_time: time(from),
        end_time: time(to.max(from)),
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::builder("foggara")
            .with_version(Build::own().version)
            .build(),
    }
}

/// The server span of a request that has ended; none if it is not recorded.
pub(super) fn front(front: &Front, coordinator: u64) -> Vec<SpanData> {
    let (Some(trace), Some((ended, how))) = (&front.trace, &front.end) else { return Vec::new() };
    if !trace.sampled {
        return Vec::new();
    }
    let operation = operation(front.api);
    let name = format!("{operation} {}", front.model);
    let mut span = span(trace, trace.span_id, front.parent_span, name, front.arrived, *ended);
    span.parent_span_is_remote = front.parent_span != 0;
    span.span_kind = SpanKind::Server;
    span.attributes = vec![
        KeyValue::new("gen_ai.operation.name", operation),
        KeyValue::new("gen_ai.provider.name", "foggara"),
        KeyValue::new("gen_ai.request.model", front.model.clone()),
        KeyValue::new("gen_ai.response.model", front.model.clone()),
        KeyValue::new("gen_ai.response.id", front.request_id.clone()),
        number("gen_ai.request.choice.count", front.choices),
        number("gen_ai.request.max_tokens", front.max_tokens),
        number("gen_ai.usage.input_tokens", front.prompt_tokens),
        number("gen_ai.usage.cache_read.input_tokens", front.cached_tokens),
        number("gen_ai.usage.output_tokens", front.completion_tokens),
        KeyValue::new("foggara.api", front.api),
        number("foggara.coordinator", coordinator),
        number("foggara.client_wait_us", front.client_us),
    ];
    if GOOD_ENDS.contains(&how.as_str()) {
        let reasons = Value::Array(vec![StringValue::from(how.clone())].into());
        span.attributes.push(KeyValue::new("gen_ai.response.finish_reasons", reasons));
    } else {
        span.attributes.push(KeyValue::new("error.type", how.clone()));
        span.status = Status::error(how.clone());
    }
    let mut events = vec![Event::new("checked", time(front.checked), Vec::new(), 0)];
    events.extend(front.placements.first.iter().map(|placement| {
        let attributes = vec![
            number("foggara.group", placement.group),
            number("foggara.coordinator", placement.coordinator),
            number("foggara.driver_epoch", placement.driver_epoch),
        ];
        Event::new("handed to a driver", time(placement.at), attributes, 0)
    }));
    events.extend(front.first_token.map(|at| Event::new("first token", time(at), Vec::new(), 0)));
    span.events.events = events;
    vec![span]
}

/// A span for each phase of a sequence that has ended here; none if it is not recorded.
pub(super) fn driven(driven: &Driven, coordinator: u64) -> Vec<SpanData> {
    let (Some(trace), Some((ended, _))) = (&driven.trace, &driven.end) else { return Vec::new() };
    if !trace.sampled {
        return Vec::new();
    }
    let last = driven.phases.first.len().saturating_sub(1);
    let phase = |(index, phase): (usize, &Phase)| {
        let to = phase.to.unwrap_or(*ended);
        let mut span =
            span(trace, new_span_id(), trace.span_id, phase.kind.name().to_owned(), phase.from, to);
        span.attributes = vec![
            KeyValue::new("foggara.request_id", driven.request_id.clone()),
            number("foggara.choice", driven.choice),
            number("foggara.coordinator", coordinator),
            number("foggara.group", driven.group),
            number("foggara.driver_epoch", driven.driver_epoch),
        ];
        let within = |at: Micros| phase.from < at && at <= to;
        match phase.kind {
            PhaseKind::Queue => span.attributes.extend(queue(driven)),
            PhaseKind::Preempted => {}
            PhaseKind::Prefill => {
                let chunks = driven.chunks.first.iter().filter(|chunk| within(chunk.at));
                span.events.events = chunks.map(chunk).collect();
            }
            PhaseKind::Decode => {
                let slow = driven.gaps.slowest().iter().filter(|token| within(token.at));
                span.events.events = slow.map(slow_token).collect();
            }
        }
        if index == last {
            let end = driven.end.map(|(_, end)| end.name()).unwrap_or_default();
            span.attributes.push(KeyValue::new("foggara.end", end));
            span.attributes.push(number("foggara.tokens", driven.tokens));
            span.attributes.push(number("foggara.preemptions", driven.preemptions));
        }
        span
    };
    driven.phases.first.iter().enumerate().map(phase).collect()
}

/// What a sequence waited for.
fn queue(driven: &Driven) -> [KeyValue; 5] {
    [
        number("foggara.queue.ahead", driven.ahead),
        number("foggara.queue.running", driven.running),
        number("foggara.queue.held_by_places_us", driven.held.places_us),
        number("foggara.queue.held_by_memory_us", driven.held.memory_us),
        number("foggara.queue.held_by_prompts_us", driven.held.prompts_us),
    ]
}

fn step(step: &Step) -> [KeyValue; 7] {
    [
        number("foggara.step.number", step.number),
        number("foggara.step.rows", step.rows),
        number("foggara.step.prefill_rows", step.prefill_rows),
        number("foggara.step.wait_us", step.wait_us),
        number("foggara.step.compute_us", step.compute_us),
        number("foggara.step.collective_us", step.collective_us),
        number("foggara.step.sample_us", step.sample_us),
    ]
}

fn chunk(chunk: &Chunk) -> Event {
    let attributes = step(&chunk.step).into_iter().chain([number("foggara.rows", chunk.rows)]).collect();
    Event::new("prefill chunk", time(chunk.at), attributes, 0)
}

fn slow_token(token: &SlowToken) -> Event {
    let own = [
        number("foggara.token.index", token.index),
        number("foggara.token.gap_us", token.gap_us),
        KeyValue::new("foggara.token.preempted", token.preempted),
    ];
    Event::new("slow token", time(token.at), step(&token.step).into_iter().chain(own).collect(), 0)
}
