//! raft-rs on a thread of its own: inputs in, messages and applied state out.
//!
//! The order of effects is raft-rs's: messages that need no durability first, then one durable transaction, then the
//! messages that promise it, then what is committed is applied.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use foggara_proto::version::Build;
use prost011::Message as _;
use raft::prelude::{Entry, EntryType, Message, MessageType};
use raft::{ProgressState, RawNode, ReadOnlyOption, SnapshotStatus, StateRole};
use tokio::sync::{oneshot, watch};

use super::codec::{self, CodecError};
use super::format::{self, Formats};
use super::handle::{ClusterHandle, Input, PeerProgress, RaftStatus, Role};
use super::inbound::{self, Verdict};
use super::peers::Peers;
use super::state::Envelope;
use super::store::{Identity, LogStore};
use super::transport::Transport;
use super::{ClusterError, ClusterState, Outcome, StoreError};

/// Inputs waiting for the Raft thread.
const INPUTS: usize = 4096;
/// Inputs taken in before the next look at what raft wants done.
const INPUT_BATCH: usize = 256;
/// Bytes of entries after which a snapshot is taken, however few they are.
const SNAPSHOT_EVERY_BYTES: usize = 8 << 20;
const MAX_MESSAGE_BYTES: u64 = 1 << 20;
const MAX_UNCOMMITTED_BYTES: u64 = 64 << 20;

/// How to run a member.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// Messages of other clusters are refused.
    pub cluster_id: String,
    /// This coordinator.
    pub id: u64,
    /// Every coordinator, this one included.
    pub members: Vec<u64>,
    /// Where the store lies.
    pub data_dir: PathBuf,
    /// Raft's clock: an election begins after 10 to 20 ticks without a leader, heartbeats are sent every 2.
    pub tick: Duration,
    /// Entries between snapshots.
    pub snapshot_every: u64,
    /// In what the state may be written.
    pub formats: Formats,
}

impl ClusterConfig {
    /// The usual settings: 50 ms ticks, a snapshot every 2,000 entries, the formats of this program.
    pub fn new(cluster_id: &str, id: u64, members: Vec<u64>, data_dir: PathBuf) -> Self {
        let tick = Duration::from_millis(50);
        let (cluster_id, formats) = (cluster_id.into(), Build::own().formats.into());
        Self { cluster_id, id, members, data_dir, tick, snapshot_every: 2000, formats }
    }
}

/// Opens the store and starts the member's thread.
///
/// # Errors
/// If the store cannot be used, or the configuration makes no sense.
pub fn start(config: &ClusterConfig, transport: Arc<dyn Transport>) -> Result<ClusterHandle, ClusterError> {
    let mut voters = config.members.clone();
    voters.sort_unstable();
    voters.dedup();
    if config.id == 0 || !voters.contains(&config.id) || voters.len() != config.members.len() {
        let reason =
            format!("coordinator {} is not one of the distinct members {:?}", config.id, config.members);
        return Err(ClusterError::Invalid(reason));
    }
    let identity = Identity { cluster_id: config.cluster_id.clone(), id: config.id, voters: voters.clone() };
    let formats = config.formats;
    let store = LogStore::open(&config.data_dir, &identity, formats)?;
    let state = match store.snapshot_data() {
        [] => ClusterState::default(),
        bytes => codec::decode(bytes, formats.newest)
            .map_err(|e| StoreError::of_codec("the snapshot in the store", &e))?,
    };
    // Now rather than when it is committed: this member would acknowledge, and elect, what it cannot apply.
    for (index, bytes) in store.changes() {
        if let Err(error @ CodecError::Newer { .. }) = codec::check_format(bytes, formats.newest) {
            return Err(StoreError::of_codec(&format!("entry {index} of the log"), &error).into());
        }
    }
    let agreed = [store.snapshot_data()].into_iter().chain(store.changes().map(|(_, bytes)| bytes));
    let agreed = agreed.filter_map(codec::format_of).max().unwrap_or(0);
    let applied = store.snapshot_index();
    let raft_config = raft::Config {
        id: config.id,
        election_tick: 10,
        heartbeat_tick: 2,
        applied,
        max_size_per_msg: MAX_MESSAGE_BYTES,
        max_inflight_msgs: 256,
        check_quorum: true,
        pre_vote: true,
        read_only_option: ReadOnlyOption::Safe,
        max_uncommitted_size: MAX_UNCOMMITTED_BYTES,
        ..raft::Config::default()
    };
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let invalid = |e: raft::Error| ClusterError::Invalid(format!("starting raft: {e}"));
    let mut raw = RawNode::new(&raft_config, store, &logger).map_err(invalid)?;
    if voters.len() == 1 {
        // Nobody to wait for.
        raw.campaign().map_err(invalid)?;
    }
    let (inputs, receiver) = sync_channel(INPUTS);
    let state = Arc::new(state);
    let (state_out, state_in) = watch::channel(Arc::clone(&state));
    let (status_out, status_in) = watch::channel(RaftStatus {
        id: config.id,
        applied,
        format: agreed.max(formats.oldest),
        ..RaftStatus::default()
    });
    let peers = Peers::default();
    let node = Node {
        raw,
        state,
        applied,
        members: voters,
        snapshot_every: config.snapshot_every.max(1),
        transport: Arc::clone(&transport),
        proposals: HashMap::new(),
        reads: HashMap::new(),
        next_read: 0,
        incarnation: *uuid::Uuid::new_v4().as_bytes(),
        silent: BTreeSet::new(),
        formats,
        agreed,
        peers: peers.clone(),
        state_out,
        status_out,
        elections: 0,
    };
    let tick = config.tick;
    let turns = Arc::new(AtomicU64::new(0));
    let turned = Arc::clone(&turns);
    std::thread::Builder::new()
        .name("raft".into())
        .spawn(move || node.run(&receiver, tick, &turns))
        .map_err(|e| ClusterError::Invalid(format!("starting a thread: {e}")))?;
    Ok(ClusterHandle {
        id: config.id,
        cluster_id: config.cluster_id.as_str().into(),
        inputs,
        state: state_in,
        status: status_in,
        transport,
        turns: turned,
        formats,
        peers,
    })
}

struct Node {
    raw: RawNode<LogStore>,
    state: Arc<ClusterState>,
    applied: u64,
    members: Vec<u64>,
    snapshot_every: u64,
    transport: Arc<dyn Transport>,
    /// Writes proposed here, by request id.
    proposals: HashMap<String, Vec<oneshot::Sender<Result<Outcome, ClusterError>>>>,
    /// Reads asked for here, by context.
    reads: HashMap<Vec<u8>, oneshot::Sender<u64>>,
    next_read: u64,
    /// Of this process.
    incarnation: [u8; 16],
    /// Peers whose connection broke and that have not been heard of since.
    silent: BTreeSet<u64>,
    formats: Formats,
    /// The newest format in log and snapshot; 0: there is nothing.
    agreed: u8,
    peers: Peers,
    state_out: watch::Sender<Arc<ClusterState>>,
    status_out: watch::Sender<RaftStatus>,
    elections: u64,
}

impl Node {
    fn run(mut self, inputs: &Receiver<Input>, tick: Duration, turns: &AtomicU64) {
        let outcome = self.serve(inputs, tick, turns);
        let Err(error) = outcome else { return };
        tracing::error!(reason = %error, "the control plane's store cannot be used; this coordinator must stop");
        self.status_out.send_modify(|status| {
            status.role = Role::Follower;
            status.failed = Some(error);
        });
    }

    fn serve(
        &mut self,
        inputs: &Receiver<Input>,
        tick: Duration,
        turns: &AtomicU64,
    ) -> Result<(), StoreError> {
        let mut next_tick = Instant::now() + tick;
        loop {
            turns.fetch_add(1, Ordering::Relaxed);
            let mut input = match inputs.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
                Ok(input) => Some(input),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            for _ in 0..INPUT_BATCH {
                match input {
                    Some(Input::Stop) => return Ok(()),
                    Some(input) => self.take(input)?,
                    None => break,
                }
                input = inputs.try_recv().ok();
            }
            if let Some(Input::Stop) = input {
                return Ok(());
            } else if let Some(input) = input {
                self.take(input)?;
            }
            let now = Instant::now();
            if now >= next_tick {
                self.raw.tick();
                // A process that was stopped for a while does not owe ticks: it must not depose a leader on waking.
                next_tick = (next_tick + tick).max(now);
            }
            while self.raw.has_ready() {
                self.ready()?;
            }
            self.publish();
        }
    }

    fn take(&mut self, input: Input) -> Result<(), StoreError> {
        match input {
            Input::Propose { request_id, bytes, reply } => {
                if self.raw.raft.state != StateRole::Leader || self.raw.propose(Vec::new(), bytes).is_err() {
                    reply.send(Err(ClusterError::NotLeader { id: self.raw.raft.id })).ok();
                } else {
                    self.proposals.entry(request_id).or_default().push(reply);
                }
            }
            Input::Step(bytes) => self.step(&bytes)?,
            Input::Read { reply } => {
                let context = self.read_context();
                // Those that nobody waits for any more.
                self.reads.retain(|_, reply| !reply.is_closed());
                self.reads.insert(context.clone(), reply);
                self.raw.read_index(context);
            }
            Input::Unreachable(peer) => self.unreachable(peer),
            Input::Transfer => self.transfer(),
            Input::Stop => {}
        }
        Ok(())
    }

    /// A message of another member.
    fn step(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let Ok(message) = Message::decode(bytes) else {
            tracing::warn!("a raft message that cannot be decoded was dropped");
            return Ok(());
        };
        let log = &self.raw.raft.raft_log;
        let view = inbound::View {
            id: self.raw.raft.id,
            members: &self.members,
            term: self.raw.raft.term,
            committed: log.committed,
            last: log.last_index(),
            term_at: &|index| log.term(index).ok(),
        };
        let mut verdict = inbound::check(&message, &view);
        if verdict.is_ok() && message.term >= view.term {
            match unreadable(&message, self.formats.newest) {
                None => {}
                Some(CodecError::Newer { found, newest }) => {
                    let error = CodecError::Newer { found, newest };
                    return Err(StoreError::of_codec("what the leader has written", &error));
                }
                Some(_) => verdict = Err(Verdict::Drop("its snapshot cannot be read")),
            }
        }
        match verdict {
            Ok(()) => {
                self.silent.remove(&message.from);
                // What raft refuses (a stale term) it may refuse.
                self.raw.step(message).ok();
                Ok(())
            }
            Err(Verdict::Drop(reason)) => {
                let (from, to, kind) = (message.from, message.to, message.msg_type());
                tracing::warn!(from, to, ?kind, reason, "a raft message was dropped");
                Ok(())
            }
            Err(Verdict::Fatal(reason)) => Err(StoreError::of_member(reason)),
        }
    }

    /// Messages to a peer have been lost.
    fn unreachable(&mut self, peer: u64) {
        self.silent.insert(peer);
        self.raw.report_unreachable(peer);
        // A snapshot may have been among them, for whose arrival raft waits without end.
        let state = self.raw.raft.prs().get(peer).map(|progress| progress.state);
        if state == Some(ProgressState::Snapshot) {
            self.raw.report_snapshot(peer, SnapshotStatus::Failure);
        }
    }

    /// Hands leadership to the follower that is farthest among those that answer.
    fn transfer(&mut self) {
        let own = self.raw.raft.id;
        let others = self.raw.raft.prs().iter().filter(|(id, _)| **id != own);
        let answering = others.filter(|(id, progress)| progress.recent_active && !self.silent.contains(id));
        if let Some(best) = answering.max_by_key(|(_, progress)| progress.matched).map(|(id, _)| *id) {
            self.raw.transfer_leader(best);
        }
    }

    /// Names a read: unique in the cluster and over restarts, so that no read gets another's answer.
    fn read_context(&mut self) -> Vec<u8> {
        self.next_read += 1;
        [&self.raw.raft.id.to_le_bytes()[..], &self.incarnation, &self.next_read.to_le_bytes()].concat()
    }

    fn send(&self, messages: Vec<Message>) {
        let mut by_peer: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
        for message in messages {
            by_peer.entry(message.to).or_default().push(message.encode_to_vec());
        }
        for (to, messages) in by_peer {
            self.transport.send(to, messages);
        }
    }

    fn ready(&mut self) -> Result<(), StoreError> {
        let mut ready = self.raw.ready();
        self.send(ready.take_messages());
        for read in ready.take_read_states() {
            if let Some(reply) = self.reads.remove(&read.request_ctx) {
                reply.send(read.index).ok();
            }
        }
        let snapshot = (!ready.snapshot().is_empty()).then(|| ready.snapshot().clone());
        if ready.must_sync() || snapshot.is_some() {
            let entries = ready.take_entries();
            self.agree(entries.iter().map(|entry| &entry.data[..]));
            self.raw.mut_store().persist(&entries, ready.hs(), snapshot.as_ref())?;
        }
        if let Some(snapshot) = snapshot {
            self.install(&snapshot)?;
        }
        self.send(ready.take_persisted_messages());
        self.apply(ready.take_committed_entries())?;
        let mut light = self.raw.advance(ready);
        self.send(light.take_messages());
        self.apply(light.take_committed_entries())?;
        self.raw.advance_apply();
        Ok(())
    }

    /// The state of a snapshot from the leader becomes ours.
    fn install(&mut self, snapshot: &raft::prelude::Snapshot) -> Result<(), StoreError> {
        let state: ClusterState = match &snapshot.data[..] {
            [] => ClusterState::default(),
            bytes => codec::decode(bytes, self.formats.newest)
                .map_err(|e| StoreError::of_codec("the leader's snapshot", &e))?,
        };
        self.agree([&snapshot.data[..]].into_iter());
        self.applied = snapshot.get_metadata().index;
        self.state = Arc::new(state);
        self.state_out.send_replace(Arc::clone(&self.state));
        Ok(())
    }

    fn apply(&mut self, entries: Vec<Entry>) -> Result<(), StoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut replies = Vec::new();
        let state = Arc::make_mut(&mut self.state);
        for entry in entries {
            self.applied = entry.index;
            // An empty entry is a new leader's first.
            if entry.data.is_empty() || entry.entry_type() != EntryType::EntryNormal {
                continue;
            }
            let envelope: Envelope = codec::decode(&entry.data, self.formats.newest)
                .map_err(|e| StoreError::of_codec(&format!("committed entry {}", entry.index), &e))?;
            let outcome = state.apply(&envelope);
            if let Some(waiting) = self.proposals.remove(&envelope.request_id) {
                replies.push((waiting, outcome));
            }
        }
        self.state_out.send_replace(Arc::clone(&self.state));
        // Who asked sees the state that has their write in it.
        self.publish();
        for (waiting, outcome) in replies {
            for reply in waiting {
                reply.send(Ok(outcome.clone())).ok();
            }
        }
        let store = self.raw.store();
        let entries = self.applied - store.snapshot_index();
        if entries >= self.snapshot_every || (entries > 0 && store.log_bytes() >= SNAPSHOT_EVERY_BYTES) {
            let format = self.format();
            let bytes = codec::encode(&*self.state, format)
                .map_err(|e| StoreError::of_member(format!("taking a snapshot: {e}")))?;
            self.agreed = self.agreed.max(format);
            self.raw.mut_store().compact(self.applied, bytes)?;
        }
        Ok(())
    }

    /// What is in the log, or in a snapshot, has been agreed on.
    fn agree<'a>(&mut self, written: impl Iterator<Item = &'a [u8]>) {
        self.agreed = self.agreed.max(written.filter_map(codec::format_of).max().unwrap_or(0));
    }

    /// The format to write in: a leader hears from all.
    fn format(&self) -> u8 {
        let raft = &self.raw.raft;
        let reads = |id: &u64| {
            let active = raft.prs().get(*id).is_some_and(|progress| progress.recent_active);
            let build = self.peers.build(*id).filter(|_| active && !self.silent.contains(id))?;
            Some(Formats::from(build.formats).newest)
        };
        let others = self.members.iter().filter(|id| **id != raft.id);
        match raft.state {
            StateRole::Leader => format::written(self.formats, self.agreed, others.map(reads)),
            _ => format::written(self.formats, self.agreed, others.map(|_| None)),
        }
    }

    /// Tells where this member stands, if that has changed.
    fn publish(&mut self) {
        let raft = &self.raw.raft;
        let role = match raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Follower => Role::Follower,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
        };
        if role != Role::Leader && !self.proposals.is_empty() {
            // Their fate is unknown; who asked tries again under the same id.
            for reply in self.proposals.drain().flat_map(|(_, waiting)| waiting) {
                reply.send(Err(ClusterError::NotLeader { id: raft.id })).ok();
            }
        }
        let progress = |(id, p): (&u64, &raft::Progress)| PeerProgress {
            id: *id,
            matched: p.matched,
            active: p.recent_active && !self.silent.contains(id),
        };
        let peers = match role {
            Role::Leader => raft.prs().iter().filter(|(id, _)| **id != raft.id).map(progress).collect(),
            _ => Vec::new(),
        };
        let (before, first_term) = {
            let status = self.status_out.borrow();
            (status.term, status.first_term)
        };
        self.elections += u64::from(raft.term > before);
        let leader = (raft.leader_id != 0).then_some(raft.leader_id);
        let store = self.raw.store();
        let status = RaftStatus {
            id: raft.id,
            role,
            term: raft.term,
            leader,
            first_term: first_term.or_else(|| leader.map(|_| raft.term)),
            commit: raft.raft_log.committed,
            applied: self.applied,
            elections: self.elections,
            syncs: store.syncs,
            sync_seconds: store.sync_seconds,
            peers,
            format: self.format(),
            failed: None,
        };
        self.status_out.send_if_modified(|current| {
            let changed = *current != status;
            if changed {
                *current = status;
            }
            changed
        });
    }
}

/// Why a snapshot or an entry in `message` is nothing for this program: of entries, whether they are too new is all that is looked at
/// before they are committed.
fn unreadable(message: &Message, newest: u8) -> Option<CodecError> {
    match message.msg_type() {
        MessageType::MsgSnapshot => {
            let data = &message.get_snapshot().data;
            if data.is_empty() { None } else { codec::decode::<ClusterState>(data, newest).err() }
        }
        MessageType::MsgAppend => {
            let entries = message.entries.iter().filter(|entry| !entry.data.is_empty());
            let newer = |entry: &Entry| codec::check_format(&entry.data, newest).err();
            entries.filter_map(newer).find(|error| matches!(error, CodecError::Newer { .. }))
        }
        _ => None,
    }
}
