//! What version 4 of the format wrote down: there were no adapters. It is still written while a coordinator reads no more.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::{Deployment, Group, Member, Outcome, Worker};

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
            workers: s.workers,
            deployments: s.deployments,
            obstacles: s.obstacles,
            groups: s.groups,
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
    /// The state as version 4 writes it: without adapters.
    pub(in crate::cluster) fn to_v4(&self) -> ClusterState {
        let s = self.clone();
        ClusterState {
            members: s.members,
            workers: s.workers,
            deployments: s.deployments,
            obstacles: s.obstacles,
            groups: s.groups,
            confirmed_term: s.confirmed_term,
            notes: s.notes,
            notes_bytes: s.notes_bytes,
            counter: s.counter,
            remembered: s.remembered,
            remembered_order: s.remembered_order,
        }
    }
}
