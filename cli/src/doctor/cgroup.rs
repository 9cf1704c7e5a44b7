//! What this process's control groups allow it.

use std::path::PathBuf;

use foggara_worker::cgroup::{MemoryLimit, folders, memory_limit};

/// Limits; `None` is no limit.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Allowed {
    pub(super) memory: Option<MemoryLimit>,
    /// Processors, as a share of time.
    pub(super) processors: Option<f64>,
}

/// Reads them.
pub(super) fn allowed() -> Allowed {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let read = |file: PathBuf| std::fs::read_to_string(file).ok();
    let processors =
        folders(&groups, "cpu").into_iter().filter_map(|folder| match read(folder.join("cpu.max")) {
            Some(text) => quota(&text),
            None => {
                let (quota, period) =
                    (read(folder.join("cpu.cfs_quota_us"))?, read(folder.join("cpu.cfs_period_us"))?);
                self::quota(&format!("{} {}", quota.trim(), period.trim()))
            }
        });
    Allowed { memory: memory_limit(), processors: processors.min_by(f64::total_cmp) }
}

/// Microseconds of each period: `max 100000` or `-1 100000` is no limit.
fn quota(text: &str) -> Option<f64> {
    let mut numbers = text.split_whitespace().map(str::parse::<f64>);
    let (Some(Ok(quota)), Some(Ok(period))) = (numbers.next(), numbers.next()) else { return None };
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_numbers_or_none() {
        for (text, processors) in
            [("max 100000\n", None), ("150000 100000\n", Some(1.5)), ("-1 100000", None), ("", None)]
        {
            assert_eq!(quota(text), processors, "{text}");
        }
    }
}
