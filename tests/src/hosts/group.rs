//! A control group for the processes of a host whose process 1 is systemd, which makes more below it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::wait::PATIENCE;

/// Where a control group is, in the second version of their hierarchy: also where that manages nothing, beside the first.
#[derive(Debug)]
pub(super) struct Group(PathBuf);

impl Group {
    /// Makes it.
    pub(super) fn new(name: &str) -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("proc is mounted");
        let root = root(&mounts).expect("control groups (cgroup2) are mounted somewhere: systemd needs them");
        let group = root.join(name);
        std::fs::create_dir(&group).unwrap_or_else(|e| {
            panic!("{}: {e}: hosts that run systemd need control groups that can be made", group.display())
        });
        Self(group)
    }

    /// What to write one's process id to.
    pub(super) fn members(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }
}

/// The first place in a table of mounts where control groups of the second version are.
fn root(mounts: &str) -> Option<PathBuf> {
    let mut fields = mounts.lines().map(|line| line.split(' ').skip(1));
    fields.find_map(|mut fields| {
        let place = fields.next()?;
        (fields.next()? == "cgroup2").then(|| place.into())
    })
}

impl Drop for Group {
    /// Its processes have been killed, and may be ending.
    fn drop(&mut self) {
        let until = Instant::now() + PATIENCE;
        while remove(&self.0).is_err() && self.0.exists() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Removes a group and those below it; what else seems to be in there goes with them.
fn remove(group: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(group)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    std::fs::remove_dir(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_version_is_found_beside_the_first() {
        let first = "cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\n";
        let second = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        assert_eq!(root(&format!("{first}{second}")), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(root(first), None);
    }
}
