//! Which file system a path is on.

use std::path::Path;

/// The type of the file system that `path` (absolute, without links) is on, as the kernel calls it.
pub(super) fn file_system(path: &Path) -> Option<String> {
    found(&std::fs::read_to_string("/proc/self/mountinfo").ok()?, path)
}

/// Of the text of /proc/self/mountinfo (proc(5)): the fifth field is where it is mounted, the one after ` - ` its type. The deepest
/// counts, and of several at one place the last.
fn found(mounts: &str, path: &Path) -> Option<String> {
    let mount = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let at = unescaped(left.split(' ').nth(4)?);
        let kind = right.split(' ').next()?.to_owned();
        path.starts_with(&at).then_some((Path::new(&at).components().count(), kind))
    };
    // Of equals `max_by_key` takes the last.
    mounts.lines().filter_map(mount).max_by_key(|(depth, _)| *depth).map(|(_, kind)| kind)
}

/// Spaces and the like are written in octal.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, character)| text.replace(code, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_counts() {
        let mounts = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:5 / /mnt/my\\040disk rw shared:1 - nfs4 host:/x rw\n\
            3 1 0:6 / /mnt rw - xfs /dev/sdb rw\n4 1 0:7 / /mnt rw - tmpfs tmpfs rw\n";
        for (path, kind) in
            [("/var/lib", "ext4"), ("/mnt/data", "tmpfs"), ("/mnt/my disk/x", "nfs4"), ("/mnts", "ext4")]
        {
            assert_eq!(found(mounts, Path::new(path)).as_deref(), Some(kind), "{path}");
        }
        assert_eq!(found("", Path::new("/")), None);
    }
}
