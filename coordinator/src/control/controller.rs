//! The leader's loop: compares what is with what should be, and proposes the difference.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use foggara_models::Checkpoint;

use super::probe;
use super::registry::{Registry, not_leader};
use crate::cluster::state::{Deployment, Formation};
use crate::cluster::{ClusterHandle, ClusterState, Command, RaftStatus};
use crate::library::Library;
use crate::model_facts;
use crate::placement::facts::ModelFacts;
use crate::placement::{Step, Surroundings, plan};

/// Between two looks when nothing has happened.
const INTERVAL: Duration = Duration::from_millis(250);
/// How long a worker may be without a session before it counts as lost: a moment for one to come back, longer for all of
/// them to find a new leader.
const WORKER_GRACE: Duration = Duration::from_millis(500);
const NEW_LEADER_GRACE: Duration = Duration::from_secs(6);
/// A coordinator that has not answered for this long does not keep its leases.
const COORDINATOR_GRACE: Duration = Duration::from_millis(700);
/// A coordinator that has been stopping for this long does not keep them either; when all of them stop together, moving
/// leases would only cost.
const DRAINING_GRACE: Duration = Duration::from_millis(400);
/// After a group has failed to form, before the next attempt: from, to.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// What the leader remembers between looks.
struct Controller {
    cluster: ClusterHandle,
    registry: Registry,
    library: Library,
    since: Instant,
    /// Whether this leader knows of every worker whether it is there, and has said so.
    confirmed: bool,
    /// Workers whose machine says that nothing listens at their address.
    refused: BTreeSet<u64>,
    /// Workers of the state that have had no session here yet, and since when that is known: one that joins is in the state a
    /// moment before its session is there.
    absent: BTreeMap<u64, Instant>,
    /// When each coordinator was last heard of.
    heard: BTreeMap<u64, Instant>,
    /// Coordinators that are stopping, and since when that is known.
    draining: BTreeMap<u64, Instant>,
    models: BTreeMap<String, (Deployment, Result<ModelFacts, String>)>,
    /// Groups seen forming, by id.
    forming: BTreeMap<u64, String>,
    /// Deployments that must wait: until when, and for how long this time.
    backoff: BTreeMap<String, (Instant, Duration)>,
    missing: BTreeMap<String, String>,
}

/// Runs for as long as the process lives; acts while this coordinator leads.
pub async fn run_controller(cluster: ClusterHandle, registry: Registry, library: Library) {
    let mut state = cluster.watch();
    let mut status = cluster.watch_status();
    let mut controller: Option<Controller> = None;
    let active = |status: &RaftStatus| -> Vec<u64> {
        status.peers.iter().filter(|peer| peer.active).map(|peer| peer.id).collect()
    };
    loop {
        let known = active(&status.borrow_and_update());
        if cluster.is_leader() {
            let active = controller.get_or_insert_with(|| {
                tracing::info!(coordinator = cluster.id(), "leading");
                Controller::new(cluster.clone(), registry.clone(), library.clone())
            });
            active.look().await;
        } else if controller.take().is_some() {
            tracing::info!(coordinator = cluster.id(), "not leading any more");
            registry.end_all(&not_leader(&cluster));
        }
        let changed = registry.changed.notified();
        tokio::select! {
            outcome = state.changed() => if outcome.is_err() { return },
            // It leads or not, and a coordinator comes or goes.
            outcome = status.wait_for(|status| {
                (status.role == crate::cluster::Role::Leader) != controller.is_some() || active(status) != known
            }) => {
                if outcome.is_err() {
                    return;
                }
            }
            () = changed => {}
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

impl Controller {
    fn new(cluster: ClusterHandle, registry: Registry, library: Library) -> Self {
        Self {
            cluster,
            registry,
            library,
            since: Instant::now(),
            confirmed: false,
            refused: BTreeSet::new(),
            absent: BTreeMap::new(),
            heard: BTreeMap::new(),
            draining: BTreeMap::new(),
            models: BTreeMap::new(),
            forming: BTreeMap::new(),
            backoff: BTreeMap::new(),
            missing: BTreeMap::new(),
        }
    }

    async fn look(&mut self) {
        let state = self.cluster.state();
        self.registry.reconcile(&self.cluster);
        // Those without a session, and those that others have lost sight of: whose process has ended is not waited for.
        let suspects = self.registry.take_suspects();
        let trusted = self.registry.live().difference(&suspects).copied().collect();
        self.refused = probe::refused(&state, &trusted).await;
        for id in self.lost(&state) {
            tracing::warn!(worker = id, "worker lost");
            match self.cluster.propose_leading(Command::WorkerLost { id }).await {
                Ok(_) => self.registry.forget(id),
                Err(error) => tracing::warn!(worker = id, %error, "not removed"),
            }
        }
        self.confirm().await;
        let state = self.cluster.state();
        self.notice_failures(&state);
        let around = self.surroundings(&state).await;
        let mut missing = BTreeMap::new();
        for step in plan(&state, &around) {
            match step {
                Step::Do(command) => self.propose(with_key(command)).await,
                Step::Missing { deployment, reason } => {
                    let reason = self.with_unfit(&deployment, reason);
                    if self.missing.get(&deployment) != Some(&reason) {
                        tracing::warn!(deployment, reason, "cannot be placed yet");
                    }
                    self.note_obstacle(&deployment, &reason).await;
                    missing.insert(deployment, reason);
                }
            }
        }
        self.missing = missing;
        self.registry.reconcile(&self.cluster);
    }

    /// Says once that every worker of the state is there.
    async fn confirm(&mut self) {
        let (state, live) = (self.cluster.state(), self.registry.live());
        if !self.confirmed && state.workers.keys().all(|id| live.contains(id)) {
            let term = self.cluster.status().term;
            self.confirmed = self.cluster.propose_leading(Command::ConfirmWorkers { term }).await.is_ok();
        }
    }

    /// Lets everyone know why a deployment is not served.
    async fn note_obstacle(&self, deployment: &str, reason: &str) {
        if self.cluster.state().obstacles.get(deployment).is_none_or(|known| known != reason) {
            let (deployment, reason) = (deployment.to_owned(), reason.to_owned());
            self.propose(Command::NoteObstacle { deployment, reason }).await;
        }
    }

    /// What a deployment lacks, and why some of the workers there are do not do.
    fn with_unfit(&self, deployment: &str, reason: String) -> String {
        let unfit = self.registry.unfit().into_iter().filter(|((name, _), _)| name == deployment);
        unfit.fold(reason, |reason, ((_, worker), why)| format!("{reason}; not worker {worker}: {why}"))
    }

    async fn propose(&self, command: Command) {
        if let Err(error) = self.cluster.propose_leading(command.clone()).await {
            tracing::warn!(%error, ?command, "not done");
        }
    }

    /// Workers that had their time to come back.
    fn lost(&mut self, state: &ClusterState) -> Vec<u64> {
        let live = self.registry.live();
        let is_away = |id: &&u64| !live.contains(id) || self.refused.contains(id);
        let away: Vec<u64> = state.workers.keys().filter(is_away).copied().collect();
        self.absent.retain(|id, _| away.contains(id));
        let new_leader = self.since.elapsed() <= NEW_LEADER_GRACE;
        let mut overdue = |id: &u64| match self.registry.gone_since(*id) {
            Some(gone) => self.refused.contains(id) || gone.elapsed() > WORKER_GRACE,
            None => {
                let since = self.absent.entry(*id).or_insert_with(Instant::now);
                self.refused.contains(id) || (!new_leader && since.elapsed() > WORKER_GRACE)
            }
        };
        away.into_iter().filter(|id| overdue(id)).collect()
    }

    /// A group that went away before it was ready makes its deployment wait a little longer each time.
    fn notice_failures(&mut self, state: &ClusterState) {
        let forming: BTreeMap<u64, String> = state
            .groups
            .iter()
            .filter(|(_, group)| !group.is_ready())
            .map(|(id, group)| (*id, group.deployment.clone()))
            .collect();
        for (id, deployment) in &self.forming {
            if state.groups.get(id).is_some_and(|group| group.is_ready()) {
                self.backoff.remove(deployment);
            } else if !state.groups.contains_key(id) {
                let before = self.backoff.get(deployment).map(|(_, wait)| *wait * 2);
                let wait = before.unwrap_or(BACKOFF.0).min(BACKOFF.1);
                self.backoff.insert(deployment.clone(), (Instant::now() + wait, wait));
            }
        }
        self.forming = forming;
    }

    async fn surroundings(&mut self, state: &ClusterState) -> Surroundings {
        let status = self.cluster.status();
        let now = Instant::now();
        for peer in &status.peers {
            let heard = self.heard.entry(peer.id).or_insert(now);
            if peer.active {
                *heard = now;
            }
        }
        let silent = status.peers.iter().filter(|peer| !peer.active).map(|peer| peer.id).collect();
        for id in probe::drivers_gone(state, &silent).await {
            // It is known to be gone: nothing is to be waited for.
            self.heard.insert(id, now.checked_sub(COORDINATOR_GRACE).unwrap_or(now));
        }
        let answering =
            self.heard.iter().filter(|(_, at)| at.elapsed() < COORDINATOR_GRACE).map(|(id, _)| *id);
        let mut coordinators: BTreeSet<u64> = answering.chain([self.cluster.id()]).collect();
        let stopping = |id: &u64| state.members.get(id).is_some_and(|member| member.draining);
        self.draining.retain(|id, _| stopping(id));
        for id in state.members.keys().filter(|id| stopping(id)) {
            let since = self.draining.entry(*id).or_insert(now);
            if since.elapsed() > DRAINING_GRACE {
                coordinators.remove(id);
            }
        }
        self.models.retain(|name, (deployment, _)| state.deployments.get(name) == Some(deployment));
        let (mut models, mut waiting) = (BTreeMap::new(), BTreeSet::new());
        for (name, deployment) in &state.deployments {
            if self.backoff.get(name).is_some_and(|(until, _)| now < *until) {
                waiting.insert(name.clone());
            }
            // Where it is not found yet, the library goes on looking.
            let Some(Ok(path)) = self.library.place(name, deployment) else { continue };
            if !self.models.contains_key(name) {
                let facts = facts(deployment.clone(), path).await;
                if let Err(reason) = &facts {
                    tracing::error!(deployment = name, reason, "the model cannot be opened");
                }
                self.models.insert(name.clone(), (deployment.clone(), facts));
            }
            if let Some((_, Ok(facts))) = self.models.get(name) {
                let adapters = state.adapter_bytes(name);
                models.insert(name.clone(), ModelFacts { adapters, ..facts.clone() });
            }
        }
        let (leader, workers) = (self.cluster.id(), self.registry.able());
        let unfit = self.registry.unfit().into_keys().collect();
        let limits = self.registry.memory_limits();
        Surroundings { coordinators, leader, workers, models, waiting, unfit, limits }
    }
}

/// A key for a new group; everything else stays.
fn with_key(command: Command) -> Command {
    match command {
        Command::FormGroup(formation) => {
            Command::FormGroup(Formation { key: *uuid::Uuid::new_v4().as_bytes(), ..formation })
        }
        other => other,
    }
}

/// What is to be known of a deployment's model, from its tables.
async fn facts(deployment: Deployment, path: PathBuf) -> Result<ModelFacts, String> {
    let open = move || {
        let model = Checkpoint::open(&path).map_err(|e| e.to_string())?;
        model_facts::facts(&model, &deployment.kv_dtype, &deployment.quantize)
    };
    tokio::task::spawn_blocking(open).await.map_err(|e| e.to_string())?
}
