//! Whole clusters in one process, over a network that loses what it is told to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use foggara_proto::version::{Build, Range};
use futures::FutureExt;
use prost011::Message as _;
use raft::prelude::{Entry, Message, MessageType};

use super::*;

/// The members' handles, and the links that are cut.
#[derive(Default)]
struct Network {
    handles: Mutex<BTreeMap<u64, ClusterHandle>>,
    cut: Mutex<BTreeSet<(u64, u64)>>,
    /// Snapshots that will be lost on their way.
    lose_snapshots: AtomicUsize,
}

struct Link {
    from: u64,
    network: Arc<Network>,
}

impl Link {
    fn peer(&self, to: u64) -> Option<ClusterHandle> {
        let cut = self.network.cut.lock().expect("no panic");
        if cut.contains(&(self.from, to)) || cut.contains(&(to, self.from)) {
            return None;
        }
        self.network.handles.lock().expect("no panic").get(&to).cloned()
    }
}

impl transport::Transport for Link {
    fn send(&self, to: u64, messages: Vec<Vec<u8>>) {
        let Some(peer) = self.peer(to) else { return };
        for message in messages {
            let kind = Message::decode(&message[..]).expect("encoded by us").msg_type();
            let loses = |left: usize| left.checked_sub(1);
            if kind == MessageType::MsgSnapshot
                && self.network.lose_snapshots.fetch_update(Ordering::SeqCst, Ordering::SeqCst, loses).is_ok()
            {
                if let Some(own) = self.peer(self.from) {
                    own.unreachable(to);
                }
                continue;
            }
            peer.step(message).ok();
        }
    }

    fn propose(
        &self,
        to: u64,
        command: Vec<u8>,
    ) -> futures::future::BoxFuture<'static, Result<Vec<u8>, ClusterError>> {
        match self.peer(to) {
            Some(peer) => async move { peer.propose_forwarded(command).await }.boxed(),
            None => std::future::ready(Err(ClusterError::NotLeader { id: to })).boxed(),
        }
    }
}

struct Cluster {
    network: Arc<Network>,
    dir: tempfile::TempDir,
    /// Who is connected to whom, and the formats that each has.
    connections: Mutex<Vec<(u64, u64, peers::Connected)>>,
    formats: Mutex<BTreeMap<u64, Formats>>,
}

const OLD: Formats = Formats { oldest: 4, newest: 4 };
const NEW: Formats = Formats { oldest: 4, newest: 5 };

/// What format 4 cannot say.
fn adapter() -> Command {
    let (deployment, path) = ("m".into(), "/a".into());
    let adapter = state::adapters::Adapter { id: 0, deployment, path, manifest: String::new(), created: 0 };
    Command::PutAdapter { name: "a".into(), adapter }
}

/// A program that has these.
fn build(formats: Formats) -> Build {
    let range = Range { oldest: formats.oldest.into(), newest: formats.newest.into() };
    Build { formats: range, ..Build::own() }
}

const MEMBERS: [u64; 3] = [1, 2, 3];

impl Cluster {
    fn new() -> Self {
        Self::of(OLD)
    }

    fn of(formats: Formats) -> Self {
        let (network, dir) = (Arc::default(), test_dir());
        let cluster = Self { network, dir, connections: Mutex::default(), formats: Mutex::default() };
        MEMBERS.into_iter().for_each(|id| cluster.start_as(id, formats));
        cluster
    }

    fn dir(&self, id: u64) -> std::path::PathBuf {
        self.dir.path().join(id.to_string())
    }

    fn start(&self, id: u64) {
        self.start_as(id, OLD);
    }

    fn start_as(&self, id: u64, formats: Formats) {
        self.try_start(id, formats).unwrap_or_else(|error| panic!("{error}"));
    }

    fn try_start(&self, id: u64, formats: Formats) -> Result<(), ClusterError> {
        let config = ClusterConfig {
            tick: Duration::from_millis(20),
            snapshot_every: 50,
            formats,
            ..ClusterConfig::new("test", id, MEMBERS.to_vec(), self.dir(id))
        };
        let link = Link { from: id, network: Arc::clone(&self.network) };
        // The store of a member that has just been stopped is free once its thread has ended.
        let handle = loop {
            match start(&config, Arc::new(Link { from: link.from, network: Arc::clone(&link.network) })) {
                Ok(handle) => break handle,
                Err(ClusterError::Store(error)) if error.fault == Fault::Broken => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(error) => return Err(error),
            }
        };
        let mut known = self.formats.lock().expect("no panic");
        let mut handles = self.network.handles.lock().expect("no panic");
        let mut connections = self.connections.lock().expect("no panic");
        for (other, at) in handles.iter() {
            connections.push((id, *other, at.connected(id, build(formats))));
            connections.push((*other, id, handle.connected(*other, build(known[other]))));
        }
        known.insert(id, formats);
        handles.insert(id, handle);
        Ok(())
    }

    /// Stops a member at once, as a crash would.
    fn stop(&self, id: u64) {
        let handle = self.network.handles.lock().expect("no panic").remove(&id);
        handle.expect("it runs").stop();
        self.connections.lock().expect("no panic").retain(|(from, to, _)| *from != id && *to != id);
    }

    /// Another program in the place of a member's.
    fn replace(&self, id: u64, formats: Formats) {
        self.stop(id);
        self.start_as(id, formats);
    }

    /// Waits until member `id` writes in `format`.
    async fn until_writes(&self, id: u64, format: u8) {
        let mut status = self.handle(id).watch_status();
        self.limited(status.wait_for(|status| status.format == format)).await.expect("the node runs");
    }

    fn handle(&self, id: u64) -> ClusterHandle {
        self.network.handles.lock().expect("no panic")[&id].clone()
    }

    fn isolate(&self, id: u64) {
        let others = MEMBERS.into_iter().filter(|other| *other != id);
        self.network.cut.lock().expect("no panic").extend(others.map(|other| (id, other)));
    }

    fn heal(&self) {
        self.network.cut.lock().expect("no panic").clear();
    }

    /// Waits until a member other than `not` leads, by all the running ones' word.
    async fn leader(&self, not: Option<u64>) -> u64 {
        self.limited(async {
            loop {
                let handles: Vec<_> =
                    self.network.handles.lock().expect("no panic").values().cloned().collect();
                let leads = handles.iter().find(|h| h.is_leader() && Some(h.id()) != not);
                if let Some(leader) = leads {
                    return leader.id();
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await
    }

    /// What must happen within a minute; if not, where everyone stands.
    async fn limited<T>(&self, future: impl Future<Output = T>) -> T {
        let late = |_| {
            let handles = self.network.handles.lock().expect("no panic").clone();
            panic!(
                "not within a minute: {:#?}",
                handles.values().map(ClusterHandle::status).collect::<Vec<_>>()
            )
        };
        tokio::time::timeout(Duration::from_secs(60), future).await.unwrap_or_else(late)
    }

    /// Writes through member `id`, however long the members of a busy machine take to agree on a leader.
    async fn write(&self, id: u64, i: usize) {
        let handle = self.handle(id);
        let written = async {
            while let Err(error) = handle.propose(note(i)).await {
                assert!(matches!(error, ClusterError::NoLeader(_)), "{error}");
            }
        };
        self.limited(written).await;
    }

    /// Reads at member `id`, as patiently.
    async fn read(&self, id: u64) -> Arc<ClusterState> {
        let handle = self.handle(id);
        let read = async {
            while let Err(error) = handle.read_index().await {
                assert!(matches!(error, ClusterError::NoLeader(_)), "{error}");
            }
        };
        self.limited(read).await;
        handle.state()
    }

    async fn until_has(&self, id: u64, key: &str) {
        let mut watch = self.handle(id).watch();
        self.limited(watch.wait_for(|state| state.notes.contains_key(key))).await.expect("the node runs");
    }
}

fn note(i: usize) -> Command {
    Command::PutNote { key: format!("k{i}"), value: i.to_string() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_reach_everyone_from_anyone_and_reads_see_them() {
    let cluster = Cluster::new();
    cluster.leader(None).await;
    for (i, id) in MEMBERS.into_iter().cycle().take(9).enumerate() {
        cluster.write(id, i).await;
        for reader in MEMBERS {
            let state = cluster.read(reader).await;
            assert_eq!(state.notes.get(&format!("k{i}")), Some(&i.to_string()));
        }
    }
    let refused = cluster.handle(1).propose(Command::RemoveDeployment { name: "none".into() }).await;
    assert!(matches!(refused, Err(ClusterError::Refused(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_write_is_lost_when_leaders_stop() {
    let cluster = Cluster::new();
    let mut written = 0;
    for _ in 0..10 {
        let leader = cluster.leader(None).await;
        for _ in 0..5 {
            let writer = MEMBERS.into_iter().find(|id| *id != leader).expect("three members");
            cluster.write(writer, written).await;
            written += 1;
        }
        cluster.stop(leader);
        let survivor = cluster.leader(Some(leader)).await;
        cluster.write(survivor, written).await;
        written += 1;
        cluster.start(leader);
    }
    for id in MEMBERS {
        let state = cluster.read(id).await;
        for i in 0..written {
            assert!(state.notes.contains_key(&format!("k{i}")), "coordinator {id} has lost write {i}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_away_catches_up_by_snapshot() {
    let cluster = Cluster::new();
    let leader = cluster.leader(None).await;
    let away = MEMBERS.into_iter().find(|id| *id != leader).expect("three members");
    cluster.stop(away);
    for i in 0..130 {
        cluster.write(leader, i).await;
    }
    cluster.start(away);
    cluster.until_has(away, "k129").await;
    assert_eq!(cluster.handle(away).state(), cluster.handle(leader).state());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_lost_is_sent_again() {
    let cluster = Cluster::new();
    let leader = cluster.leader(None).await;
    let away = MEMBERS.into_iter().find(|id| *id != leader).expect("three members");
    cluster.stop(away);
    for i in 0..60 {
        cluster.write(leader, i).await;
    }
    cluster.network.lose_snapshots.store(3, Ordering::SeqCst);
    cluster.start(away);
    cluster.until_has(away, "k59").await;
    assert_eq!(cluster.network.lose_snapshots.load(Ordering::SeqCst), 0, "it was lost three times");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_leader_decides_for_itself() {
    let cluster = Cluster::new();
    let leader = cluster.leader(None).await;
    let follower = MEMBERS.into_iter().find(|id| *id != leader).expect("three members");
    let outcome = cluster.handle(follower).propose_leading(note(1)).await;
    assert!(matches!(outcome, Err(ClusterError::NotLeader { .. })), "{outcome:?}");
    assert!(cluster.read(follower).await.notes.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_at_once_from_everywhere_see_what_was_acknowledged_before() {
    let cluster = Cluster::new();
    cluster.leader(None).await;
    for i in 0..10 {
        cluster.write(1, i).await;
        let key = format!("k{i}");
        let sees = async |id| assert!(cluster.read(id).await.notes.contains_key(&key));
        futures::future::join_all(MEMBERS.into_iter().cycle().take(12).map(sees)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_serves_no_reads_and_steps_down() {
    let cluster = Cluster::new();
    let old = cluster.leader(None).await;
    cluster.write(old, 0).await;
    cluster.isolate(old);
    let new = cluster.leader(Some(old)).await;
    cluster.write(new, 1).await;
    assert!(
        cluster.limited(cluster.handle(old).read_index()).await.is_err(),
        "it cannot know what is newest"
    );
    assert!(!cluster.handle(old).is_leader(), "check-quorum");
    cluster.heal();
    cluster.until_has(old, "k1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everyone_can_restart_from_disk() {
    let cluster = Cluster::new();
    cluster.leader(None).await;
    for i in 0..70 {
        cluster.write(2, i).await;
    }
    MEMBERS.into_iter().for_each(|id| cluster.stop(id));
    MEMBERS.into_iter().for_each(|id| cluster.start(id));
    cluster.leader(None).await;
    assert_eq!(cluster.read(3).await.notes.len(), 70);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_from_the_network_is_dropped() {
    let cluster = Cluster::new();
    let leader = cluster.leader(None).await;
    let handle = cluster.handle(leader);
    for bytes in [vec![], vec![255; 40], vec![8, 0], vec![8, 1, 16, 9, 24, 9]] {
        handle.step(bytes).expect("taken, then dropped");
    }
    assert!(matches!(handle.propose_forwarded(vec![1, 2, 3]).await, Err(ClusterError::Invalid(_))));
    cluster.write(leader, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_state_is_written_in_a_new_format_once_all_read_it_and_not_before() {
    let cluster = Cluster::of(OLD);
    cluster.leader(None).await;
    cluster.write(1, 0).await;
    // One is upgraded, goes back, and is upgraded again, whoever leads meanwhile; snapshots are taken on the way.
    let mut written = 1;
    for (id, formats) in [(1, NEW), (1, OLD), (1, NEW), (2, NEW)] {
        cluster.replace(id, formats);
        for _ in 0..60 {
            cluster.write(id, written).await;
            written += 1;
        }
        for reader in MEMBERS {
            assert_eq!(cluster.read(reader).await.notes.len(), written);
            assert_eq!(cluster.handle(reader).status().format, 4, "coordinator 3 reads no more");
        }
        let refused = cluster.handle(id).propose(adapter()).await;
        assert!(
            matches!(&refused, Err(ClusterError::Refused(why)) if why.contains("format 5")),
            "{refused:?}"
        );
    }
    // While the last one is away, nobody knows what it will be.
    cluster.stop(3);
    let leader = cluster.leader(Some(3)).await;
    cluster.write(leader, written).await;
    assert_eq!(cluster.handle(leader).status().format, 4);
    cluster.start_as(3, NEW);
    let leader = cluster.leader(None).await;
    cluster.until_writes(leader, 5).await;
    for i in 0..60 {
        cluster.write(3, written + 1 + i).await;
    }
    for id in MEMBERS {
        assert_eq!(cluster.read(id).await.notes.len(), written + 61);
        cluster.until_writes(id, 5).await;
    }
    // What it alone can say is said now; there is no such deployment.
    let refused = cluster.handle(3).propose(adapter()).await;
    assert!(
        matches!(&refused, Err(ClusterError::Refused(why)) if why.contains("no deployment")),
        "{refused:?}"
    );
    // It has been agreed on, whoever is there.
    MEMBERS.into_iter().for_each(|id| cluster.stop(id));
    cluster.start_as(1, NEW);
    cluster.start_as(2, NEW);
    let leader = cluster.leader(None).await;
    assert_eq!(cluster.handle(leader).status().format, 5);
    cluster.write(leader, 1_000).await;
    let error = cluster.try_start(3, OLD).expect_err("its store is in format 5");
    assert!(matches!(&error, ClusterError::Store(store) if store.fault == Fault::Newer), "{error:?}");
    assert!(error.to_string().contains("format 5") && error.to_string().contains("upgrade it"), "{error}");
    cluster.start_as(3, NEW);
    assert_eq!(cluster.read(3).await.notes.len(), written + 62);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_new_stops_a_member_before_it_is_in_its_log() {
    let change = state::Envelope { request_id: "r".into(), command: note(1) };
    let entry = |format| {
        let data = codec::encode(&change, format).expect("small");
        Entry { index: 1, term: 9, data, ..Entry::default() }
    };
    let append = |entry| Message {
        to: 1,
        from: 2,
        term: 9,
        msg_type: MessageType::MsgAppend.into(),
        entries: vec![entry],
        ..Message::default()
    };
    let snapshot = |format| {
        let mut snapshot = raft::prelude::Snapshot {
            data: codec::encode(&ClusterState::default(), format).expect("small"),
            ..Default::default()
        };
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (7, 9);
        metadata.conf_state =
            Some(raft::prelude::ConfState { voters: MEMBERS.to_vec(), ..Default::default() });
        let msg_type = MessageType::MsgSnapshot.into();
        Message { to: 1, from: 2, term: 9, msg_type, snapshot: Some(snapshot), ..Message::default() }
    };
    for (message, stops) in
        [(append(entry(4)), false), (append(entry(5)), true), (snapshot(4), false), (snapshot(5), true)]
    {
        let dir = test_dir();
        let config = ClusterConfig {
            formats: OLD,
            ..ClusterConfig::new("test", 1, MEMBERS.to_vec(), dir.path().into())
        };
        let handle = start(&config, Arc::new(Link { from: 1, network: Arc::default() })).expect("it starts");
        handle.step(message.encode_to_vec()).expect("taken");
        let mut status = handle.watch_status();
        let told = status.wait_for(|status| status.failed.is_some() || status.term == 9);
        let told = tokio::time::timeout(Duration::from_secs(60), told).await.expect("in time");
        let failed = told.expect("the node runs").failed.clone();
        assert_eq!(failed.as_ref().map(|error| error.fault), stops.then_some(Fault::Newer), "{failed:?}");
        handle.stop();
        // Nothing of it stays; the store is free once its thread has ended.
        let again = async {
            while let Err(error) = start(&config, Arc::new(Link { from: 1, network: Arc::default() })) {
                assert!(error.to_string().contains("another coordinator is using it"), "{error}");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), again).await.expect("in time");
    }
}

#[test]
fn a_member_must_be_one_of_the_members() {
    for (id, members) in [(4, vec![1, 2, 3]), (0, vec![0]), (1, vec![1, 1])] {
        let link = Link { from: id, network: Arc::default() };
        let config = ClusterConfig::new("test", id, members, Path::new("/nonexistent").into());
        assert!(matches!(start(&config, Arc::new(link)), Err(ClusterError::Invalid(_))));
    }
}
