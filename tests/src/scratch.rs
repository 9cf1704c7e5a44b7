//! Folders for data and logs, under `target/tmp`.

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::process;

/// A new folder. Stays after a failed test, for whoever looks into it; the next run removes it.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// A folder with `name` in its path.
    pub fn new(name: &str) -> Self {
        static CLEAN: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let all = crate::paths::root().join("target/tmp/clusters");
        CLEAN.call_once(|| remove_those_of_earlier_runs(&all));
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = all.join(std::process::id().to_string()).join(format!("{number:02}-{name}"));
        std::fs::create_dir_all(&folder).expect("target/tmp can be written");
        Self(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            std::fs::remove_dir_all(&self.0).ok();
        }
    }
}

fn remove_those_of_earlier_runs(all: &Path) {
    for entry in std::fs::read_dir(all).into_iter().flatten().flatten() {
        let pid = entry.file_name().to_string_lossy().parse().unwrap_or(0);
        if !process::is_alive(pid) {
            std::fs::remove_dir_all(entry.path()).ok();
        }
    }
}
