//! Memory that workers share, who holds how much of it, and how fast workers are.

use std::collections::BTreeMap;

use foggara_models::KvFormat;

use super::changes::Surroundings;
use super::choose::Plan;
use super::facts::{Kind, ModelFacts, Speeds, Takes, WorkerFacts};
use super::layout::layout;
use super::memory::{GPU_PROCESS, needs};
use crate::cluster::state::{Capabilities, ClusterState, Device, DeviceKind, Group, Worker};

/// Memory that belongs to those who name the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Pool<'a> {
    /// A host's, of its workers that compute on CPUs.
    Host(&'a str),
    /// A GPU's, by its UUID: also of workers in different containers.
    Gpu(&'a str),
    /// A GPU's that does not say which it is, of this worker alone.
    Unknown(u64),
}

impl<'a> Pool<'a> {
    fn of(id: u64, worker: &'a Worker) -> Self {
        match (worker.capabilities.device.kind, worker.capabilities.device.unique_id.as_str()) {
            (DeviceKind::Cpu, _) => Self::Host(&worker.host),
            (DeviceKind::Cuda, "") => Self::Unknown(id),
            (DeviceKind::Cuda, unique_id) => Self::Gpu(unique_id),
        }
    }
}

/// What computes. The same machines, and the same GPUs, are taken to be the same: what is measured beside other work differs, and
/// slices must not follow that, for they decide the bits of an answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Computes {
    /// Processor, and number of computing cores.
    Cpu(String, u32),
    /// Product.
    Gpu(String),
}

impl Computes {
    fn of(capabilities: &Capabilities) -> Self {
        match capabilities.device.kind {
            DeviceKind::Cpu => Self::Cpu(capabilities.cpu.clone(), capabilities.threads),
            DeviceKind::Cuda => Self::Gpu(capabilities.device.name.clone()),
        }
    }
}

/// Who holds how much, and how fast they are.
pub(super) struct Pools {
    /// The highest that were measured.
    speeds: BTreeMap<Computes, Speeds>,
    /// Bytes that the busy workers hold; `None` where that is not known.
    busy: BTreeMap<u64, Option<u64>>,
}

impl Pools {
    pub(super) fn of(state: &ClusterState, models: &BTreeMap<String, ModelFacts>) -> Self {
        let mut most: BTreeMap<Computes, Speeds> = BTreeMap::new();
        for capabilities in state.workers.values().map(|worker| &worker.capabilities) {
            let most = most.entry(Computes::of(capabilities)).or_default();
            *most = most.higher(speeds(capabilities));
        }
        let mut busy = BTreeMap::new();
        for group in state.groups.values() {
            let held = models.get(&group.deployment).map(|model| held(model, group, state));
            for (rank, worker) in group.ranks.iter().enumerate() {
                busy.insert(*worker, held.as_ref().and_then(|held| held.get(rank).copied()));
            }
        }
        Self { speeds: most, busy }
    }

    /// Marks a plan's workers.
    pub(super) fn take(&mut self, plan: &Plan) {
        self.busy.extend(plan.ranks.iter().map(|rank| (rank.worker, Some(rank.bytes))));
    }

    /// Those that hold nothing and are there. The memory of a pool is its workers' together: what the busy ones leave is
    /// divided evenly, so that no later rank finds it taken; what one may not have goes to the others.
    pub(super) fn idle(&self, state: &ClusterState, around: &Surroundings) -> Vec<WorkerFacts> {
        let mut pools: BTreeMap<Pool<'_>, Vec<(u64, &Worker)>> = BTreeMap::new();
        for (id, worker) in &state.workers {
            pools.entry(Pool::of(*id, worker)).or_default().push((*id, worker));
        }
        let mut idle = Vec::new();
        for workers in pools.into_values() {
            // Each has measured what there was when it started.
            let total = workers.iter().map(|(_, worker)| memory(&worker.capabilities)).max().unwrap_or(0);
            let share = total / workers.len() as u64;
            let held = workers.iter().filter_map(|(id, _)| Some(self.busy.get(id)?.unwrap_or(share)));
            let mut left = total.saturating_sub(held.sum());
            let allowed = |id: u64, worker: &Worker| match worker.capabilities.device.kind {
                DeviceKind::Cpu => around.limits.get(&id).copied().unwrap_or(u64::MAX),
                DeviceKind::Cuda => u64::MAX,
            };
            let free = workers.into_iter().filter(|(id, _)| !self.busy.contains_key(id));
            let mut free: Vec<(u64, &Worker)> = free.collect();
            free.sort_by_key(|(id, worker)| (allowed(*id, worker), *id));
            let mut sharers = free.len() as u64;
            for (id, worker) in free {
                let memory_bytes = (left / sharers).min(allowed(id, worker));
                (left, sharers) = (left - memory_bytes, sharers - 1);
                if !around.workers.contains(&id) {
                    continue;
                }
                let speeds = self.speeds.get(&Computes::of(&worker.capabilities));
                idle.push(WorkerFacts {
                    id,
                    host: worker.host.clone(),
                    kind: kind(&worker.capabilities.device),
                    version: worker.capabilities.version.clone(),
                    takes: takes(&worker.capabilities.device),
                    memory_bytes,
                    speeds: speeds.copied().unwrap_or_default(),
                });
            }
        }
        idle.sort_by_key(|worker| worker.id);
        idle
    }
}

fn speeds(capabilities: &Capabilities) -> Speeds {
    Speeds {
        bytes_per_second: capabilities.read_bytes_per_second,
        flops: capabilities.flops,
        cache_bytes: capabilities.cache_bytes,
        cache_bytes_per_second: capabilities.cache_bytes_per_second,
        int8_ops_per_second: capabilities.int8_ops_per_second,
    }
}

fn kind(device: &Device) -> Kind {
    match device.kind {
        DeviceKind::Cpu => Kind::Cpu,
        DeviceKind::Cuda => Kind::Gpu,
    }
}

/// Names that are not known here nobody asks for.
fn takes(device: &Device) -> Takes {
    Takes {
        kv: device.kv_dtypes.iter().filter_map(|name| KvFormat::named(name)).collect(),
        quantize: device.quantize.iter().filter_map(|name| name.parse().ok()).collect(),
        data_parallel: device.data_parallel,
    }
}

/// Bytes of a worker's pool, as far as it knows. On a GPU it had started before it looked, and what ranks take counts that again.
fn memory(capabilities: &Capabilities) -> u64 {
    match capabilities.device.kind {
        DeviceKind::Cpu => capabilities.memory_bytes,
        DeviceKind::Cuda => {
            let all = capabilities.device.total_bytes.max(capabilities.memory_bytes);
            capabilities.memory_bytes.saturating_add(GPU_PROCESS).min(all)
        }
    }
}

/// Bytes that each rank of a group holds.
fn held(model: &ModelFacts, group: &Group, state: &ClusterState) -> Vec<u64> {
    let tokens = u64::from(group.kv_blocks) * u64::from(group.block_size);
    let parts = layout(model, group.shape, &group.rank_weights);
    let kinds = group.ranks.iter().map(|worker| {
        state.workers.get(worker).map_or(Kind::Cpu, |worker| kind(&worker.capabilities.device))
    });
    let ranks = parts.iter().zip(kinds);
    ranks.map(|(part, kind)| needs(model, group.shape, part, kind).with_kv(tokens)).collect()
}
