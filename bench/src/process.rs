//! What the kernel says of a process (proc(5)).

use anyhow::{Context, Result};
use serde::Serialize;

/// `utime` and `stime` come in these, on every Linux that runs today (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Holdings {
    pub(crate) resident_bytes: u64,
    pub(crate) files: usize,
    pub(crate) threads: usize,
}

impl Holdings {
    /// Of process `pid`.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let status = read(pid, "status")?;
        let files = std::fs::read_dir(format!("/proc/{pid}/fd"));
        let files = files.with_context(|| format!("listing the files of process {pid}"))?.count();
        let field = |name| field(&status, name).with_context(|| format!("no {name} of process {pid}"));
        Ok(Self { resident_bytes: field("VmRSS:")? * 1024, threads: field("Threads:")? as usize, files })
    }
}

/// Seconds of processor time that process `pid` has used, all threads together.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = read(pid, "stat")?;
    ticks(&stat)
        .map(|ticks| ticks as f64 / TICKS_PER_SECOND)
        .with_context(|| format!("/proc/{pid}/stat: {stat}"))
}

fn read(pid: u32, file: &str) -> Result<String> {
    std::fs::read_to_string(format!("/proc/{pid}/{file}"))
        .with_context(|| format!("asking about process {pid}"))
}

/// A number of /proc/PID/status.
fn field(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// `utime` + `stime` of /proc/PID/stat. The command's name, in parentheses, may contain anything: count from its end.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_understood() {
        assert_eq!(field("Name:\tx\nVmRSS:\t  5120 kB\nThreads:\t7\n", "VmRSS:"), Some(5120));
        assert_eq!(field("Name:\tx\n", "VmRSS:"), None);
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 1000";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(ticks("42 (a) S 1"), None);
    }

    #[test]
    fn this_process_holds_something() {
        let held = Holdings::of(std::process::id()).expect("it runs");
        assert!(held.resident_bytes > 0 && held.threads > 0);
        assert!(cpu_seconds(std::process::id()).expect("it runs") >= 0.0);
    }
}
