//! Prometheus, which the tests let scrape real clusters: Debian's package, unpacked and not installed, so that no server is
//! started or set up on this machine.

use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Step;
use super::packages::become_root;
use crate::{place, process};

pub struct Prometheus;

impl Step for Prometheus {
    fn title(&self) -> String {
        "Prometheus and promtool (.cache/prometheus)".into()
    }

    fn todo(&self) -> Option<String> {
        let there = |program: &str| place::prometheus().join(program).is_file();
        (!(there("prometheus") && there("promtool"))).then(|| "fetching Debian's package".into())
    }

    fn act(&self) -> Result<()> {
        let folder = place::cache().join("prometheus");
        let fresh = place::cache().join("prometheus.new");
        for old in [&folder, &fresh] {
            if old.exists() {
                std::fs::remove_dir_all(old).with_context(|| format!("removing {}", old.display()))?;
            }
        }
        std::fs::create_dir_all(&fresh).with_context(|| format!("making {}", fresh.display()))?;
        // What is on the path already is as good.
        if let (Some(prometheus), Some(promtool)) = (process::find("prometheus"), process::find("promtool")) {
            let bin = fresh.join("usr/bin");
            std::fs::create_dir_all(&bin)?;
            std::os::unix::fs::symlink(prometheus, bin.join("prometheus"))?;
            std::os::unix::fs::symlink(promtool, bin.join("promtool"))?;
        } else {
            fetch(&fresh)?;
        }
        std::fs::rename(&fresh, &folder).with_context(|| format!("making {}", folder.display()))
    }
}

fn fetch(folder: &std::path::Path) -> Result<()> {
    if process::find("apt-get").is_none() {
        bail!("there is no apt-get here: put `prometheus` and `promtool` on the path, then run this again");
    }
    let download =
        || process::run(Command::new("apt-get").args(["-q", "download", "prometheus"]).current_dir(folder));
    if download().is_err() {
        // Old lists may name versions that are no longer served, and new machines have none.
        let Some(become_root) = become_root() else { bail!("run `apt-get update` as root, then this again") };
        let mut words = become_root.to_vec();
        words.extend(["apt-get", "-q", "update"]);
        process::run(Command::new(words[0]).args(&words[1..]))?;
        download()?;
    }
    let package = std::fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|end| end == "deb"))
        .context("apt-get has downloaded no package")?;
    process::run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(folder))?;
    std::fs::remove_file(package).context("removing the package")
}
