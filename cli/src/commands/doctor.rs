//! `foggara doctor`

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use foggara_worker::DeviceChoice;

use crate::doctor::{Asked, Roles, counted, examine};
use crate::model_argument::ModelArgument;
use crate::secret::TokenArguments;
use crate::tls::TlsArguments;

/// Look whether this host is fit for a coordinator or a worker, before it runs one: ports, peers, clock, disk, memory, processor,
/// GPUs, network, limits. Each finding comes with what to do. Nothing is changed. Options are those of `foggara coordinator` and
/// `foggara worker`, and say what to look at; without any, the host by itself is looked at.
///
/// Ends with 1 if there is a fault.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  foggara doctor --coordinator --id 1 --data-dir /var/lib/foggara \\\n    \
    --peers 1=10.0.0.1:8081,2=10.0.0.2:8081,3=10.0.0.3:8081 \\\n    \
    --grpc 10.0.0.1:8081 --http 10.0.0.1:8080\n  \
    foggara doctor --worker --join 10.0.0.1:8081 --listen 10.0.0.7:8082 --model /models/m.gguf\n  \
    foggara doctor --config /etc/foggara/coordinator.toml"
)]
pub(crate) struct Arguments {
    /// Look at what a coordinator needs [default: at both]
    #[arg(long)]
    coordinator: bool,
    /// Look at what a worker needs [default: at both]
    #[arg(long)]
    worker: bool,
    /// The number of the coordinator that is to run here: of --peers, this one is not asked
    #[arg(long, value_name = "N")]
    id: Option<u64>,
    /// gRPC addresses of all coordinators: whether they are there, of one version and one time, and take the token
    #[arg(long, value_delimiter = ',', value_name = "N=HOST:PORT")]
    peers: Vec<String>,
    /// Coordinators that a worker joins; the same is asked of them
    #[arg(long, value_delimiter = ',', value_name = "HOST:PORT")]
    join: Vec<String>,
    /// Where a coordinator's gRPC is to listen [default: 127.0.0.1:8081]
    #[arg(long, value_name = "ADDR")]
    grpc: Option<SocketAddr>,
    /// Where a coordinator's HTTP is to listen [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// Where a worker is to listen
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Where others are to find a worker that listens everywhere
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    /// Where a coordinator is to keep its log: room, file system, and how long a durable write takes
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// A folder that holds models; may be repeated
    #[arg(long, value_name = "DIR")]
    models: Vec<PathBuf>,
    /// A model that this host is to serve alone: whether it fits; may be repeated
    #[arg(long, value_name = "[NAME=]PATH")]
    model: Vec<ModelArgument>,
    /// What a worker is to compute on: auto, cpu, cuda or cuda:NUMBER
    #[arg(long, default_value = "auto", env = "FOGGARA_DEVICE", value_name = "DEVICE")]
    device: DeviceChoice,
    /// Read what is not given here from the process's own file, coordinator.toml or worker.toml: it is looked at as that process
    /// would use it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    token: TokenArguments,
    #[command(flatten)]
    tls: TlsArguments,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Looks and prints; fails if there is a fault.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let asked = arguments.asked()?;
    if let Some(path) = &arguments.config {
        eprintln!("looking at what {} says", path.display());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let faults = runtime.block_on(examine(&asked, arguments.json))?;
    anyhow::ensure!(faults == 0, "this host is not fit: {}", counted(faults, "fault"));
    Ok(())
}

impl Arguments {
    fn asked(&self) -> anyhow::Result<Asked> {
        let role_named = self.coordinator || self.worker;
        let roles =
            Roles { coordinator: self.coordinator || !role_named, worker: self.worker || !role_named };
        Ok(Asked {
            roles,
            role_named,
            grpc: self.grpc,
            http: self.http,
            listen: self.listen,
            advertise: self.advertise.clone(),
            data_dir: self.data_dir.clone(),
            models: self.models.clone(),
            join: self.join.clone(),
            peers: others(&self.peers, self.id, self.grpc)?,
            called: self.called(),
            tls: self.tls.clone(),
            token: self.token.token()?,
            model: self.model.iter().map(|model| model.path.clone()).collect(),
            device: self.device,
        })
    }
}

impl Arguments {
    /// Hosts under which others call what is to run here.
    fn called(&self) -> Vec<String> {
        let own = self.id.map(|id| format!("{id}="));
        let own = own.and_then(|own| self.peers.iter().find_map(|peer| peer.strip_prefix(&own)));
        let listening = [self.grpc, self.http, self.listen.filter(|_| self.advertise.is_none())];
        let listening = listening.into_iter().flatten().map(|address| address.ip());
        let mut hosts: Vec<String> =
            own.map(|own| foggara_tls::host_of(own).to_owned()).into_iter().collect();
        hosts.extend(self.advertise.clone());
        hosts.extend(listening.filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string()));
        let mut seen = std::collections::BTreeSet::new();
        hosts.retain(|host| seen.insert(host.clone()));
        hosts
    }
}

/// Addresses of the coordinators besides the one that is to run here: number `id`, or the one at `own`.
fn others(peers: &[String], id: Option<u64>, own: Option<SocketAddr>) -> anyhow::Result<Vec<String>> {
    let mut others = Vec::new();
    for peer in peers {
        let parts =
            peer.split_once('=').and_then(|(number, address)| Some((number.parse::<u64>().ok()?, address)));
        let Some((number, address)) = parts else {
            anyhow::bail!("peers: `{peer}` is not N=HOST:PORT with N from 1");
        };
        if id != Some(number) && own.is_none_or(|own| own.to_string() != address) {
            others.push(address.to_owned());
        }
    }
    Ok(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_coordinator_is_not_asked() {
        let peers = ["1=a:1", "2=10.0.0.2:1"].map(str::to_owned);
        let own = Some("10.0.0.2:1".parse().expect("valid"));
        for (id, own, expected) in [
            (None, None, &["a:1", "10.0.0.2:1"][..]),
            (Some(1), None, &["10.0.0.2:1"]),
            (None, own, &["a:1"]),
        ] {
            assert_eq!(others(&peers, id, own).expect("valid"), expected);
        }
        assert!(others(&["a:1".to_owned()], None, None).is_err());
    }
}
