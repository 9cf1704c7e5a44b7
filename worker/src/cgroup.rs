//! What this process's control groups allow it (cgroups(7)), in either version of them.

use std::path::{Path, PathBuf};

/// A limit of memory, and how far it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryLimit {
    /// The group that has it.
    pub folder: PathBuf,
    /// What its processes may use together.
    pub bytes: u64,
    /// Of it, what they do not. Pages of files that nobody has mapped count as unused: the system takes them away first.
    pub left: u64,
}

/// Of the limits of this process, the one that leaves least; `None`: there is no limit.
pub fn memory_limit() -> Option<MemoryLimit> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    tightest(&groups, |file| std::fs::read_to_string(file).ok())
}

/// The least that a group of this process allows, whatever is used of it; `None`: there is no limit.
pub fn least_limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    limits(&groups, &|file: &Path| std::fs::read_to_string(file).ok()).map(|limit| limit.bytes).min()
}

/// Folders of the group and of all that it is in, of the text of /proc/self/cgroup: `0::/path` in version 2, `4:memory:/path` in
/// version 1. A container may see its own as the root.
pub fn folders(groups: &str, controller: &str) -> Vec<PathBuf> {
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

/// The files of one version.
struct Files {
    /// Each is a limit.
    limits: &'static [&'static str],
    used: &'static str,
    /// Before the names in `memory.stat` that count what groups below use, too.
    prefix: &'static str,
    mapped: &'static str,
}

const VERSIONS: [Files; 2] = [
    Files {
        limits: &["memory.max", "memory.high"],
        used: "memory.current",
        prefix: "",
        mapped: "file_mapped",
    },
    Files {
        limits: &["memory.limit_in_bytes"],
        used: "memory.usage_in_bytes",
        prefix: "total_",
        mapped: "mapped_file",
    },
];

fn tightest(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<MemoryLimit> {
    limits(groups, &read).min_by_key(|limit| limit.left)
}

fn limits(groups: &str, read: &impl Fn(&Path) -> Option<String>) -> impl Iterator<Item = MemoryLimit> {
    folders(groups, "memory").into_iter().flat_map(move |folder| {
        let of_version = |files: &Files| limit(&folder, files, read);
        VERSIONS.iter().filter_map(of_version).collect::<Vec<_>>()
    })
}

fn limit(folder: &Path, files: &Files, read: impl Fn(&Path) -> Option<String>) -> Option<MemoryLimit> {
    let text = |name: &str| read(&folder.join(name));
    let bytes = files.limits.iter().filter_map(|name| number(&text(name)?)).min()?;
    let used = text(files.used).and_then(|used| number(&used)).unwrap_or(0);
    let stat = text("memory.stat").unwrap_or_default();
    let field = |name: &str| {
        let line = stat
            .lines()
            .find_map(|line| line.strip_prefix(files.prefix)?.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(number).unwrap_or(0)
    };
    let unmapped = (field("inactive_file") + field("active_file")).saturating_sub(field(files.mapped));
    let left = bytes.saturating_sub(used.saturating_sub(unmapped));
    Some(MemoryLimit { folder: folder.to_owned(), bytes, left })
}

/// `max`, or in version 1 a number as large as there are, is no limit.
fn number(text: &str) -> Option<u64> {
    text.trim().parse::<u64>().ok().filter(|bytes| *bytes < 1 << 60)
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
    fn the_tightest_limit_counts() {
        const UNIT: &str = "0::/system.slice/w.service\n";
        const DOCKER: &str = "4:memory:/docker/a\n0::/\n";
        let stat = "inactive_file 300\nactive_file 100\nfile_mapped 150\n";
        for (groups, files, expected) in [
            ("", &[("memory.max", "5")][..], None),
            (UNIT, &[], None),
            (UNIT, &[("system.slice/w.service/memory.max", "max\n"), ("memory.max", "max\n")], None),
            (
                UNIT,
                &[("system.slice/w.service/memory.max", "1000\n")],
                Some(("system.slice/w.service", 1000, 1000)),
            ),
            // The slice allows more, but others use it.
            (
                UNIT,
                &[
                    ("system.slice/w.service/memory.max", "1000"),
                    ("system.slice/w.service/memory.current", "100"),
                    ("system.slice/memory.max", "2000"),
                    ("system.slice/memory.current", "1500"),
                ],
                Some(("system.slice", 2000, 500)),
            ),
            // What is only in the page cache is given up.
            (
                UNIT,
                &[
                    ("system.slice/w.service/memory.max", "max"),
                    ("system.slice/w.service/memory.high", "1000"),
                    ("system.slice/w.service/memory.current", "900"),
                    ("system.slice/w.service/memory.stat", stat),
                ],
                Some(("system.slice/w.service", 1000, 350)),
            ),
            (UNIT, &[("memory.max", "10"), ("memory.current", "20")], Some(("", 10, 0))),
            (DOCKER, &[("memory/docker/a/memory.limit_in_bytes", "9223372036854771712\n")], None),
            (
                DOCKER,
                &[
                    ("memory/docker/a/memory.limit_in_bytes", "1000"),
                    ("memory/docker/a/memory.usage_in_bytes", "900"),
                    (
                        "memory/docker/a/memory.stat",
                        "inactive_file 1\ntotal_inactive_file 300\ntotal_active_file 100\ntotal_mapped_file 150\n",
                    ),
                ],
                Some(("memory/docker/a", 1000, 350)),
            ),
            // A container that sees its own group as the root.
            (DOCKER, &[("memory/memory.limit_in_bytes", "700")], Some(("memory", 700, 700))),
        ] {
            let read = |file: &Path| {
                let found = files.iter().find(|(name, _)| Path::new("/sys/fs/cgroup").join(name) == file);
                found.map(|(_, text)| (*text).to_owned())
            };
            let expected = expected.map(|(folder, bytes, left)| MemoryLimit {
                folder: Path::new("/sys/fs/cgroup").join(folder),
                bytes,
                left,
            });
            assert_eq!(tightest(groups, read), expected, "{groups} {files:?}");
        }
    }
}
