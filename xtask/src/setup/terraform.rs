//! Terraform: no package of Debian's, so it must be there.

use anyhow::{Result, bail};

use super::Step;
use crate::process;

pub struct Terraform;

impl Step for Terraform {
    fn title(&self) -> String {
        "Terraform".into()
    }

    fn todo(&self) -> Option<String> {
        process::find("terraform").is_none().then(|| "looking for it".into())
    }

    fn act(&self) -> Result<()> {
        bail!(
            "put `terraform`, 1.9 or later, on the path (it is one file, and no package of Debian's), then run this again"
        )
    }
}
