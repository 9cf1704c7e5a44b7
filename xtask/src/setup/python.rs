//! The Python environment in `.cache/python`, and what the tests need in it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::Step;
use super::stamp::Stamp;
use crate::{place, process};

/// What the tests need, each with its version.
const TEST_PACKAGES: &str = include_str!("test-packages.txt");

fn folder() -> PathBuf {
    place::cache().join("python")
}

/// `pip` of the environment.
pub fn pip(arguments: &[&str]) -> Command {
    let mut command = Command::new(place::python());
    command.args(["-m", "pip", "--disable-pip-version-check"]).args(arguments);
    command
}

/// The version of `package` that is pinned for the tests, as pip wants it.
pub fn pinned(package: &str) -> &'static str {
    let lines = TEST_PACKAGES.lines();
    lines.map(str::trim).find(|line| line.split("==").next() == Some(package)).unwrap_or_default()
}

/// An environment of its own: nothing is installed into the system's Python.
pub struct Environment;

impl Environment {
    fn stamp(&self) -> Stamp {
        Stamp { path: folder().join(".made"), content: "venv\n".into() }
    }
}

impl Step for Environment {
    fn title(&self) -> String {
        format!("Python environment {}", place::typed(&folder()))
    }

    fn todo(&self) -> Option<String> {
        // The second condition fails when the system's Python has been replaced by another.
        (!self.stamp().is_current() || !place::python().is_file()).then(|| "making it".into())
    }

    fn act(&self) -> Result<()> {
        let folder = folder();
        if folder.exists() {
            std::fs::remove_dir_all(&folder)
                .with_context(|| format!("removing a half-made {}", folder.display()))?;
        }
        process::run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        self.stamp().write()
    }
}

/// Clients from outside, and what makes the reference checkpoint.
pub struct TestPackages;

impl TestPackages {
    fn stamp(&self) -> Stamp {
        Stamp { path: folder().join(".test-packages"), content: TEST_PACKAGES.into() }
    }
}

impl Step for TestPackages {
    fn title(&self) -> String {
        "Python packages of the tests".into()
    }

    fn todo(&self) -> Option<String> {
        let lines = TEST_PACKAGES.lines().filter(|line| !line.starts_with('#'));
        let mut names: Vec<&str> =
            lines.filter_map(|line| line.split_once("==")).map(|(name, _)| name).collect();
        // One package may have a version for each range of Pythons.
        names.dedup();
        (!self.stamp().is_current()).then(|| format!("installing {}", names.join(", ")))
    }

    fn act(&self) -> Result<()> {
        let list = place::root().join("xtask/src/setup/test-packages.txt");
        process::run(pip(&["install", "--progress-bar", "off", "--quiet", "-r"]).arg(list))?;
        self.stamp().write()
    }
}
