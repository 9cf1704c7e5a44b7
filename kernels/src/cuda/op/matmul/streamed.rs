//! Products of many sorted rows of groups with matrices in bf16, on Hopper (`kernels/cu/matmul_streamed.cu`): of all kernels the
//! fastest for them. Rows in another order are brought into that of the groups first.

use super::choose::{Matrices, PROCESSORS, Sizes};
use super::{Product, Which};
use crate::cuda::{
    ActType, ActsView, Arg, DeviceError, Groups, Launch, MatrixTable, View, ViewMut, WeightKind,
};

/// Outputs of a block, and blocks that have the same rows.
const OUTPUTS: usize = 128;
const CLUSTER: usize = 2;
/// Rows of a tile at most.
const MOST: usize = 320;
/// Inputs of a stage, and stages of shared memory.
const DEPTH: usize = 64;
const STAGES: usize = 4;
/// What aligns shared memory.
const SPARE: usize = 1024;
/// Threads of a block.
const THREADS: u32 = 384;
/// With so many rows of a group or fewer, tiles would be mostly empty.
const FEW: usize = 128;

/// The rows of `x` that `x_rows` names, sorted as `groups` are, in `room`, if the product of the groups with `w` is faster with
/// these. `None`, and nothing is done, if not.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If `x_rows` is shorter than the groups' rows, or `room` has fewer bytes than these.
pub fn gather_if_faster<'a>(
    room: ViewMut<'a, f32>,
    x: ActsView<'_>,
    x_rows: View<'_, u32>,
    w: &MatrixTable,
    groups: &Groups,
) -> Result<Option<ActsView<'a>>, DeviceError> {
    let product = of_groups(room.device(), x, w, groups);
    if !(product.can_stream() && product.sizes().are_to_stream()) {
        return Ok(None);
    }
    gather(room, x, x_rows, w.cols(), groups).map(Some)
}

/// The same, in any case. Rows of `x` are multiples of 16 bytes.
fn gather<'a>(
    room: ViewMut<'a, f32>,
    x: ActsView<'_>,
    x_rows: View<'_, u32>,
    k: usize,
    groups: &Groups,
) -> Result<ActsView<'a>, DeviceError> {
    let rows = groups.max_rows;
    assert!(x_rows.len() >= rows, "{rows} rows named of {}", x_rows.len());
    let sorted = room.as_bf16().slice(0..rows * k);
    let launch = Launch { kernel: "gather_rows", grid: [rows as u32, 1, 1], threads: 256, shared: 0 };
    let args = [
        Arg::Ptr(sorted.address()),
        Arg::Ptr(x.address()),
        Arg::Ptr(x_rows.address()),
        Arg::Ptr(groups.offsets.view().address()),
        Arg::U32(groups.count as u32),
        Arg::U32((k * size_of::<u16>() / 16) as u32),
    ];
    // SAFETY: of the kernel's types; there is room for all rows, and the rows that are named are there.
    unsafe { sorted.device().launch(&launch, &args) }?;
    Ok(ActsView::Bf16(sorted.into_view()))
}

/// A product that has nowhere to go yet.
fn of_groups<'a>(
    device: &'a crate::cuda::Device,
    x: ActsView<'a>,
    w: &'a MatrixTable,
    groups: &'a Groups,
) -> Product<'a> {
    Product {
        out: 0,
        device,
        out_stride: 0,
        out_batch: 0,
        x,
        x_stride: w.cols(),
        x_batch: 0,
        kind: w.kind(),
        n: w.rows(),
        k: w.cols(),
        rows: groups.max_rows,
        which: Which::Group(w, groups, None),
        known: false,
        gate: None,
        own: false,
    }
}

impl Product<'_> {
    /// The launch of the kernel that streams, if it is faster.
    pub(super) fn streamed(&self) -> Option<Launch> {
        (self.can_stream() && self.sizes().are_to_stream()).then(|| self.launch_streamed())
    }

    /// Whether the kernel that streams can do it.
    pub(super) fn can_stream(&self) -> bool {
        // Maps of matrices have rows of multiples of 16 bytes; of those with gates, eights of outputs. A block keeps two maps by
        // turns: the stages of a product must all be new.
        let whole = self.gate.is_none() || self.n.is_multiple_of(16) && self.out_stride.is_multiple_of(2);
        self.kind == WeightKind::Bf16
            && self.x.ty() == ActType::Bf16
            && matches!(self.which, Which::Group(_, _, None))
            && self.aligned()
            && whole
            && self.k >= STAGES * DEPTH
    }

    /// As many blocks as there may be tiles, or as are on the device at once.
    pub(super) fn launch_streamed(&self) -> Launch {
        let count = match &self.which {
            Which::Group(_, groups, _) => groups.count.min(self.rows),
            _ => 1,
        };
        // Every group's last tile may have a single row.
        let high = (self.rows + count * (MOST - 1)) / MOST;
        let blocks = (high * self.n.div_ceil(OUTPUTS * CLUSTER) * CLUSTER).min(PROCESSORS);
        let stage = (MOST + OUTPUTS) * DEPTH * size_of::<u16>();
        Launch {
            kernel: if self.gate.is_some() { "gated_streamed_bf16" } else { "streamed_bf16" },
            grid: [blocks as u32, 1, 1],
            threads: THREADS,
            shared: (STAGES * stage + SPARE) as u32,
        }
    }
}

impl Sizes {
    /// Whether it is faster, where it can be done.
    fn are_to_stream(&self) -> bool {
        let Matrices::Groups { count, most } = self.matrices else { return false };
        self.hopper && self.rows.div_ceil(count.max(1)).min(most) > FEW
    }
}

#[cfg(test)]
#[path = "streamed_tests.rs"]
mod tests;
