//! The workers' sessions.

mod adapters;
mod suspects;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use foggara_proto::version::{Build, Range};
use foggara_proto::wire::admin::Loading;
use foggara_proto::wire::worker as wire;
use futures::Stream;
use tokio::sync::{Notify, mpsc, oneshot};
use tonic::{Request, Response, Status, Streaming};

use crate::cluster::state::{Deployment, DeviceKind, Group, Worker};
use crate::cluster::{ClusterError, ClusterHandle, ClusterState, Command, Outcome, Role};
use crate::driver::{GPU_STEP_ROWS, MAX_STEP_ROWS};
use adapters::Adapters;

/// Between heartbeats, both ways.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// A worker that has been silent this long is lost.
const SILENCE: Duration = Duration::from_secs(5);
/// A worker without a deployment's files is not tried for it again for this long.
const UNFIT: Duration = Duration::from_secs(30);

/// A live session.
struct Session {
    number: u64,
    messages: mpsc::UnboundedSender<wire::RegistryMessage>,
    /// Group and epoch it was last told to hold (or came with).
    told: Option<(u64, u64)>,
    /// When it last said something.
    heard: Instant,
    /// Whether it hung when its group failed, and has said nothing since.
    hangs: bool,
    /// The models it knows to be deployed, by name.
    models: BTreeMap<String, Deployed>,
    /// The adapters that it was told to load for its group.
    adapters: Adapters,
    /// What its control groups allow it of its host's memory; 0: any.
    memory_limit: u64,
    /// Dropped to end it.
    _open: oneshot::Sender<()>,
}

#[derive(Default)]
struct Inner {
    sessions: BTreeMap<u64, Session>,
    /// Workers whose session has ended, and when.
    gone: BTreeMap<u64, Instant>,
    /// How far ranks that load are, by worker.
    progress: BTreeMap<u64, Loading>,
    /// Workers that lack the files of a deployment, or have others: why, and since when that is known.
    unfit: BTreeMap<(String, u64), (String, Instant)>,
    /// Workers of groups that have failed by others' account, until somebody looks what has become of them.
    suspects: BTreeSet<u64>,
    next: u64,
}

/// The sessions of this coordinator while it leads.
#[derive(Clone, Default)]
pub struct Registry {
    inner: Arc<Mutex<Inner>>,
    /// Something has changed.
    pub(super) changed: Arc<Notify>,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Workers with a live session.
    pub(super) fn live(&self) -> BTreeSet<u64> {
        self.lock().sessions.keys().copied().collect()
    }

    /// When the session of worker `id` ended, if it has.
    pub(super) fn gone_since(&self, id: u64) -> Option<Instant> {
        self.lock().gone.get(&id).copied()
    }

    /// What control groups allow workers of their hosts' memory, where they limit it.
    pub(crate) fn memory_limits(&self) -> BTreeMap<u64, u64> {
        let limits =
            self.lock().sessions.iter().map(|(id, session)| (*id, session.memory_limit)).collect::<Vec<_>>();
        limits.into_iter().filter(|(_, limit)| *limit > 0).collect()
    }

    /// How far workers are that load.
    pub(crate) fn loading(&self) -> BTreeMap<u64, Loading> {
        self.lock().progress.clone()
    }

    /// Workers that were found unable to hold a deployment (without its files, or a GPU for its weights) a short while ago, and why.
    pub(super) fn unfit(&self) -> BTreeMap<(String, u64), String> {
        let mut inner = self.lock();
        inner.unfit.retain(|_, (_, since)| since.elapsed() < UNFIT);
        inner.unfit.iter().map(|(key, (reason, _))| (key.clone(), reason.clone())).collect()
    }

    /// Forgets worker `id`.
    pub(super) fn forget(&self, id: u64) {
        let mut inner = self.lock();
        inner.gone.remove(&id);
        inner.progress.remove(&id);
        inner.unfit.retain(|(_, worker), _| *worker != id);
        inner.sessions.remove(&id);
    }

    /// Ends every session: this coordinator does not lead.
    pub(super) fn end_all(&self, elsewhere: &wire::NotLeader) {
        let mut inner = self.lock();
        for session in inner.sessions.values() {
            let message = wire::registry_message::Message::NotLeader(elsewhere.clone());
            session.messages.send(wire::RegistryMessage { message: Some(message) }).ok();
        }
        *inner = Inner { next: inner.next, ..Inner::default() };
    }

    /// Tells every worker what the state wants it to hold, where it has not been told.
    pub(super) fn reconcile(&self, cluster: &ClusterHandle) {
        let mut inner = self.lock();
        // Read under the lock: a worker is in the state before its session is here.
        let state = &*cluster.state();
        // One that was given up just when it came back must join anew.
        inner.sessions.retain(|id, _| state.workers.contains_key(id));
        let (deployed, inner) = (deployed(state), &mut *inner);
        for (id, session) in &mut inner.sessions {
            session.tell_deployed(&deployed);
            let wanted = state.workers.get(id).and_then(|worker| worker.group);
            let group = wanted.and_then(|group| Some((group, state.groups.get(&group)?)));
            let key = group.map(|(id, group)| (id, group.epoch));
            if key == session.told {
                session.tell_adapters(state, group);
                continue;
            }
            session.adapters = Adapters::default();
            inner.progress.remove(id);
            if let Some((group, epoch)) = session.told {
                let release = wire::Release { group, epoch, reason: "the group has ended".into() };
                let message = wire::registry_message::Message::Release(release);
                session.messages.send(wire::RegistryMessage { message: Some(message) }).ok();
            }
            if let Some(assign) = group.and_then(|(group_id, group)| assign(state, group_id, group, *id)) {
                let message = wire::registry_message::Message::Assign(assign);
                session.messages.send(wire::RegistryMessage { message: Some(message) }).ok();
            }
            session.told = key;
            session.tell_adapters(state, group);
        }
    }

    /// Takes in a session; the receiver ends when it should.
    fn open(
        &self,
        id: u64,
        messages: mpsc::UnboundedSender<wire::RegistryMessage>,
        held: Option<(u64, u64)>,
        memory_limit: u64,
    ) -> (u64, oneshot::Receiver<()>) {
        let mut inner = self.lock();
        inner.next += 1;
        let number = inner.next;
        inner.gone.remove(&id);
        let (open, ended) = oneshot::channel();
        let (heard, hangs, models) = (Instant::now(), false, BTreeMap::new());
        let (told, adapters) = (held, Adapters::default());
        let session =
            Session { number, messages, told, heard, hangs, models, adapters, memory_limit, _open: open };
        inner.sessions.insert(id, session);
        drop(inner);
        self.changed.notify_one();
        (number, ended)
    }

    fn close(&self, id: u64, number: u64) {
        let mut inner = self.lock();
        if inner.sessions.get(&id).is_some_and(|session| session.number == number) {
            inner.sessions.remove(&id);
            inner.gone.insert(id, Instant::now());
        }
        drop(inner);
        self.changed.notify_one();
    }
}

/// What a worker is told of a deployment's model.
#[derive(Clone, PartialEq, Eq)]
struct Deployed {
    path: Arc<str>,
    manifest: Arc<str>,
}

/// Every deployment's model that has a manifest.
fn deployed(state: &ClusterState) -> BTreeMap<String, Deployed> {
    let with_manifest = state.deployments.iter().filter(|(_, deployment)| !deployment.manifest.is_empty());
    let model = |d: &Deployment| Deployed { path: (&*d.model_path).into(), manifest: (&*d.manifest).into() };
    with_manifest.map(|(name, deployment)| (name.clone(), model(deployment))).collect()
}

impl Session {
    /// Tells the worker which models it may be asked for files of, where it does not know.
    fn tell_deployed(&mut self, deployed: &BTreeMap<String, Deployed>) {
        if self.models == *deployed {
            return;
        }
        let tell = |model: &Deployed, removed| {
            let (model_path, manifest) = (model.path.to_string(), model.manifest.to_string());
            let told =
                wire::registry_message::Message::Deployed(wire::Deployed { model_path, manifest, removed });
            self.messages.send(message(told)).ok();
        };
        // First what is gone: another deployment may be of the same model.
        self.models
            .iter()
            .filter(|(name, m)| deployed.get(*name) != Some(m))
            .for_each(|(_, m)| tell(m, true));
        let gone = |model: &Deployed| {
            self.models.iter().any(|(name, m)| m.manifest == model.manifest && deployed.get(name) != Some(m))
        };
        let new = deployed.iter().filter(|(name, m)| self.models.get(*name) != Some(m) || gone(m));
        new.for_each(|(_, model)| tell(model, false));
        self.models.clone_from(deployed);
    }
}

/// What worker `id` is to do in a group.
fn assign(state: &ClusterState, group_id: u64, group: &Group, id: u64) -> Option<wire::Assign> {
    let deployment = state.deployments.get(&group.deployment)?;
    let workers: Vec<&Worker> =
        group.ranks.iter().map(|rank| state.workers.get(rank)).collect::<Option<_>>()?;
    let rank = group.ranks.iter().position(|rank| *rank == id)?;
    let here = &workers[rank].host;
    // Other groups' workers want the same cores.
    let threads_on_host =
        state.workers.values().filter(|worker| worker.host == *here).map(|w| w.capabilities.threads).sum();
    let word = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    let on_gpus = workers.iter().all(|worker| worker.capabilities.device.kind == DeviceKind::Cuda);
    Some(wire::Assign {
        group: group_id,
        epoch: group.epoch,
        rank: word(rank),
        size: word(group.ranks.len()),
        model_path: deployment.model_path.clone(),
        collective: group.collective.name().into(),
        peers: workers.iter().map(|worker| worker.collective_addr.clone()).collect(),
        kv_blocks: group.kv_blocks,
        block_size: group.block_size,
        kv_dtype: deployment.kv_dtype.clone(),
        max_step_rows: if on_gpus { GPU_STEP_ROWS } else { MAX_STEP_ROWS },
        threads_on_host,
        group_key: group.key.to_vec(),
        shape: Some(group.shape.into()),
        rank_weights: group.rank_weights.clone(),
        experts: group
            .experts
            .iter()
            .map(|layer| wire::ExpertParts { part: layer.iter().map(|part| u32::from(*part)).collect() })
            .collect(),
        quantize: deployment.quantize.clone(),
        manifest: deployment.manifest.clone(),
    })
}

/// `foggara.worker.v1.Registry`.
pub struct RegistryService {
    /// The replicated state.
    pub cluster: ClusterHandle,
    /// The sessions.
    pub registry: Registry,
    /// What this program is.
    pub build: Build,
}

/// Where workers should look.
pub(super) fn not_leader(cluster: &ClusterHandle) -> wire::NotLeader {
    let state = cluster.state();
    let leader = cluster.status().leader.and_then(|id| state.members.get(&id));
    wire::NotLeader {
        leader_addr: leader.map(|member| member.addr.clone()).unwrap_or_default(),
        coordinators: state.members.values().map(|member| member.addr.clone()).collect(),
    }
}

fn message(message: wire::registry_message::Message) -> wire::RegistryMessage {
    wire::RegistryMessage { message: Some(message) }
}

type Messages = Pin<Box<dyn Stream<Item = Result<wire::RegistryMessage, Status>> + Send>>;

#[tonic::async_trait]
impl wire::registry_server::Registry for RegistryService {
    type SessionStream = Messages;

    async fn session(
        &self,
        request: Request<Streaming<wire::WorkerMessage>>,
    ) -> Result<Response<Messages>, Status> {
        use wire::registry_message::Message as Out;
        let mut incoming = request.into_inner();
        let first = tokio::time::timeout(SILENCE, incoming.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no `hello` came"))??;
        let first = first.and_then(|message| message.message);
        let Some(wire::worker_message::Message::Hello(hello)) = first else {
            return Err(Status::invalid_argument("the first message must be `hello`"));
        };
        let only =
            |out: Out| Ok(Response::new(Box::pin(futures::stream::iter([Ok(message(out))])) as Messages));
        if let Err(reason) = speaks(&self.build, &hello) {
            tracing::warn!(addr = hello.addr, reason, "worker refused");
            return only(Out::Refused(wire::Refused { reason }));
        }
        if !self.cluster.is_leader() {
            return only(Out::NotLeader(not_leader(&self.cluster)));
        }
        let worker = match worker(&hello) {
            Ok(worker) => worker,
            Err(reason) => {
                tracing::warn!(addr = hello.addr, reason, "worker refused");
                return only(Out::Refused(wire::Refused { reason }));
            }
        };
        let id = match self.cluster.propose_leading(Command::RegisterWorker(Box::new(worker))).await {
            Ok(Outcome::Worker(id)) => id,
            Ok(other) => return Err(Status::internal(format!("{other:?}"))),
            Err(ClusterError::Refused(reason)) => return only(Out::Refused(wire::Refused { reason })),
            Err(ClusterError::NotLeader { .. }) => return only(Out::NotLeader(not_leader(&self.cluster))),
            Err(error) => return Err(Status::unavailable(error.to_string())),
        };
        let (messages, mut outgoing) = mpsc::unbounded_channel();
        let coordinators = not_leader(&self.cluster).coordinators;
        messages.send(message(Out::Welcome(wire::Welcome { worker: id, coordinators }))).ok();
        let memory_limit = hello.capabilities.as_ref().map_or(0, |can| can.memory_limit_bytes);
        let held = self.adopt(id, hello.held.as_ref());
        let (number, ended) = self.registry.open(id, messages.clone(), held, memory_limit);
        tracing::info!(worker = id, addr = hello.addr, "worker joined");
        let listener =
            Listener { cluster: self.cluster.clone(), registry: self.registry.clone(), id, messages };
        tokio::spawn(async move {
            let reason = listener.listen(incoming, ended).await;
            tracing::info!(worker = id, reason, "session ended");
            listener.registry.close(id, number);
        });
        Ok(Response::new(Box::pin(async_stream::stream! {
            while let Some(message) = outgoing.recv().await {
                yield Ok(message);
            }
        })))
    }
}

impl RegistryService {
    /// What the worker holds, if that is what it should; tells the state what it can learn from it.
    fn adopt(&self, id: u64, held: Option<&wire::Held>) -> Option<(u64, u64)> {
        let state = self.cluster.state();
        let wanted = state.workers.get(&id).and_then(|worker| worker.group);
        if let Some((group_id, group)) = wanted.and_then(|id| Some((id, state.groups.get(&id)?))) {
            let rank =
                group.ranks.iter().position(|rank| *rank == id).and_then(|rank| u32::try_from(rank).ok());
            let holds = held.is_some_and(|held| held.group == group_id && held.epoch == group.epoch);
            let was_ready = rank.is_some_and(|rank| group.ready.contains(&rank));
            let command = match (holds, held.is_some_and(|held| held.ready), rank) {
                (true, true, Some(rank)) if !was_ready => {
                    Some(Command::RankReady { group: group_id, epoch: group.epoch, rank })
                }
                // It lost the rank while it was away: the others of the group are waiting for a rank that is gone.
                (false, _, _) if was_ready => {
                    Some(Command::DissolveGroup { group: group_id, epoch: group.epoch })
                }
                _ => None,
            };
            propose(&self.cluster, command);
        }
        held.map(|held| (held.group, held.epoch))
    }
}

/// Proposes without waiting: the state tells how it went.
fn propose(cluster: &ClusterHandle, command: Option<Command>) {
    if let Some(command) = command {
        let cluster = cluster.clone();
        tokio::spawn(async move { cluster.propose(command).await.ok() });
    }
}

/// Whether a worker speaks what is spoken here.
fn speaks(own: &Build, hello: &wire::Hello) -> Result<(), String> {
    let version = hello.capabilities.as_ref().map(|can| can.version.as_str()).unwrap_or_default();
    let spoken = Range { oldest: hello.oldest_protocol, newest: hello.newest_protocol };
    if spoken.newest == 0 {
        let Build { version, protocols, .. } = own;
        let said = &hello.protocol;
        return Err(format!(
            "it says that it is `{said}`, of releases before protocol 3; foggara {version} here speaks protocol {protocols}: upgrade it"
        ));
    }
    own.speaks_with(version, spoken).map_err(|error| error.to_string())
}

/// The worker that says this, or why it cannot be one.
fn worker(hello: &wire::Hello) -> Result<Worker, String> {
    Ok(Worker {
        addr: hello.addr.clone(),
        collective_addr: hello.collective_addr.clone(),
        host: hello.host.clone(),
        pid: hello.pid,
        incarnation: hello.incarnation.clone(),
        capabilities: hello.capabilities.clone().unwrap_or_default().try_into()?,
        group: None,
    })
}

/// One session's incoming side.
struct Listener {
    cluster: ClusterHandle,
    registry: Registry,
    id: u64,
    messages: mpsc::UnboundedSender<wire::RegistryMessage>,
}

impl Listener {
    /// Listens until the session ends; says why it did.
    async fn listen(
        &self,
        mut incoming: Streaming<wire::WorkerMessage>,
        mut ended: oneshot::Receiver<()>,
    ) -> String {
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        let mut heard = tokio::time::Instant::now();
        let mut status = self.cluster.watch_status();
        let deposed = status.wait_for(|status| status.role != Role::Leader);
        tokio::pin!(deposed);
        loop {
            tokio::select! {
                message = incoming.message() => match message {
                    Ok(Some(message)) => {
                        heard = tokio::time::Instant::now();
                        self.registry.heard(self.id);
                        self.take(message);
                    }
                    Ok(None) => return "it closed its session".to_owned(),
                    Err(status) => return status.message().to_owned(),
                },
                _ = heartbeat.tick() => {
                    if heard.elapsed() > SILENCE {
                        return format!("silent for {SILENCE:?}");
                    }
                    let beat = wire::registry_message::Message::Heartbeat(wire::Heartbeat {});
                    if self.messages.send(message(beat)).is_err() {
                        return "its connection has ended".to_owned();
                    }
                }
                _ = &mut deposed => return "this coordinator does not lead".to_owned(),
                _ = &mut ended => return "it must join anew".to_owned(),
            }
        }
    }

    fn take(&self, message: wire::WorkerMessage) {
        use wire::worker_message::Message as In;
        match message.message {
            Some(In::Ready(r)) => {
                self.registry.lock().progress.remove(&self.id);
                let ready = Command::RankReady { group: r.group, epoch: r.epoch, rank: r.rank };
                propose(&self.cluster, Some(ready));
            }
            Some(In::Failed(f)) => {
                tracing::error!(
                    worker = self.id,
                    group = f.group,
                    rank = f.rank,
                    reason = f.reason,
                    "rank failed"
                );
                let state = self.cluster.state();
                self.registry.lock().progress.remove(&self.id);
                let failed = state.groups.get(&f.group).filter(|group| group.epoch == f.epoch);
                if let Some(group) = failed.filter(|_| !f.files) {
                    let others = group.ranks.iter().filter(|worker| **worker != self.id);
                    self.registry.lock().suspects.extend(others);
                }
                if let Some(group) = failed.filter(|_| f.files) {
                    let key = (group.deployment.clone(), self.id);
                    self.registry.lock().unfit.insert(key, (f.reason.clone(), Instant::now()));
                }
                propose(
                    &self.cluster,
                    failed.map(|group| Command::NoteObstacle {
                        deployment: group.deployment.clone(),
                        reason: format!("rank {} (worker {}): {}", f.rank, self.id, f.reason),
                    }),
                );
                propose(&self.cluster, Some(Command::DissolveGroup { group: f.group, epoch: f.epoch }));
            }
            Some(In::AdapterLoaded(loaded)) => {
                let command = self.registry.adapter_loaded(&self.cluster.state(), self.id, loaded);
                propose(&self.cluster, command);
            }
            Some(In::Progress(p)) => {
                let wire::LoadProgress { loaded_bytes, total_bytes, bytes_per_second, .. } = p;
                let loading = Loading { loaded_bytes, total_bytes, bytes_per_second };
                self.registry.lock().progress.insert(self.id, loading);
            }
            Some(In::Heartbeat(_) | In::Hello(_)) | None => {}
        }
    }
}
