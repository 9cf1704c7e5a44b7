//! Low-rank adapters that are served beside deployments' models, and on which ranks each of them has been loaded.

use std::collections::{BTreeMap, BTreeSet};

use foggara_models::manifest::Manifest;
use serde::{Deserialize, Serialize};

use super::{ClusterState, Group, MAX_MANIFESTS_BYTES, MAX_OBSTACLE, Outcome};

/// Most adapters of one deployment.
pub const MAX_ADAPTERS: usize = 256;

/// A low-rank adapter of a deployment's model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adapter {
    /// Its number, which is never given again; whatever is said of it in a command is not believed.
    pub id: u64,
    /// Whose model it adapts.
    pub deployment: String,
    /// A folder, on every machine.
    pub path: String,
    /// Its files by name, size and hash, as text.
    pub manifest: String,
    /// Unix seconds at which it was added.
    pub created: i64,
}

/// What has become of an adapter in one group.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AdapterLoad {
    /// Ranks that have it.
    pub ready: BTreeSet<u32>,
    /// Ranks that could not load it, and why.
    pub failed: BTreeMap<u32, String>,
}

/// Whether a group can compute with an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence<'a> {
    /// Every rank has it.
    Ready,
    /// Some have not said what has become of it.
    Loading,
    /// A rank could not load it, for this reason.
    Failed(u32, &'a str),
}

impl ClusterState {
    /// The adapters of a deployment, by name.
    pub fn adapters_of(&self, deployment: &str) -> impl Iterator<Item = (&String, &Adapter)> {
        self.adapters.iter().filter(move |(_, adapter)| adapter.deployment == deployment)
    }

    /// Bytes of the files of a deployment's adapters.
    pub fn adapter_bytes(&self, deployment: &str) -> u64 {
        let manifests = self.adapters_of(deployment).map(|(_, adapter)| Manifest::parse(&adapter.manifest));
        manifests.map(|manifest| manifest.map_or(0, |manifest| manifest.bytes())).sum()
    }

    /// The adapter of a number, and its name.
    pub fn adapter(&self, id: u64) -> Option<(&String, &Adapter)> {
        self.adapters.iter().find(|(_, adapter)| adapter.id == id)
    }

    /// Whether a group has adapter `id`.
    pub fn presence(&self, group_id: u64, group: &Group, id: u64) -> Presence<'_> {
        let load = self.adapters_loaded.get(&group_id).and_then(|loaded| loaded.get(&id));
        let Some(load) = load else { return Presence::Loading };
        match load.failed.first_key_value() {
            Some((rank, reason)) => Presence::Failed(*rank, reason),
            None if load.ready.len() == group.ranks.len() => Presence::Ready,
            None => Presence::Loading,
        }
    }

    pub(super) fn put_adapter(&mut self, name: &str, adapter: &Adapter) -> Outcome {
        if let Some(known) = self.adapters.get(name) {
            // The same again is what a retry looks like.
            let same = Adapter { id: known.id, created: known.created, ..adapter.clone() } == *known;
            return match same {
                true => Outcome::Done,
                false => Outcome::Refused(format!("an adapter called `{name}` exists; remove it first")),
            };
        }
        if self.deployments.contains_key(name) {
            return Outcome::Refused(format!(
                "a deployment is called `{name}`; give the adapter another name"
            ));
        }
        let deployment = &adapter.deployment;
        if !self.deployments.contains_key(deployment) {
            return Outcome::Refused(format!("no deployment is called `{deployment}`"));
        }
        if self.adapters_of(deployment).count() >= MAX_ADAPTERS {
            return Outcome::Refused(format!("`{deployment}` has {MAX_ADAPTERS} adapters already"));
        }
        if let Err(refused) = self.room_for(&adapter.manifest) {
            return refused;
        }
        let id = self.next();
        self.adapters.insert(name.to_owned(), Adapter { id, ..adapter.clone() });
        Outcome::Done
    }

    pub(super) fn remove_adapter(&mut self, name: &str) -> Outcome {
        let Some(adapter) = self.adapters.remove(name) else {
            return Outcome::Refused(format!("no adapter is called `{name}`"));
        };
        for loaded in self.adapters_loaded.values_mut() {
            loaded.remove(&adapter.id);
        }
        self.adapters_loaded.retain(|_, loaded| !loaded.is_empty());
        Outcome::Done
    }

    /// A deployment has gone, and its groups with it.
    pub(super) fn remove_adapters_of(&mut self, deployment: &str) {
        self.adapters.retain(|_, adapter| adapter.deployment != deployment);
    }

    /// What a rank says of an adapter; the last word counts.
    pub(super) fn adapter_loaded(
        &mut self,
        (group_id, epoch): (u64, u64),
        rank: u32,
        id: u64,
        failed: Option<&str>,
    ) -> Outcome {
        let group = match self.group_of_epoch(group_id, epoch) {
            Ok(group) if (rank as usize) < group.ranks.len() => group,
            Ok(_) => return Outcome::Refused(format!("group {group_id} has no rank {rank}")),
            Err(refused) => return refused,
        };
        let deployment = group.deployment.clone();
        if self.adapter(id).is_none_or(|(_, adapter)| adapter.deployment != deployment) {
            return Outcome::Refused(format!("`{deployment}` has no adapter {id}"));
        }
        let load = self.adapters_loaded.entry(group_id).or_default().entry(id).or_default();
        match failed {
            None => {
                load.failed.remove(&rank);
                load.ready.insert(rank);
            }
            Some(reason) => {
                load.ready.remove(&rank);
                load.failed.insert(rank, reason.chars().take(MAX_OBSTACLE).collect());
            }
        }
        Outcome::Done
    }

    /// Whether one more manifest, of a deployment or of an adapter, may be kept.
    pub(super) fn room_for(&self, manifest: &str) -> Result<(), Outcome> {
        let models = self.deployments.values().map(|deployment| deployment.manifest.len());
        let adapters = self.adapters.values().map(|adapter| adapter.manifest.len());
        let bytes = models.chain(adapters).sum::<usize>() + manifest.len();
        match bytes > MAX_MANIFESTS_BYTES {
            true => Err(Outcome::Refused(format!(
                "the manifests of all deployments and adapters would take {bytes} bytes, at most {MAX_MANIFESTS_BYTES}"
            ))),
            false => Ok(()),
        }
    }
}
