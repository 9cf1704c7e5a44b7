//! Whole clusters in one process, over a network that loses what it is told to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use prost011::Message as _;
use raft::prelude::{Message, MessageType};

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
}

const MEMBERS: [u64; 3] = [1, 2, 3];

impl Cluster {
    fn new() -> Self {
        let cluster = Self { network: Arc::default(), dir: test_dir() };
        MEMBERS.into_iter().for_each(|id| cluster.start(id));
        cluster
    }

    fn dir(&self, id: u64) -> std::path::PathBuf {
        self.dir.path().join(id.to_string())
    }

    fn start(&self, id: u64) {
        let config = ClusterConfig {
            tick: Duration::from_millis(20),
            snapshot_every: 50,
            ..ClusterConfig::new("test", id, MEMBERS.to_vec(), self.dir(id))
        };
        let link = Link { from: id, network: Arc::clone(&self.network) };
        // The store of a member that has just been stopped is free once its thread has ended.
        let handle = loop {
            match start(&config, Arc::new(Link { from: link.from, network: Arc::clone(&link.network) })) {
                Ok(handle) => break handle,
                Err(ClusterError::Store(_)) => std::thread::sleep(Duration::from_millis(2)),
                Err(error) => panic!("{error}"),
            }
        };
        self.network.handles.lock().expect("no panic").insert(id, handle);
    }

    /// Stops a member at once, as a crash would.
    fn stop(&self, id: u64) {
        let handle = self.network.handles.lock().expect("no panic").remove(&id);
        handle.expect("it runs").stop();
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

#[test]
fn a_member_must_be_one_of_the_members() {
    for (id, members) in [(4, vec![1, 2, 3]), (0, vec![0]), (1, vec![1, 1])] {
        let link = Link { from: id, network: Arc::default() };
        let config = ClusterConfig::new("test", id, members, Path::new("/nonexistent").into());
        assert!(matches!(start(&config, Arc::new(link)), Err(ClusterError::Invalid(_))));
    }
}
