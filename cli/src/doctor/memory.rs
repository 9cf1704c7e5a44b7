//! Memory: what there is, what of it this process may use, and what collectives need of it.

use foggara_kernels::collective::shm::BYTES_PER_RANK;
use rustix::fs::statvfs;

use super::asked::Asked;
use super::cgroup::Allowed;
use super::finding::{Finding, Severity};
use crate::output::bytes;

const SECTION: &str = "memory";
/// A worker beside its weights and cache, or a coordinator, with room for the system.
const LEAST: u64 = 256 << 20;
const LITTLE: u64 = 1 << 30;
/// Of /dev/shm; a group takes a page more, which is rounded up to a rank.
const SHARED_PER_RANK: u64 = BYTES_PER_RANK as u64;

/// What the system tells.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Memory {
    pub(super) total: u64,
    /// Without swapping, and without files that are mapped.
    pub(super) available: u64,
    pub(super) swap: u64,
    /// vm.overcommit_memory.
    pub(super) overcommit: u32,
    /// Of /dev/shm; `None` if there is none.
    pub(super) shared_free: Option<u64>,
    /// Whether programs may have large pages where they ask for them.
    pub(super) large_pages: bool,
    pub(super) allowed: Allowed,
}

impl Memory {
    /// Of this host.
    pub(super) fn of_host() -> Self {
        let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
        let info = read("/proc/meminfo");
        Self {
            total: field(&info, "MemTotal"),
            available: available(&info),
            swap: field(&info, "SwapTotal"),
            overcommit: read("/proc/sys/vm/overcommit_memory").trim().parse().unwrap_or(0),
            shared_free: statvfs("/dev/shm").ok().map(|room| room.f_bavail * room.f_frsize),
            large_pages: !read("/sys/kernel/mm/transparent_hugepage/enabled").contains("[never]"),
            allowed: super::cgroup::allowed(),
        }
    }

    /// What a process may use of it.
    pub(super) fn usable(&self) -> u64 {
        self.allowed.memory.as_ref().map_or(self.available, |limit| limit.left.min(self.available))
    }
}

/// Bytes, of the text of /proc/meminfo (proc(5)), which has KiB; 0 if it does not say.
fn field(info: &str, name: &str) -> u64 {
    let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}

/// As a worker counts it: files that are mapped are available to the system, but weights that are mapped are read in every step.
fn available(info: &str) -> u64 {
    let mapped = field(info, "Mapped").saturating_sub(field(info, "Shmem"));
    field(info, "MemAvailable").saturating_sub(mapped)
}

/// What is to be said of it.
pub(super) fn judge(memory: &Memory, asked: &Asked) -> Vec<Finding> {
    let usable = memory.usable();
    let mut findings = vec![size(memory, usable)];
    let mut add =
        |severity, what: String, remedy: &str| findings.push(Finding::new(SECTION, severity, what, remedy));
    if let Some(limit) = memory.allowed.memory.as_ref().filter(|limit| limit.left < memory.available) {
        add(
            Severity::Note,
            format!(
                "the control group {} allows {}, of which {} are left: of the {} that the host has a worker in it takes no more",
                limit.folder.display(),
                bytes(limit.bytes),
                bytes(limit.left),
                bytes(memory.available)
            ),
            "if it is to have more, raise the limit (MemoryMax= in the unit, --memory of the container)",
        );
    }
    if memory.swap > 0 && asked.roles.worker {
        add(
            Severity::Note,
            format!(
                "{} of swap: a worker whose cache is swapped out is as slow as the disk",
                bytes(memory.swap)
            ),
            "swapoff -a, or sysctl vm.swappiness=1",
        );
    }
    if memory.overcommit == 2 {
        add(
            Severity::Warning,
            "vm.overcommit_memory is 2: the system refuses memory that is only reserved".into(),
            "sysctl vm.overcommit_memory=0",
        );
    }
    if asked.roles.worker {
        findings.extend(shared(memory.shared_free));
        if !memory.large_pages {
            let what = "large pages are switched off: weights are read a little slower";
            let remedy = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
            findings.push(Finding::new(SECTION, Severity::Note, what, remedy));
        }
    }
    findings
}

fn size(memory: &Memory, usable: u64) -> Finding {
    let what = format!("{}, {} available", bytes(memory.total), bytes(usable));
    let remedy = "stop what uses it: `ps -eo rss,pid,comm --sort=-rss | head`";
    match usable {
        ..LEAST => Finding::new(
            SECTION,
            Severity::Fault,
            format!("{what}: too little memory for any process of a cluster"),
            remedy,
        ),
        LEAST..LITTLE => Finding::new(SECTION, Severity::Warning, format!("{what}: little memory"), remedy),
        _ => Finding::ok(SECTION, what),
    }
}

fn shared(free: Option<u64>) -> Option<Finding> {
    let finding = |severity, what: String| {
        let remedy = "mount -o remount,size=256m /dev/shm (containers: --shm-size 256m)";
        Some(Finding::new(SECTION, severity, what, remedy))
    };
    match free {
        None => {
            finding(Severity::Warning, "there is no /dev/shm: ranks on one host cannot share memory".into())
        }
        Some(free) if free < 3 * SHARED_PER_RANK => finding(
            Severity::Fault,
            format!("/dev/shm has {} free: too little for a group of two ranks on this host", bytes(free)),
        ),
        Some(free) if free < 16 * SHARED_PER_RANK => finding(
            Severity::Warning,
            format!(
                "/dev/shm has {} free: enough for {} ranks on this host",
                bytes(free),
                free / SHARED_PER_RANK - 1
            ),
        ),
        Some(free) => Some(Finding::ok(SECTION, format!("/dev/shm has {} free", bytes(free)))),
    }
}

#[cfg(test)]
mod tests {
    use foggara_worker::cgroup::MemoryLimit;

    use super::super::asked::nothing;
    use super::super::finding::{severities, worst};
    use super::*;

    fn healthy() -> Memory {
        Memory {
            total: 8 << 30,
            available: 6 << 30,
            shared_free: Some(4 << 30),
            large_pages: true,
            ..Memory::default()
        }
    }

    #[test]
    fn the_systems_numbers_are_read() {
        let info =
            "MemTotal: 4000 kB\nMemAvailable:  1000 kB\nMapped: 300 kB\nShmem: 100 kB\nSwapTotal: 0 kB\n";
        assert_eq!((field(info, "MemTotal"), available(info)), (4000 << 10, 800 << 10));
        assert_eq!((field(info, "Mem"), field("", "MemTotal")), (0, 0));
    }

    #[test]
    fn a_healthy_host_has_no_more_than_it_says() {
        assert_eq!(severities(&judge(&healthy(), &nothing())), [Severity::Ok, Severity::Ok]);
    }

    #[test]
    fn each_lack_is_told() {
        let limited = |left| {
            let limit = MemoryLimit { folder: "/sys/fs/cgroup/a.slice".into(), bytes: 7 << 30, left };
            Allowed { memory: Some(limit), processors: None }
        };
        for (memory, severity, word) in [
            (Memory { available: 1 << 20, ..healthy() }, Severity::Fault, "too little memory"),
            (Memory { available: 500 << 20, ..healthy() }, Severity::Warning, "little memory"),
            (
                Memory { allowed: limited(2 << 30), ..healthy() },
                Severity::Note,
                "/sys/fs/cgroup/a.slice allows 7",
            ),
            (Memory { allowed: limited(1 << 20), ..healthy() }, Severity::Fault, "too little memory"),
            (Memory { swap: 1 << 30, ..healthy() }, Severity::Note, "swap"),
            (Memory { overcommit: 2, ..healthy() }, Severity::Warning, "overcommit"),
            (Memory { shared_free: None, ..healthy() }, Severity::Warning, "/dev/shm"),
            (Memory { shared_free: Some(1 << 20), ..healthy() }, Severity::Fault, "/dev/shm"),
            (Memory { shared_free: Some(10 << 20), ..healthy() }, Severity::Warning, "enough for 3 ranks"),
            (Memory { large_pages: false, ..healthy() }, Severity::Note, "large pages"),
        ] {
            let found = judge(&memory, &nothing());
            assert_eq!(worst(&found), severity, "{memory:?}");
            assert!(
                found.iter().any(|finding| finding.severity == severity && finding.what.contains(word)),
                "{found:?}"
            );
        }
        let wide = Memory { allowed: limited(7 << 30), ..healthy() };
        assert_eq!(worst(&judge(&wide, &nothing())), Severity::Ok, "a limit above what there is");
    }
}
