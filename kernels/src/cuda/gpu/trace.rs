//! When kernels begin to wait, have waited and end, where they begin before others have ended: no profiler shows it then.
//!
//! `FG_TRACE` in `kernels/cu/foggara.cuh` says what is kept. It costs a step of one row 2 to 5 %.

use std::ffi::CStr;

use cudarc::driver::sys::{self, CUmodule, CUresult};

/// Set, kernels keep their moments, and are compiled anew for it.
pub(in crate::cuda) const SWITCH: &str = "FOGGARA_CUDA_TRACE";
/// What the compiler is told then.
pub(in crate::cuda) const OPTION: &str = "-DFG_TRACE";

/// How many moments a module keeps at most: as in `foggara.cuh`.
const MOST: usize = 1 << 19;

/// Where a block was at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// All that it does before the kernels before it have ended is done.
    BeginsToWait,
    /// They have ended.
    HasWaited,
    /// So has the block.
    Ends,
}

/// A moment of a block of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// On the device's clock, in nanoseconds; the clock may go in steps of up to a microsecond.
    pub at: u64,
    /// Where the block is.
    pub stage: Stage,
    /// The source that the kernel is in, without `.cu`.
    pub file: &'static str,
    /// The block's number.
    pub block: u32,
    /// How many blocks the kernel has.
    pub blocks: u32,
    /// Threads of each.
    pub threads: u32,
}

impl Moment {
    /// As a module keeps it.
    fn of(file: &'static str, [at, words]: [u64; 2]) -> Option<Self> {
        let stage = match words & 0xf {
            0 => Stage::BeginsToWait,
            1 => Stage::HasWaited,
            2 => Stage::Ends,
            _ => return None,
        };
        let field = |from: u32, bits: u32| (words >> from & ((1 << bits) - 1)) as u32;
        let (threads, block, blocks) = (field(4, 8) * 32, field(12, 26), field(38, 26));
        Some(Self { at, stage, file, block, blocks, threads })
    }
}

/// What a module has kept so far; nothing where it was compiled without.
pub(super) fn read(module: CUmodule, file: &'static str) -> Vec<Moment> {
    let Some(count) = of_module::<u32>(module, c"fg_moments_kept", 1) else { return Vec::new() };
    let kept = count.first().map_or(0, |count| MOST.min(*count as usize));
    let words = of_module::<u64>(module, c"fg_moments", 2 * kept).unwrap_or_default();
    words.chunks_exact(2).filter_map(|pair| Moment::of(file, [pair[0], pair[1]])).collect()
}

/// The first `len` elements of what a module has under a name.
fn of_module<T: bytemuck::Pod>(module: CUmodule, name: &CStr, len: usize) -> Option<Vec<T>> {
    let (mut at, mut bytes) = (0, 0);
    // SAFETY: the module is loaded, the name ends with zero, both pointers are to numbers.
    let answer = unsafe { sys::cuModuleGetGlobal_v2(&raw mut at, &raw mut bytes, module, name.as_ptr()) };
    if answer != CUresult::CUDA_SUCCESS || bytes < len * size_of::<T>() {
        return None;
    }
    let mut values = vec![T::zeroed(); len];
    let to: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
    // SAFETY: there are so many bytes on the device, as was just asked, and here.
    let answer = unsafe { sys::cuMemcpyDtoH_v2(to.as_mut_ptr().cast(), at, to.len()) };
    (answer == CUresult::CUDA_SUCCESS).then_some(values)
}

#[cfg(test)]
mod tests {
    use super::{Moment, Stage};

    #[test]
    fn words_are_read_as_kernels_write_them() {
        // foggara.cuh: what it is, warps, the block, and how many there are.
        let words = 2 | 8 << 4 | 131 << 12 | 264 << 38;
        let moment = Moment::of("moe", [77, words]).expect("a moment");
        let expected =
            Moment { at: 77, stage: Stage::Ends, file: "moe", block: 131, blocks: 264, threads: 256 };
        assert_eq!(moment, expected);
        assert_eq!(Moment::of("moe", [77, words | 3]), None, "no such stage");
    }
}
