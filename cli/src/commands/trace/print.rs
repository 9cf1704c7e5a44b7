//! Timelines for people.

use std::io::Write;

use foggara_proto::wire::admin as wire;

use super::events::events;
use super::summary::{Summary, duration, held_by, percent, summary};
use crate::output::table;

/// One request.
pub(super) fn whole(out: &mut impl Write, timeline: &wire::Timeline) -> std::io::Result<()> {
    let s = summary(timeline);
    writeln!(
        out,
        "request {}: {}, {} prompt tokens, {} generated, {}",
        timeline.request_id, s.model, s.prompt_tokens, s.completion_tokens, s.end
    )?;
    if let Some(trace) = timeline.fronts.iter().map(|front| &front.trace_id).find(|trace| !trace.is_empty()) {
        writeln!(out, "trace {trace}")?;
    }
    let first = s
        .first_token_us
        .map_or("no token yet".to_owned(), |us| format!("first token after {}", duration(us)));
    writeln!(out, "{} in all, {first}\n", duration(s.total_us))?;
    let rows: Vec<Vec<String>> = shares(&s, timeline)
        .into_iter()
        .map(|(name, us, note)| {
            vec![name.into(), duration(us), format!("{} %", percent(us, s.total_us)), note]
        })
        .collect();
    table(out, &["part", "time", "share", ""], &rows)?;
    if s.client_us > 0 {
        writeln!(out, "  meanwhile its client took nothing for {}", duration(s.client_us))?;
    }
    writeln!(out)?;
    let rows: Vec<Vec<String>> = events(timeline)
        .into_iter()
        .map(|(at, what)| vec![format!("{:>10}", duration(at.saturating_sub(s.origin))), what])
        .collect();
    table(out, &["     after", "what"], &rows)?;
    left_out(out, timeline)
}

/// What a table of shares says beside the numbers.
fn shares(s: &Summary, timeline: &wire::Timeline) -> Vec<(&'static str, u64, String)> {
    let driven = || timeline.driven.iter().filter(|driven| driven.choice == 0);
    let queue = driven().find_map(held_by).unwrap_or_default();
    let chunks: u64 = driven().map(|driven| driven.chunks.len() as u64 + driven.more_chunks).sum();
    let read: u64 =
        driven().map(|d| d.chunks.iter().map(|chunk| chunk.rows).sum::<u64>() + d.more_rows).sum();
    let mut rows = vec![
        ("checked", s.door_us, "read, checked, tokenized".to_owned()),
        ("queue", s.queue_us - s.preempted_us.min(s.queue_us), queue),
        (
            "prefill",
            s.prefill_us,
            format!("{read} tokens in {chunks} steps; {} were cached", s.cached_tokens),
        ),
        ("decode", s.decode_us, decode(driven().filter_map(|driven| driven.decode.as_ref()))),
        (
            "rest",
            s.rest_us,
            if s.drivers > 1 { format!("{} drivers followed each other", s.drivers) } else { String::new() },
        ),
    ];
    if s.preemptions > 0 {
        rows.insert(2, ("preempted", s.preempted_us, format!("{} times", s.preemptions)));
    }
    rows
}

/// Where the time between tokens went.
fn decode<'a>(parts: impl Iterator<Item = &'a wire::DecodeSummary> + Clone) -> String {
    let sum = |of: fn(&wire::DecodeSummary) -> u64| parts.clone().map(of).sum::<u64>();
    let (gaps, gaps_us) = (sum(|d| d.gaps), sum(|d| d.gaps_us));
    let Some(mean) = gaps_us.checked_div(gaps) else { return String::new() };
    let mut text = format!("{} a token", duration(mean));
    let (beside, beside_us) = (sum(|d| d.beside_prefill), sum(|d| d.beside_prefill_us));
    if let Some(mean) = beside_us.checked_div(beside) {
        text.push_str(&format!("; {beside} beside prompts of others: {}", duration(mean)));
    }
    let per_token = |us: u64| duration(us.checked_div(gaps).unwrap_or(0));
    text.push_str(&format!("; a step computes {}", per_token(sum(|d| d.compute_us))));
    for (us, what) in [
        (sum(|d| d.collective_us), "collectives"),
        (sum(|d| d.wait_us), "late plans"),
        (sum(|d| d.sample_us), "sampling"),
    ] {
        if us > 0 {
            text.push_str(&format!(", {what} {}", per_token(us)));
        }
    }
    let stalls = sum(|d| d.stalls);
    if stalls > 0 {
        text.push_str(&format!("; {stalls} over 250 ms, {} together", duration(sum(|d| d.stalls_us))));
    }
    text
}

fn left_out(out: &mut impl Write, timeline: &wire::Timeline) -> std::io::Result<()> {
    let sum = |of: fn(&wire::DrivenTimeline) -> u64| timeline.driven.iter().map(of).sum::<u64>();
    let placements = timeline.fronts.iter().map(|front| front.more_placements).sum::<u64>();
    for (count, what) in [
        (sum(|d| d.more_chunks), "prefill steps"),
        (sum(|d| d.more_phases), "phases"),
        (sum(|d| d.more_listeners), "changes of listeners"),
        (placements, "drivers it was handed to"),
        (timeline.more_driven, "drivers' parts"),
    ] {
        if count > 0 {
            writeln!(out, "  {count} more {what} are only counted")?;
        }
    }
    Ok(())
}

/// Several requests.
pub(super) fn list(out: &mut impl Write, answer: &wire::TraceResponse) -> std::io::Result<()> {
    if answer.timelines.is_empty() {
        return writeln!(out, "no requests yet (each coordinator keeps its last {})", answer.kept);
    }
    let row = |timeline: &wire::Timeline| {
        let s = summary(timeline);
        vec![
            timeline.request_id.clone(),
            s.model,
            s.prompt_tokens.to_string(),
            s.completion_tokens.to_string(),
            s.first_token_us.map_or("-".into(), duration),
            duration(s.total_us),
            s.end,
            s.why,
        ]
    };
    let rows: Vec<_> = answer.timelines.iter().map(row).collect();
    table(
        out,
        &["request", "model", "prompt", "generated", "first token", "total", "end", "longest part"],
        &rows,
    )
}

/// Who did not answer.
pub(super) fn silent(out: &mut impl Write, silent: &[u64]) -> std::io::Result<()> {
    silent.iter().try_for_each(|id| writeln!(out, "coordinator {id} did not answer: its part is missing"))
}
