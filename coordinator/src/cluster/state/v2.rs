//! What version 2 of the format wrote down: nothing was known of what workers compute on. Read, never written.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::{Deployment, Group, Member, Outcome};

/// What a worker can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Capabilities {
    threads: u32,
    memory_bytes: u64,
    read_bytes_per_second: u64,
    flops: u64,
    cpu: String,
    version: String,
}

/// A worker process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    addr: String,
    collective_addr: String,
    host: String,
    pid: u32,
    incarnation: String,
    capabilities: Capabilities,
    group: Option<u64>,
}

impl From<Worker> for super::Worker {
    fn from(w: Worker) -> Self {
        let c = w.capabilities;
        Self {
            addr: w.addr,
            collective_addr: w.collective_addr,
            host: w.host,
            pid: w.pid,
            incarnation: w.incarnation,
            capabilities: super::Capabilities {
                threads: c.threads,
                memory_bytes: c.memory_bytes,
                read_bytes_per_second: c.read_bytes_per_second,
                flops: c.flops,
                cpu: c.cpu,
                version: c.version,
                ..super::Capabilities::default()
            },
            group: w.group,
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

#[cfg(test)]
impl From<super::Worker> for Worker {
    fn from(w: super::Worker) -> Self {
        let c = w.capabilities;
        Self {
            addr: w.addr,
            collective_addr: w.collective_addr,
            host: w.host,
            pid: w.pid,
            incarnation: w.incarnation,
            capabilities: Capabilities {
                threads: c.threads,
                memory_bytes: c.memory_bytes,
                read_bytes_per_second: c.read_bytes_per_second,
                flops: c.flops,
                cpu: c.cpu,
                version: c.version,
            },
            group: w.group,
        }
    }
}

impl super::ClusterState {
    /// The state as version 2 would have written it.
    #[cfg(test)]
    pub(in crate::cluster) fn to_v2(&self) -> ClusterState {
        let s = self.clone();
        ClusterState {
            members: s.members,
            workers: s.workers.into_iter().map(|(id, worker)| (id, worker.into())).collect(),
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
