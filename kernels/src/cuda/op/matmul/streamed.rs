//! Products of many sorted rows with matrices in their type, on Hopper: of groups in bf16 (`kernels/cu/matmul_streamed.cu`), where they
//! are the fastest of all, and in E4M3 (`matmul_f8_streamed.cu`). Rows in another order are brought into that of the groups first.

use super::choose::{Matrices, PROCESSORS, Sizes};
use super::{Product, Which};
use crate::cuda::f8_rows::F8View;
use crate::cuda::{
    ActType, ActsView, Arg, DeviceError, Groups, Launch, MatrixTable, View, ViewMut, WeightKind,
};

/// A kernel that streams, as its source says.
struct Form {
    /// Rows of a tile at most.
    most: usize,
    /// Inputs of a stage: 128 bytes.
    depth: usize,
    /// Of so many rows of a matrix it is the fastest.
    least: usize,
    kernel: &'static str,
    /// That which does the gated activation of what comes out, too.
    gated: &'static str,
}
/// With fewer rows tiles would be mostly empty.
const BF16: Form =
    Form { most: 320, depth: 64, least: 129, kernel: "streamed_bf16", gated: "gated_streamed_bf16" };
/// On an H200 48 rows of a matrix, on average, took as long as with kernels for few, 64 took 4 % less of a whole step.
const F8: Form = Form { most: 288, depth: 128, least: 49, kernel: "f8_streamed", gated: "f8_streamed_gated" };

/// Outputs of a block, and blocks that have the same rows.
const OUTPUTS: usize = 128;
const CLUSTER: usize = 2;
/// Bytes of a row, or of an output's weights, in a stage; and stages of shared memory.
const LINE: usize = 128;
const STAGES: usize = 4;
/// What aligns shared memory.
const SPARE: usize = 1024;
/// Threads of a block.
const THREADS: u32 = 384;

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
    if product.streamed().is_none() {
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
    let (device, address) = (room.device(), room.address());
    let (sorted, row_bytes, scales) = match &x {
        ActsView::F8(x) => {
            let sorted = F8View::inside(room.as_bytes().into_view(), rows, k);
            let scales = (sorted.scales().address(), x.scales().address());
            (ActsView::F8(sorted), sorted.stride(), scales)
        }
        _ => {
            let sorted = room.as_bf16().slice(0..rows * k);
            (ActsView::Bf16(sorted.into_view()), k * size_of::<u16>(), (0, 0))
        }
    };
    let launch = Launch { kernel: "gather_rows", grid: [rows as u32, 1, 1], threads: 256, shared: 0 };
    let args = [
        Arg::Ptr(address),
        Arg::Ptr(x.address()),
        Arg::Ptr(scales.0),
        Arg::Ptr(scales.1),
        Arg::Ptr(x_rows.address()),
        Arg::Ptr(groups.offsets.view().address()),
        Arg::U32(groups.count as u32),
        Arg::U32((row_bytes / 16) as u32),
    ];
    // SAFETY: of the kernel's types; there is room for all rows, and the rows that are named are there.
    unsafe { device.launch(&launch, &args) }?;
    Ok(sorted)
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
        let form = self.form_that_streams()?;
        self.sizes().are_to_stream(form.least).then(|| self.launch_streamed(form))
    }

    /// The kernel that streams, if it can do it.
    fn form_that_streams(&self) -> Option<&'static Form> {
        let (form, aligned) = match (self.kind, self.x.ty(), &self.which) {
            (WeightKind::Bf16, ActType::Bf16, Which::Group(_, _, None)) => (&BF16, self.aligned()),
            // Rows and weights begin at multiples of 16 bytes, whatever their length.
            (WeightKind::F8, ActType::F8, Which::One(_) | Which::Group(_, _, None)) => {
                (&F8, self.x.address().is_multiple_of(16))
            }
            _ => return None,
        };
        // Maps of matrices with gates have eights of outputs. A block keeps two maps by turns: the stages of a product must all be
        // new.
        let whole = self.gate.is_none() || self.n.is_multiple_of(16) && self.out_stride.is_multiple_of(2);
        (aligned && whole && self.k >= STAGES * form.depth).then_some(form)
    }

    /// As many blocks as there may be tiles, or as are on the device at once.
    fn launch_streamed(&self, form: &Form) -> Launch {
        let count = match &self.which {
            Which::Group(_, groups, _) => groups.count.min(self.rows),
            _ => 1,
        };
        // Every group's last tile may have a single row.
        let high = (self.rows + count * (form.most - 1)) / form.most;
        let blocks = (high * self.n.div_ceil(OUTPUTS * CLUSTER) * CLUSTER).min(PROCESSORS);
        let stage = (form.most + OUTPUTS) * LINE;
        Launch {
            kernel: if self.gate.is_some() { form.gated } else { form.kernel },
            grid: [blocks as u32, 1, 1],
            threads: THREADS,
            shared: (STAGES * stage + SPARE) as u32,
        }
    }
}

impl Sizes {
    /// Whether it is faster, where it can be done and `least` rows of a matrix are enough.
    fn are_to_stream(&self, least: usize) -> bool {
        let enough = match self.matrices {
            Matrices::Groups { count, most } => self.rows.div_ceil(count.max(1)).min(most) >= least,
            // Few tiles would leave half of all multiprocessors idle.
            Matrices::Batch(_) => {
                self.rows >= least && self.rows.div_ceil(F8.most) * self.n.div_ceil(OUTPUTS) > PROCESSORS / 2
            }
        };
        self.hopper && enough
    }
}

#[cfg(test)]
#[path = "streamed_tests.rs"]
mod tests;
