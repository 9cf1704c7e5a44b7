//! What the processes cost while nobody asks for anything.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::Bench;
use crate::members::{Kind, Member};
use crate::process::{Holdings, cpu_seconds};
use crate::report::{Measure, Unit};

/// What came before may still be winding down.
const SETTLE: Duration = Duration::from_secs(2);

pub(crate) async fn run(bench: &Bench<'_>) -> Result<Vec<Measure>> {
    let Some(members) = bench.target.members().await? else { return Ok(Vec::new()) };
    tokio::time::sleep(SETTLE).await;
    let window = Duration::from_secs(if bench.quick { 4 } else { 10 });
    let used =
        |list: &[Member]| list.iter().map(|member| cpu_seconds(member.pid)).collect::<Result<Vec<f64>>>();
    let started = Instant::now();
    let before = used(&members.list)?;
    tokio::time::sleep(window).await;
    let after = used(&members.list)?;
    let seconds = started.elapsed().as_secs_f64();
    let mut costs = Vec::new();
    for (member, (before, after)) in members.list.into_iter().zip(before.into_iter().zip(after)) {
        let megabytes = Holdings::of(member.pid)?.resident_bytes as f64 / 1e6;
        costs.push(Cost { member, megabytes, percent: (after - before) / seconds * 100.0 });
    }
    let kinds = [Kind::Coordinator, Kind::Worker, Kind::Supervisor];
    Ok(kinds.into_iter().flat_map(|kind| measures(kind, &costs)).collect())
}

struct Cost {
    member: Member,
    megabytes: f64,
    percent: f64,
}

/// The dearest process of a kind, with all of the kind in the note.
fn measures(kind: Kind, costs: &[Cost]) -> Vec<Measure> {
    let of_kind: Vec<&Cost> = costs.iter().filter(|cost| cost.member.kind == kind).collect();
    let name = match kind {
        Kind::Coordinator => "coordinator",
        Kind::Worker => "worker",
        Kind::Supervisor => "supervisor",
    };
    let line = |suffix: &str, what: &str, unit: Unit, value: fn(&Cost) -> f64| {
        let most = of_kind.iter().map(|cost| value(cost)).max_by(f64::total_cmp)?;
        let each = of_kind.iter().map(|cost| format!("{}: {:.1}", cost.member.label, value(cost)));
        let each = each.collect::<Vec<_>>().join("; ");
        Some(
            Measure::single(&format!("idle-{name}-{suffix}"), &format!("idle {name}, {what}"), unit, most)
                .note(each),
        )
    };
    let memory = line("memory", "resident memory", Unit::Megabytes, |cost| cost.megabytes);
    let cpu = line("cpu", "processor", Unit::PercentOfCore, |cost| cost.percent);
    memory.into_iter().chain(cpu).collect()
}
