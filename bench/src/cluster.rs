//! A cluster of our own: `foggara up` on free ports, in a temporary folder.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::args::TargetArgs;

/// After this a start or a stop has failed.
const PATIENCE: Duration = Duration::from_secs(120);
/// Coordinator `i` listens this many ports further (times `i`).
const PORT_STEP: u16 = 10;

/// Running processes; killed when dropped, stopped in good order by [`Cluster::stop`].
pub(crate) struct Cluster {
    up: Child,
    /// gRPC address of the first coordinator.
    pub(crate) grpc: String,
    /// Seconds from starting the program to its `ready` line.
    pub(crate) ready_seconds: f64,
    // Removed after the processes are gone.
    _folder: TempDir,
}

impl Cluster {
    /// Starts one and waits until it is ready.
    pub(crate) async fn start(args: &TargetArgs) -> Result<Self> {
        let options = [("--workers", args.workers.to_string()), ("--tp", args.workers.to_string())];
        Self::with(args, &options).await
    }

    /// The same with workers in another shape, or other `options` of `foggara up`.
    pub(crate) async fn with(args: &TargetArgs, options: &[(&str, String)]) -> Result<Self> {
        Self::in_environment(args, options, &[]).await
    }

    /// The same with these variables in the environment of its processes.
    pub(crate) async fn in_environment(
        args: &TargetArgs,
        options: &[(&str, String)],
        environment: &[(&str, String)],
    ) -> Result<Self> {
        let program = program(args)?;
        let model = args.model_path().context("a cluster needs a --model")?;
        ensure!(
            model.exists(),
            "there is no {} (`cargo xtask setup` fetches the demo model)",
            model.display()
        );
        let folder = TempDir::with_prefix("foggara-bench-")?;
        let log = folder.path().join("up.log");
        let (http, grpc) = free_ports(args.coordinators)?;
        let mut command = Command::new(&program);
        command.arg("up").arg("--model").arg(&model);
        command.envs(environment.iter().map(|(name, value)| (*name, value)));
        for (option, value) in [
            ("--coordinators", args.coordinators.to_string()),
            ("--threads", args.threads.to_string()),
            ("--collective", args.collective.clone()),
            ("--http", format!("127.0.0.1:{http}")),
            ("--grpc", format!("127.0.0.1:{grpc}")),
        ] {
            command.arg(option).arg(value);
        }
        for (option, value) in options {
            command.arg(option).arg(value);
        }
        for (option, value) in &args.up {
            command.arg(option).arg(value);
        }
        let said = |name: &str| {
            options.iter().any(|(option, _)| *option == name)
                || args.up.iter().any(|(option, _)| option == name)
        };
        // Small models fall into repeating themselves after random prompts: figures are to be of steps. Another program may be an older
        // one, which knows of no guesses.
        if args.foggara.is_none() && !said("--speculate") {
            command.args(["--speculate", "0"]);
        }
        command.arg("--data-dir").arg(folder.path().join("data"));
        command.args(["--exit-with-parent", &std::process::id().to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(std::fs::File::create(&log)?);
        let started = Instant::now();
        let mut up =
            command.kill_on_drop(true).spawn().with_context(|| format!("starting {}", program.display()))?;
        let stdout = up.stdout.take().context("its output is piped")?;
        let mut lines = BufReader::new(stdout).lines();
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await;
        let ready_seconds = started.elapsed().as_secs_f64();
        match line {
            Ok(Ok(Some(line))) if line.starts_with("ready ") => {
                let grpc = format!("http://127.0.0.1:{grpc}");
                Ok(Self { up, grpc, ready_seconds, _folder: folder })
            }
            other => bail!("foggara up did not get ready ({other:?}); its messages end:\n{}", tail(&log)),
        }
    }

    /// Process id of the supervisor.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.up.id()
    }

    /// Asks it to stop, and waits.
    pub(crate) async fn stop(mut self) -> Result<()> {
        let pid = self.up.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        kill_process(pid.context("foggara up has ended already")?, Signal::TERM)?;
        let ended = tokio::time::timeout(PATIENCE, self.up.wait()).await;
        let status = ended.context("foggara up does not stop")??;
        ensure!(status.success(), "foggara up ended with {status}");
        Ok(())
    }
}

/// `foggara`, beside this program unless told otherwise.
pub(crate) fn program(args: &TargetArgs) -> Result<PathBuf> {
    if let Some(given) = &args.foggara {
        return Ok(given.clone());
    }
    let beside = std::env::current_exe()?.with_file_name("foggara");
    ensure!(beside.exists(), "there is no {} (`cargo build --release` makes it)", beside.display());
    Ok(beside)
}

/// Two ports such that all coordinators' ports are free.
pub(crate) fn free_ports(coordinators: usize) -> Result<(u16, u16)> {
    let free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    for _ in 0..100 {
        let http = free(0)?.local_addr()?.port();
        let Some(grpc) = http.checked_add(1) else { continue };
        let count = u16::try_from(coordinators).context("too many coordinators")?;
        let all = (0..count).flat_map(|i| [http.checked_add(i * PORT_STEP), grpc.checked_add(i * PORT_STEP)]);
        if all.into_iter().all(|port| port.is_some_and(|port| free(port).is_ok())) {
            return Ok((http, grpc));
        }
    }
    bail!("no free ports for {coordinators} coordinators")
}

pub(crate) fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
