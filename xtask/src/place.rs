//! Where things are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folder of the workspace's `Cargo.toml`.
pub fn root() -> PathBuf {
    let own = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    own.parent().map(Path::to_path_buf).unwrap_or(own)
}

/// What set-up fetches and makes; not in git.
pub fn cache() -> PathBuf {
    root().join(".cache")
}

/// The Python environment of set-up.
pub fn python() -> PathBuf {
    cache().join("python/bin/python")
}

/// The folder of `prometheus` and `promtool`.
pub fn prometheus() -> PathBuf {
    cache().join("prometheus/usr/bin")
}

/// The demo model.
pub fn demo_model() -> PathBuf {
    cache().join("models/smollm2-135m-instruct-q4_1.gguf")
}

/// A program that cargo has built in the release profile: it lies beside this one.
pub fn built(program: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding the folder cargo builds into")?;
    Ok(own.with_file_name(program))
}

/// `path` as one would type it here.
pub fn typed(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}
