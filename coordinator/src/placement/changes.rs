//! What to do next: the difference between what is in place and what is asked for.
//!
//! What is in place and still works is never touched: only what is missing is placed, on workers that are idle, in the
//! memory that is left.

use std::collections::{BTreeMap, BTreeSet};

use super::choose::{Plan, choose};
use super::facts::{Kind, Links, ModelFacts, Reach, Wish, WorkerFacts};
use super::layout::{expert_map, layout};
use super::leases::leases;
use super::memory::{BLOCK_SIZE, needs};
use crate::cluster::state::{Capabilities, ClusterState, Command, Deployment, Formation, Group};

/// What is known beside the replicated state.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Coordinators that answer.
    pub coordinators: BTreeSet<u64>,
    /// The Raft leader.
    pub leader: u64,
    /// Workers with a live session.
    pub workers: BTreeSet<u64>,
    /// Deployments whose models are known, as they are to be served.
    pub models: BTreeMap<String, ModelFacts>,
    /// Deployments that are not to be tried now.
    pub waiting: BTreeSet<String>,
    /// Workers that lack the files of a deployment, by its name.
    pub unfit: BTreeSet<(String, u64)>,
}

/// A change, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// To be proposed. Keys of groups are filled in by the caller.
    Do(Command),
    /// A deployment lacks something.
    Missing {
        /// Which.
        deployment: String,
        /// What.
        reason: String,
    },
}

/// What to do next.
pub fn plan(state: &ClusterState, around: &Surroundings) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut hosts = Hosts::of(state, &around.models);
    let mut wanting: u32 = 0;
    let lacking = |name: &str, deployment: &Deployment| {
        let have = state.groups.values().filter(|group| group.deployment == *name).count();
        deployment.replicas.saturating_sub(u32::try_from(have).unwrap_or(u32::MAX))
    };
    let tried = || {
        let deployments = state.deployments.iter().filter(|(name, _)| !around.waiting.contains(*name));
        deployments.filter_map(|(name, deployment)| Some((name, deployment, around.models.get(name)?)))
    };
    for (name, deployment, _) in tried() {
        wanting = wanting.saturating_add(lacking(name, deployment));
    }
    for (name, deployment, model) in tried() {
        for _ in 0..lacking(name, deployment) {
            let mut idle = hosts.idle(state, &around.workers);
            idle.retain(|worker| !around.unfit.contains(&(name.clone(), worker.id)));
            // The others that wait get as many.
            let enough = idle.len() / wanting.max(1) as usize;
            wanting = wanting.saturating_sub(1);
            match choose(model, &wish(deployment), &idle, &Links::ASSUMED, enough) {
                Ok(plan) => {
                    hosts.take(&plan);
                    steps.push(Step::Do(Command::FormGroup(formation(name, model, plan))));
                }
                Err(reason) => {
                    steps.push(Step::Missing { deployment: name.clone(), reason });
                    break;
                }
            }
        }
    }
    steps.extend(leases(state, around));
    steps
}

/// What a deployment would get, replica by replica.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Proposal {
    /// Those that fit.
    pub replicas: Vec<Plan>,
    /// Why there are not as many as asked for.
    pub missing: Option<String>,
}

/// What `replicas` of `model` would get of the workers that are idle now.
pub fn propose(
    state: &ClusterState,
    around: &Surroundings,
    model: &ModelFacts,
    wish: &Wish,
    replicas: u32,
) -> Proposal {
    let mut hosts = Hosts::of(state, &around.models);
    let mut proposal = Proposal::default();
    for replica in 0..replicas {
        let idle = hosts.idle(state, &around.workers);
        let enough = idle.len() / (replicas - replica) as usize;
        match choose(model, wish, &idle, &Links::ASSUMED, enough) {
            Ok(plan) => {
                hosts.take(&plan);
                proposal.replicas.push(plan);
            }
            Err(reason) => {
                proposal.missing = Some(reason);
                break;
            }
        }
    }
    proposal
}

/// The same on workers that belong to nobody.
pub fn propose_on(
    model: &ModelFacts,
    wish: &Wish,
    replicas: u32,
    mut workers: Vec<WorkerFacts>,
    links: &Links,
) -> Proposal {
    let mut proposal = Proposal::default();
    for replica in 0..replicas {
        match choose(model, wish, &workers, links, workers.len() / (replicas - replica) as usize) {
            Ok(plan) => {
                workers.retain(|worker| plan.ranks.iter().all(|rank| rank.worker != worker.id));
                proposal.replicas.push(plan);
            }
            Err(reason) => {
                proposal.missing = Some(reason);
                break;
            }
        }
    }
    proposal
}

/// What a deployment asks of each replica.
pub fn wish(deployment: &Deployment) -> Wish {
    Wish {
        shape: deployment.shape,
        kv_tokens: deployment.kv_tokens,
        reach: Reach::named(&deployment.collective),
        sequence_tokens: Wish::SEQUENCE_TOKENS,
    }
}

/// The idle workers, and what each may take.
pub fn idle_workers(state: &ClusterState, around: &Surroundings) -> Vec<WorkerFacts> {
    Hosts::of(state, &around.models).idle(state, &around.workers)
}

fn formation(name: &str, model: &ModelFacts, plan: Plan) -> Formation {
    let experts = expert_map(model, plan.shape, &plan.rank_weights);
    Formation {
        deployment: name.to_owned(),
        shape: plan.shape,
        ranks: plan.ranks.iter().map(|rank| rank.worker).collect(),
        rank_weights: plan.rank_weights,
        experts,
        collective: plan.collective,
        kv_blocks: u32::try_from(plan.kv_tokens / u64::from(BLOCK_SIZE)).unwrap_or(u32::MAX),
        block_size: BLOCK_SIZE,
        key: [0; 16],
    }
}

/// Who holds how much, and how fast they are.
struct Hosts {
    /// Bandwidth and operations per second by processor and number of computing cores. The same machines are taken to be
    /// the same: what is measured beside other work differs, and slices must not follow that, for they decide the bits of
    /// an answer.
    speeds: BTreeMap<(String, u32), (u64, u64)>,
    /// Bytes that the busy workers hold; `None` where that is not known.
    busy: BTreeMap<u64, Option<u64>>,
}

impl Hosts {
    fn of(state: &ClusterState, models: &BTreeMap<String, ModelFacts>) -> Self {
        let mut speeds: BTreeMap<(String, u32), (u64, u64)> = BTreeMap::new();
        for Capabilities { cpu, threads, read_bytes_per_second, flops, .. } in
            state.workers.values().map(|worker| &worker.capabilities)
        {
            let (most_bytes, most_flops) = speeds.entry((cpu.clone(), *threads)).or_default();
            *most_bytes = (*most_bytes).max(*read_bytes_per_second);
            *most_flops = (*most_flops).max(*flops);
        }
        let mut busy = BTreeMap::new();
        for group in state.groups.values() {
            let held = models.get(&group.deployment).map(|model| held(model, group));
            for (rank, worker) in group.ranks.iter().enumerate() {
                busy.insert(*worker, held.as_ref().and_then(|held| held.get(rank).copied()));
            }
        }
        Self { speeds, busy }
    }

    /// Marks a plan's workers.
    fn take(&mut self, plan: &Plan) {
        self.busy.extend(plan.ranks.iter().map(|rank| (rank.worker, Some(rank.bytes))));
    }

    /// Those that hold nothing and are there. The memory of a host is its workers' together: what the busy ones leave is
    /// divided evenly, so that no later rank finds it taken.
    fn idle(&self, state: &ClusterState, live: &BTreeSet<u64>) -> Vec<WorkerFacts> {
        let mut hosts: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for (id, worker) in &state.workers {
            hosts.entry(&worker.host).or_default().push(*id);
        }
        let mut idle = Vec::new();
        for (host, workers) in hosts {
            let memory =
                |id: &u64| state.workers.get(id).map_or(0, |worker| worker.capabilities.memory_bytes);
            let total = workers.iter().map(memory).max().unwrap_or(0);
            let share = total / workers.len() as u64;
            let taken: u64 = workers.iter().filter_map(|id| Some(self.busy.get(id)?.unwrap_or(share))).sum();
            let free = workers.iter().filter(|id| !self.busy.contains_key(id)).count().max(1) as u64;
            for id in workers.iter().filter(|id| live.contains(id) && !self.busy.contains_key(id)) {
                let Some(worker) = state.workers.get(id) else { continue };
                let device = (worker.capabilities.cpu.clone(), worker.capabilities.threads);
                let (bytes_per_second, flops) = self.speeds.get(&device).copied().unwrap_or_default();
                idle.push(WorkerFacts {
                    id: *id,
                    host: host.to_owned(),
                    kind: Kind::Cpu,
                    memory_bytes: total.saturating_sub(taken) / free,
                    bytes_per_second,
                    flops,
                });
            }
        }
        idle.sort_by_key(|worker| worker.id);
        idle
    }
}

/// Bytes that each rank of a group holds.
fn held(model: &ModelFacts, group: &Group) -> Vec<u64> {
    let tokens = u64::from(group.kv_blocks) * u64::from(group.block_size);
    let parts = layout(model, group.shape, &group.rank_weights);
    parts.iter().map(|part| needs(model, group.shape, part, Kind::Cpu).with_kv(tokens)).collect()
}
