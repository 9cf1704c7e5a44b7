//! Debian's packages, unpacked and not installed: nothing of them is started or set up on this machine.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::packages::become_root;
use crate::process;

/// Unpacks `packages`, without what they depend on, into `folder`.
pub fn unpack(packages: &[&str], folder: &Path) -> Result<()> {
    if process::find("apt-get").is_none() {
        let packages = packages.join(", ");
        bail!(
            "there is no apt-get here: install {packages} with your system's own tool, then run this again"
        );
    }
    let download =
        || process::run(Command::new("apt-get").args(["-q", "download"]).args(packages).current_dir(folder));
    if download().is_err() {
        // Old lists may name versions that are no longer served, and new machines have none.
        let Some(become_root) = become_root() else { bail!("run `apt-get update` as root, then this again") };
        let mut words = become_root.to_vec();
        words.extend(["apt-get", "-q", "update"]);
        process::run(Command::new(words[0]).args(&words[1..]))?;
        download()?;
    }
    let files: Vec<_> = std::fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "deb"))
        .collect();
    if files.is_empty() {
        bail!("apt-get has downloaded no package");
    }
    for package in files {
        process::run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(folder))?;
        std::fs::remove_file(package).context("removing the package")?;
    }
    Ok(())
}
