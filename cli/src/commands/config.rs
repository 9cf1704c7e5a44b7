//! `foggara config`

mod check;
mod example;
mod places;
mod reference;

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::config::Kind;

/// Check configuration files of coordinators and workers, and print what can be in them.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print what files and variables come to, and what is wrong with it, without starting anything
    ///
    /// Run it as the user of the service, with the variables of the service: whether a folder can be written is asked for
    /// whoever runs it. Exits with 1 if anything is wrong.
    Check(CheckArguments),
    /// Print a commented file of every setting
    Example {
        /// Whose
        kind: Kind,
    },
    /// Print the page of documentation about all settings (docs/reference/config.md)
    Reference,
}

#[derive(Debug, Args)]
struct CheckArguments {
    /// Files; each is a coordinator's or a worker's by its name, which begins so (worker-2.toml)
    #[arg(required = true)]
    file: Vec<PathBuf>,
    /// Whose the files are, whatever their names
    #[arg(long)]
    kind: Option<Kind>,
}

/// Does it.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match &arguments.command {
        Command::Check(arguments) => return check::run(&mut out, &arguments.file, arguments.kind),
        Command::Example { kind } => out.write_all(example::text(*kind).as_bytes())?,
        Command::Reference => out.write_all(reference::page().as_bytes())?,
    }
    Ok(out.flush()?)
}
