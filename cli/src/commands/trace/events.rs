//! A timeline as lines, in order. Pure.

use foggara_proto::wire::admin as wire;

use super::summary::{cause, duration};

/// What happened at one point in time, in microseconds since 1970.
pub(super) type Event = (u64, String);

/// Everything that is known, in order.
pub(super) fn events(timeline: &wire::Timeline) -> Vec<Event> {
    let several = timeline.driven.iter().any(|driven| driven.choice > 0);
    let mut events = Vec::new();
    timeline.fronts.iter().for_each(|front| of_front(front, several, &mut events));
    timeline.driven.iter().for_each(|driven| of_driver(driven, several, &mut events));
    events.retain(|(at, _)| *at > 0);
    // Of the same moment, as they were told.
    events.sort_by_key(|(at, _)| *at);
    events
}

fn whose(choice: u64, several: bool) -> String {
    if several { format!("choice {choice}: ") } else { String::new() }
}

fn of_front(front: &wire::FrontTimeline, several: bool, events: &mut Vec<Event>) {
    let coordinator = front.coordinator;
    events.push((front.arrived_us, format!("arrived at coordinator {coordinator} ({})", front.api)));
    events.push((
        front.checked_us,
        format!("checked: {} prompt tokens, up to {} to generate", front.prompt_tokens, front.max_tokens),
    ));
    events.extend(front.placements.iter().map(|placement| {
        let wire::Placement { group, coordinator, driver_epoch, choice, .. } = placement;
        let whose = whose(*choice, several);
        (
            placement.at_us,
            format!(
                "{whose}handed to group {group}, driven by coordinator {coordinator} (lease {driver_epoch})"
            ),
        )
    }));
    events.push((front.first_token_us, "first token is on its way to the client".into()));
    let tokens = front.completion_tokens;
    events.push((
        front.ended_us,
        format!("ended at coordinator {coordinator}: {}, {tokens} tokens sent", front.end),
    ));
}

fn of_driver(driven: &wire::DrivenTimeline, several: bool, events: &mut Vec<Event>) {
    let whose = whose(driven.choice, several);
    let (by, group) = (driven.coordinator, driven.group);
    let begins = match driven.origin.as_str() {
        "adopted" => format!(
            "{whose}coordinator {by} takes it over as driver of group {group}, with {} tokens generated",
            driven.known_tokens
        ),
        _ => format!(
            "{whose}queued at coordinator {by}: {} wait before it, {} are in group {group}",
            driven.ahead, driven.running
        ),
    };
    events.push((driven.began_us, begins));
    for (place, phase) in driven.phases.iter().enumerate() {
        let before = place.checked_sub(1).and_then(|before| driven.phases.get(before));
        match (phase.name.as_str(), before.map(|before| before.name.as_str())) {
            ("prefill", Some("queue")) => events.push((
                phase.from_us,
                format!("{whose}entered the group; {} prompt tokens are in its cache", driven.cached_tokens),
            )),
            ("prefill", Some(_)) => events.push((phase.from_us, format!("{whose}entered the group again"))),
            ("preempted", _) => {
                events.push((phase.from_us, format!("{whose}preempted: others need its KV blocks")))
            }
            _ => {}
        }
    }
    events.extend(driven.chunks.iter().map(|chunk| {
        let what = format!("{whose}{} tokens read in {}", chunk.rows, step(&chunk.step.unwrap_or_default()));
        (chunk.at_us, what)
    }));
    if driven.known_tokens == 0 {
        events.push((driven.first_token_us, format!("{whose}first token")));
    }
    let slowest = driven.decode.iter().flat_map(|decode| &decode.slowest);
    events.extend(slowest.map(|slow| {
        let late = format!(
            "{whose}token {} came {} after the one before: {}",
            slow.index,
            duration(slow.gap_us),
            cause(slow)
        );
        (slow.at_us, format!("{late} ({})", step(&slow.step.unwrap_or_default())))
    }));
    events.extend(driven.listeners.iter().map(|change| {
        let what = if change.came { "a front door listens again" } else { "nobody listens any more" };
        (change.at_us, format!("{whose}{what}"))
    }));
    events.push((
        driven.ended_us,
        format!("{whose}over at coordinator {by}: {}, {} tokens", driven.end, driven.tokens),
    ));
}

fn step(step: &wire::StepSeen) -> String {
    let wire::StepSeen { number, rows, prefill_rows, .. } = step;
    let mut text = format!(
        "step {number}: {rows} rows, {prefill_rows} of prompts; computed {}",
        duration(step.compute_us)
    );
    for (us, what) in [
        (step.collective_us, "in collectives"),
        (step.wait_us, "waited for the plan"),
        (step.sample_us, "sampled"),
    ] {
        if us > 0 {
            text.push_str(&format!(", {what} {}", duration(us)));
        }
    }
    if step.unplanned {
        text.push_str(", without a plan");
    }
    text
}
