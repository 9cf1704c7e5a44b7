//! Timelines of requests: each coordinator has recorded its own part, and asks the others for theirs.

use std::collections::BTreeMap;
use std::time::Duration;

use foggara_proto::wire::admin as wire;
use foggara_proto::wire::cluster::peer_client::PeerClient;
use foggara_proto::wire::cluster::{TimelinesRequest, TimelinesResponse};
use futures::future::join_all;
use tonic::Status;

use crate::cluster::transport::MAX_MESSAGE_BYTES;
use crate::front_door::FrontDoor;
use crate::library::channel;
use crate::timeline::{
    Chunk, Driven, Front, Gaps, ListenerChange, Micros, Phase, PhaseKind, Placement, SlowToken, Step,
};
use crate::traces::{KEPT_REQUESTS, Parts};

/// How long another coordinator may take.
const TIMEOUT: Duration = Duration::from_millis(1_000);
/// Several requests are so many, unless said otherwise, and at most.
const LISTED: usize = 20;
const MOST_LISTED: usize = 200;

/// What this coordinator has recorded.
pub(super) async fn here(door: &FrontDoor, asked: &TimelinesRequest) -> TimelinesResponse {
    let (timelines, id) = (door.drivers.timelines(), door.cluster.id());
    if asked.request_ids.is_empty() {
        let fronts = timelines.list(asked.slowest, (asked.limit as usize).min(MOST_LISTED));
        let timeline = |front: Front| wire::Timeline {
            request_id: front.request_id.clone(),
            fronts: vec![front_to_wire(front, id)],
            ..wire::Timeline::default()
        };
        return TimelinesResponse { timelines: fronts.into_iter().map(timeline).collect() };
    }
    // What runs first: what ends in between would be missing otherwise. What is in both counts once.
    let live = door.drivers.driven(&asked.request_ids).await;
    let now = timelines.now();
    let timeline = |request_id: &String| {
        let Parts { fronts, mut driven, more_driven } = timelines.find(request_id).unwrap_or_default();
        let known: Vec<_> = driven.iter().map(|driven| (driven.choice, driven.group, driven.began)).collect();
        let live = live.iter().filter(|live| live.request_id == *request_id);
        driven.extend(live.filter(|live| !known.contains(&(live.choice, live.group, live.began))).cloned());
        wire::Timeline {
            request_id: request_id.clone(),
            fronts: fronts.into_iter().map(|front| front_to_wire(front, id)).collect(),
            driven: driven.into_iter().map(|driven| driven_to_wire(driven, id, now)).collect(),
            more_driven,
        }
    };
    let found = asked.request_ids.iter().take(MOST_LISTED).map(timeline);
    TimelinesResponse {
        timelines: found.filter(|found| !found.fronts.is_empty() || !found.driven.is_empty()).collect(),
    }
}

/// What the coordinators together have recorded.
pub(super) async fn everywhere(
    door: &FrontDoor,
    asked: wire::TraceRequest,
) -> Result<wire::TraceResponse, Status> {
    let wire::TraceRequest { request_id, slowest, limit } = asked;
    let limit = if limit == 0 { LISTED } else { (limit as usize).min(MOST_LISTED) };
    let of = |request_ids| TimelinesRequest {
        cluster_id: door.cluster.cluster_id().into(),
        request_ids,
        slowest,
        limit: u32::try_from(limit).unwrap_or(u32::MAX),
    };
    let oldest = door.drivers.timelines().oldest();
    let ids = match request_id.as_str() {
        "" => {
            let (timelines, _) = gather(door, &of(Vec::new())).await;
            listed(timelines, slowest, limit, door.drivers.timelines().now())
        }
        id => vec![id.to_owned()],
    };
    let (timelines, silent) = match ids.is_empty() {
        true => (Vec::new(), Vec::new()),
        false => gather(door, &of(ids.clone())).await,
    };
    if timelines.is_empty() && !request_id.is_empty() {
        return Err(unknown(&request_id, oldest, door.drivers.timelines().now(), &silent));
    }
    let mut timelines = merged(timelines);
    // In the order of the list.
    timelines.sort_by_key(|timeline| ids.iter().position(|id| *id == timeline.request_id));
    Ok(wire::TraceResponse {
        answered_by: door.cluster.id(),
        timelines,
        silent,
        kept: KEPT_REQUESTS as u64,
        oldest_us: oldest.unwrap_or(0),
    })
}

/// Why a request has no timeline, and how far back they go.
fn unknown(request_id: &str, oldest: Option<Micros>, now: Micros, silent: &[u64]) -> Status {
    let back = oldest.map_or("none yet since it started".into(), |oldest| {
        format!("the oldest here is of {} s ago", now.saturating_sub(oldest) / 1_000_000)
    });
    let mut reason = format!(
        "request_id: no coordinator knows `{request_id}`; each keeps the last {KEPT_REQUESTS} requests that began ({back}), in memory only"
    );
    if !silent.is_empty() {
        reason.push_str(&format!("; these did not answer: {silent:?}"));
    }
    Status::not_found(reason)
}

/// The answers of all coordinators, and those that gave none in time.
async fn gather(door: &FrontDoor, asked: &TimelinesRequest) -> (Vec<wire::Timeline>, Vec<u64>) {
    let (state, id) = (door.cluster.state(), door.cluster.id());
    let others = state.members.iter().filter(|(member, _)| **member != id);
    let others =
        others.map(|(member, at)| async move { (*member, there(door, &at.addr, asked.clone()).await) });
    let (own, others) = tokio::join!(here(door, asked), join_all(others));
    let (mut timelines, mut silent) = (own.timelines, Vec::new());
    for (member, answer) in others {
        match answer {
            Some(theirs) => timelines.extend(theirs),
            None => silent.push(member),
        }
    }
    (timelines, silent)
}

/// What the coordinator at `addr` has recorded, if it says so in time.
async fn there(door: &FrontDoor, addr: &str, asked: TimelinesRequest) -> Option<Vec<wire::Timeline>> {
    let mut peer = PeerClient::with_interceptor(channel(&door.dialer, addr).ok()?, door.token.shown())
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let answer = tokio::time::timeout(TIMEOUT, peer.timelines(asked)).await;
    Some(answer.ok()?.ok()?.into_inner().timelines)
}

/// Of several coordinators' lists the ids of `limit` requests: the last ones, or the slowest.
fn listed(timelines: Vec<wire::Timeline>, slowest: bool, limit: usize, now: Micros) -> Vec<String> {
    let key = |timeline: &wire::Timeline| {
        let front = timeline.fronts.first()?;
        let ended = if front.ended_us == 0 { now } else { front.ended_us };
        Some(if slowest { ended.saturating_sub(front.arrived_us) } else { front.arrived_us })
    };
    let mut keyed: Vec<_> =
        timelines.into_iter().map(|timeline| (key(&timeline), timeline.request_id)).collect();
    keyed.sort_by(|(a, _), (b, _)| b.cmp(a));
    let mut ids: Vec<String> = Vec::new();
    for (_, id) in keyed {
        if ids.len() < limit && !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

/// The parts of each request together, in the order in which they began.
fn merged(timelines: Vec<wire::Timeline>) -> Vec<wire::Timeline> {
    let mut by_id: BTreeMap<String, wire::Timeline> = BTreeMap::new();
    for timeline in timelines {
        let whole = by_id.entry(timeline.request_id.clone()).or_default();
        whole.request_id = timeline.request_id;
        whole.fronts.extend(timeline.fronts);
        whole.driven.extend(timeline.driven);
        whole.more_driven += timeline.more_driven;
    }
    for whole in by_id.values_mut() {
        whole.fronts.sort_by_key(|front| front.arrived_us);
        whole.driven.sort_by_key(|driven| (driven.choice, driven.began_us));
    }
    by_id.into_values().collect()
}

fn front_to_wire(front: Front, coordinator: u64) -> wire::FrontTimeline {
    let (ended_us, end) = front.end.unwrap_or_default();
    let placement = |placement: Placement| wire::Placement {
        at_us: placement.at,
        group: placement.group,
        coordinator: placement.coordinator,
        driver_epoch: placement.driver_epoch,
        choice: placement.choice,
    };
    wire::FrontTimeline {
        coordinator,
        api: front.api.into(),
        model: front.model,
        prompt_tokens: front.prompt_tokens,
        choices: front.choices,
        max_tokens: front.max_tokens,
        arrived_us: front.arrived,
        checked_us: front.checked,
        placements: front.placements.first.into_iter().map(placement).collect(),
        more_placements: front.placements.more,
        first_token_us: front.first_token.unwrap_or(0),
        last_token_us: front.last_token.unwrap_or(0),
        completion_tokens: front.completion_tokens,
        client_us: front.client_us,
        client_longest_us: front.client_longest_us,
        ended_us,
        end,
        trace_id: front.trace.map(|trace| trace.trace_id_text()).unwrap_or_default(),
    }
}

fn driven_to_wire(driven: Driven, coordinator: u64, now: Micros) -> wire::DrivenTimeline {
    let total = |kind| driven.total_us(kind, now);
    let phase = |phase: &Phase| wire::Phase {
        name: phase.kind.name().into(),
        from_us: phase.from,
        to_us: phase.to.unwrap_or(0),
    };
    let chunk = |chunk: &Chunk| wire::PrefillChunk {
        at_us: chunk.at,
        rows: u64::from(chunk.rows),
        step: Some(step_to_wire(&chunk.step)),
    };
    let listener = |change: &ListenerChange| wire::ListenerChange { at_us: change.at, came: change.came };
    wire::DrivenTimeline {
        coordinator,
        group: driven.group,
        driver_epoch: driven.driver_epoch,
        model: driven.model.clone(),
        choice: driven.choice,
        began_us: driven.began,
        origin: if driven.adopted { "adopted" } else { "submitted" }.into(),
        prompt_tokens: driven.prompt_tokens,
        known_tokens: driven.known_tokens,
        ahead: driven.ahead,
        running: driven.running,
        cached_tokens: driven.cached_tokens,
        queue_us: total(PhaseKind::Queue) + total(PhaseKind::Preempted),
        prefill_us: total(PhaseKind::Prefill),
        decode_us: total(PhaseKind::Decode),
        phases: driven.phases.first.iter().map(phase).collect(),
        more_phases: driven.phases.more,
        held_by_places_us: driven.held.places_us,
        held_by_memory_us: driven.held.memory_us,
        held_by_prompts_us: driven.held.prompts_us,
        chunks: driven.chunks.first.iter().map(chunk).collect(),
        more_chunks: driven.chunks.more,
        more_rows: driven.more_rows,
        first_token_us: driven.first_token.unwrap_or(0),
        tokens: driven.tokens,
        decode: Some(gaps_to_wire(&driven.gaps)),
        preemptions: driven.preemptions,
        listeners: driven.listeners.first.iter().map(listener).collect(),
        more_listeners: driven.listeners.more,
        ended_us: driven.end.map_or(0, |(at, _)| at),
        end: driven.end.map(|(_, end)| end.name().into()).unwrap_or_default(),
    }
}

fn gaps_to_wire(gaps: &Gaps) -> wire::DecodeSummary {
    let slow = |token: &SlowToken| wire::SlowToken {
        index: token.index,
        at_us: token.at,
        gap_us: token.gap_us,
        preempted: token.preempted,
        step: Some(step_to_wire(&token.step)),
    };
    wire::DecodeSummary {
        gaps: gaps.count,
        gaps_us: gaps.total_us,
        beside_prefill: gaps.beside_prefill,
        beside_prefill_us: gaps.beside_prefill_us,
        wait_us: gaps.wait_us,
        compute_us: gaps.compute_us,
        collective_us: gaps.collective_us,
        sample_us: gaps.sample_us,
        stalls: gaps.stalls,
        stalls_us: gaps.stalls_us,
        slowest: gaps.slowest().iter().map(slow).collect(),
    }
}

fn step_to_wire(step: &Step) -> wire::StepSeen {
    wire::StepSeen {
        number: step.number,
        rows: u64::from(step.rows),
        prefill_rows: u64::from(step.prefill_rows),
        wait_us: u64::from(step.wait_us),
        compute_us: u64::from(step.compute_us),
        collective_us: u64::from(step.collective_us),
        sample_us: u64::from(step.sample_us),
        unplanned: step.unplanned,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(id: &str, arrived_us: u64, ended_us: u64) -> wire::Timeline {
        let front = wire::FrontTimeline { arrived_us, ended_us, ..Default::default() };
        wire::Timeline { request_id: id.into(), fronts: vec![front], ..Default::default() }
    }

    #[test]
    fn lists_of_several_coordinators_become_one() {
        // The last one still runs; one came through two front doors.
        let all = || {
            vec![timeline("a", 10, 20), timeline("b", 11, 91), timeline("a", 15, 16), timeline("c", 40, 0)]
        };
        for (slowest, limit, expected) in [
            (false, 9, vec!["c", "a", "b"]),
            (false, 1, vec!["c"]),
            (true, 9, vec!["b", "c", "a"]),
            (true, 0, vec![]),
        ] {
            assert_eq!(listed(all(), slowest, limit, 100), expected, "{slowest} {limit}");
        }
    }

    #[test]
    fn parts_are_put_in_order() {
        let part = |began_us, choice| wire::DrivenTimeline { began_us, choice, ..Default::default() };
        let with = |driven| wire::Timeline { driven, more_driven: 1, ..timeline("a", 10, 0) };
        let whole =
            merged(vec![with(vec![part(30, 0), part(20, 1)]), timeline("b", 1, 0), with(vec![part(12, 0)])]);
        let ids: Vec<_> =
            whole.iter().map(|timeline| (timeline.request_id.as_str(), timeline.fronts.len())).collect();
        assert_eq!(ids, [("a", 2), ("b", 1)]);
        let order: Vec<_> = whole[0].driven.iter().map(|driven| (driven.choice, driven.began_us)).collect();
        assert_eq!((order, whole[0].more_driven), (vec![(0, 12), (0, 30), (1, 20)], 2));
    }

    #[test]
    fn who_asks_for_what_is_not_there_learns_how_far_back_it_goes() {
        let told = unknown("x", Some(1_000_000), 61_000_000, &[3]);
        assert_eq!(told.code(), tonic::Code::NotFound);
        for part in ["`x`", "4096 requests", "60 s ago", "[3]"] {
            assert!(told.message().contains(part), "{part}: {}", told.message());
        }
        assert!(unknown("x", None, 5, &[]).message().contains("none yet"));
    }
}
