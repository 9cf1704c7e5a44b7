//! Adapters: what was answered with each, and where each of them is.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{IntCounterVec, IntGaugeVec};

use super::driven::DrivenGroups;
use super::table::Table;
use crate::cluster::ClusterState;
use crate::cluster::state::adapters::Presence;

/// How long the counters of an adapter that was removed are still told: whoever bills by them sees the last of them.
const KEPT: Duration = Duration::from_secs(600);

/// Sequences of one adapter in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AdapterUse {
    /// That have entered the group.
    pub running: usize,
    /// That have not.
    pub waiting: usize,
}

/// The families, by deployment and adapter.
pub struct AdapterFamilies {
    requests: IntCounterVec,
    prompt_tokens: IntCounterVec,
    generated_tokens: IntCounterVec,
    sequences: IntGaugeVec,
    ready: IntGaugeVec,
    failed: IntGaugeVec,
    /// Adapters that have counters here and are served no more, and since when that is known.
    counted: Mutex<BTreeMap<(String, String), Option<Instant>>>,
}

impl AdapterFamilies {
    pub(super) fn new(table: &Table<'_>) -> Self {
        const LABELS: [&str; 2] = ["deployment", "adapter"];
        Self {
            requests: table.counters(
                "adapter_requests_total",
                "Requests finished that named an adapter, however they ended.",
                &LABELS,
            ),
            prompt_tokens: table.counters(
                "adapter_prompt_tokens_total",
                "Prompt tokens of these requests.",
                &LABELS,
            ),
            generated_tokens: table.counters(
                "adapter_generated_tokens_total",
                "Tokens generated for these requests.",
                &LABELS,
            ),
            sequences: table.gauges(
                "adapter_sequences",
                "Sequences with an adapter of groups driven here, by state: running, waiting.",
                &["deployment", "adapter", "state"],
            ),
            ready: table.gauges(
                "adapter_ready_replicas",
                "Ready replicas of which every rank has the adapter.",
                &LABELS,
            ),
            failed: table.gauges(
                "adapter_failed_replicas",
                "Replicas of which a rank could not load the adapter.",
                &LABELS,
            ),
            counted: Mutex::default(),
        }
    }

    /// A request has ended.
    pub fn finished(&self, deployment: &str, adapter: &str, prompt_tokens: usize, generated_tokens: usize) {
        let key = (deployment.to_owned(), adapter.to_owned());
        self.counted.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default();
        let labels = [deployment, adapter];
        self.requests.with_label_values(&labels).inc();
        self.prompt_tokens.with_label_values(&labels).inc_by(prompt_tokens as u64);
        self.generated_tokens.with_label_values(&labels).inc_by(generated_tokens as u64);
    }

    /// Takes in the state, and what groups driven here do.
    pub(super) fn set(&self, state: &ClusterState, driven: &DrivenGroups, now: Instant) {
        let (mut ready, mut failed, mut used) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (name, adapter) in &state.adapters {
            let key = (adapter.deployment.as_str(), name.as_str());
            let (ready, failed) = (ready.entry(key).or_insert(0), failed.entry(key).or_insert(0));
            for (id, group) in state.groups.iter().filter(|(_, g)| g.deployment == adapter.deployment) {
                match state.presence(*id, group, adapter.id) {
                    Presence::Ready if group.is_ready() => *ready += 1,
                    Presence::Failed(..) => *failed += 1,
                    Presence::Ready | Presence::Loading => {}
                }
            }
        }
        let driven = driven.all();
        for group in &driven {
            for (id, now) in &group.adapters {
                let Some((name, _)) = state.adapter(*id) else { continue };
                let sum: &mut AdapterUse = used.entry((group.model.as_str(), name.as_str())).or_default();
                sum.running += now.running;
                sum.waiting += now.waiting;
            }
        }
        let set = |family: &IntGaugeVec, labels: &[&str], n: usize| {
            family.with_label_values(labels).set(i64::try_from(n).unwrap_or(i64::MAX));
        };
        [&self.sequences, &self.ready, &self.failed].into_iter().for_each(IntGaugeVec::reset);
        ready.iter().for_each(|((deployment, name), n)| set(&self.ready, &[deployment, name], *n));
        failed.iter().for_each(|((deployment, name), n)| set(&self.failed, &[deployment, name], *n));
        for ((deployment, name), sum) in used {
            set(&self.sequences, &[deployment, name, "running"], sum.running);
            set(&self.sequences, &[deployment, name, "waiting"], sum.waiting);
        }
        self.forget(state, now);
    }

    fn forget(&self, state: &ClusterState, now: Instant) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.retain(|(deployment, name), gone| {
            if state.adapters.get(name).is_some_and(|adapter| adapter.deployment == *deployment) {
                *gone = None;
                return true;
            }
            let stays = now.saturating_duration_since(*gone.get_or_insert(now)) <= KEPT;
            if !stays {
                for family in [&self.requests, &self.prompt_tokens, &self.generated_tokens] {
                    family.remove_label_values(&[deployment, name]).ok();
                }
            }
            stays
        });
    }
}

#[cfg(test)]
#[path = "adapters_tests.rs"]
mod tests;
