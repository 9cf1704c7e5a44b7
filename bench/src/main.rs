//! `foggara-bench`: how fast a cluster serves, and how much of the machine that is.
//!
//! A run measures the machine's limits and the kernels by themselves, starts a cluster of separate processes (or takes a running
//! server), drives it as a client would, measures the limits again, and sets each figure beside what bounds it. One file of
//! [`workload`] is one way of loading it.
#![forbid(unsafe_code)]

mod apart;
mod args;
mod bound;
mod client;
mod cluster;
mod cost;
mod delay;
#[cfg(test)]
mod documented_tests;
mod gpu;
mod kernels;
mod leak;
mod limits;
mod loading;
mod members;
mod metrics;
mod plot;
mod process;
mod prompts;
mod quiet;
mod recording;
mod report;
mod run;
mod scenario;
mod stats;
mod target;
mod workload;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};

fn main() -> ExitCode {
    let args = Args::parse();
    // The load is light, and the processes under test need the cores: one thread is enough.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("foggara-bench: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        match &args.command {
            None => run::run(&args.target, &args.run).await.map(|()| ExitCode::SUCCESS),
            Some(Command::Leak(leak)) => leak::run(leak).await,
            Some(Command::Load(load)) => loading::run(load),
            Some(Command::Gpu(args)) => gpu::run(args),
            Some(Command::LongPrompt(args)) => scenario::long_prompt::run(args).await,
            Some(Command::Distance(args)) => scenario::distance::run(args).await,
            Some(Command::Versus(args)) => scenario::versus::run(args).await,
            Some(Command::Prefixes(args)) => scenario::prefixes::run(args).await,
            Some(Command::Predictions(args)) => scenario::predictions::run(args).await,
            Some(Command::Scrape(args)) => scenario::scrape::run(args).await,
            Some(Command::Speculation(args)) => scenario::speculation::run(args).await,
            Some(Command::Adapters(args)) => scenario::adapters::run(args).await,
            Some(Command::Recording(args)) => recording::run(args),
        }
    });
    outcome.unwrap_or_else(|error| {
        eprintln!("foggara-bench: {error:#}");
        ExitCode::FAILURE
    })
}
