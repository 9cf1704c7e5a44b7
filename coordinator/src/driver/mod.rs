//! Drivers: each runs the batcher of one group leased to this coordinator against the group's leader.

mod drive;
mod manager;

use std::sync::Arc;

use dashmap::DashMap;
use foggara_proto::sequence::{SequenceEvent, SequenceRequest};
use tokio::sync::mpsc;

use crate::batcher::Limits;
use crate::router::{GenerateError, SequenceStream};

pub use manager::{DriverContext, run_drivers};

/// Sequences of one group at once.
pub const MAX_SEQUENCES: u32 = 64;
/// Prefill rows beside decodes: what a token may wait for.
pub const PREFILL_ROWS_BESIDE_DECODES: u32 = 64;
/// Rows of one step.
pub const MAX_STEP_ROWS: u32 = 256;
/// Sequences that may wait for one group, unless set otherwise.
pub const DEFAULT_QUEUE: usize = 512;
/// Commands waiting for one driver.
const COMMANDS: usize = 1024;

/// What reaches a driver.
#[derive(Debug)]
enum DriverCommand {
    Submit { request: SequenceRequest, events: Events },
    Cancel { request_id: String },
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
pub struct Drivers(Arc<DashMap<u64, Handle>>);

impl Drivers {
    /// Hands a sequence to the driver that holds lease `epoch` of `group`. Dropping the stream cancels it. `None` if that
    /// driver is not here.
    pub fn submit(&self, group: u64, epoch: u64, request: SequenceRequest) -> Option<SequenceStream> {
        let handle = self.0.get(&group).filter(|handle| handle.epoch == epoch)?.clone();
        let (events, mut received) = mpsc::unbounded_channel();
        let guard =
            CancelOnDrop { request_id: request.request_id.clone(), commands: handle.commands.clone() };
        if handle.commands.try_send(DriverCommand::Submit { request, events }).is_err() {
            return None;
        }
        Some(Box::pin(async_stream::stream! {
            let guard = guard;
            while let Some(event) = received.recv().await {
                let last = event.as_ref().map_or(true, |event| event.end.is_some());
                yield event;
                if last {
                    guard.disarm();
                    return;
                }
            }
            guard.disarm();
            yield Err(lost());
        }))
    }

    fn insert(&self, group: u64, handle: Handle) {
        self.0.insert(group, handle);
    }

    fn remove(&self, group: u64, epoch: u64) {
        self.0.remove_if(&group, |_, handle| handle.epoch == epoch);
    }
}

/// The driver has gone: whoever waits looks for the next one.
fn lost() -> GenerateError {
    GenerateError::Unavailable { model: String::new(), reason: "the driver has lost its group".into() }
}

struct CancelOnDrop {
    request_id: String,
    commands: mpsc::Sender<DriverCommand>,
}

impl CancelOnDrop {
    /// The sequence has ended by itself.
    fn disarm(mut self) {
        self.request_id.clear();
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if self.request_id.is_empty() {
            return;
        }
        let request_id = std::mem::take(&mut self.request_id);
        let commands = self.commands.clone();
        // The channel may be full for a moment; a cancellation must not be lost for that.
        if let Err(mpsc::error::TrySendError::Full(command)) =
            commands.try_send(DriverCommand::Cancel { request_id })
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
        block_size: group.block_size,
        step_rows: group.max_step_rows,
        prefill_rows_beside_decodes: PREFILL_ROWS_BESIDE_DECODES.min(group.max_step_rows),
        sequences: MAX_SEQUENCES.min(group.max_step_rows),
        queue,
    }
}
