//! How findings are shown.

use std::io::Write;

use foggara_kernels::cuda::Facts;
use foggara_kernels::cuda::doctor::{Found, Survey};
use foggara_proto::version::Build;
use serde_json::{Value, json};

use super::cpu::Cpu;
use super::finding::{Finding, Severity};
use super::memory::Memory;

/// Prints findings, grouped, a line each, and under it what to do.
pub(super) fn print(out: &mut impl Write, findings: &[Finding], colours: bool) -> std::io::Result<()> {
    let mut section = "";
    for finding in findings {
        if finding.section != section {
            section = finding.section;
            writeln!(out, "{section}")?;
        }
        // ECMA-48: red, yellow, nothing.
        let colour = match finding.severity {
            Severity::Fault => "\x1b[1;31m",
            Severity::Warning => "\x1b[33m",
            Severity::Ok | Severity::Note => "",
        };
        let (on, off) = if colours && !colour.is_empty() { (colour, "\x1b[0m") } else { ("", "") };
        let name = match finding.severity {
            Severity::Fault => "FAULT",
            other => other.name(),
        };
        writeln!(out, "  {on}{name:<8}{off} {}", finding.what)?;
        if let Some(remedy) = &finding.remedy {
            writeln!(out, "           do: {remedy}")?;
        }
    }
    let (faults, warnings) = (count(findings, Severity::Fault), count(findings, Severity::Warning));
    writeln!(out, "\n{}, {}", counted(faults, "fault"), counted(warnings, "warning"))
}

/// How many are of that severity.
pub(super) fn count(findings: &[Finding], severity: Severity) -> usize {
    findings.iter().filter(|finding| finding.severity == severity).count()
}

/// In words.
pub(super) fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// The documented shape.
pub(super) fn as_json(findings: &[Finding], cpu: &Cpu, memory: &Memory, survey: &Survey) -> Value {
    json!({
        "version": Build::own().version,
        "faults": count(findings, Severity::Fault),
        "warnings": count(findings, Severity::Warning),
        "findings": findings.iter().map(Finding::as_json).collect::<Vec<_>>(),
        "cpu": cpu.name,
        "cpu_features": cpu.features,
        "cores": cpu.cores,
        "memory_bytes": memory.total,
        "memory_available_bytes": memory.usable(),
        "cuda_driver": survey.driver.as_ref().ok(),
        "cuda_driver_release": survey.driver_release,
        "gpus": survey.gpus.iter().map(gpu).collect::<Vec<_>>(),
        "libraries": survey.libraries.iter().map(library).collect::<Vec<_>>(),
        "embedded_kernels": survey.embedded,
        "missing": survey.missing,
    })
}

fn gpu(gpu: &Result<(Facts, u64), String>) -> Value {
    match gpu {
        Ok((gpu, free)) => json!({"ordinal": gpu.ordinal, "name": gpu.name,
            "compute_capability": format!("{}.{}", gpu.capability.0, gpu.capability.1),
            "memory_bytes": gpu.memory, "memory_free_bytes": free, "multiprocessors": gpu.multiprocessors,
            "shared_memory_per_block_bytes": gpu.shared, "l2_cache_bytes": gpu.cache, "pci": gpu.pci,
            "peers": gpu.peers.iter().map(|(gpu, rank)| json!({"gpu": gpu, "rank": rank}))
                .collect::<Vec<_>>()}),
        Err(error) => json!({"error": error}),
    }
}

fn library(library: &Found) -> Value {
    match &library.found {
        Ok((path, version)) => json!({"name": library.name, "path": path, "version": version}),
        Err(error) => json!({"name": library.name, "error": error}),
    }
}

#[cfg(test)]
mod tests {
    use super::super::gpu::tests::{h100, machine};
    use super::*;

    fn findings() -> Vec<Finding> {
        vec![
            Finding::ok("cpu", "A processor"),
            Finding::new("ports", Severity::Fault, "--http is taken", "kill 1"),
            Finding::note("ports", "another"),
        ]
    }

    #[test]
    fn findings_are_grouped_with_their_remedies() {
        let shown = |colours| {
            let mut out = Vec::new();
            print(&mut out, &findings(), colours).expect("memory");
            String::from_utf8_lossy(&out).into_owned()
        };
        assert_eq!(
            shown(false),
            "cpu\n  ok       A processor\nports\n  FAULT    --http is taken\n           do: kill 1\n  note     another\n\n\
            1 fault, 0 warnings\n"
        );
        assert!(shown(true).contains("\x1b[1;31mFAULT"));
    }

    #[test]
    fn json_has_findings_and_facts() {
        let survey = machine(vec![Ok((h100(), 79 << 30))], &[]);
        let json = as_json(&findings(), &Cpu::of_host(), &Memory::default(), &survey);
        assert_eq!((&json["faults"], &json["findings"][1]["remedy"]), (&json!(1), &json!("kill 1")));
        assert_eq!(json["gpus"][0]["compute_capability"], "9.0");
    }
}
