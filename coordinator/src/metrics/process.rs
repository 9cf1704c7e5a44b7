//! What the system says of this process (proc(5)).

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{Counter, IntGauge};

use super::table::Table;

/// Clock ticks of a second in `/proc/self/stat`: the same on every Linux there is (USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

/// The families.
pub(super) struct ProcessFamilies {
    resident_bytes: IntGauge,
    open_files: IntGauge,
    threads: IntGauge,
    cpu_seconds: Counter,
}

impl ProcessFamilies {
    pub(super) fn new(table: &Table<'_>) -> Self {
        let started = table.gauge("process_start_time_seconds", "When this process started, since 1970.");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        started.set(i64::try_from(now.as_secs()).unwrap_or(0));
        Self {
            resident_bytes: table.gauge("process_resident_memory_bytes", "Memory of this process."),
            open_files: table.gauge("process_open_fds", "Open files of this process."),
            threads: table.gauge("process_threads", "Threads of this process."),
            cpu_seconds: table.seconds("process_cpu_seconds_total", "Processor time of this process."),
        }
    }

    /// Reads them.
    pub(super) fn read(&self) {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
        let status = read("status");
        let number = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_whitespace().next()?.parse::<i64>().ok()
        };
        self.resident_bytes.set(number("VmRSS:").unwrap_or(0) * 1024);
        self.threads.set(number("Threads:").unwrap_or(0));
        let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        self.open_files.set(i64::try_from(files).unwrap_or(i64::MAX));
        let used = cpu_ticks(&read("stat")).unwrap_or(0) as f64 / TICKS_PER_SECOND;
        self.cpu_seconds.inc_by((used - self.cpu_seconds.get()).max(0.0));
    }
}

/// User and system time in `/proc/self/stat`: fields 14 and 15. The second, the program's name, may hold spaces and brackets.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_comes_after_the_name_whatever_it_is() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20";
        for name in ["foggara", "a b", "odd) name"] {
            assert_eq!(cpu_ticks(&format!("77 ({name}) {rest}")), Some(300), "{name}");
        }
        assert_eq!(cpu_ticks(""), None);
        assert_eq!(cpu_ticks("77 (x) S 1"), None);
    }
}
