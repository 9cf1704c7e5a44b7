//! The checkpoints the tests measure accuracy against, in Hugging Face's layout and bf16: the demo model's weights, and
//! Mixtrals made of them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::Step;
use super::stamp::Stamp;
use crate::{place, process};

fn script() -> PathBuf {
    place::root().join("tests/tools/make_smol.py")
}

/// One folder of them.
pub struct ReferenceCheckpoint {
    name: &'static str,
    /// How much its experts differ, if it has any.
    mixtral: Option<&'static str>,
    size: &'static str,
}

/// The weights as they are.
pub const DENSE: ReferenceCheckpoint =
    ReferenceCheckpoint { name: "smollm2-135m", mixtral: None, size: "270 MB" };
/// Eight experts that differ.
pub const MIXTRAL: ReferenceCheckpoint =
    ReferenceCheckpoint { name: "smolmix-8x135m", mixtral: Some("0.05"), size: "1.3 GB" };
/// Eight experts that are all alike.
pub const SAME: ReferenceCheckpoint =
    ReferenceCheckpoint { name: "smolmix-8x135m-same", mixtral: Some("0"), size: "1.3 GB" };

impl ReferenceCheckpoint {
    fn folder(&self) -> PathBuf {
        place::cache().join("models").join(self.name)
    }

    fn stamp(&self) -> Stamp {
        let content = std::fs::read_to_string(script()).unwrap_or_default();
        Stamp { path: self.folder().join(".made-by"), content }
    }
}

impl Step for ReferenceCheckpoint {
    fn title(&self) -> String {
        format!("reference checkpoint {}", place::typed(&self.folder()))
    }

    fn todo(&self) -> Option<String> {
        (!self.stamp().is_current())
            .then(|| format!("making it from the demo model, in bf16 ({})", self.size))
    }

    fn act(&self) -> Result<()> {
        let (target, work) = (self.folder(), place::cache().join("making-checkpoint"));
        for old in [&target, &work] {
            if old.exists() {
                std::fs::remove_dir_all(old).with_context(|| format!("removing {}", old.display()))?;
            }
        }
        let mut command = Command::new(place::python());
        command.arg(script()).arg(place::demo_model()).arg(&work);
        if let Some(noise) = self.mixtral {
            command.args(["--mixtral", noise]);
        }
        process::run(&mut command)?;
        std::fs::rename(&work, &target)?;
        self.stamp().write()
    }
}
