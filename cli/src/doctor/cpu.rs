//! The processor: its instructions, how many cores there are for us, and whether it is let run.

use std::path::Path;

use foggara_kernels::cpu::detect::{self, Widest};

use super::cgroup::Allowed;
use super::finding::{Finding, Severity};

const SECTION: &str = "cpu";

/// What is known of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Cpu {
    pub(crate) name: String,
    lanes: Widest,
    pub(crate) features: &'static str,
    /// As many threads as a worker has by default.
    pub(crate) cores: usize,
    governor: Option<String>,
    /// Sockets, or parts with memory of their own.
    nodes: usize,
}

impl Cpu {
    /// Of this host.
    pub(super) fn of_host() -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let governor = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").ok();
        let nodes = Path::new("/sys/devices/system/node").read_dir().into_iter().flatten().flatten();
        let numbered =
            |name: &str| name.strip_prefix("node").is_some_and(|number| number.parse::<u32>().is_ok());
        Self {
            name: name.map_or_else(|| std::env::consts::ARCH.into(), |(_, name)| name.trim().to_owned()),
            lanes: detect::features().lanes(),
            features: detect::features().name(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            governor: governor.map(|text| text.trim().to_owned()),
            nodes: nodes.filter(|entry| numbered(&entry.file_name().to_string_lossy())).count().max(1),
        }
    }
}

/// What is to be said of it.
pub(super) fn judge(cpu: &Cpu, allowed: &Allowed, worker: bool) -> Vec<Finding> {
    let what = format!("{} ({}), {} cores", cpu.name, cpu.features, cpu.cores);
    let mut findings = vec![match cpu.lanes {
        Widest::Portable if worker => Finding::new(
            SECTION,
            Severity::Warning,
            format!("{what}: without AVX2, FMA and F16C everything is computed many times slower"),
            "take another processor for workers (`grep -c avx2 /proc/cpuinfo`); in a virtual machine, let it see the host's (-cpu host)",
        ),
        _ => Finding::ok(SECTION, what),
    }];
    if let Some(processors) = allowed.processors.filter(|_| worker) {
        findings.push(Finding::new(
            SECTION,
            Severity::Note,
            format!(
                "a control group allows the time of {processors:.1} processors: threads beyond that wait"
            ),
            format!("--threads {}, or raise CPUQuota= in the unit", (processors.floor() as usize).max(1)),
        ));
    }
    if worker && cpu.governor.as_deref() == Some("powersave") {
        let what = "the processor's governor is powersave: it may take its time to speed up";
        let remedy = "cpupower frequency-set -g performance";
        findings.push(Finding::new(SECTION, Severity::Note, what, remedy));
    }
    if worker && cpu.nodes > 1 {
        findings.push(Finding::new(
            SECTION,
            Severity::Note,
            format!(
                "{} nodes, each with memory of its own: a worker on all of them reads far memory",
                cpu.nodes
            ),
            "a worker for each: numactl --cpunodebind=0 --membind=0 foggara worker …",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::finding::{severities, worst};
    use super::*;

    #[test]
    fn each_brake_is_told_to_workers() {
        let usual = Cpu {
            name: "A processor".into(),
            lanes: Widest::Avx2,
            features: "avx2+fma+f16c",
            cores: 4,
            governor: None,
            nodes: 1,
        };
        let all = &Allowed::default();
        assert_eq!(severities(&judge(&usual, all, true)), [Severity::Ok]);
        let portable = Cpu { lanes: Widest::Portable, ..usual.clone() };
        assert_eq!(severities(&judge(&portable, all, true)), [Severity::Warning]);
        assert_eq!(severities(&judge(&portable, all, false)), [Severity::Ok], "coordinators compute nothing");
        let quota = &Allowed { processors: Some(1.5), memory: None };
        assert_eq!(
            judge(&usual, quota, true)[1].remedy.as_deref(),
            Some("--threads 1, or raise CPUQuota= in the unit")
        );
        let slow = Cpu { governor: Some("powersave".into()), nodes: 2, ..usual };
        assert_eq!(worst(&judge(&slow, all, true)), Severity::Note);
        assert_eq!(judge(&slow, all, true).len(), 3);
        assert_eq!(judge(&slow, quota, false).len(), 1);
    }
}
