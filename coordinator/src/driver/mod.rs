//! Drivers: each runs the batcher of one group leased to this coordinator against the group's leader.

mod drive;
#[cfg(test)]
mod drive_tests;
mod experts;
#[cfg(test)]
pub(crate) mod fake_leader;
mod manager;
mod round_trip;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use foggara_proto::sequence::{FoundRequest, SequenceEvent, SequenceRequest};
use foggara_proto::step::SequenceId;
use tokio::sync::mpsc;

use crate::batcher::Limits;
use crate::router::{GenerateError, SequenceStream};

pub use experts::{ExpertLoad, ExpertLoads};
pub use manager::{DriverContext, run_drivers};

/// Sequences of one group at once.
pub const MAX_SEQUENCES: u32 = 64;
/// Rows of one step.
pub const MAX_STEP_ROWS: u32 = 256;
/// Sequences that may wait for one group, unless set otherwise.
pub const DEFAULT_QUEUE: usize = 512;
/// Commands waiting for one driver.
const COMMANDS: usize = 1024;

/// What reaches a driver.
#[derive(Debug)]
enum DriverCommand {
    Submit { id: SequenceId, request: Box<SequenceRequest>, events: Events },
    Cancel { id: SequenceId },
}

type Events = mpsc::UnboundedSender<Result<SequenceEvent, GenerateError>>;

/// A running driver.
#[derive(Clone)]
struct Handle {
    epoch: u64,
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
        _listener: u64,
        request: SequenceRequest,
    ) -> Option<SequenceStream> {
        let handle = self.0.by_group.get(&group).filter(|handle| handle.epoch == epoch)?.clone();
        let (events, mut received) = mpsc::unbounded_channel();
        let id = self.0.ids.fetch_add(1, Ordering::Relaxed) + 1;
        handle.commands.try_send(DriverCommand::Submit { id, request: Box::new(request), events }).ok()?;
        let guard = Open { id: Some(id), commands: handle.commands, _counted: Arc::clone(&self.0.open) };
        Some(Box::pin(async_stream::stream! {
            let mut guard = guard;
            while let Some(event) = received.recv().await {
                if event.as_ref().map_or(true, |event| event.end.is_some()) {
                    guard.id = None;
                    yield event;
                    return;
                }
                yield event;
            }
            guard.id = None;
            yield Err(lost());
        }))
    }

    /// Nobody wants what `listener` was listening to.
    pub fn cancel(&self, _group: u64, _request_id: &str, _listener: u64) {}

    /// What the drivers of this coordinator know of a request.
    pub fn find(&self, _request_id: &str) -> Option<FoundRequest> {
        None
    }

    /// Sequences that somebody listens to, whatever front door they came from.
    pub fn open_sequences(&self) -> usize {
        Arc::strong_count(&self.0.open) - 1
    }

    /// How many tokens each expert of the models driven here was given.
    pub fn experts(&self) -> &ExpertLoads {
        &self.0.experts
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

/// A sequence on its way. Cancelled when dropped, unless it has ended by itself.
struct Open {
    id: Option<SequenceId>,
    commands: mpsc::Sender<DriverCommand>,
    _counted: Arc<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let commands = self.commands.clone();
        // The channel may be full for a moment; a cancellation must not be lost for that.
        if let Err(mpsc::error::TrySendError::Full(command)) = commands.try_send(DriverCommand::Cancel { id })
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { commands.send(command).await.ok() });
        }
    }
}

/// The batcher's limits for a group.
fn limits(group: &foggara_proto::step::GroupLimits, queue: usize) -> Limits {
    Limits {
        kv_blocks: group.kv_blocks,
        pools: group.pools,
        block_size: group.block_size,
        step_rows: group.max_step_rows,
        sequences: MAX_SEQUENCES.min(group.max_step_rows),
        queue,
    }
}
