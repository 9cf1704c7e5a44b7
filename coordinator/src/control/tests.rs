//! Workers' sessions and the leader's loop, over real connections to a cluster of one coordinator.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use foggara_proto::auth::ClusterToken;
use foggara_proto::shape::Shape;
use foggara_proto::version::{Build, Range};
use foggara_proto::wire::worker as wire;
use foggara_proto::wire::worker::registry_client::RegistryClient;
use foggara_proto::wire::worker::registry_server::RegistryServer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::Streaming;
use wire::registry_message::Message as Told;
use wire::worker_message::Message as Says;

use super::{Registry, RegistryService, run_controller};
use crate::cluster::state::adapters::{Adapter, Presence};
use crate::cluster::state::{Deployment, DeviceKind, Group, Member};
use crate::cluster::transport::GrpcTransport;
use crate::cluster::{self, ClusterConfig, ClusterHandle, ClusterState, Command};
use crate::library::Library;

struct Rig {
    cluster: ClusterHandle,
    addr: String,
    _dir: tempfile::TempDir,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.cluster.stop();
    }
}

impl Rig {
    /// Coordinator 1 of `members`, with its registry on a port.
    async fn of(members: &[u64]) -> Self {
        let dir = cluster::test_dir();
        let peers = members.iter().map(|id| (*id, format!("127.0.0.1:{id}"))).collect();
        let token = ClusterToken::default();
        let transport =
            Arc::new(GrpcTransport::new("test", 1, &peers, &token, &Default::default()).expect("valid"));
        let config = ClusterConfig::new("test", 1, members.to_vec(), dir.path().into());
        let cluster = cluster::start(&config, transport).expect("it starts");
        let registry = Registry::default();
        let library = Library::new(1, Vec::new(), dir.path(), None, token, Default::default());
        tokio::spawn(library.clone().follow(cluster.clone()));
        tokio::spawn(run_controller(cluster.clone(), registry.clone(), library));
        let service =
            RegistryServer::new(RegistryService { cluster: cluster.clone(), registry, build: spoken() });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound").to_string();
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { cluster, addr, _dir: dir }
    }

    /// The leader, with deployment "m" of two ranks.
    async fn new() -> Self {
        let rig = Self::of(&[1]).await;
        let member = Member { addr: "a".into(), http_addr: "h".into(), pid: 1, draining: false };
        rig.write(Command::RegisterMember { id: 1, member }).await;
        let model = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/llama");
        let deployment = Deployment {
            model_path: model.to_string_lossy().into_owned(),
            shape: Shape::tensor(2),
            replicas: 1,
            kv_tokens: 64,
            kv_dtype: "auto".into(),
            collective: "auto".into(),
            quantize: "none".into(),
            created: 0,
            manifest: String::new(),
        };
        rig.write(Command::PutDeployment { name: "m".into(), deployment }).await;
        rig
    }

    async fn write(&self, command: Command) {
        self.cluster.propose(command).await.expect("one is a majority");
    }

    async fn until(&self, what: impl FnMut(&Arc<ClusterState>) -> bool) -> Arc<ClusterState> {
        let mut watch = self.cluster.watch();
        limited(watch.wait_for(what)).await.expect("the node runs").clone()
    }

    /// Two workers that hold a ready, driven group.
    async fn with_group(&self) -> (FakeWorker, FakeWorker, wire::Assign) {
        let (mut a, mut b) =
            (FakeWorker::join(self, "a", None).await, FakeWorker::join(self, "b", None).await);
        let (first, second) = (a.assigned().await, b.assigned().await);
        assert_eq!((first.group, first.epoch), (second.group, second.epoch));
        a.ready(&first);
        b.ready(&second);
        self.until(driven).await;
        (a, b, first)
    }
}

fn driven(state: &Arc<ClusterState>) -> bool {
    state.groups.values().any(|group: &Group| group.driver.is_some())
}

async fn limited<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("within a minute")
}

struct FakeWorker {
    id: u64,
    says: mpsc::UnboundedSender<wire::WorkerMessage>,
    told: Streaming<wire::RegistryMessage>,
}

/// What the coordinator speaks, whatever this program does.
fn spoken() -> Build {
    let range = |oldest, newest| Range { oldest, newest };
    Build { version: "7.1.0".into(), protocols: range(20, 21), formats: range(4, 4) }
}

fn hello(name: &str) -> wire::Hello {
    wire::Hello {
        incarnation: name.into(),
        protocol: "a worker".into(),
        oldest_protocol: 19,
        newest_protocol: 20,
        addr: format!("{name}:1"),
        collective_addr: format!("{name}:2"),
        host: "h".into(),
        capabilities: Some(foggara_proto::wire::admin::Capabilities {
            threads: 1,
            memory_bytes: 1 << 30,
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// For as long as the worker is there, however slow the test.
async fn heartbeats(says: mpsc::WeakUnboundedSender<wire::WorkerMessage>) {
    while let Some(says) = says.upgrade() {
        says.send(wire::WorkerMessage { message: Some(Says::Heartbeat(wire::Heartbeat {})) }).ok();
        drop(says);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

impl FakeWorker {
    /// Opens a session; the first answer is not read yet.
    async fn open(rig: &Rig, hello: wire::Hello) -> Self {
        let (says, said) = mpsc::unbounded_channel();
        let worker = |says, told| Self { id: 0, says, told };
        says.send(wire::WorkerMessage { message: Some(Says::Hello(hello)) }).expect("new");
        tokio::spawn(heartbeats(says.downgrade()));
        let mut client = RegistryClient::connect(format!("http://{}", rig.addr)).await.expect("it listens");
        let told = limited(client.session(UnboundedReceiverStream::new(said))).await.expect("taken");
        worker(says, told.into_inner())
    }

    async fn join(rig: &Rig, name: &str, held: Option<wire::Held>) -> Self {
        let mut worker = Self::open(rig, wire::Hello { held, ..hello(name) }).await;
        let Some(Told::Welcome(welcome)) = worker.next().await else { panic!("not welcome") };
        worker.id = welcome.worker;
        worker
    }

    /// The next message that is no heartbeat; `None` if the session has ended.
    async fn next(&mut self) -> Option<Told> {
        loop {
            match limited(self.told.message()).await.ok()??.message? {
                Told::Heartbeat(_) => {}
                message => return Some(message),
            }
        }
    }

    async fn assigned(&mut self) -> wire::Assign {
        match self.next().await {
            Some(Told::Assign(assign)) => assign,
            other => panic!("{other:?}"),
        }
    }

    async fn released(&mut self, from: &wire::Assign) {
        match self.next().await {
            Some(Told::Release(release)) => {
                assert_eq!((release.group, release.epoch), (from.group, from.epoch))
            }
            other => panic!("{other:?}"),
        }
    }

    async fn told_to_load(&mut self) -> wire::LoadAdapter {
        match self.next().await {
            Some(Told::LoadAdapter(load)) => load,
            other => panic!("{other:?}"),
        }
    }

    fn loaded(&self, assign: &wire::Assign, adapter: u64, failed: &str) {
        let (group, epoch, rank) = (assign.group, assign.epoch, assign.rank);
        let loaded = wire::AdapterLoaded { group, epoch, rank, adapter, failed: failed.into() };
        self.say(Says::AdapterLoaded(loaded));
    }

    fn say(&self, message: Says) {
        self.says.send(wire::WorkerMessage { message: Some(message) }).expect("a session");
    }

    fn ready(&self, assign: &wire::Assign) {
        let (group, epoch, rank) = (assign.group, assign.epoch, assign.rank);
        self.say(Says::Ready(wire::RankReady { group, epoch, rank }));
    }
}

#[tokio::test]
async fn workers_become_a_group_that_is_driven() {
    let rig = Rig::new().await;
    let (a, b, assign) = rig.with_group().await;
    assert_eq!((assign.rank, assign.size, assign.collective.as_str()), (0, 2, "shm"));
    assert_eq!((assign.kv_blocks * assign.block_size, assign.threads_on_host), (64, 2));
    assert_eq!((&assign.peers[..], assign.group_key.len()), (&["a:2".to_owned(), "b:2".into()][..], 16));
    assert_ne!(assign.group_key, [0; 16]);
    let state = rig.cluster.state();
    assert_eq!(state.groups[&assign.group].ranks, [a.id, b.id]);
    assert_eq!(state.groups[&assign.group].driver.map(|lease| lease.coordinator), Some(1));
}

#[tokio::test]
async fn a_lost_worker_ends_its_group_which_forms_anew() {
    let rig = Rig::new().await;
    let (mut a, b, first) = rig.with_group().await;
    let lost = b.id;
    drop(b);
    a.released(&first).await;
    assert!(!rig.cluster.state().workers.contains_key(&lost));
    let mut c = FakeWorker::join(&rig, "c", None).await;
    let (again, other) = (a.assigned().await, c.assigned().await);
    assert!(again.epoch > first.epoch && again.epoch == other.epoch);
    assert_ne!(again.group_key, first.group_key);
    // What a rank of the former group says is not taken for the new one's.
    a.ready(&first);
    a.ready(&again);
    c.ready(&other);
    let state = rig.until(driven).await;
    assert_eq!(state.groups.keys().copied().collect::<Vec<_>>(), [again.group]);
}

#[tokio::test]
async fn a_worker_that_comes_back_with_its_rank_keeps_it() {
    let rig = Rig::new().await;
    let (mut a, mut b, first) = rig.with_group().await;
    let held = wire::Held { group: first.group, epoch: first.epoch, rank: 0, ready: true };
    let again = FakeWorker::join(&rig, "a", Some(held)).await;
    assert_eq!(again.id, a.id);
    assert_eq!(a.next().await, None, "its former session has ended");
    assert!(driven(&rig.cluster.state()));
    drop(again);
    b.released(&first).await;
}

#[tokio::test]
async fn a_worker_that_comes_back_without_its_rank_ends_the_group() {
    let rig = Rig::new().await;
    let (_a, mut b, first) = rig.with_group().await;
    let mut again = FakeWorker::join(&rig, "a", None).await;
    b.released(&first).await;
    // It may still be told of the group that is about to end.
    let assign = loop {
        match again.next().await {
            Some(Told::Assign(assign)) if assign.epoch > first.epoch => break assign,
            Some(_) => {}
            None => panic!("the session has ended"),
        }
    };
    assert_eq!(b.assigned().await.epoch, assign.epoch);
}

#[tokio::test]
async fn a_rank_that_fails_makes_its_group_form_again() {
    let rig = Rig::new().await;
    let (mut a, mut b, first) = rig.with_group().await;
    let failed = wire::RankFailed {
        group: first.group,
        epoch: first.epoch,
        rank: 1,
        reason: "no memory".into(),
        files: false,
    };
    b.say(Says::Failed(failed));
    for worker in [&mut a, &mut b] {
        worker.released(&first).await;
        assert!(worker.assigned().await.epoch > first.epoch);
    }
}

#[tokio::test]
async fn a_rank_whose_process_has_ended_is_not_waited_for() {
    let rig = Rig::new().await;
    let mut a = FakeWorker::join(&rig, "a", None).await;
    // Not 127.0.0.1: nobody else takes the port when it is closed.
    let listener = std::net::TcpListener::bind("127.0.0.2:0").expect("a port");
    let addr = listener.local_addr().expect("bound").to_string();
    let mut b = FakeWorker::open(&rig, wire::Hello { addr, ..hello("gone") }).await;
    let Some(Told::Welcome(welcome)) = b.next().await else { panic!("not welcome") };
    let (first, _) = (a.assigned().await, b.assigned().await);
    // Its process ends, though its session has not yet.
    drop(listener);
    let reason = "rank 1 is lost: its process has ended".to_owned();
    let (group, epoch) = (first.group, first.epoch);
    a.say(Says::Failed(wire::RankFailed { group, epoch, rank: first.rank, reason, files: false }));
    rig.until(|state| !state.workers.contains_key(&welcome.worker)).await;
    a.released(&first).await;
    let mut c = FakeWorker::join(&rig, "c", None).await;
    assert_eq!(a.assigned().await.epoch, c.assigned().await.epoch);
}

#[tokio::test]
async fn a_worker_without_the_files_is_passed_over() {
    let rig = Rig::new().await;
    let (mut a, mut b, first) = rig.with_group().await;
    let mut c = FakeWorker::join(&rig, "c", None).await;
    let (group, epoch) = (first.group, first.epoch);
    let reason = "file x is missing".to_owned();
    b.say(Says::Failed(wire::RankFailed { group, epoch, rank: 1, reason, files: true }));
    a.released(&first).await;
    b.released(&first).await;
    let (again, other) = (a.assigned().await, c.assigned().await);
    assert!(again.epoch > first.epoch && again.epoch == other.epoch);
    drop(a);
    let expected = format!("; not worker {}: file x is missing", b.id);
    rig.until(|state| state.obstacles.get("m").is_some_and(|obstacle| obstacle.ends_with(&expected))).await;
}

#[tokio::test]
async fn workers_know_which_models_are_deployed() {
    let rig = Rig::new().await;
    let mut worker = FakeWorker::join(&rig, "a", None).await;
    let deployment = |manifest: &str| {
        let (model_path, manifest) = ("/x".to_owned(), manifest.to_owned());
        Deployment { model_path, manifest, ..rig.cluster.state().deployments["m"].clone() }
    };
    let put = |name: &str, manifest| Command::PutDeployment {
        name: name.to_owned(),
        deployment: deployment(manifest),
    };
    let told = |manifest: &str, removed| {
        let (model_path, manifest) = ("/x".to_owned(), manifest.to_owned());
        Some(Told::Deployed(wire::Deployed { model_path, manifest, removed }))
    };
    rig.write(put("one", "files")).await;
    assert_eq!(worker.next().await, told("files", false));
    rig.write(put("two", "files")).await;
    assert_eq!(worker.next().await, told("files", false));
    rig.write(Command::RemoveDeployment { name: "one".into() }).await;
    assert_eq!(worker.next().await, told("files", true));
    assert_eq!(worker.next().await, told("files", false), "the other is of the same model");
    let mut late = FakeWorker::join(&rig, "b", None).await;
    assert_eq!(late.next().await, told("files", false));
}

#[tokio::test]
async fn a_worker_given_up_while_it_is_there_must_join_anew() {
    let rig = Rig::new().await;
    let (mut a, _b, first) = rig.with_group().await;
    rig.write(Command::WorkerLost { id: a.id }).await;
    while let Some(message) = a.next().await {
        assert!(matches!(message, Told::Release(_)), "{message:?}");
    }
    let held = wire::Held { group: first.group, epoch: first.epoch, rank: 0, ready: true };
    let mut again = FakeWorker::join(&rig, "a", Some(held)).await;
    assert_ne!(again.id, a.id);
    again.released(&first).await;
    assert!(again.assigned().await.epoch > first.epoch);
}

#[tokio::test]
async fn workers_say_what_they_compute_on_and_older_ones_have_cpus() {
    use foggara_proto::wire::admin::{Capabilities, Device};
    let rig = Rig::new().await;
    let old = FakeWorker::join(&rig, "old", None).await;
    let on = |name: &str, kind: &str| {
        let device = Device { kind: kind.into(), name: "G1".into(), uuid: "u".into(), ..Default::default() };
        let capabilities = Capabilities { device: Some(device), ..Default::default() };
        wire::Hello { capabilities: Some(capabilities), ..hello(name) }
    };
    let mut new = FakeWorker::open(&rig, on("new", "cuda")).await;
    let Some(Told::Welcome(welcome)) = new.next().await else { panic!("not welcome") };
    let state = rig.cluster.state();
    let device = |id: u64| state.workers[&id].capabilities.device.clone();
    assert_eq!(device(old.id), cluster::state::Device::default());
    let told = device(welcome.worker);
    assert_eq!((told.kind, told.name.as_str(), told.unique_id.as_str()), (DeviceKind::Cuda, "G1", "u"));
    let mut unknown = FakeWorker::open(&rig, on("unknown", "tpu")).await;
    let Some(Told::Refused(refused)) = unknown.next().await else { panic!("not refused") };
    assert!(refused.reason.contains("`tpu`"), "{}", refused.reason);
}

#[tokio::test]
async fn a_worker_of_another_version_is_taken_if_it_speaks_a_protocol_that_is_spoken_here() {
    let rig = Rig::new().await;
    let worker = |name: &str, (oldest_protocol, newest_protocol)| {
        let capabilities =
            foggara_proto::wire::admin::Capabilities { version: "6.0.0".into(), ..Default::default() };
        wire::Hello { oldest_protocol, newest_protocol, capabilities: Some(capabilities), ..hello(name) }
    };
    for (spoken, words) in [
        ((18, 20), None),
        ((21, 30), None),
        (
            (18, 19),
            Some(["foggara 6.0.0 speaks protocol 18 to 19", "foggara 7.1.0 here 20 to 21", "upgrade"]),
        ),
        ((22, 22), Some(["foggara 6.0.0 speaks protocol 22", "foggara 7.1.0 here 20 to 21", "upgrade"])),
        ((0, 0), Some(["`a worker`", "foggara 7.1.0 here speaks protocol 20 to 21", "upgrade"])),
    ] {
        let name = format!("{spoken:?}");
        let before = rig.cluster.state().workers.len();
        let mut worker = FakeWorker::open(&rig, worker(&name, spoken)).await;
        match (worker.next().await, words) {
            (Some(Told::Welcome(_)), None) => {}
            (Some(Told::Refused(refused)), Some(words)) => {
                for word in words {
                    assert!(refused.reason.contains(word), "{word}: {}", refused.reason);
                }
                assert_eq!(rig.cluster.state().workers.len(), before);
            }
            (told, _) => panic!("{name}: {told:?}"),
        }
    }
}

#[tokio::test]
async fn only_the_leader_keeps_sessions() {
    let rig = Rig::of(&[1, 2, 3]).await;
    let mut worker = FakeWorker::open(&rig, hello("a")).await;
    let told = worker.next().await;
    assert!(
        matches!(&told, Some(Told::NotLeader(elsewhere)) if elsewhere.leader_addr.is_empty()),
        "{told:?}"
    );
    assert_eq!(worker.next().await, None);
}

#[tokio::test]
async fn ranks_are_told_of_adapters_and_the_state_of_what_they_say() {
    let rig = Rig::new().await;
    let adapter = |path: &str| Adapter {
        id: 0,
        deployment: "m".into(),
        path: path.into(),
        manifest: "of files".into(),
        created: 0,
    };
    rig.write(Command::PutAdapter { name: "a".into(), adapter: adapter("/a") }).await;
    let (mut a, mut b) = (FakeWorker::join(&rig, "a", None).await, FakeWorker::join(&rig, "b", None).await);
    let (first, second) = (a.assigned().await, b.assigned().await);
    let id = rig.cluster.state().adapters["a"].id;
    let told = a.told_to_load().await;
    assert_eq!((told.group, told.epoch, told.adapter), (first.group, first.epoch, id), "after the weights");
    assert_eq!((told.path.as_str(), told.manifest.as_str()), ("/a", "of files"));
    assert_eq!(b.told_to_load().await.adapter, id);
    a.ready(&first);
    b.ready(&second);
    a.loaded(&first, id, "");
    b.loaded(&second, id, "no such file");
    let presence = |state: &ClusterState, wanted: Presence<'_>| {
        state.groups.get(&first.group).is_some_and(|g| state.presence(first.group, g, id) == wanted)
    };
    rig.until(|state| presence(state, Presence::Failed(1, "no such file"))).await;
    b.loaded(&second, id, "");
    rig.until(|state| presence(state, Presence::Ready)).await;
    // One more is told to groups that are there, and a new session is told of all again.
    rig.write(Command::PutAdapter { name: "b".into(), adapter: adapter("/b") }).await;
    assert_eq!((a.told_to_load().await.path.as_str(), b.told_to_load().await.path.as_str()), ("/b", "/b"));
    let held = wire::Held { group: first.group, epoch: first.epoch, rank: 0, ready: true };
    let mut again = FakeWorker::join(&rig, "a", Some(held)).await;
    let paths = [again.told_to_load().await.path, again.told_to_load().await.path];
    assert_eq!(paths, ["/a", "/b"]);
    assert!(presence(&rig.cluster.state(), Presence::Ready), "what is known stays");
}
