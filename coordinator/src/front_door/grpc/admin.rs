//! `foggara.admin.v1`: status and writes of operators.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use foggara_models::KvFormat;
use foggara_models::manifest::Manifest;
use foggara_proto::version::Build;
use foggara_proto::wire::admin as wire;
use foggara_proto::wire::cluster::LoadingRequest;
use foggara_proto::wire::cluster::peer_client::PeerClient;
use tonic::{Request, Response, Status};

use crate::cluster::state::{ClusterState, Deployment, NOT_QUANTIZED, QUANTIZATIONS};
use crate::cluster::{ClusterError, Command, Role};
use crate::front_door::FrontDoor;
use crate::front_door::api_error::Kind;
use crate::front_door::grpc::plan::propose_now;
use crate::front_door::grpc::{adapters, stats, timelines};
use crate::front_door::request::request_id;
use crate::library::{Undescribed, channel};
use crate::placement::VERSIONS;
use crate::placement::facts::Wish;

/// The service.
pub(super) struct Service {
    pub(super) door: FrontDoor,
}

const MAX_NAME: usize = 128;
const MAX_REPLICAS: u32 = 64;
/// How long the leader may take to say how far workers are.
const LEADER_TIMEOUT: Duration = Duration::from_millis(500);

pub(super) fn status_of(error: ClusterError) -> Status {
    match error {
        ClusterError::Refused(reason) => Status::failed_precondition(reason),
        ClusterError::TooLarge { .. } | ClusterError::Invalid(_) => {
            Status::invalid_argument(error.to_string())
        }
        ClusterError::Overloaded => Status::resource_exhausted(error.to_string()),
        error => Status::unavailable(error.to_string()),
    }
}

/// Whether something may be served under a name.
pub(super) fn check_name(name: &str) -> Result<(), Status> {
    let valid = |c: char| c.is_ascii_alphanumeric() || "._-/:".contains(c);
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(valid) {
        let reason = format!("name: `{name}` must be 1 to {MAX_NAME} letters, digits or ._-/:");
        return Err(Status::invalid_argument(reason));
    }
    Ok(())
}

impl Service {
    async fn write(&self, id: &str, command: Command) -> Result<(), Status> {
        let id = request_id(id)?;
        self.door.cluster.propose_as(id, command).await.map(drop).map_err(status_of)
    }

    /// Waits until this coordinator's status shows a write that has been acknowledged: who wrote it asks here next.
    pub(super) async fn catch_up(&self) {
        // The write is done, whether or not a leader answers now.
        self.door.cluster.read_index().await.ok();
    }

    /// How far workers are that load: the leader knows.
    async fn loading(&self, state: &ClusterState) -> BTreeMap<u64, wire::Loading> {
        if state.groups.values().all(crate::cluster::state::Group::is_ready) {
            return BTreeMap::new();
        }
        let status = self.door.cluster.status();
        let leader = status.leader.filter(|leader| *leader != status.id);
        let Some(leader) = leader.and_then(|leader| state.members.get(&leader)) else {
            return self.door.registry.loading();
        };
        let Ok(channel) = channel(&self.door.dialer, &leader.addr) else { return BTreeMap::new() };
        let mut peer = PeerClient::with_interceptor(channel, self.door.token.shown());
        let request = LoadingRequest { cluster_id: self.door.cluster.cluster_id().into() };
        // The rest of the status does not wait for it.
        let answer = tokio::time::timeout(LEADER_TIMEOUT, peer.loading(request)).await;
        answer
            .ok()
            .and_then(Result::ok)
            .map(|told| told.into_inner().workers.into_iter().collect())
            .unwrap_or_default()
    }

    fn coordinators(&self, state: &ClusterState) -> Vec<wire::Coordinator> {
        let status = self.door.cluster.status();
        let role = |id: u64| match status.leader {
            Some(leader) if leader == id => Role::Leader,
            _ if id == status.id => status.role,
            _ => Role::Follower,
        };
        let coordinator = |(id, member): (&u64, &crate::cluster::state::Member)| wire::Coordinator {
            id: *id,
            addr: member.addr.clone(),
            http_addr: member.http_addr.clone(),
            role: role(*id).name().into(),
            pid: member.pid,
            version: match id {
                id if *id == status.id => Build::own().version,
                id => self.door.cluster.build_of(*id).map(|build| build.version).unwrap_or_default(),
            },
        };
        state.members.iter().map(coordinator).collect()
    }

    fn deployment(&self, state: &ClusterState, name: &str, deployment: &Deployment) -> wire::Deployment {
        let groups: Vec<_> = state.groups.values().filter(|group| group.deployment == name).collect();
        let known = self.door.cluster.workers_are_known();
        let ready = groups.iter().filter(|group| known && group.is_ready() && group.driver.is_some()).count();
        let obstacle = state.obstacles.get(name).cloned();
        // While a group forms, what was in the way of the last one is history.
        let idle = state.workers.values().filter(|worker| worker.group.is_none());
        let mixed = idle.map(|worker| &worker.capabilities.version).collect::<BTreeSet<_>>().len() > 1;
        let lacks =
            groups.len() < deployment.replicas as usize && groups.iter().all(|group| group.is_ready());
        let state = match (ready, groups.len(), self.door.models.get(name)) {
            // One that is worth asking for again is being looked for.
            (_, _, Err(error)) if error.kind == Kind::Unavailable && error.retry_after.is_none() => {
                format!("failed: {}", error.message)
            }
            (ready, _, _) if ready >= deployment.replicas as usize => "ready".into(),
            (_, 0, _) => "pending".into(),
            _ => "loading".to_owned(),
        };
        // Before anything can be placed, its tables must be here.
        let absent = self.door.library.place(name, deployment).and_then(Result::err);
        let reason = absent.or(obstacle).filter(|_| lacks).unwrap_or_default();
        let versions_differ = reason.contains(VERSIONS) && mixed;
        let manifest = Manifest::parse(&deployment.manifest).ok();
        wire::Deployment {
            name: name.to_owned(),
            model_path: deployment.model_path.clone(),
            tp: deployment.shape.tp,
            replicas: deployment.replicas,
            kv_tokens: deployment.kv_tokens,
            kv_dtype: deployment.kv_dtype.clone(),
            collective: deployment.collective.clone(),
            state,
            ready_replicas: u32::try_from(ready).unwrap_or(u32::MAX),
            created: deployment.created,
            reason,
            dp: deployment.shape.dp,
            pp: deployment.shape.pp,
            ep: deployment.shape.ep,
            quantize: deployment.quantize.clone(),
            model_hash: manifest.as_ref().map(|manifest| manifest.hash().to_string()).unwrap_or_default(),
            model_bytes: manifest.as_ref().map_or(0, Manifest::bytes),
            versions_differ,
        }
    }
}

fn workers(state: &ClusterState, loading: &BTreeMap<u64, wire::Loading>) -> Vec<wire::Worker> {
    let worker = |(id, worker): (&u64, &crate::cluster::state::Worker)| {
        let group = worker.group.and_then(|group| Some((group, state.groups.get(&group)?)));
        let rank = group.and_then(|(_, group)| group.ranks.iter().position(|rank| rank == id));
        let rank = rank.and_then(|rank| u32::try_from(rank).ok());
        let ready = group.zip(rank).is_some_and(|((_, group), rank)| group.ready.contains(&rank));
        wire::Worker {
            id: *id,
            addr: worker.addr.clone(),
            pid: worker.pid,
            host: worker.host.clone(),
            group: group.map(|(group, _)| group),
            rank,
            state: match (group.is_some(), ready) {
                (false, _) => "idle".into(),
                (true, false) => "loading".into(),
                (true, true) => "ready".into(),
            },
            capabilities: Some(worker.capabilities.clone().into()),
            loading: loading.get(id).copied().filter(|_| group.is_some() && !ready),
        }
    };
    state.workers.iter().map(worker).collect()
}

fn groups(state: &ClusterState) -> Vec<wire::Group> {
    let group = |(id, group): (&u64, &crate::cluster::state::Group)| wire::Group {
        id: *id,
        deployment: group.deployment.clone(),
        epoch: group.epoch,
        state: if group.is_ready() { "ready".into() } else { "forming".into() },
        workers: group.ranks.clone(),
        collective: group.collective.name().into(),
        kv_blocks: u64::from(group.kv_blocks),
        block_size: group.block_size,
        driver: group.driver.map_or(0, |lease| lease.coordinator),
        driver_epoch: group.driver.map_or(0, |lease| lease.epoch),
        shape: Some(group.shape.into()),
    };
    state.groups.iter().map(group).collect()
}

/// A deployment as asked for, or what is wrong with it.
fn check(asked: wire::Deployment) -> Result<(String, Deployment), Status> {
    let wrong = |field: &str, reason: String| Err(Status::invalid_argument(format!("{field}: {reason}")));
    check_name(&asked.name)?;
    let shape = asked.shape();
    if let Err(error) = shape.check() {
        return wrong(error.field, error.reason);
    }
    if asked.replicas == 0 || asked.replicas > MAX_REPLICAS {
        return wrong("replicas", format!("{}, must be within 1..={MAX_REPLICAS}", asked.replicas));
    }
    let or_auto = |text: String| if text.is_empty() { "auto".into() } else { text };
    let (kv_dtype, collective): (String, String) = (or_auto(asked.kv_dtype), or_auto(asked.collective));
    if !KvFormat::CHOICES.contains(&kv_dtype.as_str()) {
        return wrong("kv_dtype", format!("`{kv_dtype}` is not one of {}", KvFormat::CHOICES.join(", ")));
    }
    if !["auto", "shm", "tcp"].contains(&collective.as_str()) {
        return wrong("collective", format!("`{collective}` is not one of auto, shm, tcp"));
    }
    let quantize = if asked.quantize.is_empty() { NOT_QUANTIZED.to_owned() } else { asked.quantize };
    if !QUANTIZATIONS.contains(&quantize.as_str()) {
        return wrong("quantize", format!("`{quantize}` is not one of {}", QUANTIZATIONS.join(", ")));
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let deployment = Deployment {
        model_path: asked.model_path,
        shape,
        replicas: asked.replicas,
        kv_tokens: asked.kv_tokens,
        kv_dtype,
        collective,
        quantize,
        created: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        manifest: String::new(),
    };
    Ok((asked.name, deployment))
}

#[tonic::async_trait]
impl wire::admin_server::Admin for Service {
    async fn status(
        &self,
        _request: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusResponse>, Status> {
        let (state, raft) = (self.door.cluster.state(), self.door.cluster.status());
        Ok(Response::new(wire::StatusResponse {
            cluster_id: self.door.cluster.cluster_id().into(),
            answered_by: raft.id,
            term: raft.term,
            applied: raft.applied,
            leader: raft.leader.unwrap_or(0),
            coordinators: self.coordinators(&state),
            workers: workers(&state, &self.loading(&state).await),
            groups: groups(&state),
            deployments: state.deployments.iter().map(|(name, d)| self.deployment(&state, name, d)).collect(),
            adapters: adapters::told(&state, self.door.cluster.workers_are_known()),
        }))
    }

    async fn stats(
        &self,
        _request: Request<wire::StatsRequest>,
    ) -> Result<Response<wire::StatsResponse>, Status> {
        Ok(Response::new(stats::everywhere(&self.door).await))
    }

    async fn trace(
        &self,
        request: Request<wire::TraceRequest>,
    ) -> Result<Response<wire::TraceResponse>, Status> {
        timelines::everywhere(&self.door, request.into_inner()).await.map(Response::new)
    }

    async fn put_deployment(
        &self,
        request: Request<wire::PutDeploymentRequest>,
    ) -> Result<Response<wire::PutDeploymentResponse>, Status> {
        let request = request.into_inner();
        let asked = request.deployment.ok_or_else(|| Status::invalid_argument("deployment: is missing"))?;
        let (name, mut deployment) = check(asked)?;
        let described = self.door.library.describe(&self.door.cluster, &deployment.model_path).await;
        let described = described.map_err(|error| match error {
            Undescribed::NotHere(reason) | Undescribed::Unusable(reason) => {
                Status::invalid_argument(format!("model_path: {reason}"))
            }
        })?;
        if described.manifest.is_adapter() {
            let path = &deployment.model_path;
            return Err(Status::invalid_argument(format!(
                "model_path: `{path}` is an adapter: add it to a deployment with `foggara adapter add`"
            )));
        }
        let fits = deployment.shape.check_model(described.layers, described.experts);
        fits.map_err(|e| Status::invalid_argument(e.to_string()))?;
        deployment.manifest = described.manifest.to_text();
        self.write(&request.request_id, Command::PutDeployment { name, deployment }).await?;
        self.catch_up().await;
        Ok(Response::new(wire::PutDeploymentResponse {}))
    }

    async fn plan_deployment(
        &self,
        request: Request<wire::PlanDeploymentRequest>,
    ) -> Result<Response<wire::PlanDeploymentResponse>, Status> {
        let request = request.into_inner();
        let tokens = match request.sequence_tokens {
            0 => Wish::SEQUENCE_TOKENS,
            tokens => tokens,
        };
        let (_, deployment) =
            check(request.deployment.ok_or_else(|| Status::invalid_argument("deployment: is missing"))?)?;
        let (state, library) = (self.door.cluster.state(), self.door.library.clone());
        // The leader knows.
        let limits = self.door.registry.memory_limits();
        let proposed =
            tokio::task::spawn_blocking(move || propose_now(&state, &library, &deployment, tokens, limits))
                .await;
        let proposed = proposed.map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(proposed.map_err(Status::invalid_argument)?.into()))
    }

    async fn remove_deployment(
        &self,
        request: Request<wire::RemoveDeploymentRequest>,
    ) -> Result<Response<wire::RemoveDeploymentResponse>, Status> {
        let request = request.into_inner();
        let id = request_id(&request.request_id)?;
        let outcome =
            self.door.cluster.propose_as(id, Command::RemoveDeployment { name: request.name }).await;
        outcome.map_err(|error| match error {
            ClusterError::Refused(reason) => Status::not_found(reason),
            error => status_of(error),
        })?;
        self.catch_up().await;
        Ok(Response::new(wire::RemoveDeploymentResponse {}))
    }

    async fn put_adapter(
        &self,
        request: Request<wire::PutAdapterRequest>,
    ) -> Result<Response<wire::PutAdapterResponse>, Status> {
        self.add_adapter(request.into_inner()).await?;
        self.catch_up().await;
        Ok(Response::new(wire::PutAdapterResponse {}))
    }

    async fn remove_adapter(
        &self,
        request: Request<wire::RemoveAdapterRequest>,
    ) -> Result<Response<wire::RemoveAdapterResponse>, Status> {
        self.remove_adapter_called(request.into_inner()).await?;
        self.catch_up().await;
        Ok(Response::new(wire::RemoveAdapterResponse {}))
    }

    async fn put_note(
        &self,
        request: Request<wire::PutNoteRequest>,
    ) -> Result<Response<wire::PutNoteResponse>, Status> {
        let wire::PutNoteRequest { key, value, request_id } = request.into_inner();
        self.write(&request_id, Command::PutNote { key, value }).await?;
        Ok(Response::new(wire::PutNoteResponse {}))
    }

    async fn get_note(
        &self,
        request: Request<wire::GetNoteRequest>,
    ) -> Result<Response<wire::GetNoteResponse>, Status> {
        self.door.cluster.read_index().await.map_err(status_of)?;
        let value = self.door.cluster.state().notes.get(&request.into_inner().key).cloned();
        Ok(Response::new(wire::GetNoteResponse { value }))
    }

    async fn list_notes(
        &self,
        request: Request<wire::ListNotesRequest>,
    ) -> Result<Response<wire::ListNotesResponse>, Status> {
        self.door.cluster.read_index().await.map_err(status_of)?;
        let prefix = request.into_inner().prefix;
        let state = self.door.cluster.state();
        let notes = state.notes.iter().filter(|(key, _)| key.starts_with(&prefix));
        let notes = notes.map(|(key, value)| (key.clone(), value.clone())).collect();
        Ok(Response::new(wire::ListNotesResponse { notes }))
    }
}
