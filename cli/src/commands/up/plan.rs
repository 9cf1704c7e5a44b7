//! From flags to the processes to run: everything is checked here, before anything starts.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, ensure};
use foggara_kernels::Cores;
use foggara_kernels::cuda::doctor::usable;
use foggara_models::Quantize;
use foggara_proto::auth::ClusterToken;
use foggara_proto::shape::Shape;
use foggara_proto::wire::admin as wire;

use super::{Arguments, devices};
use crate::endpoint::Caller;
use crate::exit::UsageError;
use crate::supervisor::Spec;

/// Between the ports of one coordinator and of the next.
const PORT_STEP: u16 = 10;
const MAX_WORKERS: u32 = 64;
/// Workers, where nothing asks for more.
const DEFAULT_WORKERS: u32 = 2;

/// What to run.
pub(super) struct Plan {
    pub(super) coordinators: Vec<Spec>,
    pub(super) workers: Vec<Spec>,
    pub(super) deployments: Vec<wire::Deployment>,
    pub(super) adapters: Vec<wire::Adapter>,
    /// gRPC address of each coordinator.
    pub(super) grpc: Vec<SocketAddr>,
    http: SocketAddr,
    pub(super) token: ClusterToken,
    /// How the coordinators are called.
    pub(super) caller: Caller,
    /// Whether the processes speak TLS.
    secure: bool,
    pub(super) logs: PathBuf,
    /// What is to be said before the start.
    pub(super) notes: Vec<String>,
    /// Removed at the end.
    temporary: Option<PathBuf>,
}

impl Plan {
    /// The line that says where to go.
    pub(super) fn ready_line(&self) -> String {
        let models = self.deployments.iter().map(|deployment| deployment.name.as_str());
        let adapters = self.adapters.iter().map(|adapter| adapter.name.as_str());
        let names: Vec<&str> = models.chain(adapters).collect();
        let s = if self.secure { "s" } else { "" };
        format!("ready http{s}://{} grpc{s}://{} models {}", self.http, self.grpc[0], names.join(","))
    }

    /// Removes what was made for this run only.
    pub(super) fn clean_up(&self) {
        if let Some(folder) = &self.temporary {
            // Left behind at worst.
            std::fs::remove_dir_all(folder).ok();
        }
    }
}

/// Checks the flags and plans the processes.
pub(super) fn plan(a: &Arguments) -> anyhow::Result<Plan> {
    let Size { workers, shape } = check(a)?;
    // Everything is on this machine.
    a.model.iter().try_for_each(|model| model.absolute().map(drop))?;
    let deployments: Vec<_> =
        a.model.iter().map(|model| a.shape.deployment(model, shape)).collect::<anyhow::Result<_>>()?;
    for deployment in &deployments {
        let model = foggara_models::Checkpoint::open(Path::new(&deployment.model_path)).context("model")?;
        let experts = model.spec().moe_layers().map(|(_, experts)| experts.count).max().unwrap_or(0);
        shape.check_model(model.spec().layers.len(), experts)?;
    }
    let adapters = adapters(a)?;
    let devices = devices::choose(a.device, workers, usable)?;
    let quantize: Quantize = a.shape.quantize.parse().map_err(|reason: String| anyhow!(reason))?;
    ensure!(
        devices.gpus > 0 || !quantize.needs_gpu(),
        "quantize: {quantize} weights are computed on GPUs only, and there is none to use; use q8_0"
    );
    let addresses = addresses(a)?;
    let tls = tls(a)?;
    let temporary = a.data_dir.is_none();
    let folder = match &a.data_dir {
        Some(folder) => folder.clone(),
        None => std::env::temp_dir().join(format!("foggara-{}", std::process::id())),
    };
    let logs = folder.join("logs");
    std::fs::create_dir_all(&logs).with_context(|| format!("data-dir {}", folder.display()))?;
    let folder = folder.canonicalize()?;
    let logs = folder.join("logs");
    let peers: Vec<String> =
        addresses.iter().enumerate().map(|(i, (_, grpc))| format!("{}={grpc}", i + 1)).collect();
    let peers = peers.join(",");
    let join: Vec<String> = addresses.iter().map(|(_, grpc)| grpc.to_string()).collect();
    let mut environment = vec![("FOGGARA_LOG".to_owned(), a.log.clone())];
    environment.extend(a.token.text()?.map(|token| ("FOGGARA_CLUSTER_TOKEN".to_owned(), token)));
    let spec = |name: String, mut arguments: Vec<String>, more: Vec<String>| {
        arguments.extend(more);
        let log = logs.join(format!("{}.log", name.replace(' ', "-")));
        Spec { name, program: None, forever: false, arguments, environment: environment.clone(), log }
    };
    let cache = folder.join("cache").to_string_lossy().into_owned();
    let mut common = vec!["--cache-dir".to_owned(), cache];
    for folder in parents(&deployments) {
        common.extend(["--models".to_owned(), folder]);
    }
    common.extend(tls.iter().flat_map(|(option, path)| [option.to_string(), path.clone()]));
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let coordinators = addresses.iter().enumerate().map(|(i, (http, grpc))| {
        let id = (i + 1).to_string();
        let data = folder.join(format!("coordinator-{id}")).to_string_lossy().into_owned();
        let (http, grpc, queue) = (http.to_string(), grpc.to_string(), a.queue.to_string());
        let router = a.router_policy.to_string();
        let mut flags = words(&["--http", &http, "--grpc", &grpc, "--data-dir", &data]);
        let (lease, speculate) = (a.lease_ms.to_string(), a.speculate.to_string());
        flags.extend(words(&["--queue", &queue, "--router-policy", &router]));
        flags.extend(words(&["--lease-ms", &lease, "--speculate", &speculate]));
        flags.extend(common.iter().cloned());
        spec(format!("coordinator {id}"), words(&["coordinator", "--id", &id, "--peers", &peers]), flags)
    });
    let threads = a.threads.unwrap_or_else(|| (cores() / workers as usize).max(1));
    let pinned = if a.pin { pinned(&allowed()?, workers, threads)? } else { Vec::new() };
    let threads = threads.to_string();
    let listen = SocketAddr::new(a.grpc.ip(), 0).to_string();
    let workers = (1..=workers).map(|i| {
        let mut flags = words(&["--listen", &listen, "--threads", &threads]);
        flags.extend(common.iter().cloned());
        flags.extend(
            pinned
                .get(i as usize - 1)
                .into_iter()
                .flat_map(|cores| ["--cores".to_owned(), cores.to_string()]),
        );
        flags.extend(devices.of(i).into_iter().flat_map(|device| ["--device".to_owned(), device]));
        spec(format!("worker {i}"), words(&["worker", "--join", &join.join(",")]), flags)
    });
    Ok(Plan {
        coordinators: coordinators.collect(),
        workers: workers.collect(),
        deployments,
        adapters,
        grpc: addresses.iter().map(|(_, grpc)| *grpc).collect(),
        http: a.http,
        token: a.token.token()?,
        caller: Caller::trusting(a.tls.ca()),
        secure: !tls.is_empty(),
        logs,
        notes: devices.note.iter().cloned().collect(),
        temporary: temporary.then_some(folder),
    })
}

/// Options about TLS that all processes get, with whole paths; none for plain text.
fn tls(a: &Arguments) -> anyhow::Result<Vec<(&'static str, String)>> {
    let Some(files) = a.tls.files()? else { return Ok(Vec::new()) };
    foggara_tls::Tls::load(files.clone()).map_err(UsageError::from)?;
    let options =
        [("--tls-certificate", files.certificate), ("--tls-key", files.key), ("--tls-ca", files.ca)];
    let whole = |(option, path): (&'static str, PathBuf)| {
        Ok((option, std::path::absolute(path)?.to_string_lossy().into_owned()))
    };
    options.into_iter().map(whole).collect()
}

/// The folders in which the models lie.
fn parents(deployments: &[wire::Deployment]) -> BTreeSet<String> {
    let parent =
        |d: &wire::Deployment| Path::new(&d.model_path).parent().map(|p| p.to_string_lossy().into_owned());
    deployments.iter().filter_map(parent).collect()
}

/// The adapters of the one model.
fn adapters(a: &Arguments) -> anyhow::Result<Vec<wire::Adapter>> {
    let [model] = &a.model[..] else {
        ensure!(
            a.adapter.is_empty(),
            "adapter: there are {} models; add adapters with `foggara adapter add` when these are served",
            a.model.len()
        );
        return Ok(Vec::new());
    };
    a.adapter.iter().map(|adapter| adapter.of(&model.name)).collect()
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn allowed() -> anyhow::Result<Cores> {
    Cores::allowed().map_err(|reason| anyhow::anyhow!("pin: {reason}"))
}

/// Cores of each worker.
fn pinned(allowed: &Cores, workers: u32, threads: usize) -> anyhow::Result<Vec<Cores>> {
    let (workers, there) = (workers as usize, allowed.count());
    let parts =
        (0..workers).map(|i| allowed.part(i.saturating_mul(threads), threads)).collect::<Option<Vec<_>>>();
    parts.with_context(|| {
        format!(
            "pin: workers {workers} × threads {threads} need {} cores, there are {there}",
            workers.saturating_mul(threads)
        )
    })
}

/// How many workers there are, and how they hold one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    workers: u32,
    shape: Shape,
}

/// Refuses everything that can be known to be wrong from the flags alone.
fn check(a: &Arguments) -> anyhow::Result<Size> {
    ensure!(matches!(a.coordinators, 1 | 3 | 5), "coordinators: {}, must be 1, 3 or 5", a.coordinators);
    for (field, value) in [("dp", a.dp), ("pp", a.pp), ("ep", a.ep)] {
        ensure!(value > 0, "{field}: must be at least 1");
    }
    ensure!(a.threads != Some(0), "threads: must be at least 1");
    ensure!(a.queue > 0, "queue: must be at least 1");
    ensure!(a.shape.replicas > 0, "replicas: must be at least 1");
    ensure!(a.tp != Some(0), "tp: must be at least 1");
    for (i, model) in a.model.iter().enumerate() {
        let same = a.model[..i].iter().any(|other| other.name == model.name);
        ensure!(!same, "model: two are called `{}`; write NAME=PATH", model.name);
    }
    let models = u32::try_from(a.model.len()).unwrap_or(u32::MAX);
    let replicas = a.shape.replicas.saturating_mul(models);
    let wish = Shape { tp: a.tp.unwrap_or(1), dp: a.dp, pp: a.pp, ep: 1 };
    // Of one replica, where nothing more is known.
    let ranks = wish.ranks();
    let least = replicas.saturating_mul(ranks);
    let workers = a.workers.unwrap_or(DEFAULT_WORKERS.max(least));
    ensure!((1..=MAX_WORKERS).contains(&workers), "workers: {workers}, must be 1 to {MAX_WORKERS}");
    ensure!(
        least <= workers,
        "workers: {workers}, but {least} are needed (models {models} × replicas {} × tp {} × dp {} × pp {})",
        a.shape.replicas,
        wish.tp,
        a.dp,
        a.pp
    );
    let tp = a.tp.unwrap_or(workers / replicas / (a.dp * a.pp));
    let shape = Shape { tp, ep: a.ep, ..wish };
    shape.check()?;
    Ok(Size { workers, shape })
}

/// HTTP and gRPC address of each coordinator; all must be free.
fn addresses(a: &Arguments) -> anyhow::Result<Vec<(SocketAddr, SocketAddr)>> {
    let token = a.token.token()?;
    let mut listeners = Vec::new();
    let mut address = |field: &str, first: SocketAddr, i: u16| -> anyhow::Result<SocketAddr> {
        ensure!(
            first.ip().is_loopback() || token.is_set(),
            "{field}: {first} is not loopback: that needs a cluster token (--cluster-token)"
        );
        ensure!(first.port() > 0, "{field}: name a port; the coordinators must know each other's");
        let port = i.checked_mul(PORT_STEP).and_then(|offset| first.port().checked_add(offset));
        let port = port.with_context(|| {
            format!("{field}: port {} leaves none for coordinator {}", first.port(), i + 1)
        })?;
        let address = SocketAddr::new(first.ip(), port);
        let listener = TcpListener::bind(address).with_context(|| {
            format!("{field}: {address} cannot be had; choose other ports with --http and --grpc")
        })?;
        // Kept until all are checked, so that no two are the same.
        listeners.push(listener);
        Ok(address)
    };
    (0..a.coordinators).map(|i| Ok((address("http", a.http, i)?, address("grpc", a.grpc, i)?))).collect()
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

    fn outcome(flags: &str) -> Result<(u32, u32), String> {
        let line = Line::try_parse_from(std::iter::once("up").chain(flags.split_whitespace()));
        let size = check(&line.map_err(|e| e.to_string())?.arguments);
        size.map(|size| (size.workers, size.shape.tp)).map_err(|e| e.to_string())
    }

    #[test]
    fn workers_and_tp_follow_from_each_other() {
        for (flags, workers, tp) in [
            ("--model a.gguf", 2, 2),
            ("--model a.gguf --tp 1", 2, 1),
            ("--model a.gguf --tp 3", 3, 3),
            ("--model a.gguf --workers 3", 3, 3),
            ("--model a.gguf --workers 4 --replicas 2", 4, 2),
            ("--model a.gguf --replicas 3", 3, 1),
            ("--model a.gguf --model b.gguf --workers 2", 2, 1),
            ("--model a.gguf --workers 5 --tp 2 --replicas 2", 5, 2),
            ("--model a.gguf --workers 8 --dp 2 --pp 2", 8, 2),
            ("--model a.gguf --workers 8 --dp 2 --replicas 2", 8, 2),
            ("--model a.gguf --tp 2 --pp 3", 6, 2),
            ("--model a.gguf --dp 4", 4, 1),
            ("--model a.gguf --workers 4 --dp 2 --ep 4", 4, 2),
        ] {
            assert_eq!(outcome(flags), Ok((workers, tp)), "{flags}");
        }
    }

    #[test]
    fn each_worker_has_cores_of_its_own() {
        let allowed: Cores = "0-2,8-9".parse().expect("a list");
        let parts = |workers, threads| {
            pinned(&allowed, workers, threads)
                .map(|parts| parts.iter().map(Cores::to_string).collect::<Vec<_>>().join(" "))
                .map_err(|e| e.to_string())
        };
        assert_eq!(parts(2, 2).as_deref(), Ok("0-1 2,8"));
        assert_eq!(parts(5, 1).as_deref(), Ok("0 1 2 8 9"));
        let error = parts(2, 3).expect_err("too many");
        assert!(error.starts_with("pin:") && error.contains("need 6 cores, there are 5"), "{error}");
    }

    #[test]
    fn what_cannot_work_names_its_flag() {
        for (flags, field) in [
            ("--model a.gguf --coordinators 2", "coordinators"),
            ("--model a.gguf --workers 0", "workers"),
            ("--model a.gguf --workers 2 --tp 3", "workers"),
            ("--model a.gguf --tp 65", "workers"),
            ("--model a.gguf --tp 0", "tp"),
            ("--model a.gguf --workers 2 --replicas 3", "workers"),
            ("--model a.gguf --replicas 0", "replicas"),
            ("--model a.gguf --pp 0", "pp"),
            ("--model a.gguf --workers 4 --tp 2 --dp 2 --pp 2", "workers"),
            ("--model a.gguf --tp 2 --ep 4", "ep"),
            ("--model a.gguf --tp 2 --ep 0", "ep"),
            ("--model a.gguf --threads 0", "threads"),
            ("--model a.gguf --model x/a.gguf", "model"),
        ] {
            let error = outcome(flags).expect_err(flags);
            assert!(error.starts_with(&format!("{field}:")), "{flags}: {error}");
        }
    }
}
