//! A whole run: limits, kernels, server, workloads, limits again, report.

use std::io::Write;

use anyhow::Result;
use clap::ValueEnum;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::args::{RunArgs, TargetArgs};
use crate::cost::ModelCost;
use crate::kernels;
use crate::limits::MachineLimits;
use crate::prompts::Prompts;
use crate::quiet;
use crate::report::{Machine, Measure, Report, markdown};
use crate::target::Target;
use crate::workload::{Bench, Workload, cold_start};

/// Runs what is asked for, prints and keeps the report.
pub(crate) async fn run(args: &TargetArgs, how: &RunArgs) -> Result<()> {
    let threads = args.workers * args.threads;
    let cost = ModelCost::asked(args)?;
    progress("limits of this machine");
    let mut limits = MachineLimits::measure(threads, how.quick);
    // A server that runs already may be on another machine: kernels of this one say little of it.
    let kernels = if how.wants(Workload::Kernels) && (args.own_cluster() || !how.only.is_empty()) {
        progress("kernels");
        kernels::Bench::new(threads, how.quick).run()?
    } else {
        Vec::new()
    };
    let (target, measures) = of_server(args, how, cost).await?;
    progress("limits of this machine, again");
    limits.measure_after(threads, how.quick);
    let rates = limits.of(threads);
    let (of, model) = match target {
        Some((of, model)) => (of, model),
        None => ("no server".to_owned(), String::new()),
    };
    let mut report = Report {
        date: now()?,
        commit: commit(),
        command: command_line(),
        machine: Machine::this(),
        target: of,
        model,
        cost,
        explanation: cost.zip(rates.as_ref()).map(|(cost, rates)| cost.explain(rates)),
        limits,
        kernels,
        measures,
        compared_with: None,
    };
    if let Some(rates) = &rates {
        report.settle(rates);
    }
    if let Some(before) = Report::previous(&how.results) {
        report.compare(&before);
    }
    report.save(&how.results)?;
    let text = if how.json { serde_json::to_string_pretty(&report)? + "\n" } else { markdown(&report) };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// What was served and by whom, if anything that is asked for needs a server.
type Served = Option<(String, String)>;

/// Every workload that needs a server, on one; it is stopped when this returns.
async fn of_server(
    args: &TargetArgs,
    how: &RunArgs,
    cost: Option<ModelCost>,
) -> Result<(Served, Vec<Measure>)> {
    let wanted = |workload: &&Workload| workload.of_server() && how.wants(**workload);
    let workloads: Vec<Workload> = Workload::value_variants().iter().filter(wanted).copied().collect();
    if workloads.is_empty() {
        return Ok((None, Vec::new()));
    }
    let (target, mut measures) = open(args, how).await?;
    if args.own_cluster() {
        // Weights that are used as they lie in their files are rearranged beside the first steps.
        quiet::wait().await?;
    }
    let bench = Bench {
        target: &target,
        cost,
        prompts: Prompts::new(),
        repetitions: how.repetitions(),
        streams: how.streams,
        clients: how.clients,
        arrivals: how.arrivals,
        quick: how.quick,
    };
    for workload in workloads.into_iter().filter(|workload| *workload != Workload::ColdStart) {
        progress(&workload.name());
        measures.extend(bench.run(workload).await?);
    }
    let served = (target.describe(), target.model().to_owned());
    target.close().await?;
    Ok((Some(served), measures))
}

/// The server, and what starting it told.
async fn open(args: &TargetArgs, how: &RunArgs) -> Result<(Target, Vec<Measure>)> {
    if !args.own_cluster() {
        return Ok((Target::open(args, None).await?, Vec::new()));
    }
    progress("starting a cluster");
    let cold = how.wants(Workload::ColdStart);
    let times = if cold { how.repetitions().min(3) } else { 1 };
    let (cluster, measures) = cold_start::run(args, times).await?;
    Ok((Target::open(args, Some(cluster)).await?, if cold { measures } else { Vec::new() }))
}

fn progress(what: &str) {
    eprintln!("… {what}");
}

/// UTC, to the minute.
pub(crate) fn now() -> Result<String> {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    Ok(OffsetDateTime::now_utc().format(format)?)
}

/// The arguments as given, under the program's plain name.
pub(crate) fn command_line() -> String {
    let arguments = std::env::args().skip(1);
    std::iter::once("foggara-bench".to_owned()).chain(arguments).collect::<Vec<_>>().join(" ")
}

/// The version, as git describes the working tree this tool was built in.
pub(crate) fn commit() -> String {
    let git = std::process::Command::new("git")
        .args(["describe", "--always", "--dirty"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    let described = git.ok().filter(|output| output.status.success());
    described.map_or_else(
        || "unknown version".into(),
        |output| String::from_utf8_lossy(&output.stdout).trim().into(),
    )
}
