//! Drivers: each runs the batcher of one group leased to this coordinator against the group's leader.

mod answer;
mod claims;
mod drive;
#[cfg(test)]
mod drive_tests;
mod experts;
#[cfg(test)]
pub(crate) mod fake_leader;
mod kept;
mod listeners;
mod manager;
mod round_trip;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use dashmap::{DashMap, DashSet};
use foggara_proto::sequence::{FoundRequest, SequenceEvent, SequenceRequest};
use foggara_proto::step::{GroupLimits, SequenceId};
use foggara_proto::wire::cluster as wire;
use foggara_proto::wire::cluster::locate_response::Place;
use tokio::sync::{mpsc, oneshot};

use crate::batcher::Limits;
use crate::router::{GenerateError, SequenceStream};
use crate::timeline::Driven;
use crate::traces::Timelines;
use claims::Claims;
use drive::Assignment;
use kept::Kept;

pub use drive::{Recorder, Recordings};
pub use experts::{ExpertLoad, ExpertLoads};
pub use manager::{DriverContext, run_drivers};

/// Sequences of one group at once.
pub const MAX_SEQUENCES: u32 = 64;
/// Rows of one step.
pub const MAX_STEP_ROWS: u32 = 256;
/// Sequences of a group of GPUs at once: with a thousand the experts of a large model have rows enough to be worth their weights'
/// reading, and half of a step is left for prompts.
pub const GPU_SEQUENCES: u32 = 1024;
/// Rows of one of its steps: so many of a prompt that every expert has enough of them to be worth its weights' reading.
pub const GPU_STEP_ROWS: u32 = 2048;
/// Sequences that may wait for one group, unless set otherwise.
pub const DEFAULT_QUEUE: usize = 512;
/// How long a leader goes on when plans are late, in milliseconds, unless set otherwise.
pub const DEFAULT_LEASE_MS: u32 = 2_000;
/// Tokens that may be drafted of a sequence in a step, unless set otherwise.
pub const DEFAULT_SPECULATE: u32 = 8;
/// Most that may be set.
pub const MOST_SPECULATE: u32 = 32;
/// How long a sequence goes on that nobody listens to: its client has that long to attach elsewhere.
const GRACE: Duration = Duration::from_secs(10);
/// How long a driver may take to show its timelines.
const LOOK: Duration = Duration::from_millis(250);
/// Commands waiting for one driver.
const COMMANDS: usize = 1024;

/// What reaches a driver.
#[derive(Debug)]
enum DriverCommand {
    /// A front door listens to a sequence, new or known by its request id.
    Submit { id: SequenceId, listener: u64, request: Box<SequenceRequest>, events: Events },
    /// A stream has broken off.
    Lost { request_id: String, listener: u64 },
    /// A front door does not want any more what it listened to.
    Cancel { request_id: String, listener: u64 },
    /// Somebody wants to see how these requests, which may be driven there, are doing.
    Timelines { request_ids: Arc<[String]>, seen: oneshot::Sender<Vec<Driven>> },
}

type Events = mpsc::UnboundedSender<Result<SequenceEvent, GenerateError>>;

/// A running driver.
#[derive(Clone)]
struct Handle {
    epoch: u64,
    model: String,
    commands: mpsc::Sender<DriverCommand>,
}

/// The drivers of this coordinator, by group.
#[derive(Clone, Default)]
pub struct Drivers(Arc<Shared>);

#[derive(Default)]
struct Shared {
    by_group: DashMap<u64, Handle>,
    /// Sequence ids, unique in this process: a cancellation never hits another sequence of the same request id.
    ids: AtomicU64,
    /// Every open sequence holds a clone.
    open: Arc<()>,
    experts: ExpertLoads,
    timelines: Timelines,
    /// Requests of sequences that are driven here, by their ids.
    live: DashMap<String, Live>,
    kept: Kept,
    claims: Mutex<Claims>,
    /// Groups whose leaders hold what does not fit what their drivers knew here: the next one begins afresh.
    doubtful: DashSet<u64>,
}

/// A request that is driven here.
struct Live {
    model: String,
    group: u64,
    request: Arc<SequenceRequest>,
}

impl Drivers {
    /// Hands a sequence to the driver that holds lease `epoch` of `group`; a sequence that is known by its request id goes on,
    /// and the stream brings what lies beyond the request's tokens. `listener` names the stream: when it is dropped the
    /// sequence goes on for a while without it, unless [`cancel`](Self::cancel) says that nobody wants it. `None` if that
    /// driver is not here.
    pub fn submit(
        &self,
        group: u64,
        epoch: u64,
        listener: u64,
        request: SequenceRequest,
    ) -> Option<SequenceStream> {
        let handle = self.0.by_group.get(&group).filter(|handle| handle.epoch == epoch)?.clone();
        if let Some(whole) = self.0.kept.answer(&handle.model, &request) {
            return Some(Box::pin(futures::stream::iter([Ok(whole)])));
        }
        let (events, mut received) = mpsc::unbounded_channel();
        let id = self.0.ids.fetch_add(1, Ordering::Relaxed) + 1;
        let left = DriverCommand::Lost { request_id: request.request_id.clone(), listener };
        let submit = DriverCommand::Submit { id, listener, request: Box::new(request), events };
        handle.commands.try_send(submit).ok()?;
        let guard = Open { left: Some(left), commands: handle.commands, _counted: Arc::clone(&self.0.open) };
        Some(Box::pin(async_stream::stream! {
            let mut guard = guard;
            while let Some(event) = received.recv().await {
                if event.as_ref().map_or(true, |event| event.end.is_some()) {
                    guard.left = None;
                    yield event;
                    return;
                }
                yield event;
            }
            guard.left = None;
            yield Err(lost());
        }))
    }

    /// Nobody wants what `listener` was listening to.
    pub fn cancel(&self, group: u64, request_id: &str, listener: u64) {
        let commands = self.0.by_group.get(&group).map(|handle| handle.commands.clone());
        let Some(commands) = commands else { return };
        send(&commands, DriverCommand::Cancel { request_id: request_id.to_owned(), listener });
    }

    /// What the drivers of this coordinator know of a request.
    pub fn find(&self, request_id: &str) -> Option<FoundRequest> {
        let live = self.0.live.get(request_id).map(|live| FoundRequest {
            model: live.model.clone(),
            group: Some(live.group),
            prompt: live.request.tokens.clone(),
            envelope: live.request.envelope.clone(),
        });
        live.or_else(|| self.0.kept.find(request_id))
    }

    /// Which group has a request, or is about to, as far as is known here; `None` if a driver that may know is not here.
    pub fn locate(&self, asked: &wire::LocateRequest) -> Option<Option<Place>> {
        let wire::LocateRequest { request_id, leases, claim, groups, .. } = asked;
        let mut model = None;
        for lease in leases {
            let handle =
                self.0.by_group.get(&lease.group).filter(|handle| handle.epoch == lease.driver_epoch)?;
            model = Some(handle.model.clone());
        }
        let asked = |group: &u64| leases.iter().any(|lease| lease.group == *group);
        if let Some(group) = self.0.live.get(request_id).map(|live| live.group).filter(asked) {
            return Some(Some(Place::Has(group)));
        }
        // Whatever group answered it: this coordinator kept the answer.
        if let Some(group) = model.and_then(|model| self.0.kept.group(&model, request_id)) {
            return Some(Some(Place::Has(Some(group).filter(asked).unwrap_or(leases[0].group))));
        }
        let claimed = claim.map(|group| self.claims().claim(request_id, group, groups, Instant::now()));
        Some(claimed.map(Place::Claimed))
    }

    fn claims(&self) -> MutexGuard<'_, Claims> {
        self.0.claims.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Forgets what has been kept for too long.
    fn sweep(&self, now: Instant) {
        let first =
            |live: dashmap::mapref::multiple::RefMulti<'_, String, Live>| live.request.sibling_of.clone();
        // While a choice of a request is being answered, so are the others, for whoever asks.
        let firsts: BTreeSet<String> = self.0.live.iter().filter_map(first).collect();
        self.0.kept.renew(&firsts, now);
        self.0.kept.forget(now);
        self.claims().forget(now);
    }

    /// Sequences that somebody listens to, whatever front door they came from.
    pub fn open_sequences(&self) -> usize {
        Arc::strong_count(&self.0.open) - 1
    }

    /// How many tokens each expert of the models driven here was given.
    pub fn experts(&self) -> &ExpertLoads {
        &self.0.experts
    }

    /// The recorder of this coordinator's timelines.
    pub fn timelines(&self) -> &Timelines {
        &self.0.timelines
    }

    /// What drivers here have recorded so far of requests that they drive. A driver that is busy may be left out.
    pub async fn driven(&self, request_ids: &[String]) -> Vec<Driven> {
        let request_ids: Arc<[String]> = request_ids.into();
        let commands: Vec<_> = self.0.by_group.iter().map(|handle| handle.commands.clone()).collect();
        let asked = commands.into_iter().filter_map(|commands| {
            let (seen, answer) = oneshot::channel();
            let command = DriverCommand::Timelines { request_ids: Arc::clone(&request_ids), seen };
            commands.try_send(command).ok().map(|()| tokio::time::timeout(LOOK, answer))
        });
        let answers = futures::future::join_all(asked).await;
        answers.into_iter().filter_map(|answer| answer.ok()?.ok()).flatten().collect()
    }

    /// A newer driver of the same group stays.
    fn insert(&self, group: u64, handle: Handle) {
        let mut entry = self.0.by_group.entry(group).or_insert_with(|| handle.clone());
        if entry.epoch < handle.epoch {
            *entry = handle;
        }
    }

    fn remove(&self, group: u64, epoch: u64) {
        self.0.by_group.remove_if(&group, |_, handle| handle.epoch == epoch);
    }
}

/// The driver has gone: whoever waits looks for the next one.
fn lost() -> GenerateError {
    GenerateError::Unavailable { model: String::new(), reason: "the driver has lost its group".into() }
}

/// A stream on its way. When it is dropped before its end, its driver is told.
struct Open {
    left: Option<DriverCommand>,
    commands: mpsc::Sender<DriverCommand>,
    _counted: Arc<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(left) = self.left.take() {
            send(&self.commands, left);
        }
    }
}

/// The channel may be full for a moment; what nobody sends again must not be lost for that.
fn send(commands: &mpsc::Sender<DriverCommand>, command: DriverCommand) {
    if let Err(mpsc::error::TrySendError::Full(command)) = commands.try_send(command)
        && let Ok(runtime) = tokio::runtime::Handle::try_current()
    {
        let commands = commands.clone();
        runtime.spawn(async move { commands.send(command).await.ok() });
    }
}

/// How many sequences a group does at once whose steps have at most so many rows.
fn sequences(step_rows: u32) -> u32 {
    let most = if step_rows > MAX_STEP_ROWS { GPU_SEQUENCES } else { MAX_SEQUENCES };
    most.min(step_rows)
}

/// The batcher's limits for a group.
fn limits(group: &GroupLimits, assignment: &Assignment) -> Limits {
    let on_gpus = group.max_step_rows > MAX_STEP_ROWS;
    Limits {
        kv_blocks: group.kv_blocks,
        pools: group.pools,
        block_size: group.block_size,
        step_rows: group.max_step_rows,
        sequences: sequences(group.max_step_rows),
        queue: assignment.queue,
        lease_ms: assignment.lease_ms,
        // There, steps of one row for each sequence are recordings, and others are not: a draft would cost more than rows.
        drafts: if on_gpus { 0 } else { assignment.speculate },
    }
}
