//! The worker's session with the cluster: it stays with the Raft leader, wherever that is.

use std::time::Duration;

use foggara_proto::auth::ClusterToken;
use foggara_proto::condition::Reporter;
use foggara_proto::version::Build;
use foggara_proto::wire::worker as wire;
use foggara_proto::wire::worker::registry_client::RegistryClient;
use foggara_tls::Dialer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::group::GroupHost;
use crate::models::Models;
use crate::run::WorkerError;

/// Between heartbeats, both ways.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// A coordinator that has been silent this long is given up.
const SILENCE: Duration = Duration::from_secs(4);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Between attempts to find the leader: from, to.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// How one session ended.
enum Ended {
    /// The leader is elsewhere (or unknown).
    NotLeader { leader: String, coordinators: Vec<String> },
    /// The connection broke.
    Lost(String),
    /// The cluster does not want this worker.
    Refused(String),
}

/// Keeps a session until the cluster refuses this worker.
pub(crate) struct Session {
    pub(crate) hello: wire::Hello,
    pub(crate) token: ClusterToken,
    pub(crate) dialer: Dialer,
    pub(crate) host: GroupHost,
    pub(crate) models: Models,
    /// Hears whether this worker is in the cluster.
    pub(crate) reporter: Reporter,
    pub(crate) news: mpsc::UnboundedReceiver<wire::WorkerMessage>,
    /// Coordinators known.
    pub(crate) coordinators: Vec<String>,
}

impl Session {
    /// Never returns but with the reason why it cannot go on.
    pub(crate) async fn keep(mut self) -> WorkerError {
        let mut backoff = BACKOFF.0;
        let mut next = 0;
        let mut hint: Option<String> = None;
        let mut complained = false;
        loop {
            let address = hint.take().unwrap_or_else(|| {
                next += 1;
                self.coordinators[(next - 1) % self.coordinators.len()].clone()
            });
            let (ended, joined) = self.once(&address).await;
            self.reporter.status("looking for the coordinator that leads".into());
            if joined {
                (backoff, complained) = (BACKOFF.0, false);
            }
            match ended {
                Ended::Refused(reason) => return WorkerError::Refused { coordinator: address, reason },
                Ended::NotLeader { leader, coordinators } => {
                    self.learn(coordinators);
                    hint = Some(leader).filter(|leader| !leader.is_empty() && *leader != address);
                }
                Ended::Lost(reason) => {
                    // One line for a cluster that is not there, not one a second.
                    if joined || !complained {
                        tracing::warn!(coordinator = address, reason, "no session; looking for the leader");
                        complained = true;
                    }
                }
            }
            if hint.is_none() {
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF.1);
            }
        }
    }

    fn learn(&mut self, coordinators: Vec<String>) {
        for coordinator in coordinators {
            if !self.coordinators.contains(&coordinator) {
                self.coordinators.push(coordinator);
            }
        }
    }

    /// One session. The flag says whether it was ever welcome.
    async fn once(&mut self, address: &str) -> (Ended, bool) {
        let lost = |reason: String| (Ended::Lost(reason), false);
        let endpoint = match self.dialer.endpoint(address) {
            Ok(endpoint) => endpoint.connect_timeout(CONNECT_TIMEOUT),
            Err(error) => return lost(format!("address `{address}`: {error}")),
        };
        let channel = match self.dialer.connect(&endpoint).await {
            Ok(channel) => channel,
            Err(error) => return lost(format!("connecting: {}", foggara_tls::cause(&error))),
        };
        let mut client = RegistryClient::with_interceptor(channel, self.token.shown());
        let (out, outgoing) = mpsc::channel(64);
        let hello = wire::Hello { held: self.host.held(), ..self.hello.clone() };
        let hello = wire::worker_message::Message::Hello(hello);
        // The channel is new and has room.
        out.try_send(wire::WorkerMessage { message: Some(hello) }).ok();
        // One that hangs accepts connections all the same.
        let answer = tokio::time::timeout(SILENCE, client.session(ReceiverStream::new(outgoing))).await;
        let mut incoming = match answer {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) if status.code() == tonic::Code::Unauthenticated => {
                return (Ended::Refused(status.message().to_owned()), false);
            }
            Ok(Err(status)) => return lost(status.message().to_owned()),
            Err(_) => return lost(format!("no answer within {SILENCE:?}")),
        };
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        let mut heard = tokio::time::Instant::now();
        let mut joined = false;
        loop {
            let message = tokio::select! {
                message = incoming.message() => message,
                news = self.news.recv() => {
                    if let Some(news) = news
                        && out.send(news).await.is_err()
                    {
                        return (Ended::Lost("the session has ended".into()), joined);
                    }
                    continue;
                }
                _ = heartbeat.tick() => {
                    if heard.elapsed() > SILENCE {
                        return (Ended::Lost(format!("nothing heard for {SILENCE:?}")), joined);
                    }
                    let beat = wire::worker_message::Message::Heartbeat(wire::Heartbeat {});
                    // A full channel means that the connection hangs; the silence will tell.
                    out.try_send(wire::WorkerMessage { message: Some(beat) }).ok();
                    continue;
                }
            };
            heard = tokio::time::Instant::now();
            match message {
                Ok(Some(message)) => {
                    if let Some(ended) = self.handle(message, &mut joined) {
                        return (ended, joined);
                    }
                }
                Ok(None) => return (Ended::Lost("the coordinator closed the session".into()), joined),
                Err(status) => return (Ended::Lost(status.message().to_owned()), joined),
            }
        }
    }

    fn handle(&mut self, message: wire::RegistryMessage, joined: &mut bool) -> Option<Ended> {
        use wire::registry_message::Message;
        match message.message? {
            Message::Welcome(welcome) => {
                tracing::info!(worker = welcome.worker, "joined");
                *joined = true;
                self.reporter.status(format!("joined as worker {}", welcome.worker));
                self.reporter.ready();
                self.learn(welcome.coordinators);
                None
            }
            Message::NotLeader(elsewhere) => {
                Some(Ended::NotLeader { leader: elsewhere.leader_addr, coordinators: elsewhere.coordinators })
            }
            Message::Refused(refused) => Some(Ended::Refused(refused.reason)),
            Message::Assign(assign) => {
                self.host.assign(assign);
                None
            }
            Message::Release(release) => {
                self.host.release(release.group, release.epoch, &release.reason);
                None
            }
            Message::Deployed(deployed) => {
                self.models.learn(deployed);
                None
            }
            Message::LoadAdapter(load) => {
                self.host.load_adapter(load);
                None
            }
            Message::Heartbeat(_) => None,
        }
    }
}

/// A new [`wire::Hello`] of this process.
pub(crate) fn hello(
    addr: String,
    collective_addr: String,
    capabilities: foggara_proto::wire::admin::Capabilities,
) -> wire::Hello {
    let Build { version, protocols, .. } = Build::own();
    wire::Hello {
        incarnation: uuid::Uuid::new_v4().to_string(),
        protocol: format!("foggara {version} protocol {protocols}"),
        addr,
        collective_addr,
        host: crate::capabilities::host_id(),
        pid: std::process::id(),
        capabilities: Some(capabilities),
        held: None,
        oldest_protocol: protocols.oldest,
        newest_protocol: protocols.newest,
    }
}
