//! The rest of the coordinator's view of the control plane.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use foggara_proto::version::Build;
use tokio::sync::{oneshot, watch};

use super::codec::CodecError;
use super::format::Formats;
use super::peers::{Connected, Peers};
use super::state::Envelope;
use super::transport::Transport;
use super::{ClusterError, ClusterState, Command, Outcome, StoreError, codec};

/// How long a write or a linearizable read looks for a leader.
const DEADLINE: Duration = Duration::from_secs(5);
/// After this long a read is asked for again: raft drops those that come during an election.
const READ_RETRY: Duration = Duration::from_millis(300);
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Largest encoded write.
const MAX_WRITE_BYTES: usize = 1 << 20;

/// What a Raft member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// It decides.
    Leader,
    /// It follows.
    #[default]
    Follower,
    /// It wants to lead.
    Candidate,
}

impl Role {
    /// Its name in status.
    pub fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
        }
    }
}

/// How far a follower is, as the leader knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerProgress {
    /// Who.
    pub id: u64,
    /// Last entry it has.
    pub matched: u64,
    /// Whether it has answered lately.
    pub active: bool,
}

/// Where this member stands.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RaftStatus {
    /// This coordinator.
    pub id: u64,
    /// What it is.
    pub role: Role,
    /// Raft's term.
    pub term: u64,
    /// The leader it knows of.
    pub leader: Option<u64>,
    /// Term of the first leader it knew of since it started.
    pub first_term: Option<u64>,
    /// Last committed entry.
    pub commit: u64,
    /// Last applied entry.
    pub applied: u64,
    /// Elections seen (terms begun) since the start.
    pub elections: u64,
    /// Durable commits, and the seconds they took.
    pub syncs: u64,
    /// See `syncs`.
    pub sync_seconds: f64,
    /// Followers, if this member leads.
    pub peers: Vec<PeerProgress>,
    /// The format that is written here.
    pub format: u8,
    /// Why the control plane has stopped, if it has.
    pub failed: Option<StoreError>,
}

/// What reaches the Raft thread.
pub(super) enum Input {
    Propose { request_id: String, bytes: Vec<u8>, reply: oneshot::Sender<Result<Outcome, ClusterError>> },
    Step(Vec<u8>),
    Read { reply: oneshot::Sender<u64> },
    Unreachable(u64),
    Transfer,
    Stop,
}

/// The control plane, from any task.
#[derive(Clone)]
pub struct ClusterHandle {
    pub(super) id: u64,
    pub(super) cluster_id: Arc<str>,
    pub(super) inputs: SyncSender<Input>,
    pub(super) state: watch::Receiver<Arc<ClusterState>>,
    pub(super) status: watch::Receiver<RaftStatus>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) turns: Arc<AtomicU64>,
    pub(super) formats: Formats,
    pub(super) peers: Peers,
}

impl ClusterHandle {
    /// This coordinator.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// How often the member's thread has gone round: at each tick of Raft's clock, at least, unless it hangs.
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// The cluster.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// Coordinator `id` has connected to this one, and is `build`: until what is returned is dropped.
    pub fn connected(&self, id: u64, build: Build) -> Connected {
        self.peers.connected(id, build)
    }

    /// What another coordinator is, while it is connected.
    pub fn build_of(&self, id: u64) -> Option<Build> {
        self.peers.build(id)
    }

    /// What this coordinator has applied so far.
    pub fn state(&self) -> Arc<ClusterState> {
        self.state.borrow().clone()
    }

    /// Follows the state.
    pub fn watch(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.state.clone()
    }

    /// Where this member stands.
    pub fn status(&self) -> RaftStatus {
        self.status.borrow().clone()
    }

    /// Follows where this member stands.
    pub fn watch_status(&self) -> watch::Receiver<RaftStatus> {
        self.status.clone()
    }

    /// Whether this member leads.
    pub fn is_leader(&self) -> bool {
        self.status.borrow().role == Role::Leader
    }

    /// Whether a leader has found out, since this coordinator started, which workers are there. Until then the state may
    /// tell of groups that ended with an earlier life of the cluster.
    pub fn workers_are_known(&self) -> bool {
        let first = self.status.borrow().first_term;
        first.is_some_and(|first| self.state.borrow().confirmed_term >= first)
    }

    fn send(&self, input: Input) -> Result<(), ClusterError> {
        use std::sync::mpsc::TrySendError;
        self.inputs.try_send(input).map_err(|error| match error {
            TrySendError::Full(_) => ClusterError::Overloaded,
            TrySendError::Disconnected(_) => ClusterError::Stopped,
        })
    }

    /// Writes under an id of its own. See [`propose_as`](Self::propose_as).
    ///
    /// # Errors
    /// As there.
    pub async fn propose(&self, command: Command) -> Result<Outcome, ClusterError> {
        self.propose_as(uuid::Uuid::new_v4().to_string(), command).await
    }

    /// Writes, through the leader wherever it is; returns once the write is applied there. Tried again under the same id
    /// while leaders change, so it is applied once.
    ///
    /// # Errors
    /// [`ClusterError::Refused`] if the state machine said no; else why it may not have been done.
    pub async fn propose_as(&self, request_id: String, command: Command) -> Result<Outcome, ClusterError> {
        let bytes = self.encode(Envelope { request_id: request_id.clone(), command })?;
        if bytes.len() > MAX_WRITE_BYTES {
            return Err(ClusterError::TooLarge { bytes: bytes.len(), limit: MAX_WRITE_BYTES });
        }
        let started = Instant::now();
        let mut why = ClusterError::NoLeader(DEADLINE);
        loop {
            let left = DEADLINE.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Err(why);
            }
            let (leads, leader) = {
                let status = self.status.borrow();
                (status.role == Role::Leader, status.leader)
            };
            let attempt = async {
                match leader {
                    _ if leads => self.propose_here(request_id.clone(), bytes.clone()).await,
                    Some(leader) => {
                        let outcome = self.transport.propose(leader, bytes.clone()).await?;
                        codec::decode(&outcome, self.formats.newest)
                            .map_err(|e| ClusterError::Invalid(e.to_string()))
                    }
                    None => Err(ClusterError::NotLeader { id: self.id }),
                }
            };
            match tokio::time::timeout(left.min(Duration::from_secs(1)), attempt).await {
                Ok(Ok(Outcome::Refused(reason))) => return Err(ClusterError::Refused(reason)),
                Ok(Ok(outcome)) => return Ok(outcome),
                Ok(Err(ClusterError::Stopped)) => return Err(ClusterError::Stopped),
                Ok(Err(ClusterError::Overloaded)) => {
                    why = ClusterError::Overloaded;
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                // Another one may lead before long.
                Ok(Err(error @ ClusterError::Incompatible(_))) => {
                    why = error;
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                // Not known whether it was applied: the same id asks again.
                Ok(Err(_)) | Err(_) => tokio::time::sleep(RETRY_PAUSE).await,
            }
        }
    }

    /// Writes if this member leads, without forwarding: for decisions that only the leader may take.
    ///
    /// # Errors
    /// [`ClusterError::NotLeader`] if it does not lead (any more), [`ClusterError::Refused`] if the state machine said no.
    pub async fn propose_leading(&self, command: Command) -> Result<Outcome, ClusterError> {
        let request_id = uuid::Uuid::new_v4().to_string();
        let bytes = self.encode(Envelope { request_id: request_id.clone(), command })?;
        match tokio::time::timeout(DEADLINE, self.propose_here(request_id, bytes)).await {
            Ok(Ok(Outcome::Refused(reason))) => Err(ClusterError::Refused(reason)),
            Ok(outcome) => outcome,
            Err(_) => Err(ClusterError::NoLeader(DEADLINE)),
        }
    }

    /// In the format that is written now.
    fn encode(&self, envelope: Envelope) -> Result<Vec<u8>, ClusterError> {
        let format = self.status.borrow().format;
        codec::encode(&envelope, format).map_err(|e| match e {
            CodecError::NotYet { .. } => ClusterError::Refused(e.to_string()),
            e => ClusterError::Invalid(e.to_string()),
        })
    }

    /// Proposes an encoded envelope to this member, which must lead.
    async fn propose_here(&self, request_id: String, bytes: Vec<u8>) -> Result<Outcome, ClusterError> {
        let (reply, answer) = oneshot::channel();
        self.send(Input::Propose { request_id, bytes, reply })?;
        answer.await.unwrap_or(Err(ClusterError::NotLeader { id: self.id }))
    }

    /// A write forwarded by another coordinator; returns the encoded outcome.
    ///
    /// # Errors
    /// [`ClusterError::NotLeader`] if this member does not lead (any more).
    pub async fn propose_forwarded(&self, bytes: Vec<u8>) -> Result<Vec<u8>, ClusterError> {
        if bytes.len() > MAX_WRITE_BYTES {
            return Err(ClusterError::TooLarge { bytes: bytes.len(), limit: MAX_WRITE_BYTES });
        }
        let invalid = |e: CodecError| ClusterError::Invalid(e.to_string());
        let envelope: Envelope = codec::decode(&bytes, self.formats.newest).map_err(invalid)?;
        // Who asks reads what it writes. What is written here is for the leader to say.
        let format = codec::format_of(&bytes).unwrap_or(0).max(self.formats.oldest);
        let (request_id, bytes) = (envelope.request_id.clone(), self.encode(envelope)?);
        let outcome = self.propose_here(request_id, bytes).await?;
        codec::encode(&outcome, format).map_err(invalid)
    }

    /// After this, [`state`](Self::state) shows every write acknowledged anywhere before the call (Raft's ReadIndex).
    ///
    /// # Errors
    /// If no leader answers in time.
    pub async fn read_index(&self) -> Result<(), ClusterError> {
        let started = Instant::now();
        let index = loop {
            if started.elapsed() > DEADLINE {
                return Err(ClusterError::NoLeader(DEADLINE));
            }
            let (reply, answer) = oneshot::channel();
            self.send(Input::Read { reply })?;
            if let Ok(Ok(index)) = tokio::time::timeout(READ_RETRY, answer).await {
                break index;
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        };
        let mut status = self.status.clone();
        let left = DEADLINE.saturating_sub(started.elapsed());
        match tokio::time::timeout(left, status.wait_for(|status| status.applied >= index)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ClusterError::Stopped),
            Err(_) => Err(ClusterError::NoLeader(DEADLINE)),
        }
    }

    /// Takes in a message of another member.
    ///
    /// # Errors
    /// If too much is waiting or the node has stopped.
    pub fn step(&self, message: Vec<u8>) -> Result<(), ClusterError> {
        self.send(Input::Step(message))
    }

    /// A peer cannot be reached.
    pub fn unreachable(&self, peer: u64) {
        // Only a hint.
        self.send(Input::Unreachable(peer)).ok();
    }

    /// Hands leadership to the follower that is farthest, if this member leads, and waits (a second at most) until it has:
    /// for a planned stop.
    pub async fn step_down(&self) {
        let someone = self.status.borrow().peers.iter().any(|peer| peer.active);
        if someone && self.is_leader() && self.send(Input::Transfer).is_ok() {
            let mut status = self.status.clone();
            let follows = status.wait_for(|status| status.role != Role::Leader);
            // Not worth waiting longer: the others elect one anyway.
            tokio::time::timeout(Duration::from_secs(1), follows).await.ok();
        }
    }

    /// Ends the Raft thread.
    pub fn stop(&self) {
        self.send(Input::Stop).ok();
    }
}
