//! From the files of a folder to the processes to run.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context as _;

/// Names of the processes that `folder` has files for.
///
/// # Errors
/// If the folder cannot be read.
pub(super) fn processes(folder: &Path) -> anyhow::Result<BTreeSet<String>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("dir: reading {}", folder.display()))?;
    let names =
        entries.flatten().filter_map(|entry| process_of(entry.file_name().to_str()?).map(str::to_owned));
    Ok(names.collect())
}

/// The process that a file is for, if it is for one: `worker-2` for `worker-2.toml`.
fn process_of(file: &str) -> Option<&str> {
    let name = file.strip_suffix(".toml")?;
    let is_ours = is_coordinator(name)
        || name == "worker"
        || name.strip_prefix("worker-").is_some_and(|which| !which.is_empty());
    is_ours.then_some(name)
}

/// Whether this is the coordinator.
pub(super) fn is_coordinator(name: &str) -> bool {
    name == "coordinator"
}

/// Subcommand and options of a process.
pub(super) fn command(folder: &Path, name: &str) -> Vec<String> {
    let kind = if is_coordinator(name) { "coordinator" } else { "worker" };
    let file = folder.join(format!("{name}.toml"));
    [kind, "--config"].map(str::to_owned).into_iter().chain([file.to_string_lossy().into_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_after_processes() {
        for (file, process) in [
            ("coordinator.toml", Some("coordinator")),
            ("worker.toml", Some("worker")),
            ("worker-gpu0.toml", Some("worker-gpu0")),
            ("worker-.toml", None),
            ("workers.toml", None),
            ("worker.toml~", None),
            ("cluster-token", None),
            ("coordinator-2.toml", None),
        ] {
            assert_eq!(process_of(file), process, "{file}");
        }
        assert_eq!(
            command(Path::new("/etc/foggara"), "worker-2"),
            ["worker", "--config", "/etc/foggara/worker-2.toml"]
        );
        assert_eq!(
            command(Path::new("/x"), "coordinator"),
            ["coordinator", "--config", "/x/coordinator.toml"]
        );
    }
}
