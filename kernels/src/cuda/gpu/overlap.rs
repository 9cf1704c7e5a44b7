//! Kernels that begin while those before them still run: CUDA's programmatic dependent launch.
//!
//! Every kernel of `kernels/cu` waits by itself for those before it, and says when the next one may begin; this tells the driver
//! that it may do so. It does for a kernel that directly follows another of ours on the stream. After anything else (copies,
//! other libraries' kernels, recordings) a kernel begins as ever, when all of that is done, and so does anything else after a
//! kernel.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::sys::{CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue};

use super::context::driver_version;
use crate::cuda::DeviceError;

/// The kernels that gain by it whatever their size: those that ask for weights before they wait.
const GAIN: [&str; 2] = ["rows_", "f8_few_"];
/// Those that gain where they have few blocks, as in steps of few rows: there a step is a chain of small kernels, and a good part of
/// each is its start. (Of many blocks, those that wait are in the way of those that work. When every kernel began early, and let the next
/// one begin before it had waited itself, steps took 5 to 16 % longer on an H200.)
const GAIN_IF_FEW: [&str; 10] = [
    "add_and_norm_",
    "combine_add_and_norm_",
    "rope_and_write_",
    "attention_decode_",
    "attention_combine",
    "quantize_rows_",
    "moe_norm_route_",
    "moe_product_route_",
    "moe_router_product_",
    "moe_route_and_sort",
];
/// So many blocks are few: two for each multiprocessor of a large GPU.
const FEW_BLOCKS: RangeInclusive<u32> = 2..=264;
/// The kernels that gain by it where they have one block, as those of one row have: they let the next one begin when they have waited
/// themselves. (1 to 1.5 % of a step of one row on an H200. When they let it begin before, it was 3 % longer: the next one's weights
/// were in the way of those that the product before was still reading.)
const GAIN_ALONE: [&str; 2] = ["combine_add_and_norm_", "moe_norm_route_"];
/// `0`: kernels begin when those before have ended; `1`: every kernel begins early; names with commas between them: only those whose
/// own begin so begin early, whatever their size. For measurements, and to find out whether an error comes from here.
const SWITCH: &str = "FOGGARA_CUDA_OVERLAP";
/// Hopper is the first whose kernels can wait by themselves.
const LEAST_CAPABILITY: u32 = 9;
/// From this version on the driver also keeps it in recordings.
const LEAST_DRIVER: u32 = 12_030;

/// Whether the next kernel may begin early.
pub(super) struct Overlap {
    allowed: bool,
    /// What the switch says, where it says names.
    only: Vec<String>,
    /// Every kernel.
    all: bool,
    /// The last thing on the stream is a kernel of ours.
    after_kernel: AtomicBool,
}

impl Overlap {
    /// That of a GPU of this compute capability.
    pub fn new(capability: (u32, u32)) -> Result<Self, DeviceError> {
        let switch = std::env::var(SWITCH).unwrap_or_default();
        let only = match switch.as_str() {
            "" | "0" | "1" => Vec::new(),
            names => names.split(',').map(str::to_owned).collect(),
        };
        let allowed = switch != "0" && capability.0 >= LEAST_CAPABILITY && driver_version()? >= LEAST_DRIVER;
        Ok(Self { allowed, only, all: switch == "1", after_kernel: AtomicBool::new(false) })
    }

    /// Something else than a kernel of ours comes next on the stream.
    pub fn interrupt(&self) {
        self.after_kernel.store(false, Ordering::Relaxed);
    }

    /// A kernel of this name and of so many blocks comes next; whether it may begin early.
    pub fn next_kernel(&self, name: &str, blocks: u32) -> bool {
        let named = match self.only.as_slice() {
            [] => self.all || gains(name, blocks),
            only => only.iter().any(|only| name.starts_with(only.as_str())),
        };
        self.after_kernel.swap(true, Ordering::Relaxed) && self.allowed && named
    }
}

/// Whether a kernel gains by it.
fn gains(name: &str, blocks: u32) -> bool {
    let is_among = |begins: &[&str]| begins.iter().any(|begin| name.starts_with(begin));
    is_among(&GAIN)
        || (FEW_BLOCKS.contains(&blocks) && is_among(&GAIN_IF_FEW))
        || (blocks == 1 && is_among(&GAIN_ALONE))
}

/// What says so to the driver.
pub(super) fn attribute() -> CUlaunchAttribute {
    let mut value = CUlaunchAttributeValue { pad: [0; 64] };
    value.programmaticStreamSerializationAllowed = 1;
    let id = CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    CUlaunchAttribute { id, pad: [0; 4], value }
}

#[cfg(test)]
mod tests {
    use super::gains;

    #[test]
    fn small_kernels_begin_early_where_they_are_small() {
        for (name, blocks, early) in [
            ("f8_few_gated_8", 10_000, true),
            ("rows_1_bf16", 1, true),
            ("rope_and_write_f16", 12, true),
            ("attention_combine", 264, true),
            ("attention_combine", 265, false),
            ("add_and_norm_4_f8", 2, true),
            ("add_and_norm_4_f8", 1, false),
            ("combine_add_and_norm_4_f8", 1, true),
            ("combine_add_and_norm_4_f8", 264, true),
            ("combine_add_and_norm_4_f8", 265, false),
            ("moe_norm_route_bf16", 1, true),
            ("add_and_norm_4_f8", 2048, false),
            ("f8_many", 1, false),
            ("embed_bf16", 1, false),
        ] {
            assert_eq!(gains(name, blocks), early, "{name}, {blocks} blocks");
        }
    }
}
