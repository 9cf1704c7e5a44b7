//! Running other programs.

use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, bail};

use crate::place;

/// The cargo that runs us, in the workspace's root.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(place::root());
    command
}

/// Builds programs of ours. Asks for the whole workspace, as the tests do, so that both share every crate; only what the
/// programs need is built.
pub fn build(programs: &[&str]) -> Command {
    let mut command = cargo(&["build", "--release", "--workspace"]);
    command.args(programs.iter().flat_map(|program| ["--bin", program]));
    command
}

/// `command` as one would type it.
pub fn shown(command: &Command) -> String {
    let mut words = vec![place::typed(std::path::Path::new(command.get_program()))];
    if words[0].ends_with("/cargo") {
        words[0] = "cargo".into();
    }
    for argument in command.get_args() {
        let argument = place::typed(std::path::Path::new(argument));
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c);
        words.push(match !argument.is_empty() && argument.chars().all(plain) {
            true => argument,
            false => format!("'{}'", argument.replace('\'', r"'\''")),
        });
    }
    words.join(" ")
}

/// Shows `command`, runs it to its end and expects success.
pub fn run(command: &mut Command) -> Result<()> {
    println!("$ {}", shown(command));
    let status = status(command)?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs `command` to its end.
pub fn status(command: &mut Command) -> Result<ExitStatus> {
    command.status().with_context(|| format!("starting `{}`", shown(command)))
}

/// Whether `command` can be run and succeeds, silently.
pub fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// Where `program` is. Looks where administrators' programs are, too: a plain user's path often lacks those folders.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}
