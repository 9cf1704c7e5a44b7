//! Settings of the long-running processes. The command line's definitions are the one table of options: a file's values
//! become defaults of it, so an option beats a variable, a variable beats the file, and the file beats the default.

mod file;
mod options;
mod sources;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{ArgMatches, Args, Command};

pub(crate) use file::{ConfigFile, FileError};
pub(crate) use options::{Setting, Type, settings};
pub(crate) use sources::{Effective, effective};

/// The file that a process reads.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigArguments {
    /// Read options from this TOML file: `data_dir = "…"` for --data-dir. An option, or its variable (FOGGARA_DATA_DIR),
    /// goes before the file
    #[arg(long, env = "FOGGARA_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigArguments {
    /// Says in the log where settings came from. Their values are there already.
    pub(crate) fn tell(&self) {
        if let Some(path) = &self.config {
            tracing::info!(path = %path.display(), "settings are read from a file, too");
        }
    }
}

/// A process that has a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    Coordinator,
    Worker,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Coordinator, Self::Worker];

    /// Its subcommand.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Worker => "worker",
        }
    }

    /// Whose a file is by its name: `coordinator.toml`, `worker-2.toml`.
    pub(crate) fn of_file(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        Self::ALL.into_iter().find(|kind| name.starts_with(kind.name()))
    }

    /// Its part of the command line.
    pub(crate) fn command(self, all: &Command) -> Command {
        all.find_subcommand(self.name()).cloned().expect("every kind is a subcommand")
    }
}

/// The same command line, where every setting of a process has a variable: `FOGGARA_` and its key in capitals.
pub(crate) fn with_variables(all: Command) -> Command {
    Kind::ALL.into_iter().fold(all, |all, kind| all.mut_subcommand(kind.name(), options::with_variables))
}

/// Reads a command line, its variables, and the file that it names.
///
/// # Errors
/// What is wrong with the file.
pub(crate) fn read(all: Command, words: &[OsString]) -> Result<clap::error::Result<ArgMatches>, FileError> {
    let Some(Named { reader, kind, path }) = named_file(&all, words) else {
        return Ok(all.try_get_matches_from(words));
    };
    let Some(kind) = kind else {
        return Ok(Err(all.clone().error(
            clap::error::ErrorKind::MissingRequiredArgument,
            format!("--config {}: say --coordinator or --worker, or call the file coordinator….toml or worker….toml", path.display()),
        )));
    };
    let file = ConfigFile::read(&path, &settings(&kind.command(&all)))?;
    let with_file = all.mut_subcommand(reader, |command| {
        let command = file.apply(command);
        // Preflight is for the process that the file is of.
        if reader == PREFLIGHT {
            command.mut_arg(kind.name(), |role| role.default_value("true"))
        } else {
            command
        }
    });
    Ok(with_file.try_get_matches_from(words))
}

/// The subcommand that looks at what either process's file says.
const PREFLIGHT: &str = "doctor";

/// A file that a command line names.
struct Named {
    /// The subcommand that reads it.
    reader: &'static str,
    /// Whose settings it has; `None` if nothing says so.
    kind: Option<Kind>,
    path: PathBuf,
}

/// The file that a command line names, in an option or a variable. Its required options may be in that file.
fn named_file(all: &Command, words: &[OsString]) -> Option<Named> {
    let relaxed = Kind::ALL.into_iter().fold(all.clone(), |all, kind| {
        all.mut_subcommand(kind.name(), |command| command.mut_args(|argument| argument.required(false)))
    });
    // A mistake elsewhere will be found again, and said then.
    let matches = relaxed.try_get_matches_from(words).ok()?;
    let (name, matches) = matches.subcommand()?;
    if name == PREFLIGHT {
        let path = matches.get_one::<PathBuf>("config")?.clone();
        let said = Kind::ALL.into_iter().find(|kind| matches.get_flag(kind.name()));
        return Some(Named { reader: PREFLIGHT, kind: said.or_else(|| Kind::of_file(&path)), path });
    }
    let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name)?;
    let path = matches.get_one::<PathBuf>("config")?.clone();
    Some(Named { reader: kind.name(), kind: Some(kind), path })
}

#[cfg(test)]
mod tests;
