//! The tarball: for any Linux on x86-64.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::contents::Tree;
use super::{Release, output};
use crate::place;

/// Makes it in `out`.
pub fn make(release: &Release, out: &Path) -> Result<PathBuf> {
    let name = format!("foggara-{}-x86_64-linux", release.version);
    let tree = Tree(release.work.join("tar").join(&name));
    let deploy = place::root().join("deploy");
    tree.file(&release.work.join("foggara"), "bin/foggara", true)?;
    for file in ["LICENSE", "README.md"] {
        tree.file(&place::root().join(file), file, false)?;
    }
    tree.folder(&place::root().join("docs"), "docs")?;
    tree.folder(&release.work.join("completions"), "completions")?;
    tree.folder(&release.work.join("man"), "man/man1")?;
    tree.folder(&deploy.join("config"), "config")?;
    tree.units("systemd", "/usr/local/bin/foggara")?;
    tree.folder(&deploy.join("prometheus"), "prometheus")?;
    tree.folder(&deploy.join("grafana"), "grafana")?;
    let (plain, packed) = (out.join(format!("{name}.tar")), out.join(format!("{name}.tar.gz")));
    let mut tar = Command::new("tar");
    tar.args(["--create", "--format=gnu", "--sort=name", "--numeric-owner", "--owner=0", "--group=0"]);
    tar.arg(format!("--mtime=@{}", release.epoch)).arg("--file").arg(&plain);
    output(tar.arg("--directory").arg(release.work.join("tar")).arg(&name))?;
    output(Command::new("gzip").args(["--no-name", "--best", "--force"]).arg(&plain))?;
    Ok(packed)
}
