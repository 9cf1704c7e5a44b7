//! Kernels that begin while those before them still run: CUDA's programmatic dependent launch.
//!
//! Every kernel of `kernels/cu` waits by itself for those before it, and says when the next one may begin; this tells the driver
//! that it may do so. It does for a kernel that directly follows another of ours on the stream. After anything else (copies,
//! other libraries' kernels, recordings) a kernel begins as ever, when all of that is done, and so does anything else after a
//! kernel.

use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::sys::{CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue};

use super::context::driver_version;
use crate::cuda::DeviceError;

/// The kernels that gain by it: those that ask for weights before they wait. (With all of them a step takes 5 to 16 % longer on an
/// H200: blocks that wait are in the way of those that work.)
const GAIN: [&str; 2] = ["rows_", "f8_few_"];
/// `0`: kernels begin when those before have ended; `1`: every kernel begins early; names with commas between them: only those whose own begin so begin early. For
/// measurements, and to find out whether an error comes from here.
const SWITCH: &str = "FOGGARA_CUDA_OVERLAP";
/// Hopper is the first whose kernels can wait by themselves.
const LEAST_CAPABILITY: u32 = 9;
/// From this version on the driver also keeps it in recordings.
const LEAST_DRIVER: u32 = 12_030;

/// Whether the next kernel may begin early.
pub(super) struct Overlap {
    allowed: bool,
    /// Only these, where there are any.
    only: Vec<String>,
    /// The last thing on the stream is a kernel of ours.
    after_kernel: AtomicBool,
}

impl Overlap {
    /// That of a GPU of this compute capability.
    pub fn new(capability: (u32, u32)) -> Result<Self, DeviceError> {
        let switch = std::env::var(SWITCH).unwrap_or_default();
        let only = match switch.as_str() {
            "" => GAIN.map(str::to_owned).to_vec(),
            "0" | "1" => Vec::new(),
            names => names.split(',').map(str::to_owned).collect(),
        };
        let allowed = switch != "0" && capability.0 >= LEAST_CAPABILITY && driver_version()? >= LEAST_DRIVER;
        Ok(Self { allowed, only, after_kernel: AtomicBool::new(false) })
    }

    /// Something else than a kernel of ours comes next on the stream.
    pub fn interrupt(&self) {
        self.after_kernel.store(false, Ordering::Relaxed);
    }

    /// A kernel of this name comes next; whether it may begin early.
    pub fn next_kernel(&self, name: &str) -> bool {
        let named = self.only.is_empty() || self.only.iter().any(|only| name.starts_with(only));
        self.after_kernel.swap(true, Ordering::Relaxed) && self.allowed && named
    }
}

/// What says so to the driver.
pub(super) fn attribute() -> CUlaunchAttribute {
    let mut value = CUlaunchAttributeValue { pad: [0; 64] };
    value.programmaticStreamSerializationAllowed = 1;
    let id = CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    CUlaunchAttribute { id, pad: [0; 4], value }
}
