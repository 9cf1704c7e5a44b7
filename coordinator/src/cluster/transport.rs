//! Raft's messages on their way between coordinators.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use foggara_proto::auth::ClusterToken;
use foggara_proto::wire::cluster as wire;
use foggara_proto::wire::cluster::peer_client::PeerClient;
use foggara_tls::Dialer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::{ClusterError, ClusterHandle};

/// Encoded messages waiting for one peer. Raft sends again what is lost.
const QUEUE: usize = 1024;
/// Most messages of one gRPC message.
const BATCH: usize = 64;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const KEEP_ALIVE: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const RECONNECT: Duration = Duration::from_millis(200);
/// Largest gRPC message between coordinators: a snapshot is one.
pub const MAX_MESSAGE_BYTES: usize = 80 << 20;

/// Carries messages to other coordinators: best effort, in order, never blocking.
pub trait Transport: Send + Sync + 'static {
    /// Sends encoded messages to coordinator `to`.
    fn send(&self, to: u64, messages: Vec<Vec<u8>>);
    /// Forwards a write to coordinator `to`; returns the encoded outcome.
    fn propose(
        &self,
        to: u64,
        command: Vec<u8>,
    ) -> futures::future::BoxFuture<'static, Result<Vec<u8>, ClusterError>>;
}

/// The transport over gRPC.
pub struct GrpcTransport {
    cluster_id: String,
    token: ClusterToken,
    peers: BTreeMap<u64, Peer>,
    /// Told when a peer cannot be reached. Set once the node runs.
    handle: Arc<OnceLock<ClusterHandle>>,
}

struct Peer {
    queue: mpsc::Sender<Vec<u8>>,
    channel: Channel,
}

impl GrpcTransport {
    /// Starts a sending task for each of `peers` (id → gRPC address). Must be called inside a runtime.
    ///
    /// # Errors
    /// If an address is not valid.
    pub fn new(
        cluster_id: &str,
        id: u64,
        peers: &BTreeMap<u64, String>,
        token: &ClusterToken,
        dialer: &Dialer,
    ) -> Result<Self, ClusterError> {
        let handle = Arc::new(OnceLock::new());
        let mut map = BTreeMap::new();
        for (peer, address) in peers.iter().filter(|(peer, _)| **peer != id) {
            let endpoint = dialer.endpoint(address).map_err(|e| {
                ClusterError::Invalid(format!("address `{address}` of coordinator {peer}: {e}"))
            })?;
            let endpoint = endpoint
                .connect_timeout(CONNECT_TIMEOUT)
                // A machine that vanishes closes no connection.
                .http2_keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
            let channel = dialer.lazy(&endpoint);
            let (queue, received) = mpsc::channel(QUEUE);
            let sender = Sender {
                cluster_id: cluster_id.to_owned(),
                from: id,
                to: *peer,
                token: token.clone(),
                channel: channel.clone(),
                handle: Arc::clone(&handle),
            };
            tokio::spawn(sender.run(received));
            map.insert(*peer, Peer { queue, channel });
        }
        Ok(Self { cluster_id: cluster_id.to_owned(), token: token.clone(), peers: map, handle })
    }

    /// Who is told about peers that cannot be reached.
    pub fn set_handle(&self, handle: ClusterHandle) {
        // Set once, when the node starts.
        self.handle.set(handle).ok();
    }

    /// A connection to coordinator `peer`, shared by everyone.
    pub fn channel(&self, peer: u64) -> Option<Channel> {
        self.peers.get(&peer).map(|peer| peer.channel.clone())
    }
}

impl Transport for GrpcTransport {
    fn send(&self, to: u64, messages: Vec<Vec<u8>>) {
        let Some(peer) = self.peers.get(&to) else { return };
        for message in messages {
            // A full queue means that the peer is away; raft sends again once it knows.
            if peer.queue.try_send(message).is_err() {
                if let Some(handle) = self.handle.get() {
                    handle.unreachable(to);
                }
                return;
            }
        }
    }

    fn propose(
        &self,
        to: u64,
        command: Vec<u8>,
    ) -> futures::future::BoxFuture<'static, Result<Vec<u8>, ClusterError>> {
        let Some(channel) = self.channel(to) else {
            return Box::pin(std::future::ready(Err(ClusterError::Invalid(format!(
                "coordinator {to} is unknown"
            )))));
        };
        let mut client = PeerClient::with_interceptor(channel, self.token.shown());
        let request = wire::ProposeRequest { cluster_id: self.cluster_id.clone(), command };
        Box::pin(async move {
            match client.propose(request).await {
                Ok(response) => Ok(response.into_inner().outcome),
                Err(status) if status.code() == tonic::Code::FailedPrecondition => {
                    Err(ClusterError::NotLeader { id: to })
                }
                Err(status) if status.code() == tonic::Code::Unimplemented => {
                    Err(ClusterError::Incompatible(format!("coordinator {to}: {}", status.message())))
                }
                Err(status) => Err(ClusterError::Invalid(status.message().to_owned())),
            }
        })
    }
}

/// What a status says, and what caused it: the library's own text is only "transport error".
fn describe(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    text
}

/// Sends to one peer for as long as the process lives.
struct Sender {
    cluster_id: String,
    from: u64,
    to: u64,
    token: ClusterToken,
    channel: Channel,
    handle: Arc<OnceLock<ClusterHandle>>,
}

impl Sender {
    async fn run(self, mut queue: mpsc::Receiver<Vec<u8>>) {
        let mut told = String::new();
        loop {
            // One stream for as long as it holds.
            let (out, outgoing) = mpsc::channel::<wire::RaftMessages>(16);
            let batch = |message| wire::RaftMessages {
                cluster_id: self.cluster_id.clone(),
                from: self.from,
                message,
            };
            // Says who this is, though there may be nothing to say. The channel is new and has room.
            out.try_send(batch(Vec::new())).ok();
            let mut client = PeerClient::with_interceptor(self.channel.clone(), self.token.shown())
                .max_encoding_message_size(MAX_MESSAGE_BYTES);
            let stream = client.raft(ReceiverStream::new(outgoing));
            let pump = async {
                let mut messages = Vec::new();
                while queue.recv_many(&mut messages, BATCH).await > 0 {
                    if out.send(batch(std::mem::take(&mut messages))).await.is_err() {
                        return true;
                    }
                }
                false
            };
            let reason = tokio::select! {
                goes_on = pump => match goes_on {
                    true => "the stream has ended".to_owned(),
                    false => return,
                },
                ended = stream => ended.err().map_or_else(|| "it ended the stream".into(), |e| describe(&e)),
            };
            // A line for each new reason, not for each attempt.
            if reason != told {
                tracing::warn!(coordinator = self.to, reason, "not connected to a coordinator");
                told = reason;
            }
            self.lost();
            tokio::time::sleep(RECONNECT).await;
            // What waited meanwhile is stale; raft has newer messages by now. It must be told last: what it sends from
            // then on is not dropped.
            while queue.try_recv().is_ok() {}
            self.lost();
        }
    }

    /// Tells raft that messages have been lost.
    fn lost(&self) {
        if let Some(handle) = self.handle.get() {
            handle.unreachable(self.to);
        }
    }
}
