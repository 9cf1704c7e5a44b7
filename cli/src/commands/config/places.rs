//! Folders that settings name: whether they can be used, by whoever asks.

use std::path::{Path, PathBuf};

use foggara_coordinator::CoordinatorConfig;
use foggara_worker::WorkerConfig;
use rustix::fs::{Access, access};

/// What a folder is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Use {
    /// It must be there.
    Read,
    /// It can be made if it is not there.
    Write,
}

/// A folder, and the setting that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    key: &'static str,
    path: PathBuf,
    used: Use,
}

fn models(folders: &[PathBuf]) -> impl Iterator<Item = Place> {
    folders.iter().map(|path| Place { key: "models", path: path.clone(), used: Use::Read })
}

fn cache(folder: Option<&PathBuf>) -> Option<Place> {
    folder.map(|path| Place { key: "cache_dir", path: path.clone(), used: Use::Write })
}

/// Those of a coordinator.
pub(super) fn of_coordinator(settings: &CoordinatorConfig) -> Vec<Place> {
    let data = Place { key: "data_dir", path: settings.data_dir.clone(), used: Use::Write };
    [data].into_iter().chain(models(&settings.models)).chain(cache(settings.cache.as_ref())).collect()
}

/// Those of a worker.
pub(super) fn of_worker(settings: &WorkerConfig) -> Vec<Place> {
    models(&settings.models).chain(cache(settings.cache.as_ref())).collect()
}

impl Place {
    /// What is wrong with it.
    pub(super) fn wrong(&self) -> Option<String> {
        let reason = match self.used {
            Use::Read => readable(&self.path),
            Use::Write => writable(&self.path),
        };
        reason.err().map(|reason| format!("{}: {}: {reason}", self.key, self.path.display()))
    }
}

fn readable(path: &Path) -> Result<(), String> {
    is_folder(path)?;
    access(path, Access::READ_OK | Access::EXEC_OK).map_err(|e| format!("cannot be read: {e}"))
}

fn writable(path: &Path) -> Result<(), String> {
    // The next folder above that is there is where it would be made.
    let mut there = path;
    while let Err(error) = std::fs::metadata(there) {
        match there.parent() {
            Some(parent) if error.kind() == std::io::ErrorKind::NotFound && parent != Path::new("") => {
                there = parent
            }
            Some(parent) if error.kind() == std::io::ErrorKind::NotFound && parent == Path::new("") => {
                there = Path::new(".");
            }
            _ => return Err(error.to_string()),
        }
    }
    is_folder(there)?;
    access(there, Access::WRITE_OK | Access::EXEC_OK).map_err(|e| match there == path {
        true => format!("cannot be written: {e}"),
        false => format!("is not there, and cannot be made in {}: {e}", there.display()),
    })
}

fn is_folder(path: &Path) -> Result<(), String> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(format!("{} is not a folder", path.display())),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_there_or_can_be_made() {
        let folder = std::env::temp_dir().join(format!("foggara-places-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let file = folder.join("file");
        std::fs::write(&file, "").expect("written");
        let wrong = |path: &Path, used| Place { key: "data_dir", path: path.into(), used }.wrong();
        for (path, used, says) in [
            (folder.clone(), Use::Read, None),
            (folder.clone(), Use::Write, None),
            (folder.join("a/b/c"), Use::Write, None),
            (folder.join("a"), Use::Read, Some("No such file")),
            (file.clone(), Use::Read, Some("not a folder")),
            (file.clone(), Use::Write, Some("not a folder")),
            (file.join("below"), Use::Write, Some("Not a directory")),
            ("/proc/sys/foggara".into(), Use::Write, Some("")),
            ("relative/and/new".into(), Use::Write, None),
        ] {
            let found = wrong(&path, used);
            assert_eq!(found.is_some(), says.is_some(), "{path:?}: {found:?}");
            let found = found.unwrap_or_default();
            assert!(found.contains(says.unwrap_or_default()), "{found}");
        }
        std::fs::remove_dir_all(folder).ok();
    }
}
