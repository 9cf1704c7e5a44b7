//! A control group, of whichever version the system has. Needs root.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Enters the group whose folder comes first, and becomes the rest.
const ENTER: &str = r#"echo $$ >"$0/cgroup.procs" && exec "$@""#;

/// A group whose processes may use so much memory together. Removed when dropped: they must have ended by then.
#[derive(Debug)]
pub struct ControlGroup(PathBuf);

impl ControlGroup {
    /// Makes one.
    ///
    /// # Panics
    /// With what to do about it, if the system does not allow it.
    pub fn new(bytes: u64) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("foggara-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let root = Path::new("/sys/fs/cgroup");
        let (parent, limit) = match root.join("memory").is_dir() {
            true => (root.join("memory"), "memory.limit_in_bytes"),
            false => (root.to_owned(), "memory.max"),
        };
        let folder = parent.join(name);
        let make = || {
            std::fs::create_dir(&folder)?;
            std::fs::write(folder.join(limit), bytes.to_string())
        };
        make().unwrap_or_else(|e| {
            panic!("{}: {e}: run this test as root, where control groups can be made", folder.display())
        });
        Self(folder)
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// `command`, in the group.
    pub fn within(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        inside.args(["-c", ENTER]).arg(&self.0).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.0).ok();
    }
}
