//! When a process ends: on SIGINT or SIGTERM, or with the process that started it.

use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, PidfdFlags, getppid, pidfd_open};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Exit;
use crate::service;

/// Whose life ends this process's.
#[derive(Debug, Clone, Args)]
pub(crate) struct LifetimeArguments {
    /// End at once when process PID, which must have started this one, ends in whatever way
    #[arg(long, value_name = "PID", hide = true)]
    exit_with_parent: Option<i32>,
}

impl LifetimeArguments {
    /// Watches the parent from a thread of its own: it works whatever the runtime is doing.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(crate) fn watch(&self) -> std::io::Result<()> {
        let Some(parent) = self.exit_with_parent.and_then(Pid::from_raw) else { return Ok(()) };
        std::thread::Builder::new().name("parent".into()).spawn(move || {
            wait_for_end(parent);
            // Everything that must be on disk is there: this is a crash that was asked for.
            std::process::exit(Exit::Failure as i32);
        })?;
        Ok(())
    }
}

/// Returns when `parent` has ended or is no parent of this process.
fn wait_for_end(parent: Pid) {
    let handle = pidfd_open(parent, PidfdFlags::empty());
    // Checked after the handle is open: if it still is the parent, the handle is the parent's.
    while getppid() == Some(parent) {
        match &handle {
            Ok(handle) => {
                let mut ended = [rustix::event::PollFd::new(handle, rustix::event::PollFlags::IN)];
                rustix::event::poll(&mut ended, None).ok();
            }
            // A kernel without pidfd (before 5.3).
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// The signals that ask a process to stop.
pub(crate) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// Takes them over. Must be called inside a runtime.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Completes with the next of them.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

/// Completes at the first stop signal; the second ends the process at once.
pub(crate) async fn stop_requested(mut signals: StopSignals) {
    let name = signals.next().await;
    service::stopping();
    tracing::info!(signal = name, "stopping; a second signal stops at once");
    tokio::spawn(async move {
        signals.next().await;
        std::process::exit(Exit::AtOnce as i32);
    });
}
