//! Prometheus, which the tests let scrape real clusters: Debian's package, unpacked and not installed, so that no server is
//! started or set up on this machine.

use anyhow::{Context, Result};

use super::{Step, debian};
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
            debian::unpack(&["prometheus"], &fresh)?;
        }
        std::fs::rename(&fresh, &folder).with_context(|| format!("making {}", folder.display()))
    }
}
