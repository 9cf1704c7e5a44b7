//! Rows of activations in E4M3, each with a scale of its own.

use crate::cuda::{ActType, ActsView, Arg, DeviceError, F8ViewMut, Groups, Launch};

/// Numbers that a thread has at once.
const AT_ONCE: usize = 8;
/// Threads of a block where there are few rows: all of a row is asked for at once. Of many, several are at work on a multiprocessor.
const MOST_THREADS: usize = 1024;
const FEWER_THREADS: usize = 512;
/// So many rows are many.
const MANY: usize = 256;

/// `out` = rows of `x` (in f32 or bf16, one after the other), rounded as [`activations_to_f8`](crate::cuda::activations_to_f8) says.
/// With `groups`, rows behind the end of the last group are left alone.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If lengths differ, or `x` is in E4M3.
pub fn quantize_rows(
    out: F8ViewMut<'_>,
    x: ActsView<'_>,
    groups: Option<&Groups>,
) -> Result<(), DeviceError> {
    let (width, stride) = (out.width(), out.stride());
    assert_eq!(out.len(), x.len(), "numbers in rows of {width}");
    assert!(groups.is_none_or(|groups| groups.count < groups.offsets.len()), "offsets of groups");
    let rows = x.len() / width;
    let eights = width.is_multiple_of(AT_ONCE) && x.address().is_multiple_of(16);
    let most = if rows < MANY { MOST_THREADS } else { FEWER_THREADS };
    let per = [1, 2, 4].into_iter().find(|per| eights && width <= most * AT_ONCE * per);
    let (kernel, threads) = match (x.ty(), per) {
        (ActType::F32, Some(1)) => ("quantize_rows_f32_1", 1),
        (ActType::F32, Some(2)) => ("quantize_rows_f32_2", 2),
        (ActType::F32, Some(_)) => ("quantize_rows_f32_4", 4),
        (ActType::F32, None) => ("quantize_rows_f32_any", 1),
        (ActType::Bf16, Some(1)) => ("quantize_rows_bf16_1", 1),
        (ActType::Bf16, Some(2)) => ("quantize_rows_bf16_2", 2),
        (ActType::Bf16, Some(_)) => ("quantize_rows_bf16_4", 4),
        (ActType::Bf16, None) => ("quantize_rows_bf16_any", 1),
        (ActType::F8, _) => panic!("rows that are in E4M3 already"),
    };
    let unit = if per.is_some() { AT_ONCE } else { 1 };
    let threads = (stride / unit).div_ceil(threads).next_multiple_of(32).min(MOST_THREADS);
    let end =
        groups.map_or(0, |groups| groups.offsets.view().slice(groups.count..groups.count + 1).address());
    let launch = Launch { kernel, grid: [rows as u32, 1, 1], threads: threads as u32, shared: 0 };
    let args = [
        Arg::Ptr(out.address()),
        Arg::Ptr(out.scales_address()),
        Arg::Ptr(x.address()),
        Arg::Ptr(end),
        Arg::U32((width / unit) as u32),
        Arg::U32((stride / unit) as u32),
    ];
    // SAFETY: the kernel's parameters; `x` and `out` have so many rows, and rows of `out` so many codes.
    unsafe { out.device().launch(&launch, &args) }
}

#[cfg(test)]
#[path = "quantize_tests.rs"]
mod tests;
