//! A router's product and what follows it, in one launch where rows are few.

use super::route::{Choice, to_sort};
use super::sort::{SORT_THREADS, check};
use super::{MoeBuffers, Placement, Router, route_and_sort};
use crate::cuda::op::matmul::matmul;
use crate::cuda::{ActType, ActsView, Arg, DeviceError, DeviceMatrix, Launch, ViewMut, WeightKind};

/// Rows that are done at once at most.
const ROWS: usize = 8;
/// Bytes of a router that one block reads in no more time than launches take.
const BYTES: usize = 256 * 1024;
/// Products of numbers that one block does in as much.
const PRODUCTS: usize = 1 << 18;
/// Bytes of shared memory that every device gives a block without being asked.
const SHARED: usize = 48 * 1024 - 512;
/// Blocks that are on a large GPU at once.
const WAVE: usize = 132;

/// The product of `rows` rows of `x` with the router's matrix `w` (a row an expert), and [`route_and_sort`] by what comes out: in
/// one launch where there are few rows and a small matrix. Otherwise logits are left in `logits`, which has `[rows][experts]`.
///
/// A row's logits do not depend on how many rows there are. Small matrices have kernels of their own for it, which all add up in
/// the same order; others go through [`matmul`].
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// As [`matmul`] and [`route_and_sort`].
pub fn product_route_and_sort(
    buffers: &mut MoeBuffers,
    mut logits: ViewMut<'_, f32>,
    x: ActsView<'_>,
    w: &DeviceMatrix,
    rows: usize,
    router: &Router<'_>,
    placement: Placement<'_>,
) -> Result<(), DeviceError> {
    let experts = buffers.experts;
    assert_eq!(w.rows(), experts, "a router of {experts} experts");
    let Some(kernels) = kernels(x, w) else {
        matmul(logits.reborrow(), experts, x, w, rows)?;
        return route_and_sort(buffers, logits.as_view(), rows, router, placement);
    };
    assert_eq!(x.len(), rows * w.cols(), "{rows} rows of {}", w.cols());
    let one_launch = (1..=ROWS).contains(&rows) && rows * experts * w.cols() <= PRODUCTS;
    if !one_launch {
        product(logits.reborrow(), x, w, rows, kernels.alone)?;
        return route_and_sort(buffers, logits.as_view(), rows, router, placement);
    }
    let choice = Choice::new(buffers, logits.as_view(), rows, router);
    let split = split(experts);
    let (width, to_sort) = to_sort(buffers, rows);
    let shared = choice.shared(rows) + to_sort + (split + 1) * rows * experts * size_of::<f32>();
    assert!(shared <= SHARED, "{rows} rows of {experts} logits in {shared} bytes");
    let counts = check(buffers, rows, &placement);
    let mut args = choice.args.to_vec();
    args.extend([
        Arg::Ptr(x.address()),
        Arg::Ptr(w.data().address()),
        Arg::U32(w.cols() as u32),
        Arg::U32(split as u32),
    ]);
    args.extend(buffers.sort_args(&placement, counts, width));
    buffers.set_rows(rows);
    let kernel = if rows == 1 { kernels.of_one } else { kernels.of_few };
    let launch = Launch { kernel, grid: [1, 1, 1], threads: SORT_THREADS as u32, shared: shared as u32 };
    // SAFETY: all of the kernel's types; `x` and `w` have as many numbers as it reads, and `Choice::new` and `check` looked at
    // every other length.
    unsafe { buffers.ids.device().launch(&launch, &args) }
}

/// Warps for each expert: as many as there are.
pub(super) fn split(experts: usize) -> usize {
    (SORT_THREADS / 32 / experts.max(1)).max(1)
}

/// The product alone.
fn product(
    logits: ViewMut<'_, f32>,
    x: ActsView<'_>,
    w: &DeviceMatrix,
    rows: usize,
    kernel: &'static str,
) -> Result<(), DeviceError> {
    let (experts, inputs) = (w.rows(), w.cols());
    assert!(logits.len() >= rows * experts, "{rows} rows of {experts} logits in {}", logits.len());
    // Few to a block until the device is full; then as many as share a reading of the matrix.
    let each = (rows / WAVE).clamp(1, ROWS);
    let launch = Launch {
        kernel,
        grid: [rows.div_ceil(each) as u32, 1, 1],
        threads: SORT_THREADS as u32,
        shared: (split(experts) * each * experts * size_of::<f32>()) as u32,
    };
    let args = [
        Arg::Ptr(logits.address()),
        Arg::Ptr(x.address()),
        Arg::Ptr(w.data().address()),
        Arg::U32(rows as u32),
        Arg::U32(each as u32),
        Arg::U32(experts as u32),
        Arg::U32(inputs as u32),
        Arg::U32(split(experts) as u32),
    ];
    // SAFETY: all of the kernel's types; `x`, `w` and `logits` have as many numbers as it reads and writes.
    unsafe { logits.device().launch(&launch, &args) }
}

/// The kernels of a router's product: with all that follows, of one row and of a few; and alone, of any number.
pub(super) struct Kernels {
    of_one: &'static str,
    of_few: &'static str,
    alone: &'static str,
}

/// Those for such a matrix, if there are some. Nothing here depends on how many rows there are.
pub(super) fn kernels(x: ActsView<'_>, w: &DeviceMatrix) -> Option<Kernels> {
    let (experts, inputs) = (w.rows(), w.cols());
    let fits = (1..=64).contains(&experts)
        && inputs.is_multiple_of(8)
        && experts * w.kind().row_bytes(inputs) <= BYTES
        && x.address().is_multiple_of(16);
    if !fits {
        return None;
    }
    let [of_one, of_few, alone] = match (w.kind(), x.ty()) {
        (WeightKind::Bf16, ActType::Bf16) => [
            "moe_product_route_and_sort_bf16_bf16_1",
            "moe_product_route_and_sort_bf16_bf16_8",
            "moe_router_product_bf16_bf16",
        ],
        (WeightKind::F16, ActType::Bf16) => [
            "moe_product_route_and_sort_f16_bf16_1",
            "moe_product_route_and_sort_f16_bf16_8",
            "moe_router_product_f16_bf16",
        ],
        (WeightKind::F32, ActType::Bf16) => [
            "moe_product_route_and_sort_float_bf16_1",
            "moe_product_route_and_sort_float_bf16_8",
            "moe_router_product_float_bf16",
        ],
        (WeightKind::F32, ActType::F32) => [
            "moe_product_route_and_sort_float_float_1",
            "moe_product_route_and_sort_float_float_8",
            "moe_router_product_float_float",
        ],
        _ => return None,
    };
    Some(Kernels { of_one, of_few, alone })
}
