//! What a timeline comes to: how long each part of a request took, and what made it slow. Pure.

use foggara_proto::wire::admin as wire;

/// A request in numbers. Times are in microseconds; the phases are those of its first choice, whose time is the request's unless
/// choices wait for each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Summary {
    /// When it came, in microseconds since 1970: all times are shown from here.
    pub(super) origin: u64,
    pub(super) model: String,
    pub(super) api: String,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) completion_tokens: u64,
    /// How it ended; `running` if it has not.
    pub(super) end: String,
    pub(super) total_us: u64,
    /// From its arrival to the first token.
    pub(super) first_token_us: Option<u64>,
    /// Read, checked and tokenized.
    pub(super) door_us: u64,
    pub(super) queue_us: u64,
    /// Of that, after it was preempted.
    pub(super) preempted_us: u64,
    pub(super) prefill_us: u64,
    pub(super) decode_us: u64,
    /// With no driver, or on the way.
    pub(super) rest_us: u64,
    /// While its client took nothing; beside the others.
    pub(super) client_us: u64,
    pub(super) preemptions: u64,
    pub(super) drivers: usize,
    /// What took longest, in words.
    pub(super) why: String,
}

fn phases_us(driven: &wire::DrivenTimeline, name: &str, until: u64) -> u64 {
    let named = driven.phases.iter().filter(|phase| phase.name == name);
    let length = |phase: &wire::Phase| {
        let to = if phase.to_us == 0 { until } else { phase.to_us };
        to.saturating_sub(phase.from_us)
    };
    named.map(length).sum()
}

/// The parts of a request's first choice.
fn first_choice(timeline: &wire::Timeline) -> impl Iterator<Item = &wire::DrivenTimeline> {
    timeline.driven.iter().filter(|driven| driven.choice == 0)
}

/// The last point in time that the timeline tells of.
fn last_seen(timeline: &wire::Timeline) -> u64 {
    let fronts =
        timeline.fronts.iter().flat_map(|front| [front.checked_us, front.last_token_us, front.ended_us]);
    let driven = timeline.driven.iter().flat_map(|driven| {
        let lasted = driven.began_us + driven.queue_us + driven.prefill_us + driven.decode_us;
        [driven.ended_us, lasted]
    });
    fronts.chain(driven).max().unwrap_or(0)
}

pub(super) fn summary(timeline: &wire::Timeline) -> Summary {
    let origin = timeline.fronts.iter().map(|front| front.arrived_us);
    let origin = origin.chain(timeline.driven.iter().map(|driven| driven.began_us)).min().unwrap_or(0);
    let (first, last) = (timeline.fronts.first(), timeline.fronts.last());
    let latest = last_seen(timeline);
    // A client may have attached: how it ended there counts, and when.
    let ended = last.filter(|front| front.ended_us > 0);
    let total_us = ended.map_or(latest, |front| front.ended_us).saturating_sub(origin);
    let sum = |of: fn(&wire::DrivenTimeline) -> u64| first_choice(timeline).map(of).sum::<u64>();
    let (queue_us, prefill_us, decode_us) =
        (sum(|d| d.queue_us), sum(|d| d.prefill_us), sum(|d| d.decode_us));
    let preempted_us = first_choice(timeline).map(|driven| phases_us(driven, "preempted", latest)).sum();
    let tokens_from =
        |of: fn(&wire::FrontTimeline) -> u64| timeline.fronts.iter().map(of).filter(|at| *at > 0).min();
    let driven_first =
        || timeline.driven.iter().map(|driven| driven.first_token_us).filter(|at| *at > 0).min();
    let first_token = tokens_from(|front| front.first_token_us).or_else(driven_first);
    let door_us = first.map_or(0, |front| front.checked_us.saturating_sub(front.arrived_us));
    let generated = || timeline.driven.iter().map(|driven| driven.tokens).sum();
    let mut summary = Summary {
        origin,
        model: first
            .map(|front| front.model.clone())
            .or_else(|| timeline.driven.first().map(|d| d.model.clone()))
            .unwrap_or_default(),
        api: first.map(|front| front.api.clone()).unwrap_or_default(),
        prompt_tokens: first
            .map(|front| front.prompt_tokens)
            .or_else(|| timeline.driven.first().map(|d| d.prompt_tokens))
            .unwrap_or(0),
        cached_tokens: first_choice(timeline).next().map_or(0, |driven| driven.cached_tokens),
        completion_tokens: if timeline.fronts.is_empty() {
            generated()
        } else {
            timeline.fronts.iter().map(|front| front.completion_tokens).sum()
        },
        end: ended.map_or_else(|| "running".to_owned(), |front| front.end.clone()),
        total_us,
        first_token_us: first_token.map(|at| at.saturating_sub(origin)),
        door_us,
        queue_us,
        preempted_us,
        prefill_us,
        decode_us,
        rest_us: total_us.saturating_sub(door_us + queue_us + prefill_us + decode_us),
        client_us: timeline.fronts.iter().map(|front| front.client_us).sum(),
        preemptions: timeline.driven.iter().map(|driven| driven.preemptions).sum(),
        drivers: first_choice(timeline).count(),
        why: String::new(),
    };
    if timeline.fronts.is_empty() {
        let end = timeline.driven.last().map(|driven| driven.end.clone()).filter(|end| !end.is_empty());
        summary.end = end.unwrap_or(summary.end);
    }
    summary.why = why(&summary, timeline);
    summary
}

/// A part of the whole, in percent.
pub(super) fn percent(part: u64, whole: u64) -> u64 {
    (part * 100 + whole / 2).checked_div(whole).unwrap_or(0)
}

/// What took longest.
fn why(summary: &Summary, timeline: &wire::Timeline) -> String {
    let parts = [
        (summary.queue_us - summary.preempted_us.min(summary.queue_us), "queue"),
        (summary.preempted_us, "preempted"),
        (summary.prefill_us, "prefill"),
        (summary.decode_us, "decode"),
        (summary.door_us, "checking"),
        (summary.rest_us, "no driver"),
    ];
    // Of equals the first.
    let Some((longest, name)) = parts.into_iter().rev().max_by_key(|(us, _)| *us).filter(|(us, _)| *us > 0)
    else {
        return String::new();
    };
    let detail = match name {
        "queue" | "preempted" => first_choice(timeline).find_map(held_by).map(|cause| format!(": {cause}")),
        "decode" => timeline
            .driven
            .iter()
            .filter_map(|driven| driven.decode.as_ref())
            .flat_map(|decode| decode.slowest.first().filter(|slow| stands_out(slow, decode)))
            .max_by_key(|slow| slow.gap_us)
            .map(|slow| format!("; a token took {}: {}", duration(slow.gap_us), cause(slow))),
        _ => None,
    };
    format!("{name} {} %{}", percent(longest, summary.total_us), detail.unwrap_or_default())
}

/// Whether a gap is worth a word: three times the mean, and not because there is hardly anything to compare with.
fn stands_out(slow: &wire::SlowToken, decode: &wire::DecodeSummary) -> bool {
    slow.preempted || (decode.gaps > 2 && slow.gap_us * decode.gaps > decode.gaps_us * 3)
}

/// What a sequence in the queue waited for most; `None`: only for the next step.
pub(super) fn held_by(driven: &wire::DrivenTimeline) -> Option<String> {
    let causes = [
        (driven.held_by_places_us, "the group had as many sequences as it may"),
        (driven.held_by_memory_us, "there were not enough free KV blocks"),
        (driven.held_by_prompts_us, "prompts before it were read first"),
    ];
    let (longest, cause) = causes.into_iter().rev().max_by_key(|(us, _)| *us)?;
    (longest > 0).then(|| format!("{cause} ({})", duration(longest)))
}

/// Why a token came late, as far as its step tells.
pub(super) fn cause(slow: &wire::SlowToken) -> String {
    let step = slow.step.unwrap_or_default();
    if slow.preempted {
        return "it was preempted: others needed its KV blocks".into();
    }
    let busy = step.wait_us + step.compute_us + step.sample_us;
    if step.wait_us * 2 > slow.gap_us {
        return format!(
            "the plan came {} late: the coordinator or the network to it",
            duration(step.wait_us)
        );
    }
    if busy * 2 < slow.gap_us {
        return format!(
            "its step took {} of it: the report came late, or steps went by without it",
            duration(busy)
        );
    }
    if step.collective_us * 2 > step.compute_us && step.collective_us * 4 > slow.gap_us {
        return format!("ranks waited for each other for {}", duration(step.collective_us));
    }
    if step.prefill_rows > 0 {
        return format!("{} prompt rows were read in the same step", step.prefill_rows);
    }
    if step.sample_us * 2 > slow.gap_us {
        return format!("sampling took {}", duration(step.sample_us));
    }
    format!("computing {} rows took {}", step.rows, duration(step.compute_us))
}

/// Microseconds as people read them.
pub(super) fn duration(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{}.{} ms", us / 1_000, us % 1_000 / 100),
        _ => format!("{}.{:02} s", us / 1_000_000, us % 1_000_000 / 10_000),
    }
}
