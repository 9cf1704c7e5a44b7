//! What this process's control groups allow it.

use std::path::PathBuf;

/// Limits; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Allowed {
    pub(super) memory_bytes: Option<u64>,
    /// Processors, as a share of time.
    pub(super) processors: Option<f64>,
}

/// Reads them.
pub(super) fn allowed() -> Allowed {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let read = |file: PathBuf| std::fs::read_to_string(file).ok();
    let memory = folders(&groups, "memory").into_iter().flat_map(|folder| {
        let texts = ["memory.max", "memory.limit_in_bytes"].map(|name| read(folder.join(name)));
        texts.into_iter().flatten().filter_map(|text| memory(&text))
    });
    let processors =
        folders(&groups, "cpu").into_iter().filter_map(|folder| match read(folder.join("cpu.max")) {
            Some(text) => quota(&text),
            None => {
                let (quota, period) =
                    (read(folder.join("cpu.cfs_quota_us"))?, read(folder.join("cpu.cfs_period_us"))?);
                self::quota(&format!("{} {}", quota.trim(), period.trim()))
            }
        });
    Allowed { memory_bytes: memory.min(), processors: processors.min_by(f64::total_cmp) }
}

/// Folders of the group and of all that it is in, of the text of /proc/self/cgroup (cgroups(7)): `0::/path` in version 2,
/// `4:memory:/path` in version 1. A container may see its own as the root.
fn folders(groups: &str, controller: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let base = match controllers {
            "" => PathBuf::from("/sys/fs/cgroup"),
            named if named.split(',').any(|named| named == controller) => {
                PathBuf::from("/sys/fs/cgroup").join(controller)
            }
            _ => continue,
        };
        let own = base.join(path.trim_start_matches('/'));
        folders.extend(own.ancestors().take_while(|folder| folder.starts_with(&base)).map(PathBuf::from));
    }
    folders
}

/// `max`, or in version 1 a number as large as there are.
fn memory(text: &str) -> Option<u64> {
    text.trim().parse::<u64>().ok().filter(|bytes| *bytes < 1 << 60)
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
    fn a_group_is_in_all_above_it() {
        let told = |groups: &str, controller| {
            let folders = folders(groups, controller).into_iter();
            folders.map(|folder| folder.display().to_string()).collect::<Vec<_>>()
        };
        let second = "0::/system.slice/foggara.service\n";
        let expected =
            ["/sys/fs/cgroup/system.slice/foggara.service", "/sys/fs/cgroup/system.slice", "/sys/fs/cgroup"];
        assert_eq!(told(second, "memory"), expected);
        let first = "5:cpu,cpuacct:/\n4:memory:/docker/a:b\n";
        assert_eq!(told(first, "memory")[0], "/sys/fs/cgroup/memory/docker/a:b");
        assert_eq!(told(first, "cpu"), ["/sys/fs/cgroup/cpu/", "/sys/fs/cgroup/cpu"][..1]);
    }

    #[test]
    fn limits_are_numbers_or_none() {
        for (text, bytes) in
            [("max\n", None), ("1073741824\n", Some(1 << 30)), ("9223372036854771712\n", None), ("", None)]
        {
            assert_eq!(memory(text), bytes, "{text}");
        }
        for (text, processors) in
            [("max 100000\n", None), ("150000 100000\n", Some(1.5)), ("-1 100000", None), ("", None)]
        {
            assert_eq!(quota(text), processors, "{text}");
        }
    }
}
