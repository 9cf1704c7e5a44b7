//! `foggara`: one binary for every process of a cluster and for everyone who talks to one.
//!
//! Each subcommand is a thin file in [`commands`] over the crates that do the work.
#![forbid(unsafe_code)]

mod answer;
mod commands;
mod config;
mod doctor;
#[cfg(test)]
mod documented_tests;
mod endpoint;
mod exit;
mod lifetime;
mod logging;
mod model_argument;
mod output;
mod secret;
mod service;
mod supervisor;
mod tls;

use std::process::ExitCode;

/// glibc's keeps what a crowd of requests took; `.cargo/config.toml` tells this one to give it back.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use foggara_proto::version::Build;

/// An inference cluster for large language models that a team can own.
#[derive(Debug, Parser)]
#[command(name = "foggara", version = Build::own().version, propagate_version = true, max_term_width = 100)]
#[command(
    after_help = "Start here:\n  foggara up --model model.gguf        a whole cluster on this machine\n  \
    foggara chat \"Why is the sky blue?\"  ask it\n  foggara status                       see it"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole cluster on this machine: coordinators and workers as separate, supervised processes
    Up(commands::up::Arguments),
    /// Run one coordinator: Raft member, front door (gRPC and OpenAI HTTP), drivers of groups
    Coordinator(commands::coordinator::Arguments),
    /// Run one worker: it joins a cluster and holds one rank's slice of a model
    Worker(commands::worker::Arguments),
    /// Keep the coordinator and the workers running that a folder has files for, where no systemd does
    Supervise(commands::supervise::Arguments),
    /// Chat with a model in the terminal, or ask one question
    Chat(commands::chat::Arguments),
    /// Continue a prompt
    Generate(commands::generate::Arguments),
    /// Go on with an answer that the cluster is giving, from any coordinator
    Attach(commands::attach::Arguments),
    /// Print how likely a model finds a text: token log-probabilities and perplexity
    Score(commands::score::Arguments),
    /// Show coordinators, workers, groups, deployments and adapters
    Status(commands::status::Arguments),
    /// Watch groups, batches, KV cache, tokens per second and where each rank's time goes, live
    Top(commands::top::Arguments),
    /// Show where the time of a recent request went: queue, prefill, each slow token and what was beside it
    Trace(commands::trace::Arguments),
    /// Look whether this host is fit for a coordinator or a worker, and say what to do where it is not
    Doctor(commands::doctor::Arguments),
    /// Add, list and remove the models a cluster serves
    Models(commands::models::Arguments),
    /// Add, list and remove low-rank (LoRA) adapters, which are served beside models
    Adapter(commands::adapter::Arguments),
    /// Make certificates for the processes of a cluster, and the authority that signs them
    Certificates(commands::certificates::Arguments),
    /// Check configuration files of coordinators and workers, and print what can be in them
    Config(commands::config::Arguments),
    /// Print a shell's completions of this command line
    Completions(commands::completions::Arguments),
    /// Write manual pages into a folder
    #[command(hide = true)]
    Manual(commands::manual::Arguments),
}

/// The whole command line, as every process and every page of documentation has it.
fn command_line() -> clap::Command {
    config::with_variables(Arguments::command())
}

/// Reads the command line; ends the process if it makes no sense, or only asks for help.
fn arguments() -> Result<Arguments, config::FileError> {
    let words: Vec<_> = std::env::args_os().collect();
    let matches = config::read(command_line(), &words)?.unwrap_or_else(|error| error.exit());
    let arguments = Arguments::from_arg_matches(&matches);
    Ok(arguments.unwrap_or_else(|error| error.format(&mut command_line()).exit()))
}

fn main() -> ExitCode {
    let command = match arguments() {
        Ok(arguments) => arguments.command,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(exit::Exit::Usage as u8);
        }
    };
    let outcome = match command {
        Command::Up(arguments) => commands::up::run(arguments),
        Command::Coordinator(arguments) => commands::coordinator::run(arguments),
        Command::Worker(arguments) => commands::worker::run(arguments),
        Command::Supervise(arguments) => commands::supervise::run(arguments),
        Command::Chat(arguments) => commands::chat::run(arguments),
        Command::Generate(arguments) => commands::generate::run(arguments),
        Command::Attach(arguments) => commands::attach::run(arguments),
        Command::Score(arguments) => commands::score::run(&arguments),
        Command::Status(arguments) => commands::status::run(&arguments),
        Command::Top(arguments) => commands::top::run(&arguments),
        Command::Trace(arguments) => commands::trace::run(&arguments),
        Command::Doctor(arguments) => commands::doctor::run(&arguments),
        Command::Models(arguments) => commands::models::run(arguments),
        Command::Adapter(arguments) => commands::adapter::run(arguments),
        Command::Certificates(arguments) => commands::certificates::run(&arguments),
        Command::Config(arguments) => commands::config::run(&arguments),
        Command::Completions(arguments) => commands::completions::run(&arguments),
        Command::Manual(arguments) => commands::manual::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::from(exit::Exit::Success as u8),
        // The reader has what it wanted (`foggara status | head`).
        Err(error) if output::is_broken_pipe(&error) => ExitCode::from(exit::Exit::Success as u8),
        Err(error) => {
            let reason = output::one_line(&error);
            service::failed(&reason);
            eprintln!("error: {reason}");
            ExitCode::from(exit::of(&error) as u8)
        }
    }
}
