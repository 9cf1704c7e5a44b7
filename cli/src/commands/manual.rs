//! `foggara manual`

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

/// Write manual pages into a folder: foggara.1, and one for each subcommand. For packages.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The folder; made if it is not there
    folder: PathBuf,
}

/// Writes them.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let folder = &arguments.folder;
    let context = || format!("folder: {}", folder.display());
    std::fs::create_dir_all(folder).with_context(context)?;
    clap_mangen::generate_to(crate::command_line(), folder).with_context(context)
}
