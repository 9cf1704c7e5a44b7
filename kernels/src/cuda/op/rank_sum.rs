//! What ranks have, added up.

use crate::cuda::{Arg, DeviceError, Launch, View, ViewMut};

/// Threads of a block, and blocks at most: each thread goes on until all is done.
const THREADS: usize = 256;
const MOST_BLOCKS: usize = 2048;

/// `out[i] = ((parts[0][i] + parts[1][i]) + parts[2][i]) + …` in f32, in the order of ranks; `parts`: `[ranks][out.len()]`. The
/// bits of the host's collectives.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If there is no rank, or `parts` has another length.
pub fn rank_sum(out: ViewMut<'_, f32>, parts: View<'_, f32>, ranks: usize) -> Result<(), DeviceError> {
    assert!(ranks > 0 && parts.len() == ranks * out.len(), "{} of {ranks} ranks", parts.len());
    let whole = out.len().is_multiple_of(4)
        && [out.address(), parts.address()].iter().all(|address| address.is_multiple_of(16));
    let (kernel, len) = if whole { ("rank_sum_4", out.len() / 4) } else { ("rank_sum_1", out.len()) };
    let blocks = len.div_ceil(THREADS).min(MOST_BLOCKS);
    let launch = Launch { kernel, grid: [blocks as u32, 1, 1], threads: THREADS as u32, shared: 0 };
    let args =
        [Arg::Ptr(out.address()), Arg::Ptr(parts.address()), Arg::U64(len as u64), Arg::U32(ranks as u32)];
    // SAFETY: of the kernel's types; there are as many elements of each rank as `out` has.
    unsafe { out.device().launch(&launch, &args) }
}
