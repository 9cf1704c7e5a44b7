//! The rank this worker holds: loading it, running it on a thread of its own, and letting it go.

mod adapters;
mod failure;
mod rank;
mod repack;

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use foggara_kernels::Threads;
use foggara_kernels::collective::AbortHandle;
use foggara_kernels::cuda::{Device, DeviceError};
use foggara_proto::step::GroupLimits;
use foggara_proto::wire::worker as wire;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use crate::engine::EngineEvent;
use crate::models::Models;
use crate::weights::Residence;

use failure::{Failure, failed};
use rank::{Rank, ready};

/// How long the thread of a rank that was let go may take to end: a step of the largest model ends well before.
const HANGS: Duration = Duration::from_secs(120);

/// The rank held at the moment.
struct Held {
    assign: wire::Assign,
    ready: bool,
    events: mpsc::Sender<EngineEvent>,
    /// Adapters that it is to load.
    wanted: mpsc::Sender<wire::LoadAdapter>,
    /// Newest driver that has attached.
    driver_epoch: u64,
    cancelled: Arc<AtomicBool>,
    abort: Arc<Mutex<Option<AbortHandle>>>,
    thread: Option<JoinHandle<()>>,
    /// The thread has the other end, and drops it when it ends.
    running: Weak<()>,
}

impl Held {
    fn is(&self, group: u64, epoch: u64) -> bool {
        self.assign.group == group && self.assign.epoch == epoch
    }

    /// Makes the rank's thread end. Returns at once.
    fn stop(&self, reason: &str) {
        self.cancelled.store(true, Ordering::SeqCst);
        if let Some(abort) = &*lock(&self.abort) {
            abort.abort(reason);
        }
        // A thread that has ended already does not listen, which is as good.
        self.events.send(EngineEvent::Stop).ok();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A rank that was let go.
struct LetGo {
    since: Instant,
    /// Its thread has the other end.
    running: Weak<()>,
}

/// Holds at most one rank.
#[derive(Clone)]
pub(crate) struct GroupHost {
    held: Arc<Mutex<Option<Held>>>,
    /// Threads of ranks that were let go: their memory and ports are free once these have ended.
    ending: Arc<Mutex<Vec<JoinHandle<()>>>>,
    /// Ranks that were let go, whose threads may still run.
    let_go: Arc<Mutex<Vec<LetGo>>>,
    news: UnboundedSender<wire::WorkerMessage>,
    listener: Arc<TcpListener>,
    threads: Threads,
    /// Cores of this process: a rank's thread may keep to one of them, and would count no other.
    cores: usize,
    /// What computes; `None` is the CPU.
    device: Option<Device>,
    /// Why nothing on the device works any more, once that is so.
    lost: watch::Sender<Option<DeviceError>>,
    models: Models,
    residence: Residence,
    read_speed: u64,
}

impl GroupHost {
    /// `listener` is where TCP collectives are accepted; `read_speed` is what was measured of the memory, in bytes per
    /// second; `news` go to the coordinator.
    pub(crate) fn new(
        listener: TcpListener,
        threads: Threads,
        device: Option<Device>,
        models: Models,
        residence: Residence,
        read_speed: u64,
        news: UnboundedSender<wire::WorkerMessage>,
    ) -> Self {
        let (held, ending, listener) = (Arc::default(), Arc::default(), Arc::new(listener));
        let lost = watch::Sender::new(None);
        let let_go = Arc::default();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            held,
            ending,
            let_go,
            news,
            listener,
            threads,
            cores,
            device,
            lost,
            models,
            residence,
            read_speed,
        }
    }

    /// Waits until the device is lost: this process can do nothing with it any more, another one may.
    pub(crate) async fn device_lost(&self) -> DeviceError {
        let mut lost = self.lost.subscribe();
        // The sender is this host's own, so there is always one.
        let error = lost.wait_for(Option::is_some).await.ok().and_then(|error| error.clone());
        match error {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    /// What is held, for a coordinator that does not know.
    pub(crate) fn held(&self) -> Option<wire::Held> {
        lock(&self.held).as_ref().map(|held| wire::Held {
            group: held.assign.group,
            epoch: held.assign.epoch,
            rank: held.assign.rank,
            ready: held.ready,
        })
    }

    /// Starts to load a rank; lets go of any other. The same assignment again only repeats what there is to say.
    pub(crate) fn assign(&self, assign: wire::Assign) {
        let mut slot = lock(&self.held);
        if let Some(held) = slot.as_ref().filter(|held| held.is(assign.group, assign.epoch)) {
            if held.ready {
                self.tell(ready(&held.assign));
            }
            return;
        }
        if let Some(held) = slot.take() {
            self.let_go(held, "another assignment");
        }
        let before = std::mem::take(&mut *lock(&self.ending));
        tracing::info!(
            group = assign.group,
            epoch = assign.epoch,
            rank = assign.rank,
            size = assign.size,
            "assigned"
        );
        let (events, receiver) = mpsc::channel();
        let (wanted, adapters) = mpsc::channel();
        let (cancelled, abort) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None)));
        let rank = Rank {
            host: self.clone(),
            assign: assign.clone(),
            cancelled: Arc::clone(&cancelled),
            abort: Arc::clone(&abort),
        };
        let alive = Arc::new(());
        let running = Arc::downgrade(&alive);
        let thread = std::thread::Builder::new().name(format!("rank-{}", assign.rank)).spawn(move || {
            let _alive = alive;
            // The old rank's memory is needed for the new one's. However it ended, it has said so itself.
            for thread in before {
                thread.join().ok();
            }
            rank.live(&receiver, adapters);
        });
        match thread {
            Ok(thread) => {
                let thread = Some(thread);
                *slot = Some(Held {
                    assign,
                    ready: false,
                    events,
                    wanted,
                    driver_epoch: 0,
                    cancelled,
                    abort,
                    thread,
                    running,
                });
            }
            Err(error) => self.tell(failed(&assign, &Failure::from(format!("starting a thread: {error}")))),
        }
    }

    /// Has an adapter loaded beside the rank it is for, if that is the one held: at once, or when the rank's own weights are there.
    pub(crate) fn load_adapter(&self, load: wire::LoadAdapter) {
        let slot = lock(&self.held);
        if let Some(held) = slot.as_ref().filter(|held| held.is(load.group, load.epoch)) {
            // Nobody listens only when the rank has ended.
            held.wanted.send(load).ok();
        }
    }

    /// Lets go of a group, if it is the one held.
    pub(crate) fn release(&self, group: u64, epoch: u64, reason: &str) {
        let mut slot = lock(&self.held);
        if slot.as_ref().is_some_and(|held| held.is(group, epoch)) {
            tracing::info!(group, epoch, reason, "released");
            if let Some(held) = slot.take() {
                self.let_go(held, reason);
            }
        }
    }

    fn let_go(&self, mut held: Held, reason: &str) {
        held.stop(reason);
        lock(&self.let_go).push(LetGo { since: Instant::now(), running: held.running.clone() });
        lock(&self.ending).extend(held.thread.take());
    }

    /// Whether a rank that was let go has not ended in [`HANGS`]. What it holds is lost to this process, which can take no other.
    pub(crate) fn hangs(&self) -> bool {
        let mut let_go = lock(&self.let_go);
        let_go.retain(|rank| rank.running.strong_count() > 0);
        let_go.iter().any(|rank| rank.since.elapsed() > HANGS)
    }

    /// Lets go of whatever is held, and waits until it has ended.
    pub(crate) fn shut_down(&self) {
        let held = lock(&self.held).take();
        if let Some(held) = held {
            self.let_go(held, "the worker stops");
        }
        let ending = std::mem::take(&mut *lock(&self.ending));
        for thread in ending {
            thread.join().ok();
        }
    }

    /// A driver takes over the group led from here.
    pub(crate) fn attach(
        &self,
        attach: &wire::Attach,
    ) -> Result<(mpsc::Sender<EngineEvent>, GroupLimits), AttachError> {
        let mut slot = lock(&self.held);
        let held = slot.as_mut().filter(|held| held.is(attach.group, attach.group_epoch) && held.ready);
        let held = held.ok_or(AttachError::NotHere { group: attach.group, epoch: attach.group_epoch })?;
        if held.assign.rank != 0 {
            return Err(AttachError::NotLeader { rank: held.assign.rank });
        }
        if attach.driver_epoch < held.driver_epoch {
            return Err(AttachError::OldDriver { epoch: attach.driver_epoch, newer: held.driver_epoch });
        }
        held.driver_epoch = attach.driver_epoch;
        let limits = GroupLimits {
            kv_blocks: held.assign.kv_blocks,
            pools: held.assign.shape.as_ref().map_or(1, |shape| shape.dp.max(1)),
            block_size: held.assign.block_size,
            max_step_rows: held.assign.max_step_rows,
        };
        Ok((held.events.clone(), limits))
    }

    fn tell(&self, message: wire::worker_message::Message) {
        // Nobody listens only when the worker is stopping.
        self.news.send(wire::WorkerMessage { message: Some(message) }).ok();
    }
}

/// Why a driver may not attach.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    #[error("group {group} of epoch {epoch} is not ready here")]
    NotHere { group: u64, epoch: u64 },
    #[error("rank {rank} does not lead its group")]
    NotLeader { rank: u32 },
    #[error("driver epoch {epoch} is older than {newer}")]
    OldDriver { epoch: u64, newer: u64 },
}

#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;
