//! `foggara worker`

use std::net::SocketAddr;

use clap::Args;
use foggara_proto::auth::ClusterToken;
use foggara_worker::WorkerConfig;

use crate::lifetime::{LifetimeArguments, StopSignals, stop_requested};
use crate::logging::LogArguments;

/// Run one worker. It joins the cluster, says what it can do, and loads the slice it is given.
#[derive(Debug, Args)]
#[command(
    after_help = "Example, on a machine of its own:\n  foggara worker --join 10.0.0.1:8081,10.0.0.2:8081 \\\n    \
    --listen 0.0.0.0:8082 --advertise 10.0.0.7 --cluster-token \"$TOKEN\""
)]
pub(crate) struct Arguments {
    /// gRPC address of any coordinator; more than one, in case the first is down
    #[arg(long, value_delimiter = ',', required = true, value_name = "HOST:PORT")]
    join: Vec<String>,
    /// Where this worker listens; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDR")]
    listen: SocketAddr,
    /// Host under which coordinators and other workers reach this one [default: the listening address]
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    /// Threads that compute [default: one for each core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Shown to coordinators and asked of them; needed to listen beyond loopback
    #[arg(long, env = "FOGGARA_CLUSTER_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    cluster_token: Option<String>,
    #[command(flatten)]
    log: LogArguments,
    #[command(flatten)]
    lifetime: LifetimeArguments,
}

/// Runs until a signal stops it or the cluster refuses it.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    arguments.log.start()?;
    arguments.lifetime.watch()?;
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let config = WorkerConfig {
        join: arguments.join,
        listen: arguments.listen,
        advertise: arguments.advertise,
        threads: arguments.threads.unwrap_or_else(cores),
        token: ClusterToken::new(arguments.cluster_token.as_deref()),
    };
    // The rank computes on threads of its own; messages need no more than one.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let signals = StopSignals::new()?;
        Ok(foggara_worker::run(config, stop_requested(signals)).await?)
    })
}
