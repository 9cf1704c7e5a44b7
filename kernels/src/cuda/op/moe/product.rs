//! A router's product and what follows it, in one launch.

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

/// [`matmul`] of `rows` rows of `x` with the router's matrix `w` (a row an expert), and [`route_and_sort`] by what comes out: in
/// one launch where there are few rows and a small matrix. Otherwise logits are left in `logits`, which has `[rows][experts]`.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// As those two.
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
    let Some(kernel) = kernel(x, w, rows) else {
        matmul(logits.reborrow(), experts, x, w, rows)?;
        return route_and_sort(buffers, logits.as_view(), rows, router, placement);
    };
    assert_eq!(x.len(), rows * w.cols(), "{rows} rows of {}", w.cols());
    let choice = Choice::new(buffers, logits.as_view(), rows, router);
    let threads = SORT_THREADS;
    // As many warps for each expert as there are.
    let split = (threads / 32 / experts.max(1)).max(1);
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
    let launch = Launch { kernel, grid: [1, 1, 1], threads: threads as u32, shared: shared as u32 };
    // SAFETY: all of the kernel's types; `x` and `w` have as many numbers as it reads, and `Choice::new` and `check` looked at
    // every other length.
    unsafe { buffers.ids.device().launch(&launch, &args) }
}

/// The kernel that does all at once, if there is one for these.
fn kernel(x: ActsView<'_>, w: &DeviceMatrix, rows: usize) -> Option<&'static str> {
    let (experts, inputs) = (w.rows(), w.cols());
    let fits = (1..=ROWS).contains(&rows)
        && (1..=64).contains(&experts)
        && inputs.is_multiple_of(8)
        && experts * w.kind().row_bytes(inputs) <= BYTES
        && rows * experts * inputs <= PRODUCTS
        && x.address().is_multiple_of(16);
    if !fits {
        return None;
    }
    let [one, more] = match (w.kind(), x.ty()) {
        (WeightKind::Bf16, ActType::Bf16) => {
            ["moe_product_route_and_sort_bf16_bf16_1", "moe_product_route_and_sort_bf16_bf16_8"]
        }
        (WeightKind::F16, ActType::Bf16) => {
            ["moe_product_route_and_sort_f16_bf16_1", "moe_product_route_and_sort_f16_bf16_8"]
        }
        (WeightKind::F32, ActType::Bf16) => {
            ["moe_product_route_and_sort_float_bf16_1", "moe_product_route_and_sort_float_bf16_8"]
        }
        (WeightKind::F32, ActType::F32) => {
            ["moe_product_route_and_sort_float_float_1", "moe_product_route_and_sort_float_float_8"]
        }
        _ => return None,
    };
    Some(if rows == 1 { one } else { more })
}
