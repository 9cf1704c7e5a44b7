//! That somebody listens to a sequence, and what is done when nobody wants it any more.

use std::time::Duration;

use foggara_proto::wire::cluster::CancelRequest;
use foggara_proto::wire::cluster::peer_client::PeerClient;

use super::dispatch::Dispatcher;

/// How often a driver elsewhere is told that a sequence is not wanted: then its own patience ends it, a little later.
const TRIES: usize = 3;
/// How long it may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Between two tries: the lease may be moving.
const PAUSE: Duration = Duration::from_millis(500);

/// A sequence that somebody listens to. Dropped before [`done`](Self::done), it cancels the sequence: whoever listened has
/// gone. (A driver that only sees a stream break off keeps the sequence for a while: its front door may have died, and another
/// may ask for it.)
pub(super) struct Listening {
    dispatcher: Dispatcher,
    request_id: String,
    /// Group and listener of the last attempt.
    at: Option<(u64, u64)>,
}

impl Listening {
    /// To nobody yet.
    pub(super) fn new(dispatcher: Dispatcher, request_id: String) -> Self {
        Self { dispatcher, request_id, at: None }
    }

    /// The sequence is about to be handed to the driver of `group`. What an earlier one may still have is not cancelled: it
    /// has lost its lease, or its connection, and the next one of that group goes on with it. Returns the stream's name.
    pub(super) fn begin(&mut self, group: u64) -> u64 {
        // Random, so that no two front doors, and no two lives of one, use the same.
        let (_, listener) = uuid::Uuid::new_v4().as_u64_pair();
        self.at = Some((group, listener));
        listener
    }

    /// It has ended, or was refused.
    pub(super) fn done(&mut self) {
        self.at = None;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let Some((group, listener)) = self.at.take() else { return };
        let cancelled = Cancelled { request_id: std::mem::take(&mut self.request_id), group, listener };
        if cancelled.here(&self.dispatcher) {
            return;
        }
        let dispatcher = self.dispatcher.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { cancelled.elsewhere(&dispatcher).await });
        }
    }
}

/// A stream that nobody wants.
struct Cancelled {
    request_id: String,
    group: u64,
    listener: u64,
}

impl Cancelled {
    /// Who drives the group now.
    fn driver(&self, dispatcher: &Dispatcher) -> Option<u64> {
        let state = dispatcher.cluster.state();
        Some(state.groups.get(&self.group)?.driver?.coordinator)
    }

    /// Tells the driver if it is here; `false` if somebody else has to be told.
    fn here(&self, dispatcher: &Dispatcher) -> bool {
        match self.driver(dispatcher) {
            Some(id) if id == dispatcher.cluster.id() => {
                dispatcher.drivers.cancel(self.group, &self.request_id, self.listener);
                true
            }
            Some(_) => false,
            None => true,
        }
    }

    async fn elsewhere(self, dispatcher: &Dispatcher) {
        for attempt in 0..TRIES {
            if attempt > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            if self.here(dispatcher) {
                return;
            }
            let channel = self.driver(dispatcher).and_then(|driver| dispatcher.transport.channel(driver));
            let Some(channel) = channel else { continue };
            let mut client = PeerClient::with_interceptor(channel, dispatcher.token.shown());
            let request = CancelRequest {
                cluster_id: dispatcher.cluster.cluster_id().into(),
                group: self.group,
                request_id: self.request_id.clone(),
                listener: self.listener,
            };
            if let Ok(Ok(_)) = tokio::time::timeout(TIMEOUT, client.cancel(request)).await {
                return;
            }
        }
        tracing::info!(
            request_id = self.request_id,
            group = self.group,
            "the driver of a request that nobody wants does not answer"
        );
    }
}
