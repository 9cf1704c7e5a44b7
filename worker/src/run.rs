//! Starting a worker, and stopping it.

use std::future::Future;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use foggara_kernels::cuda::{Device, DeviceError};
use foggara_kernels::{Cores, Threads};
use foggara_proto::auth::ClusterToken;
use foggara_proto::condition::Reporter;
use foggara_proto::wire::files::files_server::FilesServer;
use foggara_proto::wire::worker::rank_server::RankServer;
use foggara_tls::{Dialer, FileError, Tls, TlsFiles, Trust};
use tokio::sync::mpsc;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::accelerator::DeviceChoice;
use crate::capabilities;
use crate::group::GroupHost;
use crate::models::Models;
use crate::rpc::{FilesService, MAX_MESSAGE_BYTES, RankService};
use crate::session::{Session, hello};
use crate::weights::Residence;

/// How long a worker whose device is lost goes on, for the coordinator to hear of it.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Between two looks at how it is.
const TELL: Duration = Duration::from_secs(1);

/// How to run a worker.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Coordinators to join: host:port of any of them.
    pub join: Vec<String>,
    /// Where the worker's service listens; port 0 takes any.
    pub listen: SocketAddr,
    /// Host under which others reach this worker; the listening address if not given.
    pub advertise: Option<String>,
    /// Threads that compute, and the cores that they keep to.
    pub threads: Threads,
    /// What computes.
    pub device: DeviceChoice,
    /// Where floats that need no conversion are, on the CPU.
    pub weights: Residence,
    /// Shown to coordinators and asked of them.
    pub token: ClusterToken,
    /// What is shown to coordinators, and by whom they are checked; none: plain text.
    pub tls: Option<TlsFiles>,
    /// Folders that hold models, looked through where a model does not lie at the path it is deployed with.
    pub models: Vec<PathBuf>,
    /// Where hashes of models' files are remembered; without it, for as long as the process lives.
    pub cache: Option<PathBuf>,
}

impl WorkerConfig {
    /// Whether the settings make sense, as far as they alone can tell.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<(), WorkerError> {
        let wrong = |field, reason| Err(WorkerError::Config { field, reason });
        if self.join.is_empty() {
            return wrong("join", "name at least one coordinator".into());
        }
        if self.threads.count == 0 {
            return wrong("threads", "must be at least 1".into());
        }
        if let Some(cores) = &self.threads.cores {
            let (threads, named) = (self.threads.count, cores.count());
            if threads > named {
                return wrong(
                    "threads",
                    format!("{threads}, but --cores names {named}: each has a core of its own"),
                );
            }
            let allowed =
                Cores::allowed().map_err(|reason| WorkerError::Config { field: "cores", reason })?;
            if let Some(core) = cores.not_in(&allowed) {
                return wrong(
                    "cores",
                    format!("core {core} is not one that this process may run on: {allowed}"),
                );
            }
        }
        if !self.listen.ip().is_loopback() && !self.token.is_set() {
            let token = "that needs a cluster token (--cluster-token-file)";
            return wrong("listen", format!("{} is not loopback: {token}", self.listen));
        }
        if self.listen.ip().is_unspecified() && self.advertise.is_none() {
            let host = self.listen.ip();
            return wrong("advertise", format!("others cannot reach this worker at {host}; name its host"));
        }
        Ok(())
    }
}

/// Why a worker cannot run.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// A port could not be had.
    #[error("listening on {addr}: {reason}")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// The system's answer.
        reason: String,
    },
    /// The cluster does not want this worker.
    #[error("coordinator {coordinator} refused this worker: {reason}")]
    Refused {
        /// Who.
        coordinator: String,
        /// Why.
        reason: String,
    },
    /// The device that was asked for cannot be used.
    #[error("--device: {0}")]
    Device(DeviceError),
    /// The device stopped for good. Another process may use it again.
    #[error("the GPU is lost to this process, which must be started anew: {0}")]
    DeviceLost(DeviceError),
    /// The service broke down.
    #[error("serving: {0}")]
    Serve(String),
    /// The settings make no sense.
    #[error("{field}: {reason}")]
    Config {
        /// Which setting.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl From<FileError> for WorkerError {
    fn from(FileError { field, reason }: FileError) -> Self {
        Self::Config { field, reason }
    }
}

/// Runs a worker until `shutdown` completes, the cluster refuses it or its device is lost. It is ready when it has joined.
///
/// # Errors
/// Why it could not run.
pub async fn run(
    config: WorkerConfig,
    reporter: Reporter,
    shutdown: impl Future<Output = ()>,
) -> Result<(), WorkerError> {
    config.check()?;
    let tls = config.tls.clone().map(Tls::load).transpose()?;
    let wrong =
        |addr: SocketAddr| move |e: std::io::Error| WorkerError::Listen { addr, reason: e.to_string() };
    let listener = tokio::net::TcpListener::bind(config.listen).await.map_err(wrong(config.listen))?;
    let addr = listener.local_addr().map_err(wrong(config.listen))?;
    let any_port = SocketAddr::new(config.listen.ip(), 0);
    let collective = TcpListener::bind(any_port).map_err(wrong(any_port))?;
    let collective_port = collective.local_addr().map_err(wrong(any_port))?.port();
    let host = config.advertise.clone().unwrap_or_else(|| bracketed(config.listen));
    if let Some(tls) = tls.clone() {
        tls.warn_unless_for(&format!("{host}:{}", addr.port()));
        tokio::spawn(tls.follow());
    }
    let (threads, choice) = (config.threads, config.device);
    let measured_with = threads.clone();
    let measure = move || {
        let device = choice.open()?;
        Ok((capabilities::measure(&measured_with, device.as_ref())?, device))
    };
    let measured = tokio::task::spawn_blocking(measure).await;
    let measured = measured.map_err(|e| WorkerError::Serve(format!("measuring this machine: {e}")))?;
    let (measured, device) = measured.map_err(WorkerError::Device)?;
    tracing::info!(
        %addr,
        threads = threads.count,
        cores = threads.cores.as_ref().map_or_else(|| "any".to_owned(), Cores::to_string),
        device = device.as_ref().map_or_else(|| "cpu".to_owned(), Device::name),
        cpu = measured.cpu,
        gb_per_second = measured.read_bytes_per_second as f64 / 1e9,
        cache_gb_per_second = measured.cache_bytes_per_second as f64 / 1e9,
        gflops = measured.flops as f64 / 1e9,
        "worker started"
    );
    let (news, received) = mpsc::unbounded_channel();
    let models = Models::new(config.models, config.cache);
    let read_speed = measured.read_bytes_per_second;
    let group = GroupHost::new(collective, threads, device, models.clone(), config.weights, read_speed, news);
    let session = Session {
        hello: hello(format!("{host}:{}", addr.port()), format!("{host}:{collective_port}"), measured),
        token: config.token.clone(),
        dialer: Dialer::new(tls.as_ref().map(Trust::of)),
        host: group.clone(),
        models: models.clone(),
        reporter: reporter.clone(),
        news: received,
        coordinators: config.join,
    };
    let service = RankServer::new(RankService { host: group.clone() })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let service = InterceptedService::new(service, config.token.required_of_peers());
    let files = FilesServer::new(FilesService { models });
    let files = InterceptedService::new(files, config.token.required_of_peers());
    // Said of the listener, since the server's own setting is only for listeners that it makes: reports would wait for the
    // acknowledgement of the one before, 40 ms.
    let plain = |listener| TcpIncoming::from(listener).with_nodelay(Some(true));
    let router = Server::builder().add_service(service).add_service(files);
    let serve = async {
        match tls {
            None => router.serve_with_incoming(plain(listener)).await,
            Some(tls) => router.serve_with_incoming(foggara_tls::incoming(listener, tls)).await,
        }
    };
    let lost = async {
        let error = group.device_lost().await;
        tracing::error!(%error, "the GPU is lost; this worker ends");
        tokio::time::sleep(LAST_WORDS).await;
        error
    };
    let outcome = tokio::select! {
        served = serve => served.map_err(|e| WorkerError::Serve(e.to_string())),
        refused = session.keep() => Err(refused),
        error = lost => Err(WorkerError::DeviceLost(error)),
        () = tell(&group, &reporter) => Ok(()),
        () = shutdown => Ok(()),
    };
    if matches!(outcome, Err(WorkerError::DeviceLost(_))) {
        // What is left of ranks may wait for the device for ever.
        return outcome;
    }
    // Joins the rank's thread, which may be in the middle of a step.
    tokio::task::spawn_blocking(move || group.shut_down()).await.ok();
    outcome
}

/// Says again and again that this worker is well, unless a rank hangs that it has let go.
async fn tell(group: &GroupHost, reporter: &Reporter) {
    loop {
        if !group.hangs() {
            reporter.beat();
        }
        tokio::time::sleep(TELL).await;
    }
}

fn bracketed(addr: SocketAddr) -> String {
    match addr.ip() {
        std::net::IpAddr::V6(ip) => format!("[{ip}]"),
        std::net::IpAddr::V4(ip) => ip.to_string(),
    }
}

/// The first address a name stands for.
pub(crate) fn resolve(name: &str) -> std::io::Result<SocketAddr> {
    name.to_socket_addrs()?.next().ok_or_else(|| std::io::Error::other("no address"))
}
