//! Which workers hold what: pure, deterministic.
//!
//! Looks at the replicated state and what is known to be alive, and says which commands bring the cluster closer to its
//! deployments. Called again after every change, it moves nothing that is in place.

use std::collections::{BTreeMap, BTreeSet};

use foggara_proto::shape::Shape;

use crate::cluster::state::{ClusterState, CollectiveKind, Command, Deployment, Formation, Group, Worker};

/// Positions of a KV block.
pub const BLOCK_SIZE: u32 = 16;
/// Tokens of KV cache of a replica, if memory allows and nothing else is asked for.
const DEFAULT_KV_TOKENS: u64 = 65_536;
/// Share of a worker's memory that weights and cache may take: the rest is for activations and surprises.
const MEMORY_SHARE: f64 = 0.8;

/// What a model needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelNeeds {
    /// Bytes of all weights.
    pub weight_bytes: u64,
    /// Bytes of KV cache of one token over all ranks, were nothing replicated.
    pub kv_bytes_per_token: u64,
    /// Key heads: the cache of a rank is at least one of them.
    pub kv_heads: u32,
    /// Tokens of the longest sequence.
    pub context: u64,
}

/// What is known beside the replicated state.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Coordinators that answer.
    pub coordinators: BTreeSet<u64>,
    /// The Raft leader.
    pub leader: u64,
    /// Workers with a live session.
    pub workers: BTreeSet<u64>,
    /// Deployments that may be tried now, and what their models need.
    pub models: BTreeMap<String, ModelNeeds>,
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
    let mut idle: BTreeSet<u64> = around.workers.iter().copied().filter(|id| is_idle(state, *id)).collect();
    for (name, deployment) in &state.deployments {
        let Some(needs) = around.models.get(name) else { continue };
        let have = state.groups.values().filter(|group| group.deployment == *name).count();
        for _ in have..deployment.replicas as usize {
            let fit =
                idle.iter().filter(|id| !around.unfit.contains(&(name.clone(), **id))).copied().collect();
            match form(state, name, deployment, needs, &fit) {
                Ok(command) => {
                    if let Command::FormGroup(formation) = &command {
                        idle.retain(|id| !formation.ranks.contains(id));
                    }
                    steps.push(Step::Do(command));
                }
                Err(reason) => {
                    steps.push(Step::Missing { deployment: name.clone(), reason });
                    break;
                }
            }
        }
    }
    steps.extend(drivers(state, around));
    steps
}

fn is_idle(state: &ClusterState, id: u64) -> bool {
    state.workers.get(&id).is_some_and(|worker| worker.group.is_none())
}

/// A group of the idle workers, or what is missing for one.
fn form(
    state: &ClusterState,
    name: &str,
    deployment: &Deployment,
    needs: &ModelNeeds,
    idle: &BTreeSet<u64>,
) -> Result<Command, String> {
    let shape = Shape {
        tp: deployment.shape.tp.max(1),
        dp: deployment.shape.dp.max(1),
        pp: deployment.shape.pp.max(1),
        ep: deployment.shape.ep.max(1),
    };
    let tp = shape.ranks() as usize;
    let mut hosts: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for id in idle {
        if let Some(worker) = state.workers.get(id) {
            hosts.entry(&worker.host).or_default().push(*id);
        }
    }
    // One host with enough of them, the smallest that does; else whole hosts, largest first.
    let fitting = hosts.values().filter(|workers| workers.len() >= tp).min_by_key(|workers| workers.len());
    let ranks: Vec<u64> = match fitting {
        Some(workers) => workers[..tp].to_vec(),
        None => {
            let mut groups: Vec<&Vec<u64>> = hosts.values().collect();
            groups.sort_by_key(|workers| std::cmp::Reverse(workers.len()));
            groups.into_iter().flatten().copied().take(tp).collect()
        }
    };
    if ranks.len() < tp {
        return Err(format!("{tp} idle workers are needed, there are {}", idle.len()));
    }
    let members: Vec<&Worker> = ranks.iter().filter_map(|id| state.workers.get(id)).collect();
    let one_host = members.windows(2).all(|pair| pair[0].host == pair[1].host);
    let collective = match (tp, deployment.collective.as_str()) {
        (1, _) => CollectiveKind::Solo,
        (_, "tcp") => CollectiveKind::Tcp,
        (_, "shm") if !one_host => return Err("collective shm needs all ranks on one host".into()),
        _ if one_host => CollectiveKind::Shm,
        _ => CollectiveKind::Tcp,
    };
    let kv_blocks = kv_blocks(state, deployment, needs, &members)?;
    let key = [0; 16];
    Ok(Command::FormGroup(Formation {
        deployment: name.into(),
        shape,
        ranks,
        rank_weights: Vec::new(),
        experts: Vec::new(),
        collective,
        kv_blocks,
        block_size: BLOCK_SIZE,
        key,
    }))
}

/// Blocks of every rank's cache: as asked for, or as memory allows.
fn kv_blocks(
    state: &ClusterState,
    deployment: &Deployment,
    needs: &ModelNeeds,
    members: &[&Worker],
) -> Result<u32, String> {
    let tp = members.len() as u64;
    // A rank holds whole key heads.
    let heads = u64::from(needs.kv_heads).div_ceil(tp).max(1);
    let per_token = (needs.kv_bytes_per_token * heads / u64::from(needs.kv_heads.max(1))).max(1);
    let room = |worker: &&Worker| {
        let sharing = state.workers.values().filter(|other| other.host == worker.host).count().max(1) as u64;
        let memory = (worker.capabilities.memory_bytes / sharing) as f64 * MEMORY_SHARE;
        (memory as u64).saturating_sub(needs.weight_bytes.div_ceil(tp)) / per_token
    };
    let room = members.iter().map(room).min().unwrap_or(0);
    let wanted =
        if deployment.kv_tokens > 0 { deployment.kv_tokens } else { DEFAULT_KV_TOKENS.max(needs.context) };
    let least = if deployment.kv_tokens > 0 { wanted } else { u64::from(BLOCK_SIZE) };
    if room < least {
        return Err(format!(
            "memory: {least} tokens of KV cache and {} bytes of weights do not fit its {tp} workers (room for {room} tokens)",
            needs.weight_bytes
        ));
    }
    let blocks = wanted.min(room).div_ceil(u64::from(BLOCK_SIZE));
    u32::try_from(blocks).map_err(|_| format!("kv_tokens: {wanted} are too many"))
}

/// Leases for ready groups that nobody alive drives. The Raft leader is spared: its loss should not be two losses.
fn drivers(state: &ClusterState, around: &Surroundings) -> Vec<Step> {
    let alive =
        |group: &&Group| group.driver.is_some_and(|lease| around.coordinators.contains(&lease.coordinator));
    let mut load: BTreeMap<u64, usize> = around.coordinators.iter().map(|id| (*id, 0)).collect();
    load.retain(|id, _| state.members.contains_key(id));
    for lease in state.groups.values().filter(|group| alive(group)).filter_map(|group| group.driver) {
        *load.entry(lease.coordinator).or_default() += 1;
    }
    let mut steps = Vec::new();
    for (id, group) in state.groups.iter().filter(|(_, group)| group.is_ready()) {
        if alive(&group) {
            continue;
        }
        let best =
            load.iter().min_by_key(|(id, count)| (**id == around.leader, **count, **id)).map(|(id, _)| *id);
        if let Some(coordinator) = best {
            *load.entry(coordinator).or_default() += 1;
            let replaces = group.driver.map_or(0, |lease| lease.epoch);
            steps.push(Step::Do(Command::AssignDriver { group: *id, coordinator, replaces }));
        }
    }
    steps
}

#[cfg(test)]
mod tests;
