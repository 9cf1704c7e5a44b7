//! Starting a coordinator, and stopping it.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use foggara_proto::auth::ClusterToken;
use foggara_proto::condition::Reporter;
use foggara_tls::{Dialer, FileError, Tls, TlsFiles, Trust};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::cluster::state::Member;
use crate::cluster::transport::GrpcTransport;
use crate::cluster::{self, ClusterConfig, ClusterError, ClusterHandle, Command, Fault, RaftStatus, Role};
use crate::control::{Registry, run_controller};
use crate::driver::{DriverContext, Drivers, run_drivers};
use crate::front_door::{self, FrontDoor, ServedModels};
use crate::library::Library;
use crate::metrics::Metrics;
use crate::router::dispatch::Dispatcher;
use crate::router::policy::PolicyKind;
use crate::traces::Exporter;

/// How long open requests may take to end when the coordinator stops.
const DRAIN: Duration = Duration::from_secs(10);

/// How long to try to tell the cluster that this coordinator stops.
const REGISTER: Duration = Duration::from_secs(1);

/// Between two looks at how it is.
const TELL: Duration = Duration::from_secs(1);

/// How long connections may take to send what they hold.
const FLUSH: Duration = Duration::from_millis(250);

/// How to run a coordinator.
#[derive(Debug, Clone)]
pub struct CoordinatorConfig {
    /// Its id, one of `peers`.
    pub id: u64,
    /// Name of the cluster; members must agree.
    pub cluster_id: String,
    /// gRPC address of every coordinator, this one included.
    pub peers: BTreeMap<u64, String>,
    /// Where HTTP listens.
    pub http: SocketAddr,
    /// Where gRPC listens. (Either port answers both.)
    pub grpc: SocketAddr,
    /// Where Raft keeps its log.
    pub data_dir: PathBuf,
    /// Asked of operators, workers and coordinators.
    pub token: ClusterToken,
    /// What is shown to whoever connects, and whom this coordinator goes by where it connects; none: plain text.
    pub tls: Option<TlsFiles>,
    /// Sequences that may wait for one group.
    pub queue: usize,
    /// How requests are given to the groups of a model.
    pub router: PolicyKind,
    /// How long leaders go on when plans are late, in milliseconds.
    pub lease_ms: u32,
    /// Tokens that may be drafted of a sequence in a step; 0: none.
    pub speculate: u32,
    /// Folders that hold models. One that is not there is got from the nodes that have it, as far as it is needed here.
    pub models: Vec<PathBuf>,
    /// Whether metrics have vLLM's names, too.
    pub vllm_metrics: bool,
    /// The collector that gets traces, like http://collector:4317.
    pub otlp_endpoint: Option<String>,
    /// Where hashes of models' files are remembered; the data folder if not given.
    pub cache: Option<PathBuf>,
}

impl CoordinatorConfig {
    /// Whether the settings make sense, as far as they alone can tell.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<(), CoordinatorError> {
        let wrong = |field, reason| Err(CoordinatorError::Config { field, reason });
        if !self.peers.contains_key(&self.id) {
            return wrong("peers", format!("coordinator {} is not among {:?}", self.id, self.peers));
        }
        if self.queue == 0 {
            return wrong("queue", "must be at least 1".into());
        }
        for (field, addr) in [("http", self.http), ("grpc", self.grpc)] {
            if !addr.ip().is_loopback() && !self.token.is_set() {
                let token = "that needs a cluster token (--cluster-token-file)";
                return wrong(field, format!("{addr} is not loopback: {token}"));
            }
        }
        Ok(())
    }
}

/// Why a coordinator cannot run.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// The settings make no sense.
    #[error("{field}: {reason}")]
    Config {
        /// Which setting.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A port could not be had.
    #[error("listening on {addr}: {reason}")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// The system's answer.
        reason: String,
    },
    /// The control plane cannot start, or has failed.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The control plane's store has failed while running.
    #[error("{0}")]
    Failed(String),
}

impl CoordinatorError {
    /// Whether it comes of the settings, so that starting again would end the same way.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Config { .. } => true,
            Self::Cluster(ClusterError::Store(error)) => error.fault == Fault::Foreign,
            Self::Cluster(_) | Self::Listen { .. } | Self::Failed(_) => false,
        }
    }

    /// Whether it comes of this program's version: it cannot read what others of the cluster have written.
    pub fn is_version(&self) -> bool {
        matches!(self, Self::Cluster(ClusterError::Store(error)) if error.fault == Fault::Newer)
    }
}

impl From<FileError> for CoordinatorError {
    fn from(FileError { field, reason }: FileError) -> Self {
        Self::Config { field, reason }
    }
}

async fn listen(addr: SocketAddr) -> Result<TcpListener, CoordinatorError> {
    TcpListener::bind(addr).await.map_err(|e| CoordinatorError::Listen { addr, reason: e.to_string() })
}

/// Runs a coordinator until `shutdown` completes or its store fails. It is ready when it listens and its Raft member runs,
/// whether or not there is a leader.
///
/// # Errors
/// Why it could not run.
pub async fn run(
    config: CoordinatorConfig,
    reporter: Reporter,
    shutdown: impl Future<Output = ()>,
) -> Result<(), CoordinatorError> {
    config.check()?;
    let exporter = config.otlp_endpoint.as_ref().map(|endpoint| Exporter::new(endpoint, config.id));
    let exporter = exporter
        .transpose()
        .map_err(|error| CoordinatorError::Config { field: "otlp_endpoint", reason: error.to_string() })?;
    let own = config.peers.get(&config.id).cloned().unwrap_or_default();
    let tls = config.tls.clone().map(Tls::load).transpose()?;
    let dialer = Dialer::new(tls.as_ref().map(Trust::of));
    let http = listen(config.http).await?;
    let grpc = listen(config.grpc).await?;
    let transport =
        Arc::new(GrpcTransport::new(&config.cluster_id, config.id, &config.peers, &config.token, &dialer)?);
    let members = config.peers.keys().copied().collect();
    let raft = ClusterConfig::new(&config.cluster_id, config.id, members, config.data_dir.clone());
    let cluster = cluster::start(&raft, transport.clone())?;
    transport.set_handle(cluster.clone());
    let metrics = Arc::new(Metrics::new().with_vllm_names(config.vllm_metrics).with_tls(tls.clone()));
    let (drivers, registry, models) = (Drivers::default(), Registry::default(), ServedModels::of_starting());
    if let Some(exporter) = exporter {
        drivers.timelines().export(config.id, exporter);
    }
    let timelines = drivers.timelines().clone();
    let library = Library::new(
        config.id,
        config.models.clone(),
        &config.data_dir,
        config.cache.clone(),
        config.token.clone(),
        dialer.clone(),
    );
    let token = config.token.clone();
    let dispatcher = Dispatcher::new(cluster.clone(), drivers.clone(), transport, token, config.router);
    let door = FrontDoor {
        cluster: cluster.clone(),
        generator: Arc::new(dispatcher),
        metrics: Arc::clone(&metrics),
        models: models.clone(),
        library: library.clone(),
        drivers: drivers.clone(),
        registry: registry.clone(),
        token: config.token.clone(),
        dialer: dialer.clone(),
        draining: Arc::default(),
        tokenizing: Arc::new(Semaphore::new(front_door::TOKENIZING)),
    };
    let context = DriverContext {
        cluster: cluster.clone(),
        drivers,
        metrics,
        token: config.token.clone(),
        dialer,
        queue: config.queue,
        lease_ms: config.lease_ms,
        speculate: config.speculate,
    };
    let mut parts = JoinSet::new();
    if let Some(tls) = tls.clone() {
        tls.warn_unless_for(&own);
        parts.spawn(tls.follow());
    }
    parts.spawn(library.clone().follow(cluster.clone()));
    parts.spawn(models.follow(cluster.clone(), library.clone()));
    parts.spawn(run_drivers(context));
    parts.spawn(run_controller(cluster.clone(), registry, library));
    let http_addr = http.local_addr().unwrap_or(config.http).to_string();
    let member = Member { addr: own, http_addr: http_addr.clone(), pid: std::process::id(), draining: false };
    let registered = tokio::spawn(register(cluster.clone(), config.id, member.clone()));
    tracing::info!(id = config.id, http = http_addr, grpc = %config.grpc, "coordinator started");
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let router = door.router();
    let serve =
        |listener| tokio::spawn(front_door::serve(listener, router.clone(), tls.clone(), stopped.clone()));
    let servers = [serve(http), serve(grpc)];
    parts.spawn(tell(cluster.clone(), reporter.clone()));
    reporter.ready();
    let mut status = cluster.watch_status();
    let outcome = tokio::select! {
        biased;
        () = shutdown => Ok(()),
        failed = status.wait_for(|status| status.failed.is_some()) => {
            let error = failed.ok().and_then(|status| status.failed.clone());
            Err(error.map_or(ClusterError::Stopped, ClusterError::Store).into())
        }
        // Half a coordinator is worse than none.
        Some(ended) = parts.join_next() => Err(CoordinatorError::Failed(format!("a part of it has ended: {ended:?}"))),
    };
    registered.abort();
    if outcome.is_ok() {
        drain(&door, config.id, member).await;
        cluster.step_down().await;
    }
    stop.send(true).ok();
    // The last bytes of answers get their time; streams of other processes never end by themselves.
    let aborts: Vec<_> = servers.iter().map(tokio::task::JoinHandle::abort_handle).collect();
    tokio::time::timeout(FLUSH, futures::future::join_all(servers)).await.ok();
    aborts.iter().for_each(tokio::task::AbortHandle::abort);
    cluster.stop();
    // Its own threads send what is left.
    tokio::task::spawn_blocking(move || timelines.flush()).await.ok();
    // Until the store is closed: whoever starts next on the same folder finds it free.
    let closed = async { while status.changed().await.is_ok() {} };
    tokio::time::timeout(FLUSH, closed).await.ok();
    outcome
}

/// Says again and again how this coordinator is. A Raft member that hangs, on its disk for instance, is not well; one without a
/// leader is.
async fn tell(cluster: ClusterHandle, reporter: Reporter) {
    let mut turns = None;
    loop {
        reporter.status(described(&cluster.status()));
        let now = cluster.turns();
        if turns.replace(now) != Some(now) {
            reporter.beat();
        }
        tokio::time::sleep(TELL).await;
    }
}

fn described(status: &RaftStatus) -> String {
    match (status.role, status.leader) {
        (Role::Leader, _) => format!("leader in term {}", status.term),
        (_, Some(leader)) => format!("follower of coordinator {leader} in term {}", status.term),
        (_, None) => "waiting for a leader".into(),
    }
}

/// Takes no new requests, lets others drive this coordinator's groups, and waits for what is running: its own requests,
/// and other front doors' sequences on groups that nobody else can drive.
async fn drain(door: &FrontDoor, id: u64, member: Member) {
    door.draining.store(true, Ordering::Relaxed);
    let busy = || door.metrics.requests_in_progress() > 0 || door.drivers.open_sequences() > 0;
    tracing::info!(busy = busy(), "stopping");
    let command = Command::RegisterMember { id, member: Member { draining: true, ..member } };
    // Best effort: when a whole cluster stops, there may be no leader any more.
    tokio::time::timeout(REGISTER, door.cluster.propose(command)).await.ok();
    let idle = async {
        while busy() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(DRAIN, idle).await.is_err() {
        tracing::warn!("requests are still running after {DRAIN:?}; they are given up here");
    }
}

/// Says where this coordinator is, again and again until it is known.
async fn register(cluster: ClusterHandle, id: u64, member: Member) {
    let command = Command::RegisterMember { id, member };
    while cluster.propose(command.clone()).await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &std::path::Path) -> CoordinatorConfig {
        let any = "127.0.0.1:0".parse().expect("an address");
        CoordinatorConfig {
            vllm_metrics: false,
            otlp_endpoint: None,
            id: 1,
            cluster_id: "test".into(),
            peers: [(1, "127.0.0.1:1".to_owned())].into(),
            http: any,
            grpc: any,
            data_dir: dir.into(),
            token: ClusterToken::default(),
            tls: None,
            queue: 10,
            router: PolicyKind::default(),
            lease_ms: crate::driver::DEFAULT_LEASE_MS,
            speculate: crate::driver::DEFAULT_SPECULATE,
            models: Vec::new(),
            cache: None,
        }
    }

    async fn outcome(config: CoordinatorConfig) -> Result<(), CoordinatorError> {
        let ended = run(config, Reporter::default(), std::future::ready(()));
        tokio::time::timeout(Duration::from_secs(60), ended).await.expect("it stops")
    }

    #[tokio::test]
    async fn settings_that_make_no_sense_are_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let everyone = "0.0.0.0:0".parse().expect("an address");
        let nowhere = TlsFiles { certificate: "/a".into(), key: "/b".into(), ca: "/c".into() };
        for (field, wrong) in [
            ("peers", CoordinatorConfig { id: 2, ..config(dir.path()) }),
            ("http", CoordinatorConfig { http: everyone, ..config(dir.path()) }),
            ("grpc", CoordinatorConfig { grpc: everyone, ..config(dir.path()) }),
            ("queue", CoordinatorConfig { queue: 0, ..config(dir.path()) }),
            ("tls_certificate: /a: No such", CoordinatorConfig { tls: Some(nowhere), ..config(dir.path()) }),
            (
                "otlp_endpoint",
                CoordinatorConfig { otlp_endpoint: Some("nowhere".into()), ..config(dir.path()) },
            ),
        ] {
            let error = outcome(wrong).await.expect_err("refused");
            assert!(error.is_configuration());
            assert!(error.to_string().starts_with(field), "{error}");
        }
        let token = ClusterToken::new(Some("secret"));
        outcome(CoordinatorConfig { http: everyone, token, ..config(dir.path()) })
            .await
            .expect("with a token");
    }

    #[tokio::test]
    async fn it_starts_stops_and_starts_again_with_what_it_had() {
        let dir = tempfile::tempdir().expect("a folder");
        for _ in 0..2 {
            outcome(config(dir.path())).await.expect("nothing is in its way");
        }
        let of_another = CoordinatorConfig { cluster_id: "another".into(), ..config(dir.path()) };
        let error = outcome(of_another).await.expect_err("whose folder it is");
        assert!(error.is_configuration() && error.to_string().contains("belongs to"), "{error}");
        std::fs::write(dir.path().join("raft.redb"), "no store").expect("written");
        let error = outcome(config(dir.path())).await.expect_err("damaged");
        assert!(!error.is_configuration() && error.to_string().contains("raft.redb"), "{error}");
    }
}
