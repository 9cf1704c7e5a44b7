//! The demo's `foggara up`.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};

use super::ports::{COORDINATORS, Ports};
use crate::place;
use crate::process;

/// How long a start may take: reading weights from a cold disk included.
const START: Duration = Duration::from_secs(120);

/// Ctrl-C, or whatever else asks us to end.
pub struct Stop {
    signals: [SignalStream; 3],
}

impl Stop {
    /// From now on these signals do not end this process by themselves.
    pub fn listen() -> Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [a, b, c] = kinds.map(signal);
        Ok(Self { signals: [a?, b?, c?] })
    }

    /// Completes when one has come.
    pub async fn asked(&mut self) {
        let [a, b, c] = &mut self.signals;
        tokio::select! {
            _ = a.recv() => {}
            _ = b.recv() => {}
            _ = c.recv() => {}
        }
    }
}

/// A running `foggara up`.
pub struct Cluster {
    up: Child,
    pub ports: Ports,
}

/// `foggara up` for the demo.
pub fn up_command(foggara: &Path, model: &str, ports: Ports) -> std::process::Command {
    let mut up = std::process::Command::new(foggara);
    up.args(["up", "--model", &format!("{model}={}", place::typed(&place::demo_model()))]);
    up.args(["--coordinators", &COORDINATORS.to_string(), "--workers", "2"]);
    if ports != Ports::DEFAULT {
        up.args([
            "--http",
            &format!("127.0.0.1:{}", ports.http),
            "--grpc",
            &format!("127.0.0.1:{}", ports.grpc),
        ]);
    }
    up
}

impl Cluster {
    /// Starts it and waits until it serves; `None` if the user stops the demo first.
    pub async fn start(foggara: &Path, model: &str, ports: Ports, stop: &mut Stop) -> Result<Option<Self>> {
        let command = up_command(foggara, model, ports);
        println!("$ {}", process::shown(&command));
        let mut command = Command::from(command);
        // Whatever becomes of us, no process stays behind.
        command.args(["--exit-with-parent", &std::process::id().to_string()]);
        // A group of its own: a Ctrl-C is for us, and we stop it when the chat has ended.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
        let mut up = command.spawn().context("starting `foggara up`")?;
        let mut lines = BufReader::new(up.stdout.take().context("its output")?).lines();
        let mut cluster = Self { up, ports };
        let ready = async {
            while let Some(line) = lines.next_line().await? {
                println!("{line}");
                if line.starts_with("ready ") {
                    return Ok(());
                }
            }
            bail!("`foggara up` has ended before it was ready")
        };
        let outcome = tokio::select! {
            outcome = tokio::time::timeout(START, ready) => outcome,
            () = stop.asked() => {
                cluster.stop(stop).await?;
                return Ok(None);
            }
        };
        match outcome {
            Ok(Ok(())) => Ok(Some(cluster)),
            Ok(Err(error)) => {
                cluster.stop(stop).await?;
                Err(error)
            }
            Err(_) => {
                cluster.stop(stop).await?;
                bail!("`foggara up` was not ready after {} s", START.as_secs())
            }
        }
    }

    fn send(&self, what: Signal) {
        if let Some(pid) = self.up.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            // It may have ended by itself.
            let _ = kill_process(pid, what);
        }
    }

    /// Lets it drain and end; asked again, ends it at once.
    pub async fn stop(&mut self, stop: &mut Stop) -> Result<()> {
        self.send(Signal::TERM);
        loop {
            tokio::select! {
                status = self.up.wait() => {
                    let status = status?;
                    return match status.success() {
                        true => Ok(()),
                        false => bail!("`foggara up` failed ({status})"),
                    };
                }
                () = stop.asked() => self.send(Signal::TERM),
            }
        }
    }
}
