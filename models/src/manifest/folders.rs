//! Finding a model's files on this machine.

use std::path::{Path, PathBuf};

use super::make::{DESCRIPTIONS, SINGLE};
use super::{Hash, Hashes, Manifest, ManifestFile, Progress, tables};
use crate::error::ModelError;

/// How much of the files is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// All their bytes: for who computes with them.
    Whole,
    /// Their sizes, and the parts that say what the model is.
    Tables,
}

/// Folders that hold models: each in a folder of its own, or its files directly.
#[derive(Debug, Clone, Default)]
pub struct ModelFolders(Vec<PathBuf>);

impl ModelFolders {
    /// These folders, looked through in this order.
    pub fn new(folders: Vec<PathBuf>) -> Self {
        Self(folders)
    }

    /// Where a model that is called `path` elsewhere may lie: there, or in a folder under its last name.
    pub fn candidates(&self, path: &Path) -> Vec<PathBuf> {
        let mut candidates = Vec::new();
        if path.is_absolute() {
            candidates.push(path.to_owned());
        }
        for folder in &self.0 {
            candidates.extend(path.file_name().map(|name| folder.join(name)));
        }
        candidates
    }

    /// Folders in which the files of a model may lie.
    fn roots(&self, manifest: &Manifest, given: &Path) -> Vec<PathBuf> {
        let mut roots = Vec::new();
        let mut add = |root: PathBuf| {
            if !roots.contains(&root) {
                roots.push(root);
            }
        };
        if given.is_absolute() {
            // Of a GGUF file the path may be the file's own.
            let own = manifest.gguf().is_some_and(|file| given.file_name().is_some_and(|n| n == &*file.name));
            add(if own { given.parent().unwrap_or(given).to_owned() } else { given.to_owned() });
        }
        for folder in &self.0 {
            given.file_name().map(|name| folder.join(name)).into_iter().for_each(&mut add);
            if manifest.gguf().is_some() {
                given.file_stem().map(|stem| folder.join(stem)).into_iter().for_each(&mut add);
            }
            add(folder.clone());
        }
        roots
    }

    /// The folder in which all files of a model lie, as the manifest says they are; `given` is where they lie on the
    /// machine where the manifest was made.
    ///
    /// # Errors
    /// Names the file that is missing or differs, what was expected, and where it was looked for.
    pub fn find(
        &self,
        manifest: &Manifest,
        given: &Path,
        depth: Depth,
        hashes: &Hashes,
        progress: &mut Progress<'_>,
    ) -> Result<PathBuf, String> {
        let (mut found, mut absent) = (Vec::new(), Vec::new());
        for root in self.roots(manifest, given) {
            match check(manifest, &root, depth, hashes, progress) {
                Ok(()) => return Ok(root),
                // A folder with some of the files says more than one with none.
                Err(problem) if manifest.files().iter().any(|file| root.join(&file.name).exists()) => {
                    found.push(problem);
                }
                Err(_) => absent.push(root.display().to_string()),
            }
        }
        if found.is_empty() {
            let expected = manifest.files().iter().max_by_key(|file| file.bytes);
            let expected = expected.map(ManifestFile::expected).unwrap_or_default();
            let looked =
                if absent.is_empty() { "nowhere (no folder is given)".into() } else { absent.join(", ") };
            return Err(format!("the model's files are not here; {expected}; looked in {looked}"));
        }
        Err(found.join("; "))
    }
}

impl ManifestFile {
    /// What it should be, for messages.
    fn expected(&self) -> String {
        format!("expected `{}` of {} bytes with hash {}", self.name, self.bytes, self.hash)
    }
}

/// Whether the files in `root` are the manifest's.
fn check(
    manifest: &Manifest,
    root: &Path,
    depth: Depth,
    hashes: &Hashes,
    progress: &mut Progress<'_>,
) -> Result<(), String> {
    let wrong = |file: &ManifestFile, what: String| {
        Err(format!("file {} {what}: {}", root.join(&file.name).display(), file.expected()))
    };
    // Sizes first: they cost nothing.
    for file in manifest.files() {
        match std::fs::metadata(root.join(&file.name)) {
            Ok(metadata) if !metadata.is_file() => return wrong(file, "is no file".into()),
            Ok(metadata) if metadata.len() != file.bytes => {
                return wrong(file, format!("has {} bytes", metadata.len()));
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return wrong(file, "is missing".into());
            }
            Err(error) => return wrong(file, error.to_string()),
        }
    }
    // A file that the model has here only would be read too. (Of an adapter's folder nothing else is.)
    if manifest.gguf().is_none() && !manifest.is_adapter() {
        let known = |name: &str| manifest.file(name).is_some();
        let indexed = known(super::make::INDEX);
        let read = |name: &&str| !(known(name) || indexed && **name == *SINGLE);
        let mut names = DESCRIPTIONS.into_iter().chain([SINGLE]).filter(read);
        if let Some(name) = names.find(|name| root.join(name).is_file()) {
            return Err(format!("file {} is not part of the model", root.join(name).display()));
        }
    }
    for file in manifest.files() {
        let path = root.join(&file.name);
        let text = |e: ModelError| e.to_string();
        let (found, expected) = match (depth, file.head) {
            (Depth::Tables, Some(head)) => {
                (Hash::of(&tables::beginning(&path, head.bytes).map_err(text)?), head.hash)
            }
            _ => (hashes.of(&path, progress).map_err(text)?, file.hash),
        };
        if found != expected {
            return wrong(file, format!("differs (its hash is {found})"));
        }
    }
    Ok(())
}
