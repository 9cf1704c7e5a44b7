//! Who is told that a sequence is not wanted, where sequences stay, and where those go that may have been sent before, with a
//! driver on another coordinator.

use std::sync::Arc;
use std::time::Duration;

use foggara_proto::auth::ClusterToken;
use foggara_proto::sequence::{SequenceEnd, SequenceEvent, SequenceRequest, TokenOutput};
use foggara_proto::shape::Shape;
use foggara_proto::wire::cluster::locate_response::Place;
use futures::StreamExt;

use super::dispatch::Dispatcher;
use super::fake_peer::FakePeer;
use super::policy::PolicyKind;
use super::{Generator, SequenceStream};
use crate::batcher::tests::request;
use crate::cluster::state::{Capabilities, CollectiveKind, Deployment, Formation, Member, Worker};
use crate::cluster::transport::GrpcTransport;
use crate::cluster::{self, ClusterConfig, ClusterHandle, Command, Outcome};
use crate::driver::Drivers;

/// Coordinator 1, which drives nothing, with coordinator 2, a fake.
struct Rig {
    cluster: ClusterHandle,
    dispatcher: Dispatcher,
    peer: FakePeer,
    _dir: tempfile::TempDir,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.cluster.stop();
    }
}

impl Rig {
    async fn new() -> Self {
        let (dir, peer, token) = (cluster::test_dir(), FakePeer::start().await, ClusterToken::default());
        let peers = [(1, "127.0.0.1:1".to_owned()), (2, peer.addr.clone())].into();
        let transport =
            Arc::new(GrpcTransport::new("test", 1, &peers, &token, &Default::default()).expect("valid"));
        let config = ClusterConfig::new("test", 1, vec![1], dir.path().into());
        let cluster = cluster::start(&config, transport.clone()).expect("it starts");
        let policy = PolicyKind::RoundRobin;
        let dispatcher = Dispatcher::new(cluster.clone(), Drivers::default(), transport, token, policy);
        let rig = Self { cluster, dispatcher, peer, _dir: dir };
        for id in [1, 2] {
            let member = Member { addr: "a".into(), http_addr: "h".into(), pid: 1, draining: false };
            rig.write(Command::RegisterMember { id, member }).await;
        }
        let deployment = Deployment {
            model_path: "/m".into(),
            shape: Shape::tensor(1),
            replicas: 2,
            kv_tokens: 0,
            kv_dtype: "auto".into(),
            collective: "auto".into(),
            quantize: "none".into(),
            created: 0,
            manifest: String::new(),
        };
        rig.write(Command::PutDeployment { name: "m".into(), deployment }).await;
        rig
    }

    async fn write(&self, command: Command) -> Outcome {
        self.cluster.propose(command).await.expect("one is a majority")
    }

    /// A ready group that coordinator 2 drives.
    async fn group(&self, name: &str) -> u64 {
        let worker = Worker {
            addr: "a".into(),
            collective_addr: "c".into(),
            host: "h".into(),
            pid: 1,
            incarnation: name.into(),
            capabilities: Capabilities::default(),
            group: None,
        };
        let Outcome::Worker(worker) = self.write(Command::RegisterWorker(Box::new(worker))).await else {
            panic!("refused")
        };
        let form = Command::FormGroup(Formation {
            deployment: "m".into(),
            shape: Shape::SOLO,
            rank_weights: vec![],
            experts: vec![],
            ranks: vec![worker],
            collective: CollectiveKind::Solo,
            kv_blocks: 64,
            block_size: 4,
            key: [0; 16],
        });
        let Outcome::Group(group) = self.write(form).await else { panic!("refused") };
        let epoch = self.cluster.state().groups[&group].epoch;
        self.write(Command::RankReady { group, epoch, rank: 0 }).await;
        self.write(Command::AssignDriver { group, coordinator: 2, replaces: 0 }).await;
        group
    }

    /// The lease of a group moves, to the same coordinator.
    async fn move_lease(&self, group: u64) {
        let replaces = self.cluster.state().groups[&group].driver.expect("driven").epoch;
        self.write(Command::AssignDriver { group, coordinator: 2, replaces }).await;
    }

    fn generate(&self, request: SequenceRequest) -> SequenceStream {
        self.dispatcher.generate("m", request)
    }
}

async fn limited<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("within a minute")
}

fn token(token: u32, end: Option<SequenceEnd>) -> SequenceEvent {
    SequenceEvent {
        tokens: vec![TokenOutput { token, logprob: None, top: vec![] }],
        end,
        ..Default::default()
    }
}

async fn next(stream: &mut SequenceStream) -> SequenceEvent {
    limited(stream.next()).await.expect("more to come").expect("no error")
}

#[tokio::test]
async fn a_stream_that_is_dropped_cancels_what_it_listened_to() {
    let mut rig = Rig::new().await;
    let group = rig.group("one").await;
    rig.peer.says(vec![token(7, None)]);
    rig.peer.fails(2);
    let mut stream = rig.generate(request(&[1, 2, 3], 4));
    next(&mut stream).await;
    let submitted = limited(rig.peer.submitted()).await;
    assert_ne!(submitted.listener, 0);
    drop(stream);
    // The third time it is heard.
    for _ in 0..3 {
        let cancel = limited(rig.peer.cancelled()).await;
        assert_eq!((cancel.cluster_id.as_str(), cancel.group), ("test", group));
        assert_eq!((cancel.request_id.as_str(), cancel.listener), ("r", submitted.listener));
    }
    // Two streams of one request are two listeners.
    let mut streams = [rig.generate(request(&[1, 2, 3], 4)), rig.generate(request(&[1, 2, 3], 4))];
    for stream in &mut streams {
        next(stream).await;
    }
    let (one, other) = (limited(rig.peer.submitted()).await, limited(rig.peer.submitted()).await);
    assert_ne!(one.listener, other.listener);
    let [first, second] = streams;
    drop(first);
    let cancel = limited(rig.peer.cancelled()).await;
    assert_eq!(cancel.listener, one.listener, "the other one goes on");
    drop(second);
    assert_eq!(limited(rig.peer.cancelled()).await.listener, other.listener);
}

#[tokio::test]
async fn what_has_ended_or_moved_is_not_cancelled() {
    let mut rig = Rig::new().await;
    let group = rig.group("one").await;
    rig.peer.says(vec![token(7, None)]);
    let mut stream = rig.generate(request(&[1, 2, 3], 3));
    next(&mut stream).await;
    limited(rig.peer.submitted()).await;
    rig.peer.says(vec![token(8, None), token(9, None)]);
    rig.move_lease(group).await;
    next(&mut stream).await;
    let again = limited(rig.peer.submitted()).await;
    assert_eq!(again.tokens, [1, 2, 3, 7], "with what it has");
    let last = next(&mut stream).await;
    assert_eq!(last.end, Some(SequenceEnd::Length), "the end comes with the last token, told or not");
    drop(stream);
    // A cancellation by somebody else is the first to come.
    let other = SequenceRequest { request_id: "other".into(), ..request(&[4], 9) };
    let mut stream = rig.generate(other);
    next(&mut stream).await;
    drop(stream);
    assert_eq!(limited(rig.peer.cancelled()).await.request_id, "other");
    assert!(rig.peer.cancelled_already().is_none());
}

#[tokio::test]
async fn a_sequence_stays_with_its_group_when_the_lease_moves() {
    let mut rig = Rig::new().await;
    let groups = [rig.group("one").await, rig.group("two").await];
    rig.peer.says(vec![token(7, None)]);
    let mut stream = rig.generate(request(&[1, 2, 3], 9));
    next(&mut stream).await;
    let first = limited(rig.peer.submitted()).await.group;
    for _ in 0..3 {
        rig.move_lease(first).await;
        next(&mut stream).await;
        assert_eq!(limited(rig.peer.submitted()).await.group, first);
    }
    // Where it is said to be, whatever the policy's turn is.
    for group in [groups[1], groups[1], groups[0], groups[0]] {
        let there = SequenceRequest { at: Some(group), request_id: "x".into(), ..request(&[1, 2, 3], 9) };
        let mut stream = rig.generate(there);
        next(&mut stream).await;
        assert_eq!(limited(rig.peer.submitted()).await.group, group);
    }
}

#[tokio::test]
async fn a_request_that_its_client_has_named_goes_where_it_is() {
    let mut rig = Rig::new().await;
    let groups = [rig.group("one").await, rig.group("two").await];
    rig.peer.says(vec![token(7, Some(SequenceEnd::Length))]);
    let named = |id: &str| SequenceRequest { request_id: id.into(), named: true, ..request(&[1, 2, 3], 1) };
    for place in [Place::Has(groups[1]), Place::Claimed(groups[1]), Place::Has(groups[0])] {
        rig.peer.places(vec![Some(Some(place))]);
        for _ in 0..2 {
            next(&mut rig.generate(named("n"))).await;
            let (Place::Has(expected) | Place::Claimed(expected)) = place;
            assert_eq!(limited(rig.peer.submitted()).await.group, expected, "{place:?}");
            let asked = limited(rig.peer.located()).await;
            assert_eq!((asked.cluster_id.as_str(), asked.request_id.as_str()), ("test", "n"));
            let leases: Vec<u64> = asked.leases.iter().map(|lease| lease.group).collect();
            assert_eq!((leases, asked.groups), (groups.to_vec(), groups.to_vec()));
            assert!(asked.claim.is_some_and(|group| groups.contains(&group)));
        }
    }
    // Nobody else's name is asked for: the policy's turn goes on, and the next question is this one.
    rig.peer.places(vec![None, None, Some(Some(Place::Has(groups[1])))]);
    let mut went = Vec::new();
    for _ in 0..2 {
        next(&mut rig.generate(request(&[1, 2, 3], 1))).await;
        went.push(limited(rig.peer.submitted()).await.group);
    }
    went.sort_unstable();
    assert_eq!(went, groups);
    // A driver that has not attached yet is asked again.
    next(&mut rig.generate(named("later"))).await;
    assert_eq!(limited(rig.peer.submitted()).await.group, groups[1]);
    for _ in 0..3 {
        assert_eq!(limited(rig.peer.located()).await.request_id, "later");
    }
    // When nobody says anything, it goes somewhere at last.
    rig.peer.places(vec![None]);
    next(&mut rig.generate(named("unheard"))).await;
    assert!(groups.contains(&limited(rig.peer.submitted()).await.group));
}
