//! What is done to each row, or each number, by itself.

use crate::cuda::{
    ActType, ActsView, ActsViewMut, Arg, DeviceError, DeviceMatrix, Groups, Launch, View, ViewMut, WeightKind,
};
use crate::op::gated::GatedActivation;

/// Embeds tokens: row `r` of `out` becomes `scale` times row `tokens[r] - first` of the table, or zeros where it has no such row.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If `out` is not as many rows as there are tokens, as wide as the table's.
pub fn embed(
    out: ViewMut<'_, f32>,
    tokens: View<'_, u32>,
    table: &DeviceMatrix,
    first: u32,
    scale: f32,
) -> Result<(), DeviceError> {
    let (rows, width) = (tokens.len(), table.cols());
    assert_eq!(out.len(), rows * width, "out: {rows} rows of {width}");
    if out.is_empty() {
        return Ok(());
    }
    let kernel = match table.kind() {
        WeightKind::F32 => "embed_f32",
        WeightKind::Bf16 => "embed_bf16",
        WeightKind::F16 => "embed_f16",
        WeightKind::F8 => "embed_f8",
        WeightKind::Q8_0 => "embed_q8_0",
        WeightKind::Q4_0 => "embed_q4_0",
        WeightKind::Q4_1 => "embed_q4_1",
        WeightKind::Q5_1 => "embed_q5_1",
        WeightKind::Q4_K => "embed_q4_k",
        WeightKind::Q5_K => "embed_q5_k",
        WeightKind::Q6_K => "embed_q6_k",
    };
    let launch = Launch { kernel, grid: [rows as u32, 1, 1], threads: row_threads(width), shared: 0 };
    let args = [
        Arg::Ptr(out.address()),
        Arg::Ptr(tokens.address()),
        Arg::Ptr(table.data().address()),
        Arg::Ptr(table.scales().map_or(0, |scales| scales.address())),
        Arg::U64(table.row_bytes() as u64),
        Arg::U32(table.rows() as u32),
        Arg::U32(first),
        Arg::U32(width as u32),
        Arg::F32(scale),
    ];
    // SAFETY: the kernel's parameters; the lengths are checked above, and rows are compared with the table's.
    unsafe { out.device().launch(&launch, &args) }
}

/// A token that the device has found itself, in place of its number: of this row of the step before, the one that was drawn, or the
/// one of the greatest logit. For [`feed`].
///
/// # Panics
/// If there are no such rows on any device.
pub fn fed_token(row: usize, drawn: bool) -> u32 {
    assert!(row < FED_DRAWN as usize, "row {row} of a step");
    FED | if drawn { FED_DRAWN } else { 0 } | row as u32
}

/// Of the words that stand for tokens: it is one of the step before, and it was drawn. No vocabulary has so many tokens.
const FED: u32 = 1 << 31;
const FED_DRAWN: u32 = 1 << 30;

/// Puts in the place of each [`fed_token`] among `tokens` the token itself: of `greatest`, those of the greatest logits of the rows of
/// the step before, or of `drawn`. One that names a row which is not there stays as it is: no token of any vocabulary.
///
/// # Errors
/// If the device fails.
pub fn feed(
    tokens: ViewMut<'_, u32>,
    greatest: View<'_, u32>,
    drawn: View<'_, u32>,
) -> Result<(), DeviceError> {
    let rows = tokens.len() as u32;
    let launch = Launch { kernel: "feed_tokens", grid: [rows.div_ceil(256), 1, 1], threads: 256, shared: 0 };
    let args = [
        Arg::Ptr(tokens.address()),
        Arg::Ptr(greatest.address()),
        Arg::Ptr(drawn.address()),
        Arg::U32(rows),
        Arg::U32(greatest.len() as u32),
        Arg::U32(drawn.len() as u32),
    ];
    // SAFETY: the kernel's parameters; it looks whether rows are in their views.
    unsafe { tokens.device().launch(&launch, &args) }
}

/// The gated activation of `rows` rows: `out[r][i]` of the gate `gate_up[r][i]` and of `gate_up[r][width + i]`, with `bias`
/// (`2 · width`, in the same order) added to both first.
///
/// With `groups`, `bias` is a row for each group, and rows behind the end of the last group are left alone.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If the lengths do not fit `rows` and `width`, or `out` is in E4M3.
pub fn gated(
    out: ActsViewMut<'_>,
    gate_up: View<'_, f32>,
    bias: Option<View<'_, f32>>,
    groups: Option<&Groups>,
    rows: usize,
    width: usize,
    activation: GatedActivation,
) -> Result<(), DeviceError> {
    assert_eq!(out.len(), rows * width, "out: {rows} rows of {width}");
    assert_eq!(gate_up.len(), rows * 2 * width, "gate_up: {rows} rows of 2 · {width}");
    let biases = groups.map_or(1, |groups| groups.count) * 2 * width;
    assert!(bias.is_none_or(|bias| bias.len() == biases), "bias: {biases}");
    assert!(groups.is_none_or(|groups| rows <= groups.group_of_row.len()), "rows of groups: {rows}");
    if out.is_empty() {
        return Ok(());
    }
    let kernel = match out.ty() {
        ActType::F32 => "gated_f32",
        ActType::Bf16 => "gated_bf16",
        ActType::F8 => panic!("activations are not written in E4M3"),
    };
    let [activation, alpha, limit] = activation_args(activation);
    let threads = row_threads(width).min(256);
    // Each thread works at four elements: EACH in the kernel.
    let parts = width.div_ceil(threads as usize * 4) as u32;
    let launch = Launch { kernel, grid: [rows as u32, parts, 1], threads, shared: 0 };
    let total = groups.map(|groups| groups.offsets.view().slice(groups.count..groups.count + 1));
    let args = [
        Arg::Ptr(out.address()),
        Arg::Ptr(gate_up.address()),
        Arg::Ptr(bias.map_or(0, |bias| bias.address())),
        Arg::Ptr(groups.map_or(0, |groups| groups.group_of_row.view().address())),
        Arg::Ptr(total.map_or(0, |total| total.address())),
        Arg::U32(width as u32),
        activation,
        alpha,
        limit,
    ];
    // SAFETY: the kernel's parameters; the lengths are checked above, and a live row's group is one of the groups.
    unsafe { out.device().launch(&launch, &args) }
}

/// A kernel's arguments `activation`, `alpha` and `limit`.
pub(super) fn activation_args(activation: GatedActivation) -> [Arg; 3] {
    let (number, alpha, limit) = match activation {
        GatedActivation::Silu => (0, 0.0, 0.0),
        GatedActivation::GeluTanh => (1, 0.0, 0.0),
        GatedActivation::ClampedSwiglu { alpha, limit } => (2, alpha, limit),
    };
    [Arg::U32(number), Arg::F32(alpha), Arg::F32(limit)]
}

/// Adds `bias` to each of `rows` rows that begin `stride` elements apart in `x`.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If `bias` is wider than the stride, or the rows are not inside of `x`.
pub fn add_bias(
    x: ViewMut<'_, f32>,
    stride: usize,
    rows: usize,
    bias: View<'_, f32>,
) -> Result<(), DeviceError> {
    let width = bias.len();
    if rows == 0 || width == 0 {
        return Ok(());
    }
    assert!(width <= stride, "a bias of {width} for rows {stride} apart");
    assert!(
        (rows - 1) * stride + width <= x.len(),
        "x: {rows} rows of {width}, {stride} apart, in {}",
        x.len()
    );
    let threads = row_threads(width).min(256);
    let parts = width.div_ceil(threads as usize) as u32;
    let launch = Launch { kernel: "add_bias", grid: [rows as u32, parts, 1], threads, shared: 0 };
    let args =
        [Arg::Ptr(x.address()), Arg::Ptr(bias.address()), Arg::U64(stride as u64), Arg::U32(width as u32)];
    // SAFETY: the kernel's parameters; the lengths are checked above.
    unsafe { x.device().launch(&launch, &args) }
}

/// `x = cap · tanh(x / cap)`, element by element.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If there are more than 2^40 elements.
pub fn soft_cap(x: ViewMut<'_, f32>, cap: f32) -> Result<(), DeviceError> {
    if x.is_empty() {
        return Ok(());
    }
    // Each thread works at four elements: EACH in the kernel.
    let blocks = u32::try_from(x.len().div_ceil(1024)).ok().filter(|blocks| *blocks < 1 << 30);
    let blocks = blocks.unwrap_or_else(|| panic!("{} elements", x.len()));
    let launch = Launch { kernel: "soft_cap", grid: [blocks, 1, 1], threads: 256, shared: 0 };
    let args = [Arg::Ptr(x.address()), Arg::U64(x.len() as u64), Arg::F32(cap)];
    // SAFETY: the kernel's parameters; it looks at its length.
    unsafe { x.device().launch(&launch, &args) }
}

/// Picks rows of `width`: row `i` of `out` becomes row `rows[i]` of `x`, or zeros where `x` has no such row.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If `out` is not as many rows as are picked, or of another type, or `x` not whole rows, or in E4M3.
pub fn gather_rows(
    out: ActsViewMut<'_>,
    x: ActsView<'_>,
    rows: View<'_, u32>,
    width: usize,
) -> Result<(), DeviceError> {
    assert_eq!(out.ty(), x.ty(), "types of rows");
    assert_eq!(out.len(), rows.len() * width, "out: {} rows of {width}", rows.len());
    if out.is_empty() {
        return Ok(());
    }
    assert!(x.len().is_multiple_of(width), "x: rows of {width} in {}", x.len());
    let element = match x.ty() {
        ActType::F32 => 4,
        ActType::Bf16 => 2,
        ActType::F8 => panic!("rows in E4M3 are not picked"),
    };
    let bytes = width * element;
    let aligned = [x.address(), out.address(), bytes as u64].iter().all(|at| at.is_multiple_of(16));
    let (kernel, word) = match (aligned, x.ty()) {
        (true, _) => ("gather_rows_16", 16),
        (false, ActType::F32) => ("gather_rows_4", 4),
        (false, _) => ("gather_rows_2", 2),
    };
    let words = bytes / word;
    let launch = Launch { kernel, grid: [rows.len() as u32, 1, 1], threads: row_threads(words), shared: 0 };
    let args = [
        Arg::Ptr(out.address()),
        Arg::Ptr(x.address()),
        Arg::Ptr(rows.address()),
        Arg::U32((x.len() / width) as u32),
        Arg::U32(words as u32),
    ];
    // SAFETY: the kernel's parameters; the lengths are checked above, and rows are compared with those of `x`.
    unsafe { out.device().launch(&launch, &args) }
}

/// Threads for a row of `width` pieces: whole warps, and a few pieces for each thread.
fn row_threads(width: usize) -> u32 {
    width.div_ceil(4).next_multiple_of(32).clamp(32, 1024) as u32
}

#[cfg(test)]
#[path = "elementwise_tests.rs"]
mod tests;
