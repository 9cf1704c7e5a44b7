//! The checkpoint the tests measure accuracy against: the demo model's weights in bf16, in Hugging Face's layout.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::Step;
use super::stamp::Stamp;
use crate::{place, process};

fn script() -> PathBuf {
    place::root().join("tests/tools/make_smol.py")
}

fn folder() -> PathBuf {
    place::cache().join("models/smollm2-135m")
}

/// The folder.
pub struct ReferenceCheckpoint;

impl ReferenceCheckpoint {
    fn stamp(&self) -> Stamp {
        let content = std::fs::read_to_string(script()).unwrap_or_default();
        Stamp { path: folder().join(".made-by"), content }
    }
}

impl Step for ReferenceCheckpoint {
    fn title(&self) -> String {
        format!("reference checkpoint {}", place::typed(&folder()))
    }

    fn todo(&self) -> Option<String> {
        (!self.stamp().is_current()).then(|| "making it from the demo model, in bf16 (270 MB)".into())
    }

    fn act(&self) -> Result<()> {
        let (target, work) = (folder(), place::cache().join("making-checkpoint"));
        for old in [&target, &work] {
            if old.exists() {
                std::fs::remove_dir_all(old).with_context(|| format!("removing {}", old.display()))?;
            }
        }
        process::run(Command::new(place::python()).arg(script()).arg(place::demo_model()).arg(&work))?;
        std::fs::rename(&work, &target)?;
        self.stamp().write()
    }
}
