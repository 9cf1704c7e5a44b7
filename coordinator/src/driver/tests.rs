//! From the front door's side of the dispatcher to leaders on ports, over a cluster of one coordinator.

use std::sync::Arc;
use std::time::Duration;

use foggara_proto::auth::ClusterToken;
use foggara_proto::sequence::{SequenceEnd, SequenceRequest};
use foggara_proto::shape::Shape;
use foggara_proto::wire::cluster as wire;
use foggara_proto::wire::cluster::locate_response::Place;
use futures::StreamExt;

use super::fake_leader::{FakeLeader, answer, request};
use super::{DriverContext, Drivers, run_drivers};
use crate::cluster::state::{Capabilities, CollectiveKind, Deployment, Formation, Group, Member, Worker};
use crate::cluster::transport::GrpcTransport;
use crate::cluster::{self, ClusterConfig, ClusterHandle, Command, Outcome};
use crate::metrics::Metrics;
use crate::router::dispatch::Dispatcher;
use crate::router::policy::PolicyKind;
use crate::router::{GenerateError, Generator, SequenceStream};

struct Rig {
    cluster: ClusterHandle,
    drivers: Drivers,
    dispatcher: Dispatcher,
    _dir: tempfile::TempDir,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.cluster.stop();
    }
}

impl Rig {
    /// Coordinator 1 with deployment "m" and no group.
    async fn new() -> Self {
        let dir = cluster::test_dir();
        let (peers, token) = ([(1, "127.0.0.1:1".to_owned())].into(), ClusterToken::default());
        let transport =
            Arc::new(GrpcTransport::new("test", 1, &peers, &token, &Default::default()).expect("valid"));
        let config = ClusterConfig::new("test", 1, vec![1], dir.path().into());
        let cluster = cluster::start(&config, transport.clone()).expect("it starts");
        let drivers = Drivers::default();
        tokio::spawn(run_drivers(DriverContext {
            cluster: cluster.clone(),
            drivers: drivers.clone(),
            metrics: Arc::new(Metrics::new()),
            token: token.clone(),
            dialer: Default::default(),
            queue: 10,
            lease_ms: 0,
            speculate: 0,
        }));
        let dispatcher =
            Dispatcher::new(cluster.clone(), drivers.clone(), transport, token, PolicyKind::default());
        let rig = Self { cluster, drivers, dispatcher, _dir: dir };
        let member = Member { addr: "a".into(), http_addr: "h".into(), pid: 1, draining: false };
        rig.write(Command::RegisterMember { id: 1, member }).await;
        let deployment = Deployment {
            model_path: "/m".into(),
            shape: Shape::tensor(1),
            replicas: 1,
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

    /// A ready group led by `leader`, driven here. Returns its worker.
    async fn group(&self, leader: &FakeLeader) -> u64 {
        let worker = Worker {
            addr: leader.addr.clone(),
            collective_addr: "c".into(),
            host: "h".into(),
            pid: 1,
            incarnation: leader.addr.clone(),
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
        self.write(Command::AssignDriver { group, coordinator: 1, replaces: 0 }).await;
        worker
    }

    fn generate(&self, request: SequenceRequest) -> SequenceStream {
        self.dispatcher.generate("m", request)
    }
}

async fn limited<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("within a minute")
}

/// Waits for `count` tokens or the end.
async fn tokens(stream: &mut SequenceStream, count: usize) -> (Vec<u32>, Option<SequenceEnd>) {
    let (mut tokens, mut end) = (Vec::new(), None);
    while tokens.len() < count && end.is_none() {
        let event = limited(stream.next()).await.expect("more to come").expect("no error");
        tokens.extend(event.tokens.iter().map(|output| output.token));
        end = event.end;
    }
    (tokens, end)
}

const ALL: usize = usize::MAX;

#[tokio::test]
async fn a_sequence_waits_for_a_group_and_is_answered() {
    let rig = Rig::new().await;
    let mut stream = rig.generate(request("a", &[1, 2, 3], 20));
    let leader = FakeLeader::start(1000).await;
    let (answered, _) = tokio::join!(tokens(&mut stream, ALL), rig.group(&leader));
    assert_eq!(answered, (answer(&[1, 2, 3], 20), Some(SequenceEnd::Length)));
    assert!(stream.next().await.is_none());
    assert_eq!(rig.drivers.open_sequences(), 0);
}

#[tokio::test]
async fn a_broken_connection_costs_no_token() {
    let rig = Rig::new().await;
    let leader = FakeLeader::start(6).await;
    rig.group(&leader).await;
    let mut stream = rig.generate(request("a", &[1, 2, 3], 30));
    let (mut got, _) = tokens(&mut stream, 3).await;
    for _ in 0..3 {
        leader.cut();
        leader.allow(5);
        got.extend(tokens(&mut stream, 2).await.0);
    }
    leader.allow(1000);
    let (rest, end) = tokens(&mut stream, ALL).await;
    got.extend(rest);
    assert_eq!((got, end), (answer(&[1, 2, 3], 30), Some(SequenceEnd::Length)));
    let epochs = leader.epochs();
    assert!(epochs.len() == 4 && epochs.is_sorted(), "each time under a newer lease: {epochs:?}");
}

#[tokio::test]
async fn a_leader_whose_table_makes_no_sense_begins_afresh() {
    let rig = Rig::new().await;
    let leader = FakeLeader::start(6).await;
    rig.group(&leader).await;
    let mut stream = rig.generate(request("a", &[1, 2, 3], 30));
    let (mut got, _) = tokens(&mut stream, 3).await;
    leader.lie(|held| held.cached = held.tokens.len() + 1);
    leader.cut();
    leader.allow(1000);
    let (rest, end) = tokens(&mut stream, ALL).await;
    got.extend(rest);
    assert_eq!((got, end), (answer(&[1, 2, 3], 30), Some(SequenceEnd::Length)));
    assert_eq!(leader.epochs().len(), 3, "one finds nonsense, the next begins");
}

#[tokio::test]
async fn a_lost_group_is_replaced_by_another() {
    let rig = Rig::new().await;
    let (first, second) = (FakeLeader::start(6).await, FakeLeader::start(1000).await);
    let worker = rig.group(&first).await;
    let mut params = request("a", &[1, 2, 3], 25);
    (params.params.logprobs, params.params.prompt_logprobs) = (Some(0), true);
    let mut stream = rig.generate(params);
    let (mut got, _) = tokens(&mut stream, 4).await;
    rig.write(Command::WorkerLost { id: worker }).await;
    rig.group(&second).await;
    let mut prompt = 0;
    while let Some(event) = limited(stream.next()).await {
        let event = event.expect("no error");
        prompt += event.prompt.len();
        got.extend(event.tokens.iter().map(|output| output.token));
    }
    assert_eq!(got, answer(&[1, 2, 3], 25));
    assert_eq!(prompt, 0, "the prompt had been told before");
}

#[tokio::test]
async fn a_lease_that_moves_ends_the_former_driver() {
    let rig = Rig::new().await;
    let leader = FakeLeader::start(4).await;
    rig.group(&leader).await;
    let mut stream = rig.generate(request("a", &[1, 2, 3], 10));
    let (mut got, _) = tokens(&mut stream, 2).await;
    let state = rig.cluster.state();
    let (group, lease) =
        state.groups.iter().find_map(|(id, group)| Some((*id, group.driver?))).expect("driven");
    // To a coordinator that is not there: nobody drives the group, and what comes from the old driver is not waited for.
    let member = Member { addr: "b".into(), http_addr: "h".into(), pid: 2, draining: false };
    rig.write(Command::RegisterMember { id: 2, member }).await;
    let away = rig.write(Command::AssignDriver { group, coordinator: 2, replaces: lease.epoch }).await;
    let Outcome::Driver(away) = away else { panic!("{away:?}") };
    leader.allow(1000);
    rig.write(Command::AssignDriver { group, coordinator: 1, replaces: away.epoch }).await;
    let (rest, end) = tokens(&mut stream, ALL).await;
    got.extend(rest);
    assert_eq!((got, end), (answer(&[1, 2, 3], 10), Some(SequenceEnd::Length)));
}

#[tokio::test]
async fn dropping_a_stream_clears_the_sequence_away() {
    let rig = Rig::new().await;
    let leader = FakeLeader::start(1_000_000).await;
    rig.group(&leader).await;
    let mut stream = rig.generate(request("a", &[1, 2, 3], 200));
    tokens(&mut stream, 1).await;
    assert_eq!(rig.drivers.open_sequences(), 1);
    drop(stream);
    let gone = async {
        while leader.sequences() > 0 || rig.drivers.open_sequences() > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    limited(gone).await;
    // The same request id may come again.
    let mut stream = rig.generate(request("a", &[4], 2));
    assert_eq!(tokens(&mut stream, ALL).await.0, answer(&[4], 2));
}

#[tokio::test]
async fn a_model_that_is_not_served_is_said_so_also_when_it_goes_away() {
    let rig = Rig::new().await;
    let mut stream = rig.dispatcher.generate("other", request("a", &[1], 1));
    assert_eq!(limited(stream.next()).await, Some(Err(GenerateError::UnknownModel("other".into()))));
    let leader = FakeLeader::start(3).await;
    rig.group(&leader).await;
    let mut stream = rig.generate(request("a", &[1, 2, 3], 10));
    tokens(&mut stream, 1).await;
    rig.write(Command::RemoveDeployment { name: "m".into() }).await;
    let last = limited(async {
        loop {
            if let Some(Err(error)) = stream.next().await {
                break error;
            }
        }
    });
    assert_eq!(last.await, GenerateError::UnknownModel("m".into()));
}

#[tokio::test]
async fn a_driver_knows_which_group_has_a_request_and_which_is_about_to() {
    let rig = Rig::new().await;
    let (first, second) = (FakeLeader::start(6).await, FakeLeader::start(1000).await);
    rig.group(&first).await;
    let mut stream = rig.generate(request("a", &[1, 2, 3], 30));
    tokens(&mut stream, 2).await;
    rig.group(&second).await;
    let lease = |(id, group): (&u64, &Group)| wire::DriverLease {
        group: *id,
        driver_epoch: group.driver.expect("driven").epoch,
    };
    let leases: Vec<wire::DriverLease> = rig.cluster.state().groups.iter().map(lease).collect();
    let groups: Vec<u64> = leases.iter().map(|lease| lease.group).collect();
    let ask = |request_id: &str, claim: Option<u64>| wire::LocateRequest {
        cluster_id: "test".into(),
        request_id: request_id.into(),
        leases: leases.clone(),
        claim,
        groups: groups.clone(),
    };
    // Until the second has attached, nobody knows.
    let attached = async {
        while rig.drivers.locate(&ask("a", None)).is_none() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    limited(attached).await;
    assert_eq!(rig.drivers.locate(&ask("a", Some(groups[1]))), Some(Some(Place::Has(groups[0]))));
    assert_eq!(rig.drivers.locate(&ask("b", None)), Some(None));
    for wanted in [groups[1], groups[0]] {
        assert_eq!(rig.drivers.locate(&ask("b", Some(wanted))), Some(Some(Place::Claimed(groups[1]))));
    }
    let mut later = ask("a", None);
    later.leases[1].driver_epoch += 1;
    assert_eq!(rig.drivers.locate(&later), None, "another lease");
    // Ended, it is there still; also for those who know only the other group.
    first.allow(1000);
    tokens(&mut stream, ALL).await;
    assert_eq!(rig.drivers.locate(&ask("a", None)), Some(Some(Place::Has(groups[0]))));
    let other = wire::LocateRequest { leases: vec![leases[1]], ..ask("a", None) };
    assert_eq!(rig.drivers.locate(&other), Some(Some(Place::Has(groups[1]))));
}
