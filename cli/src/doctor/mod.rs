//! Preflight: what of a host would keep a coordinator or a worker from running well.
//!
//! Each check is a file: it gathers facts, and a pure function judges them. What it says is findings, each with what to do about
//! it. Nothing is changed; a file is written into the data folder, and removed.

mod asked;
mod certificates;
mod cgroup;
mod clock;
mod cpu;
mod disk;
mod finding;
mod gpu;
mod holder;
mod http;
mod limits;
mod memory;
mod model;
mod mounts;
mod network;
mod peers;
mod ports;
mod reach;
mod report;
mod sync_speed;
mod token;
mod version;

use std::io::{IsTerminal, Write};

use foggara_kernels::cuda::doctor::survey;
use foggara_proto::version::Build;

pub(crate) use asked::{Asked, Roles};
use finding::Severity;
use memory::Memory;

use crate::endpoint::Caller;

/// Looks at everything and prints it; says how many faults there are.
///
/// # Errors
/// If nobody reads what is printed.
pub(crate) async fn examine(asked: &Asked, json: bool) -> anyhow::Result<usize> {
    let (survey, cpu, memory) = (survey(), cpu::Cpu::of_host(), Memory::of_host());
    let mut findings = cpu::judge(&cpu, &memory.allowed, asked.roles.worker);
    findings.extend(memory::judge(&memory, asked));
    if asked.roles.worker {
        findings.extend(gpu::judge(&survey, asked.device));
        let free: Vec<u64> = survey.gpus.iter().flatten().map(|(_, free)| *free).collect();
        let workers = model::workers(asked.device, memory.usable(), &free);
        // A GPU that is wanted and is not there has been told.
        let models = asked.model.iter().filter(|_| !workers.is_empty());
        findings.extend(models.map(|path| model::check(path, &workers)));
    }
    findings.extend(limits::check(asked, survey.gpus.len()));
    findings.extend(disk::check(asked));
    findings.extend(ports::check(asked));
    findings.extend(network::check(asked));
    findings.extend(certificates::check(asked));
    let caller = Caller::trusting(asked.tls.ca());
    let ask = |addresses| peers::ask(addresses, &asked.token, &caller);
    let (join, peers) = futures::join!(ask(&asked.join), ask(&asked.peers));
    findings.extend(reach::judge(asked, &join, &peers));
    let all = [join, peers].concat();
    findings.extend(clock::check(&all));
    findings.extend(token::judge(asked, &all));
    findings.extend(version::judge(&Build::own(), asked.roles.coordinator, &all));
    let mut out = std::io::stdout().lock();
    if json {
        let json = report::as_json(&findings, &cpu, &memory, &survey);
        writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?;
    } else {
        // https://no-color.org
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        report::print(&mut out, &findings, colours)?;
    }
    out.flush()?;
    Ok(report::count(&findings, Severity::Fault))
}

/// `count` of `what`, in words.
pub(crate) fn counted(count: usize, what: &str) -> String {
    report::counted(count, what)
}
