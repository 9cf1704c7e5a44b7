//! What this machine has for GPUs, what is missing, and how to get it. Changes nothing; each GPU is opened for a moment, to ask for
//! its free memory.

use super::DeviceError;
use super::gpu::{self, Facts};
pub use super::library::Wanted;
use super::source;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// The newest version of CUDA that the driver knows (`13.0`), or why there is no driver.
    pub driver: Result<String, String>,
    /// The driver's own version, where the system tells it (`580.95.05`).
    pub driver_release: Option<String>,
    /// Every GPU and its free memory in bytes, or why it does not answer.
    pub gpus: Vec<Result<(Facts, u64), String>>,
    /// Every library.
    pub libraries: Vec<Found>,
    /// Architectures whose machine code is in the program; for others NVRTC compiles at the first start.
    pub embedded: Vec<&'static str>,
    /// What should be done to use the GPUs, or to use them better; empty if nothing.
    pub missing: Vec<String>,
}

/// A library, found or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Which.
    pub wanted: Wanted,
    /// As people call it.
    pub name: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    /// Its file and version, or why not.
    pub found: Result<(String, String), String>,
}

/// Looks.
pub fn survey() -> Survey {
    let driver = gpu::driver_version().map(|v| format!("{}.{}", v / 1000, v % 1000 / 10));
    let driver = driver.map_err(|error| error.reason);
    let counted = gpu::count();
    let ask = |i| Ok((gpu::facts(i)?, gpu::free_memory(i)?));
    let gpus: Vec<Result<(Facts, u64), String>> = match &counted {
        Ok(count) => (0..*count).map(|i| ask(i).map_err(|error: DeviceError| error.to_string())).collect(),
        Err(_) => Vec::new(),
    };
    let libraries: Vec<Found> = Wanted::ALL.into_iter().map(found).collect();
    let embedded = source::embedded_architectures();
    let mut missing = Vec::new();
    match &counted {
        Err(error) => missing.push(error.reason.clone()),
        Ok(0) => missing.push(NO_GPU.to_owned()),
        Ok(count) => missing.extend(libraries.iter().filter_map(|library| {
            let reason = library.found.as_ref().err()?;
            match library.wanted {
                // A program with machine code needs no compiler.
                Wanted::Nvrtc => embedded.is_empty().then(|| reason.clone()),
                Wanted::CublasLt => Some(format!("for long prompts at full speed: {reason}")),
                Wanted::Nccl => (*count > 1).then(|| format!("for groups of GPUs: {reason}")),
            }
        })),
    }
    Survey { driver, driver_release: driver_release(), gpus, libraries, embedded, missing }
}

/// The GPUs that workers could compute on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usable {
    /// How many the driver shows; 0 without a driver.
    pub gpus: usize,
    /// Why they cannot be used, or why there is none.
    pub missing: Option<String>,
}

/// Counts the GPUs. Opens none, so that it takes no memory of them.
pub fn usable() -> Usable {
    let (gpus, missing) = match gpu::count() {
        Err(error) => (0, Some(error.reason)),
        Ok(0) => (0, Some(NO_GPU.to_owned())),
        Ok(gpus) if source::embedded_architectures().is_empty() => (gpus, Wanted::Nvrtc.find().err()),
        Ok(gpus) => (gpus, None),
    };
    Usable { gpus, missing }
}

const NO_GPU: &str = "the driver shows no GPU (see CUDA_VISIBLE_DEVICES)";

fn found(wanted: Wanted) -> Found {
    let found = wanted.find().and_then(|library| Ok((library.path(), wanted.version(library)?)));
    Found { wanted, name: wanted.name(), purpose: wanted.purpose(), found }
}

/// As the kernel's module tells it.
fn driver_release() -> Option<String> {
    let text = std::fs::read_to_string("/sys/module/nvidia/version").ok()?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::{survey, usable};

    #[test]
    fn a_survey_says_something_everywhere() {
        let survey = survey();
        assert_eq!(survey.libraries.len(), 3);
        if let Err(reason) = &survey.driver {
            assert!(!reason.is_empty());
            assert_eq!(&survey.missing, std::slice::from_ref(reason));
            assert_eq!(usable(), super::Usable { gpus: 0, missing: Some(reason.clone()) });
        }
    }
}
