//! What version 1 of the format wrote down: replicas had tensor parallelism only. Read, never written.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use foggara_proto::shape::Shape;
use serde::{Deserialize, Serialize};

use super::v2::Worker;
use super::{CollectiveKind, DriverLease, Member, Outcome};

/// A model to be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    pub(super) model_path: String,
    pub(super) tp: u32,
    pub(super) replicas: u32,
    pub(super) kv_tokens: u64,
    pub(super) kv_dtype: String,
    pub(super) collective: String,
    pub(super) created: i64,
}

impl From<Deployment> for super::Deployment {
    fn from(d: Deployment) -> Self {
        Self {
            model_path: d.model_path,
            shape: Shape::tensor(d.tp),
            replicas: d.replicas,
            kv_tokens: d.kv_tokens,
            kv_dtype: d.kv_dtype,
            collective: d.collective,
            quantize: super::NOT_QUANTIZED.into(),
            created: d.created,
            manifest: String::new(),
        }
    }
}

/// Workers that are to become a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Formation {
    pub(super) deployment: String,
    pub(super) ranks: Vec<u64>,
    pub(super) collective: CollectiveKind,
    pub(super) kv_blocks: u32,
    pub(super) block_size: u32,
    pub(super) key: [u8; 16],
}

fn tensor(ranks: &[u64]) -> Shape {
    Shape::tensor(u32::try_from(ranks.len()).unwrap_or(u32::MAX))
}

impl From<Formation> for super::Formation {
    fn from(f: Formation) -> Self {
        Self {
            deployment: f.deployment,
            shape: tensor(&f.ranks),
            ranks: f.ranks,
            rank_weights: Vec::new(),
            experts: Vec::new(),
            collective: f.collective,
            kv_blocks: f.kv_blocks,
            block_size: f.block_size,
            key: f.key,
        }
    }
}

/// The workers that hold one replica.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Group {
    deployment: String,
    epoch: u64,
    ranks: Vec<u64>,
    ready: BTreeSet<u32>,
    collective: CollectiveKind,
    kv_blocks: u32,
    block_size: u32,
    key: [u8; 16],
    driver: Option<DriverLease>,
}

impl From<Group> for super::Group {
    fn from(g: Group) -> Self {
        Self {
            deployment: g.deployment,
            epoch: g.epoch,
            shape: tensor(&g.ranks),
            ranks: g.ranks,
            rank_weights: Vec::new(),
            experts: Vec::new(),
            ready: g.ready,
            collective: g.collective,
            kv_blocks: g.kv_blocks,
            block_size: g.block_size,
            key: g.key,
            driver: g.driver,
        }
    }
}

/// A snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterState {
    members: BTreeMap<u64, Member>,
    workers: BTreeMap<u64, Worker>,
    deployments: BTreeMap<String, Deployment>,
    obstacles: BTreeMap<String, String>,
    groups: BTreeMap<u64, Group>,
    confirmed_term: u64,
    notes: BTreeMap<String, String>,
    notes_bytes: usize,
    counter: u64,
    remembered: BTreeMap<String, Outcome>,
    remembered_order: VecDeque<String>,
}

impl From<ClusterState> for super::ClusterState {
    fn from(s: ClusterState) -> Self {
        Self {
            members: s.members,
            workers: s.workers.into_iter().map(|(id, worker)| (id, worker.into())).collect(),
            deployments: s.deployments.into_iter().map(|(name, d)| (name, d.into())).collect(),
            obstacles: s.obstacles,
            groups: s.groups.into_iter().map(|(id, group)| (id, group.into())).collect(),
            confirmed_term: s.confirmed_term,
            notes: s.notes,
            notes_bytes: s.notes_bytes,
            counter: s.counter,
            remembered: s.remembered,
            remembered_order: s.remembered_order,
            ..Self::default()
        }
    }
}

impl super::ClusterState {
    /// The state as version 1 would have written it.
    #[cfg(test)]
    pub(in crate::cluster) fn to_v1(&self) -> ClusterState {
        let s = self.clone();
        let deployment = |d: super::Deployment| Deployment {
            model_path: d.model_path,
            tp: d.shape.tp,
            replicas: d.replicas,
            kv_tokens: d.kv_tokens,
            kv_dtype: d.kv_dtype,
            collective: d.collective,
            created: d.created,
        };
        let group = |g: super::Group| Group {
            deployment: g.deployment,
            epoch: g.epoch,
            ranks: g.ranks,
            ready: g.ready,
            collective: g.collective,
            kv_blocks: g.kv_blocks,
            block_size: g.block_size,
            key: g.key,
            driver: g.driver,
        };
        ClusterState {
            members: s.members,
            workers: s.workers.into_iter().map(|(id, worker)| (id, worker.into())).collect(),
            deployments: s.deployments.into_iter().map(|(name, d)| (name, deployment(d))).collect(),
            obstacles: s.obstacles,
            groups: s.groups.into_iter().map(|(id, g)| (id, group(g))).collect(),
            confirmed_term: s.confirmed_term,
            notes: s.notes,
            notes_bytes: s.notes_bytes,
            counter: s.counter,
            remembered: s.remembered,
            remembered_order: s.remembered_order,
        }
    }
}
