//! Timelines for programs. Points in time (`…at_us`) are microseconds after the arrival; null: not yet, or never.

use foggara_proto::wire::admin as wire;
use serde_json::{Value, json};

use super::summary::{Summary, cause, percent, summary};

/// One request, in short.
pub(super) fn listed(timeline: &wire::Timeline) -> Value {
    shown(&timeline.request_id, &summary(timeline))
}

fn shown(request_id: &str, s: &Summary) -> Value {
    let part = |us: u64| json!({"us": us, "percent": percent(us, s.total_us)});
    json!({"request_id": request_id, "model": s.model, "api": s.api, "arrived_unix_us": s.origin,
        "prompt_tokens": s.prompt_tokens, "cached_tokens": s.cached_tokens, "completion_tokens": s.completion_tokens,
        "end": s.end, "total_us": s.total_us, "first_token_us": s.first_token_us, "preemptions": s.preemptions,
        "parts": {"checked": part(s.door_us), "queue": part(s.queue_us), "prefill": part(s.prefill_us),
            "decode": part(s.decode_us), "rest": part(s.rest_us)},
        "client_us": s.client_us, "longest": s.why})
}

/// One request, whole.
pub(super) fn whole(timeline: &wire::Timeline) -> Value {
    let s = summary(timeline);
    let at = |us: u64| Some(us).filter(|us| *us > 0).map(|us| us.saturating_sub(s.origin));
    let placement = |p: &wire::Placement| {
        json!({"at_us": at(p.at_us), "group": p.group, "coordinator": p.coordinator, "driver_epoch": p.driver_epoch,
            "choice": p.choice})
    };
    let front = |f: &wire::FrontTimeline| {
        json!({"coordinator": f.coordinator, "api": f.api, "arrived_at_us": at(f.arrived_us), "checked_at_us": at(f.checked_us),
            "first_token_at_us": at(f.first_token_us), "last_token_at_us": at(f.last_token_us), "ended_at_us": at(f.ended_us),
            "end": f.end, "prompt_tokens": f.prompt_tokens, "completion_tokens": f.completion_tokens, "choices": f.choices,
            "max_tokens": f.max_tokens, "client_us": f.client_us, "client_longest_us": f.client_longest_us,
            "trace_id": f.trace_id, "placements": f.placements.iter().map(placement).collect::<Vec<_>>()})
    };
    let phase =
        |p: &wire::Phase| json!({"name": p.name, "from_at_us": at(p.from_us), "to_at_us": at(p.to_us)});
    let chunk =
        |c: &wire::PrefillChunk| json!({"at_us": at(c.at_us), "rows": c.rows, "step": step(c.step.as_ref())});
    let slow = |t: &wire::SlowToken| {
        json!({"index": t.index, "at_us": at(t.at_us), "gap_us": t.gap_us, "preempted": t.preempted,
            "cause": cause(t), "step": step(t.step.as_ref())})
    };
    let driven = |d: &wire::DrivenTimeline| {
        let decode = d.decode.clone().unwrap_or_default();
        json!({"coordinator": d.coordinator, "group": d.group, "driver_epoch": d.driver_epoch, "choice": d.choice,
            "origin": d.origin, "began_at_us": at(d.began_us), "first_token_at_us": at(d.first_token_us),
            "ended_at_us": at(d.ended_us), "end": d.end, "prompt_tokens": d.prompt_tokens, "known_tokens": d.known_tokens,
            "cached_tokens": d.cached_tokens, "tokens": d.tokens, "ahead": d.ahead, "running": d.running,
            "preemptions": d.preemptions, "queue_us": d.queue_us, "prefill_us": d.prefill_us, "decode_us": d.decode_us,
            "held_by": {"places_us": d.held_by_places_us, "memory_us": d.held_by_memory_us, "prompts_us": d.held_by_prompts_us},
            "phases": d.phases.iter().map(phase).collect::<Vec<_>>(), "more_phases": d.more_phases,
            "chunks": d.chunks.iter().map(chunk).collect::<Vec<_>>(), "more_chunks": d.more_chunks, "more_rows": d.more_rows,
            "gaps": {"count": decode.gaps, "total_us": decode.gaps_us, "beside_prefill": decode.beside_prefill,
                "beside_prefill_us": decode.beside_prefill_us, "wait_us": decode.wait_us, "compute_us": decode.compute_us,
                "collective_us": decode.collective_us, "sample_us": decode.sample_us, "stalls": decode.stalls,
                "stalls_us": decode.stalls_us},
            "slowest_tokens": decode.slowest.iter().map(slow).collect::<Vec<_>>(),
            "listeners": d.listeners.iter().map(|l| json!({"at_us": at(l.at_us), "came": l.came})).collect::<Vec<_>>()})
    };
    let mut value = shown(&timeline.request_id, &s);
    value["fronts"] = timeline.fronts.iter().map(front).collect();
    value["driven"] = timeline.driven.iter().map(driven).collect();
    value["more_driven"] = timeline.more_driven.into();
    value
}

fn step(step: Option<&wire::StepSeen>) -> Value {
    let s = step.copied().unwrap_or_default();
    json!({"number": s.number, "rows": s.rows, "prefill_rows": s.prefill_rows, "wait_us": s.wait_us,
        "compute_us": s.compute_us, "collective_us": s.collective_us, "sample_us": s.sample_us, "unplanned": s.unplanned})
}
