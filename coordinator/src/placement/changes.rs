//! What to do next: the difference between what is in place and what is asked for.
//!
//! What is in place and still works is never touched: only what is missing is placed, on workers that are idle, in the
//! memory that is left.

use std::collections::{BTreeMap, BTreeSet};

use foggara_models::KvFormat;

use super::choose::{Plan, choose};
use super::facts::{Links, ModelFacts, Reach, Wish, WorkerFacts};
use super::layout::expert_map;
use super::leases::leases;
use super::memory::BLOCK_SIZE;
use super::pools::Pools;
use crate::cluster::state::{ClusterState, Command, Deployment, Formation};

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
    /// What workers are allowed of their hosts' memory, where it is limited.
    pub limits: BTreeMap<u64, u64>,
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
    let mut pools = Pools::of(state, &around.models);
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
            let mut idle = pools.idle(state, around);
            idle.retain(|worker| !around.unfit.contains(&(name.clone(), worker.id)));
            // The others that wait get as many.
            let sharers = wanting.max(1);
            wanting = wanting.saturating_sub(1);
            match choose(model, &wish(deployment), &idle, &Links::ASSUMED, sharers) {
                Ok(plan) => {
                    pools.take(&plan);
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
    let mut pools = Pools::of(state, &around.models);
    let mut proposal = Proposal::default();
    for replica in 0..replicas {
        let idle = pools.idle(state, around);
        match choose(model, wish, &idle, &Links::ASSUMED, replicas - replica) {
            Ok(plan) => {
                pools.take(&plan);
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
        match choose(model, wish, &workers, links, replicas - replica) {
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
        kv: KvFormat::named(&deployment.kv_dtype),
        // Names were checked when it was put; of one that is not known here, no model can be opened either.
        quantize: deployment.quantize.parse().unwrap_or_default(),
        sequence_tokens: Wish::SEQUENCE_TOKENS,
    }
}

/// The idle workers, and what each may take.
pub fn idle_workers(state: &ClusterState, around: &Surroundings) -> Vec<WorkerFacts> {
    Pools::of(state, &around.models).idle(state, around)
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
