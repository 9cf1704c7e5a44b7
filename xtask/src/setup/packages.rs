//! System packages, by apt.

use std::process::Command;

use anyhow::{Result, bail};

use super::{Purpose, Step};
use crate::{place, process};

/// A program of the system.
struct Tool {
    package: &'static str,
    why: &'static str,
    purpose: Purpose,
    is_there: fn() -> bool,
}

const TOOLS: &[Tool] = &[
    Tool {
        package: "protobuf-compiler",
        why: "compiles the .proto files",
        purpose: Purpose::Build,
        is_there: || std::env::var_os("PROTOC").is_some() || process::find("protoc").is_some(),
    },
    Tool {
        package: "python3-venv",
        why: "fetches the demo model",
        purpose: Purpose::Demo,
        // Once the environment stands there is no need to start a Python to find out.
        is_there: || {
            place::python().is_file()
                || process::succeeds(Command::new("python3").args(["-c", "import ensurepip, venv"]))
        },
    },
    Tool {
        package: "g++",
        why: "compiles CUDA kernels for the host",
        purpose: Purpose::Test,
        is_there: || std::env::var_os("CXX").is_some() || process::find("g++").is_some(),
    },
    Tool {
        package: "iproute2",
        why: "makes network namespaces for tests",
        purpose: Purpose::Test,
        is_there: || process::find("ip").is_some(),
    },
    Tool {
        package: "openssh-client",
        why: "reaches the hosts that tests make",
        purpose: Purpose::Test,
        is_there: || ["ssh", "scp", "ssh-keygen"].iter().all(|program| process::find(program).is_some()),
    },
    Tool {
        package: "binutils",
        why: "strips the program that is packaged",
        purpose: Purpose::Test,
        is_there: || process::find("strip").is_some(),
    },
    Tool {
        package: "systemd",
        why: "checks our units, and runs them on hosts that tests make",
        purpose: Purpose::Test,
        is_there: || process::find("systemd-analyze").is_some(),
    },
    Tool {
        package: "sudo",
        why: "is typed on those hosts",
        purpose: Purpose::Test,
        is_there: || process::find("sudo").is_some(),
    },
    Tool {
        package: "man-db",
        why: "reads the manual pages",
        purpose: Purpose::Test,
        is_there: || process::find("man").is_some(),
    },
    Tool {
        package: "strace",
        why: "makes a disk slow for a test",
        purpose: Purpose::Test,
        is_there: || process::find("strace").is_some(),
    },
];

/// Everything of [`TOOLS`] that `purpose` needs.
pub struct SystemPackages {
    pub purpose: Purpose,
}

impl SystemPackages {
    fn missing(&self) -> Vec<&'static Tool> {
        TOOLS.iter().filter(|tool| tool.purpose <= self.purpose && !(tool.is_there)()).collect()
    }
}

impl Step for SystemPackages {
    fn title(&self) -> String {
        let needed = TOOLS.iter().filter(|tool| tool.purpose <= self.purpose).map(|tool| tool.package);
        format!("system packages ({})", needed.collect::<Vec<_>>().join(", "))
    }

    fn todo(&self) -> Option<String> {
        let each = self.missing().into_iter().map(|tool| format!("{} ({})", tool.package, tool.why));
        let each = each.collect::<Vec<_>>().join(", ");
        (!each.is_empty()).then(|| format!("installing {each}"))
    }

    fn act(&self) -> Result<()> {
        let packages: Vec<&str> = self.missing().into_iter().map(|tool| tool.package).collect();
        if process::find("apt-get").is_none() {
            let packages = packages.join(" ");
            bail!(
                "there is no apt-get here: install what Debian calls {packages} with your system's own tool, then run this again"
            );
        }
        let by_hand = format!(
            "sudo apt-get update && sudo apt-get install --no-install-recommends {}",
            packages.join(" ")
        );
        let Some(become_root) = become_root() else {
            bail!(
                "that needs root, and there is no sudo here. As root, run\n    {}\nthen run this again",
                by_hand.replace("sudo ", "")
            );
        };
        let apt = |arguments: &[&str]| {
            let mut words = become_root.to_vec();
            words.extend(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y"]);
            words.extend(arguments);
            process::run(Command::new(words[0]).args(&words[1..]))
        };
        // Old lists may name versions that are no longer served.
        let installed = apt(&["update"]).and_then(|()| {
            let mut arguments = vec!["install", "--no-install-recommends"];
            arguments.extend(&packages);
            apt(&arguments)
        });
        if installed.is_err() {
            bail!("apt-get did not install them. Run\n    {by_hand}\nto see why, then run this again");
        }
        Ok(())
    }
}

/// What to put before a command to run it as root; `None` where that cannot be done.
pub(super) fn become_root() -> Option<&'static [&'static str]> {
    if rustix::process::geteuid().is_root() {
        return Some(&[]);
    }
    process::find("sudo").map(|_| ["sudo"].as_slice())
}
