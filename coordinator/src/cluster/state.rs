//! What the cluster knows: pure, deterministic, changed by commands only.
//!
//! `apply` has no clock, no randomness and no I/O: whatever a command needs of these is in the command.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use foggara_proto::shape::Shape;
use serde::{Deserialize, Serialize};

use super::codec::Stored;

pub mod adapters;
mod v1;
mod v2;
mod v3;
mod v4;

use adapters::{Adapter, AdapterLoad};

/// Most notes, and the sizes of one.
pub const MAX_NOTES: usize = 10_000;
/// Bytes of a note's key.
pub const MAX_NOTE_KEY: usize = 256;
/// Bytes of a note's value.
pub const MAX_NOTE_VALUE: usize = 64 << 10;
/// Bytes of all notes together: a snapshot is one message.
pub const MAX_NOTES_BYTES: usize = 16 << 20;
/// Most deployments.
pub const MAX_DEPLOYMENTS: usize = 256;
/// Weights are loaded as they are stored.
pub const NOT_QUANTIZED: &str = "none";
/// What weights can be quantized to when they are loaded.
pub const QUANTIZATIONS: [&str; 6] = [NOT_QUANTIZED, "bf16", "q8_0", "q4_0", "q4_k", "fp8"];
/// Bytes of the manifests of all deployments and adapters together: a snapshot is one message.
pub const MAX_MANIFESTS_BYTES: usize = 16 << 20;
/// Most workers.
pub const MAX_WORKERS: usize = 4096;
/// Characters kept of what keeps a deployment from being served, or an adapter from being loaded.
const MAX_OBSTACLE: usize = 1000;
/// Writes remembered, so that one that is sent again is applied once.
const REMEMBERED_REQUESTS: usize = 4096;

/// A coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// gRPC address.
    pub addr: String,
    /// HTTP address.
    pub http_addr: String,
    /// Process id on its host.
    pub pid: u32,
    /// It is stopping: it should drive nothing new.
    pub draining: bool,
}

/// What a worker can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Capabilities {
    /// Threads that compute.
    pub threads: u32,
    /// Memory it may use, of its host or of its GPU.
    pub memory_bytes: u64,
    /// Measured read bandwidth of that memory, of what no cache holds.
    pub read_bytes_per_second: u64,
    /// Measured float operations per second of what it computes on.
    pub flops: u64,
    /// Processor and instruction set.
    pub cpu: String,
    /// Version of its program.
    pub version: String,
    /// What it computes on.
    pub device: Device,
    /// Bytes of its host's last-level caches; 0: not known.
    pub cache_bytes: u64,
    /// Measured read bandwidth of what these hold; 0: not known.
    pub cache_bytes_per_second: u64,
    /// Measured operations per second on bytes; 0: not known.
    pub int8_ops_per_second: u64,
}

/// A kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// The host's processor, and its memory.
    Cpu,
    /// An NVIDIA GPU, with memory of its own.
    Cuda,
}

impl DeviceKind {
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

/// What a worker computes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// What kind of thing.
    pub kind: DeviceKind,
    /// As its maker calls it; empty for a CPU.
    pub name: String,
    /// Workers with the same share its memory. Empty for a CPU, or if it is not known.
    pub unique_id: String,
    /// Bytes of its memory, in all; 0 for a CPU.
    pub total_bytes: u64,
    /// KV caches it keeps, by name.
    pub kv_dtypes: Vec<String>,
    /// What it takes weights quantized to, by name.
    pub quantize: Vec<String>,
    /// Whether it takes part in data-parallel attention.
    pub data_parallel: bool,
}

impl Default for Device {
    /// What a worker has that does not say: a CPU, as workers were before there were others.
    fn default() -> Self {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            kind: DeviceKind::Cpu,
            name: String::new(),
            unique_id: String::new(),
            total_bytes: 0,
            kv_dtypes: names(&["f32", "f16", "q8_0"]),
            quantize: names(&[NOT_QUANTIZED, "q8_0", "q4_0", "q4_k"]),
            data_parallel: true,
        }
    }
}

/// A worker process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// Its service.
    pub addr: String,
    /// Where its TCP collectives listen.
    pub collective_addr: String,
    /// Same id: same shared memory.
    pub host: String,
    /// Process id on its host.
    pub pid: u32,
    /// Unique for the process.
    pub incarnation: String,
    /// What it can do.
    pub capabilities: Capabilities,
    /// The group it belongs to.
    pub group: Option<u64>,
}

/// A model to be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// File or folder, on every machine.
    pub model_path: String,
    /// How a replica is divided; 0 leaves a number to the placement.
    pub shape: Shape,
    /// Replicas wanted.
    pub replicas: u32,
    /// Tokens of KV cache of each data-parallel part of a replica; 0: chosen by the placement.
    pub kv_tokens: u64,
    /// "auto", "f16" or "f32".
    pub kv_dtype: String,
    /// "auto", "shm" or "tcp".
    pub collective: String,
    /// What weights are quantized to when they are loaded: "none", "bf16", "q8_0", "q4_0", "q4_k" or, on GPUs,
    /// "fp8".
    pub quantize: String,
    /// Unix seconds at which it was made.
    pub created: i64,
    /// Its files by name, size and hash, as text; empty: whatever lies at `model_path`.
    pub manifest: String,
}

/// How a group's ranks reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CollectiveKind {
    /// One rank.
    Solo,
    /// Shared memory.
    Shm,
    /// TCP.
    Tcp,
}

impl CollectiveKind {
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Solo => "solo",
            Self::Shm => "shm",
            Self::Tcp => "tcp",
        }
    }
}

/// The right to drive a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverLease {
    /// Who.
    pub coordinator: u64,
    /// Newer leases have greater epochs.
    pub epoch: u64,
}

/// The workers that hold one replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Name of its deployment.
    pub deployment: String,
    /// Of its formation.
    pub epoch: u64,
    /// How they divide the model; no number is left open.
    pub shape: Shape,
    /// Worker of each rank.
    pub ranks: Vec<u64>,
    /// Relative speed of each rank, for uneven slices; empty: all the same.
    pub rank_weights: Vec<u32>,
    /// For each layer with experts, the part that owns each of them; empty: the default.
    pub experts: Vec<Vec<u16>>,
    /// Ranks that have loaded and passed the checked step.
    pub ready: BTreeSet<u32>,
    /// How they reach each other.
    pub collective: CollectiveKind,
    /// Blocks of each rank's KV cache.
    pub kv_blocks: u32,
    /// Positions of a block.
    pub block_size: u32,
    /// Known to its ranks only.
    pub key: [u8; 16],
    /// Who drives it.
    pub driver: Option<DriverLease>,
}

impl Group {
    /// Whether every rank is ready.
    pub fn is_ready(&self) -> bool {
        self.ready.len() == self.ranks.len()
    }
}

/// Idle workers that are to become a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Formation {
    /// Whose replica.
    pub deployment: String,
    /// How the ranks divide the model; no number is left open.
    pub shape: Shape,
    /// Worker of each rank.
    pub ranks: Vec<u64>,
    /// Relative speed of each rank, for uneven slices; empty: all the same.
    pub rank_weights: Vec<u32>,
    /// For each layer with experts, the part that owns each of them; empty: the default.
    pub experts: Vec<Vec<u16>>,
    /// How they reach each other.
    pub collective: CollectiveKind,
    /// Blocks of each rank's KV cache.
    pub kv_blocks: u32,
    /// Positions of a block.
    pub block_size: u32,
    /// Random.
    pub key: [u8; 16],
}

/// A change. What is written down stays readable: a new layout is a new variant at the end, in a new format. And it stays what it
/// does: coordinators of different versions apply the same log, so another effect is another variant, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A coordinator says where it is.
    RegisterMember {
        /// Its id.
        id: u64,
        /// Where.
        member: Member,
    },
    /// A worker has joined, as version 2 wrote it.
    RegisterWorkerV2(v2::Worker),
    /// A worker's session has ended for good; its group ends with it.
    WorkerLost {
        /// Its id.
        id: u64,
    },
    /// The leader of a term knows of every worker whether it is there.
    ConfirmWorkers {
        /// Its term.
        term: u64,
    },
    /// A model is to be served, as version 1 wrote it.
    PutDeploymentV1 {
        /// The name it is served under.
        name: String,
        /// What to serve.
        deployment: v1::Deployment,
    },
    /// A model is not to be served any more; its groups end.
    RemoveDeployment {
        /// Its name.
        name: String,
    },
    /// Something keeps a deployment from being served.
    NoteObstacle {
        /// Its name.
        deployment: String,
        /// What.
        reason: String,
    },
    /// Idle workers become a group, as version 1 wrote it.
    FormGroupV1(v1::Formation),
    /// A rank has loaded and passed the checked step.
    RankReady {
        /// The group.
        group: u64,
        /// Of its formation.
        epoch: u64,
        /// Which rank.
        rank: u32,
    },
    /// A group ends; its workers are idle again.
    DissolveGroup {
        /// The group.
        group: u64,
        /// Of its formation.
        epoch: u64,
    },
    /// A coordinator gets the lease of a ready group.
    AssignDriver {
        /// The group.
        group: u64,
        /// Who.
        coordinator: u64,
        /// Epoch of the lease that ends by this; 0: there was none. Refused if the lease is another one by now.
        replaces: u64,
    },
    /// An operator's note.
    PutNote {
        /// Its key.
        key: String,
        /// Its text.
        value: String,
    },
    /// A model is to be served; replaces nothing.
    PutDeployment {
        /// The name it is served under.
        name: String,
        /// What to serve.
        deployment: Deployment,
    },
    /// Idle workers become a group.
    FormGroup(Formation),
    /// A worker has joined, as version 3 wrote it.
    RegisterWorkerV3(Box<v3::Worker>),
    /// A worker has joined. The same incarnation registers once.
    RegisterWorker(Box<Worker>),
    /// An adapter is to be served beside a deployment's model; replaces nothing.
    PutAdapter {
        /// The name it is served under.
        name: String,
        /// What to serve; its number is given to it here.
        adapter: Adapter,
    },
    /// An adapter is not to be served any more.
    RemoveAdapter {
        /// Its name.
        name: String,
    },
    /// A rank has loaded an adapter, or could not.
    AdapterLoaded {
        /// The group.
        group: u64,
        /// Of its formation.
        epoch: u64,
        /// Which rank.
        rank: u32,
        /// The adapter's number.
        adapter: u64,
        /// Why it could not.
        failed: Option<String>,
    },
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done (or already so).
    Done,
    /// The worker's id.
    Worker(u64),
    /// The group's id.
    Group(u64),
    /// The lease.
    Driver(DriverLease),
    /// Not done, for this reason.
    Refused(String),
}

/// A command under way: its id makes sending it again harmless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Unique for the write.
    pub request_id: String,
    /// The write.
    pub command: Command,
}

/// Everything the cluster agrees on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct ClusterState {
    /// Coordinators by id.
    pub members: BTreeMap<u64, Member>,
    /// Workers by id.
    pub workers: BTreeMap<u64, Worker>,
    /// Deployments by name.
    pub deployments: BTreeMap<String, Deployment>,
    /// Why deployments are not served, by name: what was in the way last. Gone when a group becomes ready.
    pub obstacles: BTreeMap<String, String>,
    /// Groups by id.
    pub groups: BTreeMap<u64, Group>,
    /// The last term whose leader knew of every worker whether it is there. What is written here of ready groups may be of
    /// an earlier life of the cluster until then.
    pub confirmed_term: u64,
    /// Operators' notes.
    pub notes: BTreeMap<String, String>,
    notes_bytes: usize,
    /// Source of worker ids, group ids and epochs: only grows.
    counter: u64,
    remembered: BTreeMap<String, Outcome>,
    remembered_order: VecDeque<String>,
    /// Adapters by name.
    pub adapters: BTreeMap<String, Adapter>,
    /// Where adapters have been loaded: by group, by their numbers. Gone with the group, or with the adapter.
    pub adapters_loaded: BTreeMap<u64, BTreeMap<u64, AdapterLoad>>,
}

impl Stored for Envelope {
    /// Commands are only ever added.
    type V1 = Self;
    type V2 = Self;
    type V3 = Self;
    type V4 = Self;

    fn since(&self) -> u8 {
        match &self.command {
            Command::RegisterMember { .. }
            | Command::RegisterWorkerV2(_)
            | Command::WorkerLost { .. }
            | Command::ConfirmWorkers { .. }
            | Command::PutDeploymentV1 { .. }
            | Command::RemoveDeployment { .. }
            | Command::NoteObstacle { .. }
            | Command::FormGroupV1(_)
            | Command::RankReady { .. }
            | Command::DissolveGroup { .. }
            | Command::AssignDriver { .. }
            | Command::PutNote { .. } => 1,
            Command::PutDeployment { .. } | Command::FormGroup(_) => 2,
            Command::RegisterWorkerV3(_) => 3,
            Command::RegisterWorker(_) => 4,
            Command::PutAdapter { .. } | Command::RemoveAdapter { .. } | Command::AdapterLoaded { .. } => 5,
        }
    }
}

impl Stored for Outcome {
    type V1 = Self;
    type V2 = Self;
    type V3 = Self;
    type V4 = Self;
}

impl Stored for ClusterState {
    type V1 = v1::ClusterState;
    type V2 = v2::ClusterState;
    type V3 = v3::ClusterState;
    type V4 = v4::ClusterState;

    /// Without adapters, in any; with them, in none that would lose them.
    fn since(&self) -> u8 {
        if self.adapters.is_empty() { 1 } else { 5 }
    }

    fn encoded(&self, format: u8) -> Result<Vec<u8>, bincode::error::EncodeError> {
        match format {
            ..=4 => super::codec::as_it_is(&self.to_v4()),
            _ => super::codec::as_it_is(self),
        }
    }
}

impl ClusterState {
    /// Applies a write, or finds that it was applied before.
    pub fn apply(&mut self, envelope: &Envelope) -> Outcome {
        if let Some(outcome) = self.remembered.get(&envelope.request_id) {
            return outcome.clone();
        }
        let outcome = self.change(&envelope.command);
        self.remembered.insert(envelope.request_id.clone(), outcome.clone());
        self.remembered_order.push_back(envelope.request_id.clone());
        if self.remembered_order.len() > REMEMBERED_REQUESTS
            && let Some(oldest) = self.remembered_order.pop_front()
        {
            self.remembered.remove(&oldest);
        }
        outcome
    }

    fn change(&mut self, command: &Command) -> Outcome {
        match command {
            Command::RegisterMember { id, member } => {
                self.members.insert(*id, member.clone());
                Outcome::Done
            }
            Command::RegisterWorker(worker) => self.register_worker(worker),
            Command::RegisterWorkerV2(worker) => self.register_worker(&worker.clone().into()),
            Command::RegisterWorkerV3(worker) => self.register_worker(&v3::Worker::clone(worker).into()),
            Command::WorkerLost { id } => self.lose_worker(*id),
            Command::ConfirmWorkers { term } => {
                self.confirmed_term = self.confirmed_term.max(*term);
                Outcome::Done
            }
            Command::PutDeployment { name, deployment } => self.put_deployment(name, deployment),
            Command::PutDeploymentV1 { name, deployment } => {
                self.put_deployment(name, &deployment.clone().into())
            }
            Command::RemoveDeployment { name } => {
                if self.deployments.remove(name).is_none() {
                    return Outcome::Refused(format!("no deployment is called `{name}`"));
                }
                self.obstacles.remove(name);
                self.remove_adapters_of(name);
                let ended: Vec<u64> =
                    self.groups.iter().filter(|(_, g)| g.deployment == *name).map(|(id, _)| *id).collect();
                ended.into_iter().for_each(|id| self.end_group(id));
                Outcome::Done
            }
            Command::NoteObstacle { deployment, reason } => {
                if !self.deployments.contains_key(deployment) {
                    return Outcome::Refused(format!("no deployment is called `{deployment}`"));
                }
                let reason = reason.chars().take(MAX_OBSTACLE).collect();
                self.obstacles.insert(deployment.clone(), reason);
                Outcome::Done
            }
            Command::FormGroup(formation) => self.form_group(formation.clone()),
            Command::FormGroupV1(formation) => self.form_group(formation.clone().into()),
            Command::RankReady { group, epoch, rank } => match self.group_of_epoch(*group, *epoch) {
                Ok(group) if (*rank as usize) < group.ranks.len() => {
                    group.ready.insert(*rank);
                    if group.is_ready() {
                        let deployment = group.deployment.clone();
                        self.obstacles.remove(&deployment);
                    }
                    Outcome::Done
                }
                Ok(_) => Outcome::Refused(format!("group {group} has no rank {rank}")),
                Err(refused) => refused,
            },
            Command::DissolveGroup { group, epoch } => match self.group_of_epoch(*group, *epoch) {
                Ok(_) => {
                    self.end_group(*group);
                    Outcome::Done
                }
                Err(refused) => refused,
            },
            Command::AssignDriver { group, coordinator, replaces } => {
                self.assign_driver(*group, *coordinator, *replaces)
            }
            Command::PutNote { key, value } => self.put_note(key, value),
            Command::PutAdapter { name, adapter } => self.put_adapter(name, adapter),
            Command::RemoveAdapter { name } => self.remove_adapter(name),
            Command::AdapterLoaded { group, epoch, rank, adapter, failed } => {
                self.adapter_loaded((*group, *epoch), *rank, *adapter, failed.as_deref())
            }
        }
    }

    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn register_worker(&mut self, worker: &Worker) -> Outcome {
        if let Some((id, _)) = self.workers.iter().find(|(_, known)| known.incarnation == worker.incarnation)
        {
            return Outcome::Worker(*id);
        }
        if self.workers.len() >= MAX_WORKERS {
            return Outcome::Refused(format!("the cluster has {MAX_WORKERS} workers already"));
        }
        let id = self.next();
        self.workers.insert(id, Worker { group: None, ..worker.clone() });
        Outcome::Worker(id)
    }

    fn lose_worker(&mut self, id: u64) -> Outcome {
        let Some(worker) = self.workers.remove(&id) else {
            return Outcome::Refused(format!("worker {id} is not known"));
        };
        if let Some(group) = worker.group {
            self.end_group(group);
        }
        Outcome::Done
    }

    fn put_deployment(&mut self, name: &str, deployment: &Deployment) -> Outcome {
        match self.deployments.get(name) {
            // The same again is what a retry looks like.
            Some(known) if Deployment { created: known.created, ..deployment.clone() } == *known => {
                Outcome::Done
            }
            Some(_) => Outcome::Refused(format!("a deployment called `{name}` exists; remove it first")),
            None if self.adapters.contains_key(name) => {
                Outcome::Refused(format!("an adapter is called `{name}`; give the deployment another name"))
            }
            None if self.deployments.len() >= MAX_DEPLOYMENTS => {
                Outcome::Refused(format!("the cluster has {MAX_DEPLOYMENTS} deployments already"))
            }
            None => {
                if let Err(refused) = self.room_for(&deployment.manifest) {
                    return refused;
                }
                self.deployments.insert(name.to_owned(), deployment.clone());
                Outcome::Done
            }
        }
    }

    fn form_group(&mut self, formation: Formation) -> Outcome {
        let Formation { deployment, shape, ranks, rank_weights, experts, .. } = &formation;
        if !self.deployments.contains_key(deployment) {
            return Outcome::Refused(format!("no deployment is called `{deployment}`"));
        }
        let distinct: BTreeSet<u64> = ranks.iter().copied().collect();
        if ranks.is_empty() || distinct.len() != ranks.len() {
            return Outcome::Refused(format!("ranks {ranks:?} are not distinct workers"));
        }
        if !shape.is_fixed() || shape.check().is_err() || shape.ranks() as usize != ranks.len() {
            return Outcome::Refused(format!("{} workers are no group of shape {shape}", ranks.len()));
        }
        if !rank_weights.is_empty() && rank_weights.len() != ranks.len() {
            return Outcome::Refused(format!("{} weights for {} ranks", rank_weights.len(), ranks.len()));
        }
        if experts.iter().flatten().any(|part| u32::from(*part) >= shape.ep) {
            return Outcome::Refused(format!("experts are given to parts that {shape} does not have"));
        }
        let idle = |id: &u64| self.workers.get(id).is_some_and(|worker| worker.group.is_none());
        if let Some(busy) = ranks.iter().find(|id| !idle(id)) {
            return Outcome::Refused(format!("worker {busy} is not idle"));
        }
        let id = self.next();
        let epoch = self.next();
        for rank in &formation.ranks {
            if let Some(worker) = self.workers.get_mut(rank) {
                worker.group = Some(id);
            }
        }
        let group = Group {
            deployment: formation.deployment,
            epoch,
            shape: formation.shape,
            ranks: formation.ranks,
            rank_weights: formation.rank_weights,
            experts: formation.experts,
            ready: BTreeSet::new(),
            collective: formation.collective,
            kv_blocks: formation.kv_blocks,
            block_size: formation.block_size,
            key: formation.key,
            driver: None,
        };
        self.groups.insert(id, group);
        Outcome::Group(id)
    }

    fn group_of_epoch(&mut self, id: u64, epoch: u64) -> Result<&mut Group, Outcome> {
        match self.groups.get_mut(&id) {
            Some(group) if group.epoch == epoch => Ok(group),
            _ => Err(Outcome::Refused(format!("group {id} of epoch {epoch} does not exist"))),
        }
    }

    fn end_group(&mut self, id: u64) {
        self.adapters_loaded.remove(&id);
        if let Some(group) = self.groups.remove(&id) {
            for rank in group.ranks {
                if let Some(worker) = self.workers.get_mut(&rank) {
                    worker.group = None;
                }
            }
        }
    }

    fn assign_driver(&mut self, id: u64, coordinator: u64, replaces: u64) -> Outcome {
        if !self.members.contains_key(&coordinator) {
            return Outcome::Refused(format!("coordinator {coordinator} is not known"));
        }
        let Some(group) = self.groups.get(&id).filter(|group| group.is_ready()) else {
            return Outcome::Refused(format!("group {id} is not ready"));
        };
        let current = group.driver.map_or(0, |lease| lease.epoch);
        if current != replaces {
            return Outcome::Refused(format!("group {id} is driven under lease {current}, not {replaces}"));
        }
        let lease = DriverLease { coordinator, epoch: self.next() };
        if let Some(group) = self.groups.get_mut(&id) {
            group.driver = Some(lease);
        }
        Outcome::Driver(lease)
    }

    fn put_note(&mut self, key: &str, value: &str) -> Outcome {
        if key.is_empty() || key.len() > MAX_NOTE_KEY {
            return Outcome::Refused(format!("key: {} bytes, must be 1 to {MAX_NOTE_KEY}", key.len()));
        }
        if value.len() > MAX_NOTE_VALUE {
            return Outcome::Refused(format!("value: {} bytes, at most {MAX_NOTE_VALUE}", value.len()));
        }
        if self.notes.len() >= MAX_NOTES && !self.notes.contains_key(key) {
            return Outcome::Refused(format!("there are {MAX_NOTES} notes already"));
        }
        let before = self.notes.get(key).map_or(0, |old| key.len() + old.len());
        let bytes = self.notes_bytes - before + key.len() + value.len();
        if bytes > MAX_NOTES_BYTES {
            return Outcome::Refused(format!(
                "all notes together would take {bytes} bytes, at most {MAX_NOTES_BYTES}"
            ));
        }
        self.notes_bytes = bytes;
        self.notes.insert(key.to_owned(), value.to_owned());
        Outcome::Done
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "state/adapters_tests.rs"]
mod adapters_tests;
