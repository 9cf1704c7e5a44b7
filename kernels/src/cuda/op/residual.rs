//! The residual stream: what layers add to it, and its norms.

use crate::cuda::{ActType, ActsViewMut, Arg, DeviceError, Launch, View, ViewMut};

/// Adds to `rows` rows of `width` of `x`, and normalises them: `x += added` (each row of it first normalised and multiplied by
/// `post_norm`, where there is one), then `out = x / √(mean(x²) + eps) · weight`. Without `out`, only the addition is done.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If the lengths do not fit `rows` and `width`.
#[allow(clippy::too_many_arguments)]
pub fn add_and_norm(
    out: Option<ActsViewMut<'_>>,
    x: ViewMut<'_, f32>,
    added: Option<View<'_, f32>>,
    post_norm: Option<View<'_, f32>>,
    weight: View<'_, f32>,
    rows: usize,
    width: usize,
    eps: f32,
) -> Result<(), DeviceError> {
    let len = rows * width;
    assert_eq!(x.len(), len, "x: {rows} rows of {width}");
    assert!(added.is_none_or(|added| added.len() == len), "added: {rows} rows of {width}");
    assert!(post_norm.is_none_or(|norm| norm.len() == width), "post_norm: {width} wide");
    assert!(out.is_none() || weight.len() == width, "weight: {width} wide");
    assert!(out.as_ref().is_none_or(|out| out.len() == len), "out: {rows} rows of {width}");
    if len == 0 || (out.is_none() && added.is_none()) {
        return Ok(());
    }
    let kernel = match out.as_ref().map(ActsViewMut::ty) {
        Some(ActType::Bf16) => "add_and_norm_bf16",
        Some(ActType::F32) | None => "add_and_norm_f32",
    };
    // A few elements for each thread: more threads would only wait for each other at the sum.
    let threads = (width.div_ceil(4).next_multiple_of(32)).clamp(32, 1024) as u32;
    let launch = Launch { kernel, grid: [rows as u32, 1, 1], threads, shared: 0 };
    let args = [
        Arg::Ptr(out.as_ref().map_or(0, ActsViewMut::address)),
        Arg::Ptr(x.address()),
        Arg::Ptr(added.map_or(0, |added| added.address())),
        Arg::Ptr(post_norm.map_or(0, |norm| norm.address())),
        Arg::Ptr(weight.address()),
        Arg::U32(width as u32),
        Arg::F32(eps),
    ];
    // SAFETY: the kernel's parameters, and as many elements behind each as it reads and writes: checked above.
    unsafe { x.device().launch(&launch, &args) }
}

#[cfg(test)]
#[path = "residual_tests.rs"]
mod tests;
