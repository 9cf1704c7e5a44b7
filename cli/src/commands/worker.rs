//! `foggara worker`

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use foggara_kernels::{Cores, Threads};
use foggara_proto::condition::Reporter;
use foggara_worker::weights::Residence;
use foggara_worker::{DeviceChoice, WorkerConfig};

use crate::config::ConfigArguments;
use crate::endpoint::is_address;
use crate::exit::UsageError;
use crate::lifetime::{LifetimeArguments, StopSignals, stop_requested};
use crate::logging::LogArguments;
use crate::secret::TokenArguments;
use crate::service;
use crate::tls::TlsArguments;

/// Run one worker. It joins the cluster, says what it can do, and loads the slice it is given.
#[derive(Debug, Args)]
#[command(
    after_help = "Example, on a machine of its own:\n  foggara worker --join 10.0.0.1:8081,10.0.0.2:8081 \\\n    \
    --listen 0.0.0.0:8082 --advertise 10.0.0.7 --cluster-token-file /etc/foggara/token\n\n\
    Each option has a variable (FOGGARA_CACHE_DIR for --cache-dir) and a key of the file that --config names\n\
    (cache_dir = \"/var/cache/foggara\"). `foggara config example worker` prints such a file."
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// gRPC address of any coordinator; more than one, in case the first is down
    #[arg(long, value_delimiter = ',', required = true, value_name = "HOST:PORT")]
    join: Vec<String>,
    /// Where this worker listens; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDR")]
    listen: SocketAddr,
    /// Host under which coordinators and other workers reach this one [default: the listening address]
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    /// Threads that compute [default: one for each core, of those that --cores names if it does]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Cores that these threads keep to, one each, in this order, as in 0-7,16: for machines whose cores differ in what memory is near,
    /// or that run something else [default: where the system puts them]
    #[arg(long, value_name = "LIST")]
    cores: Option<Cores>,
    /// What computes: auto (the first GPU, if there is one), cpu, cuda or cuda:NUMBER
    #[arg(long, default_value = "auto", env = "FOGGARA_DEVICE", value_name = "DEVICE")]
    device: DeviceChoice,
    /// Where weights are that are stored as floats and need no conversion: mapped (used where they lie in their files: a start
    /// takes no time, and workers on a machine share them), copied (for files on file systems that are slow or not to be relied on,
    /// such as NFS) or auto (mapped at first, and repacked in memory while the worker serves, which is faster from then on)
    #[arg(long, default_value = "auto", env = "FOGGARA_WEIGHTS", value_name = "WHERE")]
    weights: Residence,
    /// A folder that holds models, each in a folder of its own or directly; may be repeated. A model that does not lie
    /// at the path it was added with is looked for here
    #[arg(long, value_name = "DIR")]
    models: Vec<PathBuf>,
    /// Where hashes of models' files are remembered, so that they are not read again at each start
    /// [default: $XDG_CACHE_HOME/foggara or ~/.cache/foggara]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    #[command(flatten)]
    token: TokenArguments,
    #[command(flatten)]
    tls: TlsArguments,
    #[command(flatten)]
    log: LogArguments,
    #[command(flatten)]
    lifetime: LifetimeArguments,
}

/// The user's place for what can be made again (XDG base directory specification).
fn cache_dir() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")));
    cache.map(|cache| cache.join("foggara"))
}

/// Runs until a signal stops it or the cluster refuses it.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    arguments.log.start()?;
    arguments.lifetime.watch()?;
    arguments.config.tell();
    let config = arguments.settings()?;
    // The rank computes on threads of its own; messages need no more than one.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let (signals, reporter) = (StopSignals::new()?, Reporter::default());
        service::follow(&reporter);
        Ok(foggara_worker::run(config, reporter, stop_requested(signals)).await?)
    })
}

impl Arguments {
    /// What they ask for.
    ///
    /// # Errors
    /// If an address is none, or the token's file cannot be used.
    pub(crate) fn settings(self) -> Result<WorkerConfig, UsageError> {
        if let Some(wrong) = self.join.iter().find(|address| !is_address(address)) {
            return Err(UsageError(format!("join: `{wrong}` is not HOST:PORT")));
        }
        let all = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let named = self.cores.as_ref().map(Cores::count);
        Ok(WorkerConfig {
            join: self.join,
            listen: self.listen,
            advertise: self.advertise,
            threads: Threads { count: self.threads.or(named).unwrap_or_else(all), cores: self.cores },
            device: self.device,
            weights: self.weights,
            token: self.token.token()?,
            tls: self.tls.files()?,
            models: self.models,
            cache: self.cache_dir.or_else(cache_dir),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    /// Threads, and what is said against the settings.
    fn settings(flags: &str) -> (usize, String) {
        let line = ["worker", "--join", "127.0.0.1:1"].into_iter().chain(flags.split_whitespace());
        let settings = Line::try_parse_from(line).expect(flags).arguments.settings().expect(flags);
        (settings.threads.count, settings.check().err().map_or_else(String::new, |e| e.to_string()))
    }

    #[test]
    fn threads_have_cores_that_there_are() {
        let allowed = Cores::allowed().expect("the system says");
        let first = allowed.part(0, 1).expect("at least one");
        assert_eq!(settings(&format!("--cores {first}")), (1, String::new()));
        assert_eq!(settings(&format!("--cores {allowed}")), (allowed.count(), String::new()));
        assert_eq!(settings(&format!("--cores {allowed} --threads 1")), (1, String::new()));
        let error = settings(&format!("--cores {first} --threads 2")).1;
        assert!(error.starts_with("threads: 2, but --cores names 1"), "{error}");
        let error = settings("--cores 1023").1;
        assert!(
            error.starts_with("cores: core 1023 is not one") && error.ends_with(&allowed.to_string()),
            "{error}"
        );
        assert!(Line::try_parse_from(["worker", "--join", "a:1", "--cores", "x"]).is_err());
    }
}
