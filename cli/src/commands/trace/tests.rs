//! What is said of timelines.

use foggara_proto::wire::admin as wire;

use super::summary::{cause, duration, percent, summary};
use super::{json, print};

fn slow(gap_us: u64, step: wire::StepSeen) -> wire::SlowToken {
    wire::SlowToken { index: 3, at_us: 9_000, gap_us, preempted: false, step: Some(step) }
}

/// Came at 1,000 µs through coordinator 1, driven by coordinator 2.
fn timeline() -> wire::Timeline {
    let front = wire::FrontTimeline {
        coordinator: 1,
        api: "chat".into(),
        model: "m".into(),
        prompt_tokens: 100,
        choices: 1,
        arrived_us: 1_000,
        checked_us: 2_000,
        first_token_us: 6_100,
        completion_tokens: 5,
        ended_us: 11_000,
        end: "length".into(),
        trace_id: "4bf9".into(),
        placements: vec![wire::Placement { at_us: 2_100, group: 4, coordinator: 2, ..Default::default() }],
        ..Default::default()
    };
    let phase = |name: &str, from_us, to_us| wire::Phase { name: name.into(), from_us, to_us };
    let step =
        wire::StepSeen { number: 9, rows: 64, prefill_rows: 63, compute_us: 900, ..Default::default() };
    let driven = wire::DrivenTimeline {
        coordinator: 2,
        group: 4,
        origin: "submitted".into(),
        began_us: 2_200,
        ahead: 3,
        running: 64,
        cached_tokens: 32,
        phases: vec![
            phase("queue", 2_200, 4_000),
            phase("prefill", 4_000, 6_000),
            phase("decode", 6_000, 10_900),
        ],
        queue_us: 1_800,
        prefill_us: 2_000,
        decode_us: 4_900,
        held_by_places_us: 1_700,
        chunks: vec![wire::PrefillChunk { at_us: 5_900, rows: 68, step: Some(step) }],
        first_token_us: 6_000,
        tokens: 5,
        ended_us: 10_900,
        end: "length".into(),
        decode: Some(wire::DecodeSummary {
            gaps: 4,
            gaps_us: 4_900,
            slowest: vec![slow(4_000, wire::StepSeen { prefill_rows: 63, compute_us: 3_900, ..step })],
            ..Default::default()
        }),
        ..Default::default()
    };
    wire::Timeline { request_id: "r".into(), fronts: vec![front], driven: vec![driven], more_driven: 0 }
}

#[test]
fn a_timeline_is_summed_up() {
    let s = summary(&timeline());
    assert_eq!((s.total_us, s.first_token_us, s.end.as_str()), (10_000, Some(5_100), "length"));
    assert_eq!(
        [s.door_us, s.queue_us, s.prefill_us, s.decode_us, s.rest_us],
        [1_000, 1_800, 2_000, 4_900, 300]
    );
    assert_eq!(s.why, "decode 49 %; a token took 4.0 ms: 63 prompt rows were read in the same step");
    let mut waited = timeline();
    waited.driven[0].queue_us = 6_000;
    assert_eq!(summary(&waited).why, "queue 60 %: the group had as many sequences as it may (1.7 ms)");
}

#[test]
fn what_still_runs_or_lost_its_front_door_is_told_as_far_as_it_goes() {
    let mut running = timeline();
    (running.fronts[0].ended_us, running.driven[0].ended_us) = (0, 0);
    running.driven[0].phases[2].to_us = 0;
    let s = summary(&running);
    assert_eq!((s.end.as_str(), s.total_us), ("running", 9_900));
    let mut alone = timeline();
    alone.fronts.clear();
    let s = summary(&alone);
    assert_eq!(
        (s.origin, s.end.as_str(), s.completion_tokens, s.first_token_us),
        (2_200, "length", 5, Some(3_800))
    );
    assert_eq!(summary(&wire::Timeline::default()).why, "", "nothing is known");
}

#[test]
fn causes_are_told_apart() {
    let step = wire::StepSeen { rows: 8, compute_us: 90_000, ..Default::default() };
    for (step, expected) in [
        (wire::StepSeen { wait_us: 60_000, compute_us: 30_000, ..step }, "the plan came 60.0 ms late"),
        (wire::StepSeen { compute_us: 10_000, ..step }, "its step took 10.0 ms of it"),
        (
            wire::StepSeen { collective_us: 70_000, prefill_rows: 5, ..step },
            "ranks waited for each other for 70.0 ms",
        ),
        (wire::StepSeen { prefill_rows: 5, ..step }, "5 prompt rows were read"),
        (wire::StepSeen { compute_us: 20_000, sample_us: 70_000, ..step }, "sampling took 70.0 ms"),
        (step, "computing 8 rows took 90.0 ms"),
    ] {
        let told = cause(&slow(100_000, step));
        assert!(told.starts_with(expected), "{told}");
    }
    let preempted = wire::SlowToken { preempted: true, ..slow(100_000, step) };
    assert!(cause(&preempted).contains("preempted"));
}

#[test]
fn numbers_are_short() {
    let shown: Vec<String> = [0, 999, 1_000, 12_345, 999_999, 1_000_000, 61_239_999].map(duration).into();
    assert_eq!(shown, ["0 µs", "999 µs", "1.0 ms", "12.3 ms", "999.9 ms", "1.00 s", "61.23 s"]);
    assert_eq!([percent(1, 3), percent(2, 3), percent(5, 0)], [33, 67, 0]);
}

#[test]
fn people_read_it_in_order() {
    let mut out = Vec::new();
    print::whole(&mut out, &timeline()).expect("memory");
    let text = String::from_utf8(out).expect("UTF-8");
    let mut rest = text.as_str();
    for part in [
        "request r: m, 100 prompt tokens, 5 generated, length",
        "trace 4bf9",
        "10.0 ms in all, first token after 5.1 ms",
        "18 %   the group had as many sequences as it may",
        "68 tokens in 1 steps; 32 were cached",
        "0 µs  arrived at coordinator 1 (chat)",
        "1.1 ms  handed to group 4, driven by coordinator 2",
        "1.2 ms  queued at coordinator 2: 3 wait before it, 64 are in group 4",
        "4.9 ms  68 tokens read in step 9: 64 rows, 63 of prompts",
        "5.0 ms  first token",
        "8.0 ms  token 3 came 4.0 ms after the one before",
        "10.0 ms  ended at coordinator 1: length, 5 tokens sent",
    ] {
        let at = rest.find(part).unwrap_or_else(|| panic!("{part} not in {rest}"));
        rest = &rest[at..];
    }
}

#[test]
fn programs_get_points_in_time_after_the_arrival() {
    let shown = json::whole(&timeline());
    assert_eq!((&shown["arrived_unix_us"], &shown["parts"]["queue"]["percent"]), (&1_000.into(), &18.into()));
    let driven = &shown["driven"][0];
    assert_eq!(
        (&driven["phases"][0]["from_at_us"], &driven["chunks"][0]["step"]["number"]),
        (&1_200.into(), &9.into())
    );
    assert_eq!(shown["fronts"][0]["last_token_at_us"], serde_json::Value::Null, "never told");
}
