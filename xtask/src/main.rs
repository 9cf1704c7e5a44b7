//! `cargo xtask …`: set-up, the demo, checks, tests and benches. Needs nothing but Rust; installs what else is needed.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a tool whose output is what it is for")]

mod bench;
mod check;
mod cubins;
mod dashboards;
mod demo;
#[cfg(test)]
mod documented_tests;
mod kernels;
mod package;
mod place;
mod process;
mod setup;
mod terraform;
mod test;
mod test_run;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Everything around the code: set-up, demo, checks, tests, benches.
///
/// Every command first sets up what it needs (see `cargo xtask setup --help`), so on a fresh machine with Rust
/// `cargo xtask demo` is all there is to type.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    Setup(setup::Arguments),
    Demo(demo::Arguments),
    Check(check::Arguments),
    Test(test::Arguments),
    Soak(test::SoakArguments),
    Bench(bench::Arguments),
    Kernels(kernels::Arguments),
    Cubins(cubins::Arguments),
    Dashboards(dashboards::Arguments),
    Terraform(terraform::Arguments),
    Package(package::Arguments),
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Setup(arguments) => setup::run(arguments.purpose),
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Check(arguments) => check::run(&arguments),
        Task::Test(arguments) => test::run(&arguments),
        Task::Soak(arguments) => test::soak(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Kernels(arguments) => kernels::run(&arguments),
        Task::Cubins(arguments) => cubins::run(&arguments),
        Task::Dashboards(arguments) => dashboards::run(&arguments),
        Task::Terraform(arguments) => terraform::run(&arguments),
        Task::Package(arguments) => package::run(&arguments),
    }
}
