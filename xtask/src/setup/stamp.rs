//! Remembers what something was made from.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// A file that holds what something was made from. Written last, so that work cut short does not count.
pub struct Stamp {
    pub path: PathBuf,
    pub content: String,
}

impl Stamp {
    /// Whether what is there was made from the same.
    pub fn is_current(&self) -> bool {
        std::fs::read_to_string(&self.path).is_ok_and(|found| found == self.content)
    }

    /// It is made.
    pub fn write(&self) -> Result<()> {
        std::fs::write(&self.path, &self.content).with_context(|| format!("writing {}", self.path.display()))
    }
}
