//! `cargo xtask bench`.

use std::process::Command;

use anyhow::Result;

use crate::place;
use crate::process::{build, run as run_command};
use crate::setup::{self, Purpose};

/// Measure speed on this machine: the cluster end to end and the kernels alone.
///
/// Everything after `bench` goes to the program `foggara-bench`; `cargo xtask bench --help` shows what it takes.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Arguments {
    /// For `foggara-bench`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    setup::run(Purpose::Demo)?;
    run_command(&mut build(&["foggara", "foggara-bench"]))?;
    let program = place::built("foggara-bench")?;
    run_command(Command::new(program).args(&arguments.arguments).current_dir(place::root()))
}
