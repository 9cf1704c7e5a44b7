//! `foggara completions`

use std::io::Write;

use clap::Args;
use clap_complete::Shell;

/// Print a shell's completions of this command line. Packages install them; by hand, for bash:
/// `foggara completions bash > /usr/share/bash-completion/completions/foggara`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Which shell
    shell: Shell,
}

/// Prints them.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut crate::command_line(), "foggara", &mut script);
    Ok(std::io::stdout().lock().write_all(&script)?)
}
