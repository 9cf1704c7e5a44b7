//! A soak: many requests one after the other, and what each process holds before, during and after.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::args::LeakArgs;
use crate::client::{Ask, Client};
use crate::cluster::Cluster;
use crate::members::{Member, Members};
use crate::process::Holdings;
use crate::prompts::Prompts;
use crate::target::Target;

/// Counts are taken at the start and after each of this many parts: growth that stops is no leak.
const PARTS: usize = 4;
/// Lengths of prompts and answers, in turn.
const SHAPES: [(usize, usize); 4] = [(8, 4), (40, 8), (100, 2), (17, 16)];
/// Threads and connections that are no longer needed are given up within this time.
const SETTLE: Duration = Duration::from_secs(12);

/// What one process held at each count.
#[derive(Serialize)]
struct Course {
    process: String,
    held: Vec<Holdings>,
}

#[derive(Serialize)]
struct Soak {
    requests: usize,
    processes: Vec<Course>,
    /// KV blocks held by live sequences, in all groups, at each count.
    live_blocks: Vec<u64>,
    /// What grew.
    findings: Vec<String>,
}

/// Runs the soak; fails if something grew.
pub(crate) async fn run(args: &LeakArgs) -> Result<ExitCode> {
    let cluster = if args.target.own_cluster() { Some(Cluster::start(&args.target).await?) } else { None };
    let target = Target::open(&args.target, cluster).await?;
    let soak = soak(&target, args).await;
    target.close().await?;
    let soak = soak?;
    let text = if args.json { serde_json::to_string_pretty(&soak)? + "\n" } else { show(&soak) };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(if soak.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn soak(target: &Target, args: &LeakArgs) -> Result<Soak> {
    let members =
        target.members().await?.context("this server does not say which processes it consists of")?;
    let prompts = Prompts::new();
    let mut client = target.client().await?;
    eprintln!("… warming up with {} requests", args.warm_up);
    send(&mut client, &prompts, args.warm_up).await?;
    let processes =
        members.list.iter().map(|member| Course { process: member.label.clone(), held: Vec::new() });
    let mut soak = Soak {
        requests: args.requests,
        processes: processes.collect(),
        live_blocks: Vec::new(),
        findings: Vec::new(),
    };
    count(&members, &mut soak).await?;
    for part in 1..=PARTS {
        let upto = |part: usize| args.requests * part / PARTS;
        send(&mut client, &prompts, upto(part) - upto(part - 1)).await?;
        eprintln!("… {} of {}", upto(part), args.requests);
        count(&members, &mut soak).await?;
    }
    soak.findings = findings(&soak, args.allow_mb);
    Ok(soak)
}

async fn send(client: &mut Client, prompts: &Prompts, requests: usize) -> Result<()> {
    for number in 0..requests {
        let (prompt, max_tokens) = SHAPES[number % SHAPES.len()];
        client.generate(Ask { prompt: prompts.next(prompt), max_tokens }).await?;
    }
    Ok(())
}

/// Notes what everything holds, once it has come to rest.
async fn count(members: &Members, soak: &mut Soak) -> Result<()> {
    tokio::time::sleep(SETTLE).await;
    for (Member { pid, .. }, course) in members.list.iter().zip(&mut soak.processes) {
        course.held.push(Holdings::of(*pid)?);
    }
    soak.live_blocks.push(members.live_blocks().await?);
    Ok(())
}

/// What is held at the end that was not at the first count.
fn findings(soak: &Soak, allow_mb: f64) -> Vec<String> {
    let mut found = Vec::new();
    for Course { process, held } in &soak.processes {
        let (Some(first), Some(last)) = (held.first(), held.last()) else { continue };
        let grown = (last.resident_bytes as f64 - first.resident_bytes as f64) / 1e6;
        if grown > allow_mb {
            found.push(format!("{process}: {grown:.1} MB more memory"));
        }
        for (what, before, after) in
            [("open files", first.files, last.files), ("threads", first.threads, last.threads)]
        {
            if after > before {
                found.push(format!("{process}: {} more {what}", after - before));
            }
        }
    }
    if let Some(blocks) = soak.live_blocks.last().filter(|blocks| **blocks > 0) {
        found.push(format!("{blocks} KV blocks belong to no request"));
    }
    found
}

fn show(soak: &Soak) -> String {
    let mut text = format!(
        "{} requests, one after the other; counted before, at each quarter, and after:\n\n",
        soak.requests
    );
    let line = |name: &str, what: &str, values: Vec<String>| {
        format!(
            "{name:<26} {what:<12} {}\n",
            values.iter().map(|value| format!("{value:>9}")).collect::<String>()
        )
    };
    for Course { process, held } in &soak.processes {
        let memory = held.iter().map(|h| format!("{:.1}", h.resident_bytes as f64 / 1e6));
        text += &line(process, "memory MB", memory.collect());
        text += &line("", "open files", held.iter().map(|h| h.files.to_string()).collect());
        text += &line("", "threads", held.iter().map(|h| h.threads.to_string()).collect());
    }
    text += &line("all groups", "live blocks", soak.live_blocks.iter().map(u64::to_string).collect());
    text += "\n";
    match soak.findings.as_slice() {
        [] => text += "nothing grew\n",
        findings => findings.iter().for_each(|finding| text += &format!("GREW  {finding}\n")),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soak(held: &[(u64, usize, usize)], live_blocks: u64) -> Soak {
        let held = held.iter().map(|(mb, files, threads)| Holdings {
            resident_bytes: mb * 1_000_000,
            files: *files,
            threads: *threads,
        });
        let processes = vec![Course { process: "worker 1".into(), held: held.collect() }];
        Soak { requests: 4, processes, live_blocks: vec![0, live_blocks], findings: Vec::new() }
    }

    #[test]
    fn growth_is_found_and_shrinking_is_not() {
        assert!(findings(&soak(&[(50, 9, 9), (53, 8, 9)], 0), 4.0).is_empty());
        let found = findings(&soak(&[(50, 9, 9), (60, 10, 11)], 3), 4.0);
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found[0].contains("10.0 MB") && found[3].contains("3 KV blocks"), "{found:?}");
    }

    #[test]
    fn the_table_names_what_grew() {
        let mut soak = soak(&[(50, 9, 9), (60, 9, 9)], 0);
        soak.findings = findings(&soak, 4.0);
        let text = show(&soak);
        assert!(text.contains("worker 1") && text.contains("GREW  worker 1: 10.0 MB"), "{text}");
    }
}
