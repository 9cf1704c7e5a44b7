//! `foggara coordinator`

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use foggara_coordinator::CoordinatorConfig;
use foggara_coordinator::driver::DEFAULT_QUEUE;
use foggara_coordinator::router::policy::PolicyKind;
use foggara_proto::condition::Reporter;

use crate::config::ConfigArguments;
use crate::endpoint::is_address;
use crate::exit::UsageError;
use crate::lifetime::{LifetimeArguments, StopSignals, stop_requested};
use crate::logging::LogArguments;
use crate::secret::TokenArguments;
use crate::service;
use crate::tls::TlsArguments;

/// Run one coordinator. Start the same command on each machine with its own --id, --grpc, --http and --data-dir.
#[derive(Debug, Args)]
#[command(
    after_help = "Example, the first of three:\n  foggara coordinator --id 1 --data-dir /var/lib/foggara \\\n    \
    --peers 1=10.0.0.1:8081,2=10.0.0.2:8081,3=10.0.0.3:8081 \\\n    \
    --grpc 10.0.0.1:8081 --http 10.0.0.1:8080 --cluster-token-file /etc/foggara/token\n\n\
    Each option has a variable (FOGGARA_DATA_DIR for --data-dir) and a key of the file that --config names\n\
    (data_dir = \"/var/lib/foggara\"). `foggara config example coordinator` prints such a file."
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// This coordinator's number, one of --peers
    #[arg(long, value_name = "N")]
    id: u64,
    /// gRPC address of every coordinator, this one included. 1, 3 or 5 of them
    #[arg(long, value_delimiter = ',', required = true, value_name = "N=HOST:PORT")]
    peers: Vec<String>,
    /// Where gRPC listens (either port answers both protocols)
    #[arg(long, default_value = "127.0.0.1:8081", value_name = "ADDR")]
    grpc: SocketAddr,
    /// Where HTTP listens
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR")]
    http: SocketAddr,
    /// Where Raft keeps its log: on a disk that survives restarts
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// A folder that holds models, each in a folder of its own or directly; may be repeated. A model that does not lie
    /// at the path it was added with is looked for here
    #[arg(long, value_name = "DIR")]
    models: Vec<PathBuf>,
    /// Where hashes of models' files are remembered [default: the data folder]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Name of the cluster; all coordinators must have the same
    #[arg(long, default_value = "foggara", value_name = "NAME")]
    cluster_id: String,
    #[command(flatten)]
    token: TokenArguments,
    #[command(flatten)]
    tls: TlsArguments,
    /// Requests that may wait for one group; more are refused with RESOURCE_EXHAUSTED / 429
    #[arg(long, default_value_t = DEFAULT_QUEUE, value_name = "N")]
    queue: usize,
    /// Which group a request goes to: prefix-aware, least-loaded or round-robin
    #[arg(long, default_value = "prefix-aware", value_name = "POLICY")]
    router_policy: PolicyKind,
    /// How long workers go on decoding when the coordinator that drives them is late or has died, in milliseconds, 0 to 60000
    #[arg(long, default_value_t = foggara_coordinator::driver::DEFAULT_LEASE_MS, value_name = "MS",
          value_parser = clap::value_parser!(u32).range(0..=60_000))]
    lease_ms: u32,
    /// Tokens guessed of a sequence in a step, from what followed its last tokens before, 0 to 32; 0: none. No token of an answer
    /// depends on it
    #[arg(long, default_value_t = foggara_coordinator::driver::DEFAULT_SPECULATE, value_name = "N",
          value_parser = clap::value_parser!(u32).range(0..=i64::from(foggara_coordinator::driver::MOST_SPECULATE)))]
    speculate: u32,
    /// Show metrics under vLLM's names, too, for dashboards and autoscalers that know those
    #[arg(long, env = "FOGGARA_VLLM_METRICS", action = clap::ArgAction::Set, default_value = "false",
          num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    vllm_metrics: bool,
    /// Where traces go: an OpenTelemetry collector that takes OTLP over gRPC, like http://collector:4317. What is sampled,
    /// OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG say [default: nowhere]
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,
    #[command(flatten)]
    log: LogArguments,
    #[command(flatten)]
    lifetime: LifetimeArguments,
}

/// Runs until a signal stops it or its store fails.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    arguments.log.start()?;
    arguments.lifetime.watch()?;
    arguments.config.tell();
    let config = arguments.settings()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (signals, reporter) = (StopSignals::new()?, Reporter::default());
        service::follow(&reporter);
        Ok(foggara_coordinator::run(config, reporter, stop_requested(signals)).await?)
    })
}

impl Arguments {
    /// What they ask for.
    ///
    /// # Errors
    /// If an address is none, or the token's file cannot be used.
    pub(crate) fn settings(self) -> Result<CoordinatorConfig, UsageError> {
        Ok(CoordinatorConfig {
            id: self.id,
            cluster_id: self.cluster_id,
            peers: parse_peers(&self.peers)?,
            http: self.http,
            grpc: self.grpc,
            data_dir: self.data_dir,
            token: self.token.token()?,
            tls: self.tls.files()?,
            queue: self.queue,
            router: self.router_policy,
            lease_ms: self.lease_ms,
            speculate: self.speculate,
            vllm_metrics: self.vllm_metrics,
            otlp_endpoint: self.otlp_endpoint.filter(|endpoint| !endpoint.is_empty()),
            models: self.models,
            cache: self.cache_dir,
        })
    }
}

fn parse_peers(peers: &[String]) -> Result<BTreeMap<u64, String>, UsageError> {
    let mut parsed = BTreeMap::new();
    for peer in peers {
        let (id, address) = peer
            .split_once('=')
            .and_then(|(id, address)| Some((id.parse::<u64>().ok()?, address)))
            .filter(|(id, address)| *id > 0 && is_address(address))
            .ok_or_else(|| UsageError(format!("peers: `{peer}` is not N=HOST:PORT with N from 1")))?;
        if parsed.insert(id, address.to_owned()).is_some() {
            return Err(UsageError(format!("peers: coordinator {id} is named twice")));
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_numbers_and_addresses() {
        let peers = |text: &str| parse_peers(&text.split(',').map(str::to_owned).collect::<Vec<_>>());
        let two = peers("1=a:1,2=b:2").expect("valid");
        assert_eq!(two, BTreeMap::from([(1, "a:1".to_owned()), (2, "b:2".to_owned())]));
        for bad in ["", "a:1", "0=a:1", "x=a:1", "1=a", "1=a:1,1=b:1", "1=a:x", "1=:1", "1=a:70000"] {
            assert!(peers(bad).is_err(), "{bad}");
        }
    }
}
