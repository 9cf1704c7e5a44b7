//! An SSH server for tests, which runs on hosts that they make: Debian's package, unpacked and not installed, so that no server
//! is started on this machine.

use anyhow::{Context, Result};

use super::{Step, debian};
use crate::place;

pub struct OpenSsh;

impl Step for OpenSsh {
    fn title(&self) -> String {
        "OpenSSH's server (.cache/openssh)".into()
    }

    fn todo(&self) -> Option<String> {
        let there = place::cache().join("openssh/usr/sbin/sshd").is_file();
        (!there).then(|| "fetching Debian's package".into())
    }

    fn act(&self) -> Result<()> {
        let folder = place::cache().join("openssh");
        let fresh = place::cache().join("openssh.new");
        for old in [&folder, &fresh] {
            if old.exists() {
                std::fs::remove_dir_all(old).with_context(|| format!("removing {}", old.display()))?;
            }
        }
        std::fs::create_dir_all(&fresh).with_context(|| format!("making {}", fresh.display()))?;
        // The library that a machine without a server lacks comes along.
        debian::unpack(&["openssh-server", "libwrap0"], &fresh)?;
        std::fs::rename(&fresh, &folder).with_context(|| format!("making {}", folder.display()))
    }
}
