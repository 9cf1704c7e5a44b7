//! `cargo xtask demo`.

mod cluster;
mod next_steps;
mod ports;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitStatus;

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use crate::place;
use crate::process;
use crate::setup::{self, Purpose};
use cluster::{Cluster, Stop};

/// The name the demo model is served under.
const MODEL: &str = "smollm2-135m-instruct";

/// Start a cluster on this machine and chat with it.
///
/// Sets up what is missing, builds foggara, starts three coordinators and two workers (each a process of its own, on
/// loopback only), streams one answer, and shows what to try next. On a terminal it then stays as a chat; Ctrl-C stops
/// everything. Elsewhere it stops after the answer.
#[derive(clap::Args)]
pub struct Arguments {
    /// What to ask.
    #[arg(default_value = "Why is the sky blue? Answer in two sentences.")]
    question: String,
}

/// How the demo went on.
enum Ending {
    Done,
    Interrupted,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    setup::run(Purpose::Demo)?;
    println!("\nBuilding foggara:");
    process::run(&mut process::build(&["foggara"]))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(show(arguments))
}

async fn show(arguments: &Arguments) -> Result<()> {
    let mut stop = Stop::listen()?;
    let foggara = place::built("foggara")?;
    let ports = ports::free()?;
    println!("\nStarting 3 coordinators and 2 workers:");
    let Some(mut cluster) = Cluster::start(&foggara, MODEL, ports, &mut stop).await? else { return Ok(()) };
    let outcome = tour(&foggara, &cluster, arguments, &mut stop).await;
    println!("\nStopping the cluster.");
    cluster.stop(&mut stop).await?;
    outcome.map(drop)
}

/// Everything between ready and the end.
async fn tour(
    foggara: &PathBuf,
    cluster: &Cluster,
    arguments: &Arguments,
    stop: &mut Stop,
) -> Result<Ending> {
    let client = |words: &[&str]| {
        let mut command = Command::new(foggara);
        command.args(words).args(cluster.ports.endpoint_option()).kill_on_drop(true);
        command
    };
    println!();
    if let Ending::Interrupted = step(client(&["status"]), stop).await? {
        return Ok(Ending::Interrupted);
    }
    println!();
    let mut chat = client(&["chat", "--temperature", "0", "--max-tokens", "200"]);
    chat.arg(&arguments.question);
    if let Ending::Interrupted = step(chat, stop).await? {
        return Ok(Ending::Interrupted);
    }
    let stays = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    println!("\n{}", next_steps::text(foggara, MODEL, cluster, stays));
    if !stays {
        return Ok(Ending::Done);
    }
    // A model this small talks nonsense at the usual temperature.
    let conversation = client(&["chat", "--temperature", "0.3", "--top-p", "0.9", "--max-tokens", "200"]);
    let status = wait(conversation, stop).await?;
    Ok(status.map_or(Ending::Interrupted, |_| Ending::Done))
}

/// Shows a command, runs it, expects success.
async fn step(command: Command, stop: &mut Stop) -> Result<Ending> {
    let shown = process::shown(command.as_std());
    println!("$ {shown}");
    match wait(command, stop).await? {
        None => Ok(Ending::Interrupted),
        Some(status) if status.success() => Ok(Ending::Done),
        Some(status) => bail!("`{shown}` failed ({status})"),
    }
}

/// Runs a command to its end; `None` if the user stops the demo first.
async fn wait(mut command: Command, stop: &mut Stop) -> Result<Option<ExitStatus>> {
    let shown = process::shown(command.as_std());
    let mut child = command.spawn().with_context(|| format!("starting `{shown}`"))?;
    tokio::select! {
        status = child.wait() => Ok(Some(status?)),
        () = stop.asked() => Ok(None),
    }
}
