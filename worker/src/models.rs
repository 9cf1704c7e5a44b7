//! The models' files on this worker's machine: found for its own rank, and lent to coordinators that have none.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use foggara_models::manifest::{Depth, Described, Hash, Hashes, Manifest, ModelFolders};
use foggara_models::{Adapter, Checkpoint, ModelError};
use foggara_proto::wire::worker as wire;

/// Models of which the worker may be asked for files.
const MAX_KNOWN: usize = 1024;
/// Between two lines in the log about a file that is being checked.
const LOG_INTERVAL: Duration = Duration::from_secs(2);

/// Where models are looked for. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Models(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    folders: ModelFolders,
    hashes: Hashes,
    /// The models that are deployed, by hash, and where they lie where they were first found.
    known: Mutex<BTreeMap<Hash, (Manifest, PathBuf)>>,
}

/// Why a model cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// Its files are not here, or others.
    #[error("{0}")]
    Files(String),
    /// They are, and cannot be used.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl Models {
    /// Looks in `folders`; remembers files' hashes in `cache`.
    pub(crate) fn new(folders: Vec<PathBuf>, cache: Option<PathBuf>) -> Self {
        let (folders, hashes) = (ModelFolders::new(folders), Hashes::new(cache));
        Self(Arc::new(Shared { folders, hashes, known: Mutex::default() }))
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<Hash, (Manifest, PathBuf)>> {
        self.0.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes in that a model is deployed, or is not any more.
    pub(crate) fn learn(&self, deployed: wire::Deployed) {
        let Ok(manifest) = Manifest::parse(&deployed.manifest) else { return };
        let mut known = self.known();
        if deployed.removed {
            known.remove(&manifest.hash());
        } else if known.len() < MAX_KNOWN {
            known.insert(manifest.hash(), (manifest, PathBuf::from(deployed.model_path)));
        }
    }

    /// Opens the model a rank is to hold, after every byte of its files has been checked (once; then their hashes are
    /// known). `goes_on` is asked now and then.
    pub(crate) fn open(
        &self,
        manifest: &str,
        given: &Path,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Checkpoint, OpenError> {
        if manifest.is_empty() {
            return Ok(Checkpoint::open(given)?);
        }
        let manifest = Manifest::parse(manifest).map_err(OpenError::Files)?;
        let started = Instant::now();
        let root = self.find(&manifest, given, Depth::Whole, goes_on).map_err(OpenError::Files)?;
        let path = manifest.open_path(&root);
        let seconds = started.elapsed().as_secs_f64();
        tracing::info!(path = %path.display(), bytes = manifest.bytes(), seconds, "the model's files are as they should be");
        Ok(Checkpoint::open(&path)?)
    }

    /// Opens an adapter that is to be loaded, after every byte of its files has been checked.
    pub(crate) fn open_adapter(
        &self,
        manifest: &str,
        given: &Path,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Adapter, OpenError> {
        let manifest = Manifest::parse(manifest).map_err(OpenError::Files)?;
        let root = self.find(&manifest, given, Depth::Whole, goes_on).map_err(OpenError::Files)?;
        Ok(Adapter::open(&root)?)
    }

    fn find(
        &self,
        manifest: &Manifest,
        given: &Path,
        depth: Depth,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<PathBuf, String> {
        let (started, mut last) = (Instant::now(), Instant::now());
        let mut progress = |path: &Path, done: u64, total: u64| {
            if last.elapsed() > LOG_INTERVAL {
                last = Instant::now();
                let megabytes_per_second = done as f64 / 1e6 / started.elapsed().as_secs_f64();
                tracing::info!(path = %path.display(), done, total, megabytes_per_second, "checking a file");
            }
            goes_on()
        };
        self.0.folders.find(manifest, given, depth, &self.0.hashes, &mut progress)
    }

    /// Where a part of a file lies that others need, if they may have so much of it.
    pub(crate) fn part(&self, model: Hash, file: &str, bytes: u64) -> Result<PathBuf, String> {
        let known = self.known().get(&model).cloned();
        let (manifest, given) = known.ok_or_else(|| format!("model {model} is not deployed"))?;
        let part = manifest.parts().into_iter().find(|part| part.file == file && bytes <= part.bytes);
        let part = part.ok_or_else(|| format!("model {model} has no part `{file}` of {bytes} bytes"))?;
        Ok(self.find(&manifest, &given, Depth::Tables, &|| true)?.join(part.file))
    }

    /// What lies at `path` here, if anything does.
    pub(crate) fn describe(&self, path: &Path) -> Result<Option<Described>, ModelError> {
        let candidates = self.0.folders.candidates(path);
        let Some(found) = candidates.into_iter().find(|candidate| candidate.exists()) else {
            return Ok(None);
        };
        let (started, mut last) = (Instant::now(), Instant::now());
        let mut progress = |path: &Path, done: u64, total: u64| {
            if last.elapsed() > LOG_INTERVAL {
                last = Instant::now();
                let megabytes_per_second = done as f64 / 1e6 / started.elapsed().as_secs_f64();
                tracing::info!(path = %path.display(), done, total, megabytes_per_second, "hashing a file");
            }
            true
        };
        Described::of(&found, &self.0.hashes, &mut progress).map(Some)
    }
}
