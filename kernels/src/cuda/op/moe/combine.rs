//! What experts give, added up.

use super::MoeBuffers;
use crate::cuda::{Arg, DeviceError, Launch, View, ViewMut};

/// What [`combine`] adds to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Onto {
    /// What is there.
    Sum,
    /// Nothing: what is there is overwritten.
    Nothing,
}

/// What experts give rows.
#[derive(Debug, Clone, Copy)]
pub struct Results<'a> {
    /// Sorted rows.
    pub y: View<'a, f32>,
    /// Elements from one to the next.
    pub stride: usize,
    /// Added to them: of each group, as much as a row.
    pub bias: Option<View<'a, f32>>,
    /// Where rows were sorted to, and their weights.
    pub buffers: &'a MoeBuffers,
}

impl Results<'_> {
    /// Looks at lengths, for so many rows of `width`.
    pub(in crate::cuda::op) fn check(&self, rows: usize, width: usize) {
        let Self { y, stride, bias, buffers } = *self;
        assert!(rows <= buffers.max_rows, "{rows} rows of {}", buffers.max_rows);
        assert!(stride >= width, "rows of {width}, {stride} apart");
        let sorted = buffers.max_sorted(rows);
        assert!(
            sorted == 0 || y.len() >= (sorted - 1) * stride + width,
            "{sorted} sorted rows in {}",
            y.len()
        );
        assert!(
            bias.is_none_or(|bias| bias.len() == buffers.groups.count * width),
            "bias of {} groups",
            buffers.groups.count
        );
    }
}

/// `out[r] (+)= Σ weight · (y[position] + bias[group])` over the pairs of row r whose expert is here, one after the other in
/// the order of the experts' numbers, in f32. `out`: `[rows][width]`; `y`: sorted rows of `width`, `stride` elements apart;
/// `bias`: `[groups][width]`.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If lengths do not fit.
pub fn combine(
    out: ViewMut<'_, f32>,
    onto: Onto,
    y: View<'_, f32>,
    stride: usize,
    bias: Option<View<'_, f32>>,
    buffers: &MoeBuffers,
    rows: usize,
    width: usize,
) -> Result<(), DeviceError> {
    assert_eq!(out.len(), rows * width, "combined rows");
    Results { y, stride, bias, buffers }.check(rows, width);
    let bias = bias.map_or(0, |bias| bias.address());
    let whole = [width, stride].iter().all(|n| n.is_multiple_of(4))
        && [out.address(), y.address(), bias].iter().all(|address| address.is_multiple_of(16));
    let (kernel, lanes) = if whole { ("moe_combine_4", width / 4) } else { ("moe_combine_1", width) };
    // Enough blocks for the whole device even where there is one row.
    let threads = if rows < 32 { 64 } else { 256 }.min(lanes.next_multiple_of(32).max(32));
    let launch = Launch {
        kernel,
        grid: [lanes.div_ceil(threads) as u32, rows as u32, 1],
        threads: threads as u32,
        shared: 0,
    };
    let args = [
        Arg::Ptr(out.address()),
        Arg::Ptr(y.address()),
        Arg::Ptr(bias),
        Arg::Ptr(buffers.positions.view().address()),
        Arg::Ptr(buffers.weights.view().address()),
        Arg::Ptr(buffers.groups.group_of_row.view().address()),
        Arg::U32(lanes as u32),
        Arg::U32((if whole { stride / 4 } else { stride }) as u32),
        Arg::U32(buffers.top_k as u32),
        Arg::U32(u32::from(onto == Onto::Sum)),
    ];
    // SAFETY: of the kernel's types; the lengths were looked at, and positions are of sorted rows or of none.
    unsafe { out.device().launch(&launch, &args) }
}
