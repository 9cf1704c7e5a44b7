//! The deployments' tables, tokenizers and templates on this coordinator: in its own model folders, or got from a node that
//! has them.

mod fetch;
mod node;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use foggara_models::manifest::{Depth, Described, Hashes, Manifest, ModelFolders};
use foggara_proto::auth::ClusterToken;
use foggara_tls::Dialer;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cluster::ClusterHandle;
use crate::cluster::state::Deployment;

use node::Asking;
pub(crate) use node::channel;

/// After a model was not found, before the next look: from, to.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Between two lines in the log about a file that is being checked.
const LOG_INTERVAL: Duration = Duration::from_secs(2);

/// Where a deployment's model can be opened, or why nowhere yet.
pub(crate) type Place = Result<PathBuf, String>;

/// Finds every deployment's model. Cheap to clone.
#[derive(Clone)]
pub struct Library(Arc<Shared>);

struct Shared {
    /// This coordinator.
    id: u64,
    folders: ModelFolders,
    hashes: Hashes,
    /// Where models lie that were got from other nodes: a folder for each, named by its hash.
    cache: PathBuf,
    asking: Asking,
    places: Mutex<BTreeMap<String, (Deployment, Place)>>,
    /// Held by the one look that gets something from elsewhere: two deployments may be of one model.
    fetching: tokio::sync::Mutex<()>,
    /// Counts up with every change.
    changed: watch::Sender<u64>,
}

/// Why a model could not be described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Undescribed {
    /// Nothing lies at that path.
    NotHere(String),
    /// What lies there is no model that can be served.
    Unusable(String),
}

impl Library {
    /// A library of coordinator `id`, with model folders of its own and a place to keep what it gets from others.
    pub fn new(
        id: u64,
        folders: Vec<PathBuf>,
        data_dir: &Path,
        hashes: Option<PathBuf>,
        token: ClusterToken,
        dialer: Dialer,
    ) -> Self {
        Self(Arc::new(Shared {
            id,
            folders: ModelFolders::new(folders),
            hashes: Hashes::new(Some(hashes.unwrap_or_else(|| data_dir.to_owned()))),
            cache: data_dir.join("models"),
            asking: Asking { token, dialer },
            places: Mutex::default(),
            fetching: tokio::sync::Mutex::default(),
            changed: watch::Sender::default(),
        }))
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<String, (Deployment, Place)>> {
        self.0.places.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Where the model of deployment `name` can be opened; `None` while nobody has looked.
    pub(crate) fn place(&self, name: &str, deployment: &Deployment) -> Option<Place> {
        let places = self.places();
        let (_, place) = places.get(name).filter(|(known, _)| known == deployment)?;
        Some(place.clone())
    }

    /// Tells of changes.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    fn put(&self, name: String, deployment: Deployment, place: Place) {
        self.places().insert(name, (deployment, place));
        self.0.changed.send_modify(|count| *count += 1);
    }

    /// Looks for every deployment's model, for as long as the process lives.
    pub async fn follow(self, cluster: ClusterHandle) {
        let mut watch = cluster.watch();
        let mut looking: BTreeMap<String, (Deployment, Task)> = BTreeMap::new();
        loop {
            let state = watch.borrow_and_update().clone();
            let is = |name: &String, deployment: &Deployment| state.deployments.get(name) == Some(deployment);
            looking.retain(|name, (deployment, _)| is(name, deployment));
            let mut gone = Vec::new();
            self.places().retain(|name, (deployment, _)| {
                let stays = is(name, deployment);
                gone.extend((!stays).then(|| deployment.manifest.clone()));
                stays
            });
            for manifest in gone {
                if !state.deployments.values().any(|deployment| deployment.manifest == manifest) {
                    self.forget(&manifest);
                }
            }
            for (name, deployment) in &state.deployments {
                looking.entry(name.clone()).or_insert_with(|| {
                    let look =
                        self.clone().look_until_found(cluster.clone(), name.clone(), deployment.clone());
                    (deployment.clone(), Task(tokio::spawn(look)))
                });
            }
            if watch.changed().await.is_err() {
                return;
            }
        }
    }

    async fn look_until_found(self, cluster: ClusterHandle, name: String, deployment: Deployment) {
        let mut wait = RETRY.0;
        loop {
            let place = self.look(&cluster, &deployment).await;
            let reason = place.as_ref().err().cloned();
            self.put(name.clone(), deployment.clone(), place);
            let Some(reason) = reason else { return };
            if wait == RETRY.0 {
                tracing::warn!(deployment = name, reason, "the model's tables are not here yet");
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }

    /// Where the model is: here, got before, or got now.
    async fn look(&self, cluster: &ClusterHandle, deployment: &Deployment) -> Place {
        if deployment.manifest.is_empty() {
            return Ok(PathBuf::from(&deployment.model_path));
        }
        let manifest = Manifest::parse(&deployment.manifest)?;
        let given = PathBuf::from(&deployment.model_path);
        if let Some(path) = self.find(self.0.folders.clone(), &manifest, given).await {
            return Ok(path);
        }
        let _alone = self.0.fetching.lock().await;
        match self.find(ModelFolders::default(), &manifest, self.cached(&manifest)).await {
            Some(path) => Ok(path),
            None => self.fetch(cluster, &manifest).await,
        }
    }

    async fn find(&self, folders: ModelFolders, manifest: &Manifest, given: PathBuf) -> Option<PathBuf> {
        let (library, manifest) = (self.clone(), manifest.clone());
        let find = move || {
            let hashes = &library.0.hashes;
            let root = folders.find(&manifest, &given, Depth::Tables, hashes, &mut log_progress());
            root.ok().map(|root| manifest.open_path(&root))
        };
        tokio::task::spawn_blocking(find).await.ok().flatten()
    }

    /// Where a model from elsewhere lies.
    fn cached(&self, manifest: &Manifest) -> PathBuf {
        self.0.cache.join(manifest.hash().to_string())
    }

    /// Removes a model that was got from elsewhere. What is still open stays readable.
    fn forget(&self, manifest: &str) {
        if let Ok(manifest) = Manifest::parse(manifest) {
            std::fs::remove_dir_all(self.cached(&manifest)).ok();
        }
    }

    /// What lies at `path` here.
    pub(crate) async fn describe_here(&self, path: &str) -> Result<Described, Undescribed> {
        let (library, path) = (self.clone(), PathBuf::from(path));
        let describe = move || {
            let candidates = library.0.folders.candidates(&path);
            let Some(found) = candidates.iter().find(|candidate| candidate.exists()) else {
                return Err(Undescribed::NotHere(format!("`{}` is not here", path.display())));
            };
            let described = Described::of(found, &library.0.hashes, &mut log_progress());
            described.map_err(|e| Undescribed::Unusable(e.to_string()))
        };
        let done = tokio::task::spawn_blocking(describe).await;
        done.unwrap_or_else(|e| Err(Undescribed::Unusable(e.to_string())))
    }

    /// The same, here or on whichever node has it.
    pub(crate) async fn describe(
        &self,
        cluster: &ClusterHandle,
        path: &str,
    ) -> Result<Described, Undescribed> {
        let mut asked = match self.describe_here(path).await {
            Err(Undescribed::NotHere(_)) => vec![format!("coordinator {}", self.0.id)],
            outcome => return outcome,
        };
        for node in node::nodes(&cluster.state(), self.0.id) {
            match node.describe(&self.0.asking, path).await {
                Ok(described) => {
                    let found = described.path.display();
                    tracing::info!(path, %node, %found, "the model was found on another node");
                    return Ok(described);
                }
                Err(status) if status.code() == tonic::Code::InvalidArgument => {
                    return Err(Undescribed::Unusable(format!("{node}: {}", status.message())));
                }
                Err(status) if status.code() == tonic::Code::NotFound => asked.push(node.to_string()),
                Err(status) => asked.push(format!("{node} ({})", status.message())),
            }
        }
        let asked = asked.join(", ");
        Err(Undescribed::NotHere(format!("`{path}` is on none of the nodes asked: {asked}")))
    }
}

/// Ends its task with itself.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Says in the log how far checking a file is.
fn log_progress() -> impl FnMut(&Path, u64, u64) -> bool {
    let (started, mut last) = (Instant::now(), Instant::now());
    move |path, done, total| {
        if last.elapsed() > LOG_INTERVAL {
            last = Instant::now();
            let megabytes_per_second = done as f64 / 1e6 / started.elapsed().as_secs_f64();
            tracing::info!(path = %path.display(), done, total, megabytes_per_second, "checking a file");
        }
        true
    }
}
