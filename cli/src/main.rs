//! `foggara`: one binary for every process of a cluster and for everyone who talks to one.
//!
//! Each subcommand is a thin file in [`commands`] over the crates that do the work.
#![forbid(unsafe_code)]

mod answer;
mod commands;
mod endpoint;
mod lifetime;
mod logging;
mod model_argument;
mod output;
mod supervisor;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// An inference cluster for large language models that a team can own.
#[derive(Debug, Parser)]
#[command(name = "foggara", version, propagate_version = true, max_term_width = 100)]
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
    /// Chat with a model in the terminal, or ask one question
    Chat(commands::chat::Arguments),
    /// Continue a prompt
    Generate(commands::generate::Arguments),
    /// Go on with an answer that the cluster is giving, from any coordinator
    Attach(commands::attach::Arguments),
    /// Print how likely a model finds a text: token log-probabilities and perplexity
    Score(commands::score::Arguments),
    /// Show coordinators, workers, groups and deployments
    Status(commands::status::Arguments),
    /// Watch groups, batches, KV cache, tokens per second and where each rank's time goes, live
    Top(commands::top::Arguments),
    /// Show where the time of a recent request went: queue, prefill, each slow token and what was beside it
    Trace(commands::trace::Arguments),
    /// Show what this machine has, GPUs above all, what is missing, and how to get it
    Doctor(commands::doctor::Arguments),
    /// Add, list and remove the models a cluster serves
    Models(commands::models::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Up(arguments) => commands::up::run(arguments),
        Command::Coordinator(arguments) => commands::coordinator::run(arguments),
        Command::Worker(arguments) => commands::worker::run(arguments),
        Command::Chat(arguments) => commands::chat::run(arguments),
        Command::Generate(arguments) => commands::generate::run(arguments),
        Command::Attach(arguments) => commands::attach::run(arguments),
        Command::Score(arguments) => commands::score::run(&arguments),
        Command::Status(arguments) => commands::status::run(&arguments),
        Command::Top(arguments) => commands::top::run(&arguments),
        Command::Trace(arguments) => commands::trace::run(&arguments),
        Command::Doctor(arguments) => commands::doctor::run(&arguments),
        Command::Models(arguments) => commands::models::run(arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has what it wanted (`foggara status | head`).
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", output::one_line(&error));
            ExitCode::FAILURE
        }
    }
}
