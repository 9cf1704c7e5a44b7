//! Limits of this user's processes (ulimit).

use rustix::process::{Resource, getrlimit};

use super::asked::{Asked, Roles};
use super::finding::{Finding, Severity};

const SECTION: &str = "limits";
/// Each client's connection is an open file; what the units in deploy/systemd ask for.
const FILES: u64 = 65_536;
/// Fewer are not enough for a handful of clients beside stores, peers and workers.
const LEAST_FILES: u64 = 512;
/// Threads of a process count. A coordinator has one for each core and some more, a worker as many as it computes with.
const LEAST_PROCESSES: u64 = 1024;
/// NCCL registers memory with network cards, which must stay where it is.
const LOCKED: u64 = 1 << 30;

/// Soft and hard limits; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    files: (Option<u64>, Option<u64>),
    processes: Option<u64>,
    locked_bytes: Option<u64>,
    address_bytes: Option<u64>,
}

/// Those of this process.
pub(super) fn check(asked: &Asked, gpus: usize) -> Vec<Finding> {
    let soft = |resource| getrlimit(resource).current;
    let files = getrlimit(Resource::Nofile);
    let limits = Limits {
        files: (files.current, files.maximum),
        processes: soft(Resource::Nproc),
        locked_bytes: soft(Resource::Memlock),
        address_bytes: soft(Resource::As),
    };
    judge(limits, asked.roles, gpus)
}

fn judge(limits: Limits, roles: Roles, gpus: usize) -> Vec<Finding> {
    let mut findings = vec![files(limits.files, roles)];
    let mut add =
        |severity, what: String, remedy: &str| findings.push(Finding::new(SECTION, severity, what, remedy));
    match limits.processes {
        Some(processes) if processes < LEAST_PROCESSES => add(
            Severity::Warning,
            format!(
                "{processes} processes and threads of this user (ulimit -u); {LEAST_PROCESSES} are enough"
            ),
            "ulimit -u 4096, or TasksMax= and LimitNPROC= in the unit",
        ),
        _ => {}
    }
    match limits.locked_bytes {
        Some(bytes) if gpus > 1 && bytes < LOCKED => add(
            Severity::Note,
            format!(
                "{} KiB may be locked in memory (ulimit -l): RDMA between GPUs of several hosts needs more",
                bytes >> 10
            ),
            "ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit",
        ),
        _ => {}
    }
    if let Some(bytes) = limits.address_bytes {
        add(
            Severity::Warning,
            format!(
                "{} MiB of addresses for a process (ulimit -v): models are mapped, and need as many as they are large",
                bytes >> 20
            ),
            "ulimit -v unlimited",
        );
    }
    findings
}

fn files((soft, hard): (Option<u64>, Option<u64>), roles: Roles) -> Finding {
    let Some(files) = soft else { return Finding::ok(SECTION, "any number of open files") };
    let within = hard.is_none_or(|hard| hard >= FILES);
    let remedy = match within {
        true => format!("ulimit -n {FILES}, or LimitNOFILE={FILES} in the unit"),
        false => format!(
            "raise the hard limit: `* hard nofile {FILES}` in /etc/security/limits.conf, or LimitNOFILE={FILES} in the unit"
        ),
    };
    let what = format!("{files} open files (ulimit -n)");
    match files {
        0..LEAST_FILES => {
            let what = format!("{what}: at least {LEAST_FILES} are needed");
            Finding::new(SECTION, Severity::Fault, what, remedy)
        }
        LEAST_FILES..FILES if roles.coordinator => {
            let what = format!("{what}: each client of a coordinator takes one");
            // Nobody has more clients by default: no reason to worry everyone who tries it.
            let severity = if files < 4096 { Severity::Warning } else { Severity::Note };
            Finding::new(SECTION, severity, what, remedy)
        }
        _ => Finding::ok(SECTION, what),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::{severities, worst};
    use super::*;

    const COORDINATOR: Roles = Roles { coordinator: true, worker: false };
    const WORKER: Roles = Roles { coordinator: false, worker: true };
    const NONE: Limits =
        Limits { files: (None, None), processes: None, locked_bytes: None, address_bytes: None };

    #[test]
    fn open_files_are_clients() {
        for (files, roles, severity) in [
            (Some(256), COORDINATOR, Severity::Fault),
            (Some(256), WORKER, Severity::Fault),
            (Some(1024), COORDINATOR, Severity::Warning),
            (Some(1024), WORKER, Severity::Ok),
            (Some(20_000), COORDINATOR, Severity::Note),
            (Some(FILES), COORDINATOR, Severity::Ok),
            (None, COORDINATOR, Severity::Ok),
        ] {
            let limits = Limits { files: (files, None), ..NONE };
            assert_eq!(severities(&judge(limits, roles, 0)), [severity], "{files:?} {roles:?}");
        }
        let tight = Limits { files: (Some(256), Some(4096)), ..NONE };
        let found = judge(tight, WORKER, 0);
        assert!(found[0].remedy.as_ref().is_some_and(|remedy| remedy.contains("hard limit")), "{found:?}");
    }

    #[test]
    fn other_limits() {
        let few = Limits { processes: Some(100), ..NONE };
        assert_eq!(worst(&judge(few, WORKER, 0)), Severity::Warning);
        let mapped = Limits { address_bytes: Some(1 << 30), ..NONE };
        assert_eq!(worst(&judge(mapped, WORKER, 0)), Severity::Warning);
        let locked = Limits { locked_bytes: Some(8 << 20), ..NONE };
        assert_eq!(worst(&judge(locked, WORKER, 1)), Severity::Ok);
        assert_eq!(worst(&judge(locked, WORKER, 2)), Severity::Note);
    }
}
