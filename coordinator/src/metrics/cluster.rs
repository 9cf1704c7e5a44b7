//! What the cluster consists of, as the replicated state has it.

use std::collections::BTreeMap;

use foggara_proto::wire::admin::Loading;
use prometheus::{GaugeVec, IntGaugeVec};

use super::table::Table;
use crate::cluster::ClusterState;

/// The families.
pub(super) struct ClusterFamilies {
    workers: IntGaugeVec,
    groups: IntGaugeVec,
    replicas: IntGaugeVec,
    coordinators: IntGaugeVec,
    loaded: GaugeVec,
    load_rate: IntGaugeVec,
}

impl ClusterFamilies {
    pub(super) fn new(table: &Table<'_>) -> Self {
        Self {
            workers: table.gauges("workers", "Workers, by state: idle, assigned.", &["state"]),
            groups: table.gauges("groups", "Groups, by state: forming, ready.", &["state"]),
            replicas: table.gauges(
                "replicas",
                "Replicas of a deployment, by state: wanted, ready, driven.",
                &["model", "state"],
            ),
            coordinators: table.gauges(
                "coordinators",
                "Coordinators that have joined, by state: serving, draining.",
                &["state"],
            ),
            loaded: table.ratios(
                "worker_loaded_ratio",
                "How much of its weights a worker has that loads, from 0 to 1; the leader alone tells.",
                &["worker"],
            ),
            load_rate: table.gauges(
                "worker_load_bytes_per_second",
                "How fast it loads; the leader alone tells.",
                &["worker"],
            ),
        }
    }

    /// Takes in the state, and how far workers are that load.
    pub(super) fn set(&self, state: &ClusterState, loading: &BTreeMap<u64, Loading>) {
        let set = |family: &IntGaugeVec, labels: &[&str], n: usize| {
            family.with_label_values(labels).set(i64::try_from(n).unwrap_or(i64::MAX));
        };
        let ready = state.groups.values().filter(|group| group.is_ready()).count();
        set(&self.groups, &["ready"], ready);
        set(&self.groups, &["forming"], state.groups.len() - ready);
        let idle = state.workers.values().filter(|worker| worker.group.is_none()).count();
        set(&self.workers, &["idle"], idle);
        set(&self.workers, &["assigned"], state.workers.len() - idle);
        let draining = state.members.values().filter(|member| member.draining).count();
        set(&self.coordinators, &["draining"], draining);
        set(&self.coordinators, &["serving"], state.members.len() - draining);
        // Deployments are removed, and workers have loaded.
        self.replicas.reset();
        for (name, deployment) in &state.deployments {
            let ready = || state.groups.values().filter(|g| g.deployment == *name && g.is_ready());
            set(&self.replicas, &[name, "wanted"], deployment.replicas as usize);
            set(&self.replicas, &[name, "ready"], ready().count());
            set(&self.replicas, &[name, "driven"], ready().filter(|group| group.driver.is_some()).count());
        }
        self.loaded.reset();
        self.load_rate.reset();
        let loads = |id: &u64| {
            let group = state.workers.get(id).and_then(|worker| state.groups.get(&worker.group?));
            group.is_some_and(|group| !group.is_ready())
        };
        for (id, progress) in loading.iter().filter(|(id, _)| loads(id)) {
            let worker = id.to_string();
            let total = progress.total_bytes.max(1) as f64;
            self.loaded.with_label_values(&[&worker]).set(progress.loaded_bytes as f64 / total);
            set(
                &self.load_rate,
                &[&worker],
                usize::try_from(progress.bytes_per_second).unwrap_or(usize::MAX),
            );
        }
    }
}
