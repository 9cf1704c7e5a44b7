//! `cargo xtask …`: set-up, the demo, checks, tests and benches. Needs nothing but Rust; installs what else is needed.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a tool whose output is what it is for")]

mod bench;
mod check;
mod demo;
mod place;
mod process;
mod setup;
mod test;
mod test_run;

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
    /// Check formatting, lints, documentation, and the rules of this project.
    ///
    /// Rules of our own: crates depend in the direction of the arrows; versions and lints come from the workspace; unsafe
    /// code is in kernels/ (and one file of models/); pure modules use no runtime, clock, randomness or files; links in
    /// documents lead to files. Then rustfmt, clippy, rustdoc, and cargo-deny where it is installed.
    Check,
    Test(test::Arguments),
    Soak(test::SoakArguments),
    Bench(bench::Arguments),
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Task::Setup(arguments) => setup::run(arguments.purpose),
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Check => check::run(),
        Task::Test(arguments) => test::run(&arguments),
        Task::Soak(arguments) => test::soak(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
    }
}
