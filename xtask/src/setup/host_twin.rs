//! The CUDA kernels, compiled for the host: what their tests run on.

use anyhow::Result;

use super::Step;
use crate::kernels::Build;

pub struct HostTwin;

impl Step for HostTwin {
    fn title(&self) -> String {
        "CUDA kernels for the host (target/cuda-host)".into()
    }

    fn todo(&self) -> Option<String> {
        let stale = Build::PLAIN.todo();
        stale.map_or_else(|error| Some(format!("{error:#}")), |stale| stale.then(|| "compiling".into()))
    }

    fn act(&self) -> Result<()> {
        Build::PLAIN.run()
    }
}
