//! Adapters of the rank that is held: loaded beside it, on a thread of their own, while it computes.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Instant;

use foggara_models::{ArchSpec, RankSlice};
use foggara_proto::wire::worker as wire;
use tokio::sync::mpsc::UnboundedSender;

use crate::adapters::Adapters;
use crate::capabilities::available_memory;
use crate::models::Models;
use crate::weights::RankAdapter;

/// What loads them.
pub(super) struct AdapterLoader {
    /// Whose they are.
    pub(super) group: u64,
    pub(super) epoch: u64,
    pub(super) rank: u32,
    pub(super) spec: ArchSpec,
    pub(super) slice: RankSlice,
    /// Parts that the batch is split into.
    pub(super) dp: usize,
    /// Whether a GPU computes.
    pub(super) on_gpu: bool,
    pub(super) models: Models,
    pub(super) adapters: Adapters,
    pub(super) news: UnboundedSender<wire::WorkerMessage>,
    /// The rank is let go.
    pub(super) cancelled: Arc<AtomicBool>,
}

impl AdapterLoader {
    /// Loads what is wanted, one after the other, until nobody can want anything any more.
    pub(super) fn run(self, wanted: &Receiver<wire::LoadAdapter>) {
        for load in wanted {
            let started = Instant::now();
            let outcome =
                if self.adapters.has(load.adapter) { Ok(None) } else { self.guarded(&load).map(Some) };
            if self.cancelled.load(Ordering::SeqCst) {
                return;
            }
            let failed = match outcome {
                Ok(None) => String::new(),
                Ok(Some(bytes)) => {
                    let seconds = started.elapsed().as_secs_f64();
                    tracing::info!(
                        adapter = load.adapter,
                        path = load.path,
                        bytes,
                        seconds,
                        "adapter loaded"
                    );
                    String::new()
                }
                Err(reason) => {
                    tracing::error!(
                        adapter = load.adapter,
                        path = load.path,
                        reason,
                        "the adapter cannot be used"
                    );
                    reason
                }
            };
            let Self { group, epoch, rank, .. } = self;
            let loaded = wire::AdapterLoaded { group, epoch, rank, adapter: load.adapter, failed };
            let message = Some(wire::worker_message::Message::AdapterLoaded(loaded));
            // Nobody listens only when the worker is stopping.
            self.news.send(wire::WorkerMessage { message }).ok();
        }
    }

    /// The same as [`load`](Self::load), whatever happens there: who waits for it must be told.
    fn guarded(&self, load: &wire::LoadAdapter) -> Result<usize, String> {
        let loaded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.load(load)));
        loaded
            .unwrap_or_else(|_| Err("the thread that loads it panicked; this worker's log says where".into()))
    }

    /// Loads one; returns the bytes it takes here.
    fn load(&self, load: &wire::LoadAdapter) -> Result<usize, String> {
        if self.on_gpu {
            return Err("adapters are computed on CPUs only, as yet: this rank's device is a GPU".into());
        }
        let goes_on = || !self.cancelled.load(Ordering::SeqCst);
        let opened = self.models.open_adapter(&load.manifest, Path::new(&load.path), &goes_on);
        let adapter = opened.map_err(|e| e.to_string())?;
        let (needed, available) = (adapter.bytes(), available_memory());
        if available > 0 && needed > available {
            return Err(format!("it takes up to {needed} bytes, and {available} are available"));
        }
        let loaded = RankAdapter::load(&adapter, &self.spec, &self.slice, self.dp);
        let loaded = loaded.map_err(|e| e.to_string())?;
        let bytes = loaded.bytes();
        self.adapters.insert(load.adapter, loaded);
        Ok(bytes)
    }
}
