//! Adapters, as operators add and remove them, and as the status tells of them.

use std::path::Path;
use std::time::{Duration, Instant};

use foggara_models::manifest::{Described, Manifest};
use foggara_models::{Adapter as AdapterFiles, Checkpoint};
use foggara_proto::wire::admin as wire;
use tonic::Status;

use super::admin::{Service, check_name, status_of};
use crate::cluster::state::adapters::{Adapter, Presence};
use crate::cluster::state::{ClusterState, Deployment};
use crate::cluster::{ClusterError, Command};
use crate::front_door::request::request_id;
use crate::library::Undescribed;

/// The first format of the replicated state that knows adapters.
const FORMAT: u8 = 5;
/// How long coordinators that were just started or upgraded may take to find out that all of them know adapters.
const AGREEING: Duration = Duration::from_secs(5);
/// Between two times that the leader is asked.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Every adapter, and where it is. `known`: whether it has been found out which workers are there.
pub(super) fn told(state: &ClusterState, known: bool) -> Vec<wire::Adapter> {
    let one = |(name, adapter): (&String, &Adapter)| {
        let groups = state.groups.iter().filter(|(_, g)| g.deployment == adapter.deployment && g.is_ready());
        let places: Vec<Presence<'_>> =
            groups.filter(|_| known).map(|(id, group)| state.presence(*id, group, adapter.id)).collect();
        let ready = places.iter().filter(|place| **place == Presence::Ready).count();
        let failure = places.iter().find_map(|place| match place {
            Presence::Failed(rank, reason) => Some(format!("rank {rank}: {reason}")),
            Presence::Ready | Presence::Loading => None,
        });
        let told = match (&failure, places.len()) {
            (Some(_), _) => "failed",
            (None, 0) => "pending",
            (None, all) if all == ready => "ready",
            (None, _) => "loading",
        };
        let manifest = Manifest::parse(&adapter.manifest).ok();
        wire::Adapter {
            name: name.clone(),
            deployment: adapter.deployment.clone(),
            path: adapter.path.clone(),
            id: adapter.id,
            state: told.into(),
            reason: failure.unwrap_or_default(),
            ready_replicas: u32::try_from(ready).unwrap_or(u32::MAX),
            bytes: manifest.as_ref().map_or(0, Manifest::bytes),
            hash: manifest.as_ref().map(|manifest| manifest.hash().to_string()).unwrap_or_default(),
            created: adapter.created,
        }
    };
    state.adapters.iter().map(one).collect()
}

/// Whether an adapter fits a model, both of which lie here.
fn fits(adapter: &Path, model: &Path) -> Result<(), String> {
    let model = Checkpoint::open(model).map_err(|error| error.to_string())?;
    let adapter = AdapterFiles::open(adapter).map_err(|error| error.to_string())?;
    adapter.check(model.spec()).map_err(|error| error.to_string())
}

impl Service {
    pub(super) async fn add_adapter(&self, request: wire::PutAdapterRequest) -> Result<(), Status> {
        let id = request_id(&request.request_id)?;
        let asked = request.adapter.ok_or_else(|| Status::invalid_argument("adapter: is missing"))?;
        check_name(&asked.name)?;
        let state = self.door.cluster.state();
        let Some(deployment) = state.deployments.get(&asked.deployment) else {
            let reason = format!("deployment: no deployment is called `{}`", asked.deployment);
            return Err(Status::not_found(reason));
        };
        self.all_know_adapters().await?;
        let described = self.door.library.describe(&self.door.cluster, &asked.path).await;
        let described = described.map_err(|error| match error {
            Undescribed::NotHere(reason) | Undescribed::Unusable(reason) => {
                Status::invalid_argument(format!("path: {reason}"))
            }
        })?;
        if !described.manifest.is_adapter() {
            let reason = format!(
                "path: `{}` is a model, not an adapter: serve it with `foggara models add`",
                asked.path
            );
            return Err(Status::invalid_argument(reason));
        }
        self.check_fit(&asked, deployment, described.clone()).await?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let adapter = Adapter {
            id: 0,
            deployment: asked.deployment,
            path: asked.path,
            manifest: described.manifest.to_text(),
            created: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        };
        let put = Command::PutAdapter { name: asked.name, adapter };
        self.door.cluster.propose_as(id, put).await.map(drop).map_err(status_of)
    }

    /// A coordinator of an older release would not understand what is written of adapters.
    async fn all_know_adapters(&self) -> Result<(), Status> {
        let (cluster, since) = (&self.door.cluster, Instant::now());
        let mut status = cluster.watch_status();
        while since.elapsed() < AGREEING {
            if status.borrow().format >= FORMAT {
                return Ok(());
            }
            // Which format the leader writes in shows in what it writes. This changes nothing.
            let term = cluster.state().confirmed_term;
            cluster.propose(Command::ConfirmWorkers { term }).await.ok();
            tokio::time::timeout(ASK_AGAIN, status.wait_for(|status| status.format >= FORMAT)).await.ok();
        }
        Err(Status::failed_precondition(
            "adapters need every coordinator to be upgraded first: some are of a release that does not know them",
        ))
    }

    /// If both lie here, what does not fit is found now; else workers find it, and the status says so.
    async fn check_fit(
        &self,
        asked: &wire::Adapter,
        deployment: &Deployment,
        described: Described,
    ) -> Result<(), Status> {
        let here = self.door.library.describe_here(&asked.path).await.is_ok();
        let model = self.door.library.place(&asked.deployment, deployment).and_then(Result::ok);
        let Some(model) = model.filter(|_| here) else { return Ok(()) };
        let checked = tokio::task::spawn_blocking(move || fits(&described.path, &model)).await;
        let checked = checked.map_err(|error| Status::internal(error.to_string()))?;
        let does_not = |reason| format!("path: it does not fit `{}`: {reason}", asked.deployment);
        checked.map_err(|reason| Status::invalid_argument(does_not(reason)))
    }

    pub(super) async fn remove_adapter_called(
        &self,
        request: wire::RemoveAdapterRequest,
    ) -> Result<(), Status> {
        let id = request_id(&request.request_id)?;
        let name = request.name;
        if !self.door.cluster.state().adapters.contains_key(&name) {
            self.catch_up().await;
        }
        // In a format without adapters there is none to be removed.
        if self.door.cluster.status().format < FORMAT {
            return Err(Status::not_found(format!("no adapter is called `{name}`")));
        }
        let outcome = self.door.cluster.propose_as(id, Command::RemoveAdapter { name }).await;
        outcome.map(drop).map_err(|error| match error {
            ClusterError::Refused(reason) => Status::not_found(reason),
            error => status_of(error),
        })
    }
}
