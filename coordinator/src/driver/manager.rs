//! Keeps one driver running for each group leased to this coordinator.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use foggara_proto::auth::ClusterToken;
use foggara_proto::step::Attached;
use foggara_proto::wire::worker as wire;
use foggara_proto::wire::worker::rank_client::RankClient;
use foggara_tls::Dialer;
use futures::FutureExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::drive::{Assignment, Drive, Stopped};
use super::{COMMANDS, Drivers, GRACE, Handle};
use crate::cluster::{ClusterError, ClusterHandle, ClusterState, Command};
use crate::metrics::Metrics;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// From the first packet to `attached`.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(3);
/// A machine that vanishes closes no connection.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(100);
/// Between two looks for what has been kept for too long.
const SWEEP: Duration = Duration::from_secs(5);
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// What drivers need.
#[derive(Clone)]
pub struct DriverContext {
    /// The replicated state.
    pub cluster: ClusterHandle,
    /// Where drivers are found.
    pub drivers: Drivers,
    /// Where they report to.
    pub metrics: Arc<Metrics>,
    /// Shown to workers.
    pub token: ClusterToken,
    /// How workers are called.
    pub dialer: Dialer,
    /// Sequences that may wait for one group.
    pub queue: usize,
    /// How long leaders go on when plans are late, in milliseconds.
    pub lease_ms: u32,
    /// Tokens that may be drafted of a sequence in a step.
    pub speculate: u32,
}

/// A lease of this coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lease {
    group: u64,
    group_epoch: u64,
    driver_epoch: u64,
    model: String,
    leader_addr: String,
}

/// The leases of coordinator `id`, by group.
fn leases(state: &ClusterState, id: u64) -> BTreeMap<u64, Lease> {
    let lease = |(group_id, group): (&u64, &crate::cluster::state::Group)| {
        let driver = group.driver.filter(|driver| driver.coordinator == id)?;
        let leader = state.workers.get(group.ranks.first()?)?;
        let lease = Lease {
            group: *group_id,
            group_epoch: group.epoch,
            driver_epoch: driver.epoch,
            model: group.deployment.clone(),
            leader_addr: leader.addr.clone(),
        };
        Some((*group_id, lease))
    };
    state.groups.iter().filter_map(lease).collect()
}

/// Follows the state for as long as the process lives.
pub async fn run_drivers(context: DriverContext) {
    let mut watch = context.cluster.watch();
    let mut running: BTreeMap<u64, (Lease, JoinHandle<()>)> = BTreeMap::new();
    loop {
        let state = watch.borrow_and_update().clone();
        let wanted = leases(&state, context.cluster.id());
        context.drivers.experts().retain(|model| state.deployments.contains_key(model));
        running.retain(|group, (lease, task)| {
            let keep = wanted.get(group) == Some(lease);
            if !keep {
                // Dropping the task drops its listeners' channels: their front doors look for the next driver.
                task.abort();
                context.drivers.remove(*group, lease.driver_epoch);
            }
            keep
        });
        for (group, lease) in wanted {
            let context = context.clone();
            running.entry(group).or_insert_with(|| (lease.clone(), tokio::spawn(keep(context, lease))));
        }
        loop {
            tokio::select! {
                changed = watch.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                () = tokio::time::sleep(SWEEP) => context.drivers.sweep(Instant::now()),
            }
        }
    }
}

/// Keeps one lease: drives, and asks for a newer lease when the connection breaks.
async fn keep(context: DriverContext, lease: Lease) {
    let (group, driver_epoch) = (lease.group, lease.driver_epoch);
    let stopped = AssertUnwindSafe(drive(&context, &lease)).catch_unwind().await;
    // A fault of one group's driver is not the others'.
    let fault = || Stopped { reason: "it panicked; the log says where".into(), fault: true };
    let Stopped { reason, fault } = stopped.unwrap_or_else(|_| fault());
    context.drivers.remove(group, driver_epoch);
    if fault {
        context.drivers.0.doubtful.insert(group);
    }
    tracing::warn!(group, driver_epoch, reason, "driver stopped");
    // The group may well be alive: a new lease fences whatever is left of this one. If it is not, this is refused.
    let coordinator = context.cluster.id();
    let command = Command::AssignDriver { group, coordinator, replaces: driver_epoch };
    loop {
        match context.cluster.propose(command.clone()).await {
            Ok(_) | Err(ClusterError::Refused(_) | ClusterError::Stopped) => return,
            // Without a leader for now. If someone else gets the lease, this task is aborted.
            Err(error) => tracing::warn!(group, driver_epoch, %error, "no newer lease yet"),
        }
    }
}

/// Attaches, and drives until the connection ends; says why it did.
async fn drive(context: &DriverContext, lease: &Lease) -> Stopped {
    let (group, driver_epoch) = (lease.group, lease.driver_epoch);
    let mut complained = false;
    let (plans, mut reports, attached) = loop {
        let attempt = tokio::time::timeout(ATTACH_TIMEOUT, attach(context, lease)).await;
        match attempt.unwrap_or_else(|_| Err(format!("no answer within {ATTACH_TIMEOUT:?}").into())) {
            Ok(attached) => break attached,
            // Its epoch has been used: an earlier process of this coordinator had the lease.
            Err(AttachError::Used(reason)) => return Stopped { reason, fault: false },
            // The next driver begins afresh.
            Err(AttachError::Nonsense(reason)) => {
                tokio::time::sleep(RETRY).await;
                return Stopped { reason, fault: true };
            }
            Err(AttachError::NotYet(reason)) => {
                if !complained {
                    tracing::warn!(group, driver_epoch, reason, "cannot attach yet");
                    complained = true;
                }
                // Until it works, or the state says that the lease has ended (then this task is aborted).
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    let adopted = attached.sequences.len();
    tracing::info!(group, driver_epoch, model = lease.model, adopted, "driving");
    context.drivers.0.doubtful.remove(&group);
    // Names of new sequences are none that the leader has.
    let named = attached.sequences.iter().map(|held| held.sequence).max().unwrap_or(0);
    context.drivers.0.ids.fetch_max(named, Ordering::Relaxed);
    let (commands, mut received) = mpsc::channel(COMMANDS);
    let metrics = context.metrics.driver(group, driver_epoch, &lease.model);
    let model = lease.model.clone();
    let assignment = Assignment {
        group,
        model: model.clone(),
        driver_epoch,
        queue: context.queue,
        lease_ms: context.lease_ms,
        speculate: context.speculate,
        grace: GRACE,
    };
    let drive = Drive::new(assignment, attached, plans, metrics, context.drivers.clone());
    context.drivers.insert(group, Handle { epoch: driver_epoch, model, commands });
    drive.run(&mut received, &mut reports).await
}

type Connection = (mpsc::Sender<wire::DriverMessage>, Streaming<wire::LeaderMessage>, Attached);

/// Why a driver is not attached.
enum AttachError {
    /// The leader knows this lease, or a newer one.
    Used(String),
    /// It may work the next time.
    NotYet(String),
    /// What the leader holds makes no sense. It would be the same the next time.
    Nonsense(String),
}

impl From<String> for AttachError {
    fn from(reason: String) -> Self {
        Self::NotYet(reason)
    }
}

impl From<Status> for AttachError {
    fn from(status: Status) -> Self {
        let reason = status.message().to_owned();
        match status.code() {
            Code::FailedPrecondition | Code::Aborted => Self::Used(reason),
            _ => Self::NotYet(reason),
        }
    }
}

async fn attach(context: &DriverContext, lease: &Lease) -> Result<Connection, AttachError> {
    let endpoint = context.dialer.endpoint(&lease.leader_addr).map_err(|e| e.to_string())?;
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    let channel = context.dialer.connect(&endpoint).await;
    let channel =
        channel.map_err(|e| format!("connecting to {}: {}", lease.leader_addr, foggara_tls::cause(&e)))?;
    let mut client = RankClient::with_interceptor(channel, context.token.shown())
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let (plans, outgoing) = mpsc::channel(8);
    let (group, group_epoch, driver_epoch) = (lease.group, lease.group_epoch, lease.driver_epoch);
    let fresh = context.drivers.0.doubtful.contains(&group);
    let attach = wire::Attach { group, group_epoch, driver_epoch, fresh };
    let attach = wire::driver_message::Message::Attach(attach);
    // The channel is new and has room.
    plans.try_send(wire::DriverMessage { message: Some(attach) }).ok();
    let response = client.drive(ReceiverStream::new(outgoing)).await?;
    let mut reports = response.into_inner();
    match reports.message().await?.and_then(|message| message.message) {
        Some(wire::leader_message::Message::Attached(attached)) => {
            let attached = Attached::try_from(attached).map_err(|e| AttachError::Nonsense(e.to_string()))?;
            Ok((plans, reports, attached))
        }
        _ => Err("the leader did not say `attached`".to_owned().into()),
    }
}
