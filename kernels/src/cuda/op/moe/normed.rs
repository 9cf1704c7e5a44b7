//! The norm before a router, the router's product and what follows it, in one launch for a single row.

use super::product::{kernels, split};
use super::route::Choice;
use super::sort::{SORT_THREADS, check};
use super::{MoeBuffers, Placement, Router};
use crate::cuda::op::residual::Norm;
use crate::cuda::{ActType, ActsView, Arg, DeviceError, DeviceMatrix, Launch, WeightKind};

/// Experts at most: a warp has one, or a part of one.
const EXPERTS: usize = SORT_THREADS / 32;

/// [`add_and_norm`](crate::cuda::op::residual::add_and_norm) of one row, whose result in bf16 then goes through
/// [`product_route_and_sort`](super::product_route_and_sort). False, and nothing is done, where no kernel does all of it: for other
/// types or more rows, many experts, or long rows.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// As those two.
pub fn norm_route_and_sort(
    buffers: &mut MoeBuffers,
    norm: &Norm<'_>,
    w: &DeviceMatrix,
    router: &Router<'_>,
    placement: Placement<'_>,
) -> Result<bool, DeviceError> {
    let Some(kernel) = kernel(norm, w) else { return Ok(false) };
    norm.check();
    assert_eq!((w.rows(), w.cols()), (buffers.experts, norm.width), "a router");
    let counts = check(buffers, 1, &placement);
    // Logits do not leave the kernel; there are as many as a view of them must have.
    let logits = norm.x.as_view().slice(0..buffers.experts);
    let choice = Choice::new(buffers, logits, 1, router);
    let (_, form) = norm.floats_of_a_thread().expect("asked above");
    let codes = norm.out.codes.as_ref();
    let mut args = norm.args(form.width).to_vec();
    args.extend([
        Arg::Ptr(codes.map_or(0, |codes| codes.address())),
        Arg::Ptr(codes.map_or(0, |codes| codes.scales_address())),
        Arg::U32(codes.map_or(0, |codes| codes.stride() as u32)),
        Arg::U32(form.threads),
    ]);
    args.extend(choice.args);
    args.extend([Arg::Ptr(w.data().address()), Arg::U32(split(buffers.experts) as u32)]);
    args.extend(buffers.sort_args(&placement, counts, 1));
    buffers.set_rows(1);
    let shared = (norm.width * 2) as u32;
    let launch = Launch { kernel, grid: [1, 1, 1], threads: SORT_THREADS as u32, shared };
    // SAFETY: all of the kernel's types; `Norm::check`, `Choice::new` and `check` looked at every length.
    unsafe { buffers.ids.device().launch(&launch, &args).map(|()| true) }
}

/// The kernel for such a row and router, if there is one: only where others add up as it does.
fn kernel(norm: &Norm<'_>, w: &DeviceMatrix) -> Option<&'static str> {
    let out = norm.out.plain.as_ref().filter(|out| out.ty() == ActType::Bf16)?;
    let (floats, _) = norm.floats_of_a_thread()?;
    let x: ActsView<'_> = out.as_view();
    let aligned = [Some(w.data().address()), norm.out.codes.as_ref().map(|codes| codes.address())];
    kernels(x, w)?;
    let (kernel, ahead) = match w.kind() {
        WeightKind::Bf16 => ("moe_norm_route_bf16", 4),
        WeightKind::F32 => ("moe_norm_route_float", 2),
        _ => return None,
    };
    // What a warp asks for at once: eights of all lanes.
    let part = (w.cols() / 8).div_ceil(split(w.rows()));
    let fits = norm.rows == 1
        && norm.width >= w.rows()
        && floats == 4
        && w.rows() <= EXPERTS
        && part <= 32 * ahead
        && aligned.into_iter().flatten().all(|address| address.is_multiple_of(16));
    fits.then_some(kernel)
}

#[cfg(test)]
#[path = "normed_tests.rs"]
mod tests;
