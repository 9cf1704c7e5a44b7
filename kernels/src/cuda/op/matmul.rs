//! Products with weight matrices. All kernels add up in one order (`kernels/cu/product.cuh`), so that a row's numbers do not depend
//! on how many there are.

use std::sync::OnceLock;

use super::elementwise::activation_args;
use crate::cuda::{
    ActType, ActsView, Arg, Device, DeviceError, DeviceMatrix, Gpu, Groups, Launch, MatrixTable, View,
    ViewMut, WeightKind,
};
use crate::op::gated::GatedActivation;

mod attended;
mod cached;
mod choose;
mod f8;
mod gated;
mod library;
mod own;
mod streamed;

pub(super) use attended::AttendedRow;
pub use cached::{CachedRows, matmul_into_cache};
pub(super) use choose::PROCESSORS;
use choose::{Matrices, Sizes};
use f8::F8Form;
pub use gated::{gated_matmul, grouped_gated_matmul};
pub use library::agrees as library_agrees;
pub use own::{grouped_matmul_next_of_plain, matmul_of_plain};
pub use streamed::gather_if_faster;

/// `out[r][o] = Σ_i x[r][i] · w[o][i]` for `rows` rows of `x`, which follow each other without gaps; `out_stride` elements from
/// one row of `out` to the next.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If `out` or `x` is shorter than that.
pub fn matmul(
    out: ViewMut<'_, f32>,
    out_stride: usize,
    x: ActsView<'_>,
    w: &DeviceMatrix,
    rows: usize,
) -> Result<(), DeviceError> {
    let (n, k) = (w.rows(), w.cols());
    if rows == 0 || n == 0 {
        return Ok(());
    }
    check_lengths(&out, (rows - 1) * out_stride + n, &x, rows * k);
    // Of odd sizes the library's products are others, which add up otherwise.
    let wholly = [k, n, out_stride].iter().all(|size| size.is_multiple_of(64));
    if are_for_library(rows, w.kind(), x.ty()) && wholly && library::agrees(out.device())? {
        let (to, from, weights) = (out.address(), x.address(), w.data().address());
        // SAFETY: the lengths have just been checked, and rows of the matrix follow each other without gaps.
        let done = unsafe { out.device().driver().dense_product(to, out_stride, from, weights, rows, n, k) };
        if let Some(done) = done {
            return done;
        }
    }
    let product = Product {
        out: out.address(),
        device: out.device(),
        out_stride,
        out_batch: 0,
        x,
        x_stride: k,
        x_batch: 0,
        kind: w.kind(),
        n,
        k,
        rows,
        which: Which::One(w),
        known: false,
        gate: None,
        own: false,
    };
    product.launch()
}

/// `out[r][o] = Σ_i x[x_rows[r]][i] · w_g[o][i]` for the rows `r` of every group `g`; without `x_rows`, row `r` of `x`. Rows from
/// `groups.offsets[groups.count]` on are left alone. Rows of `x` follow each other without gaps, and every one that `x_rows`
/// names is there.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If `out` has no room for `groups.max_rows` rows, `x` or `x_rows` is too short, or there are fewer matrices than groups.
pub fn grouped_matmul(
    out: ViewMut<'_, f32>,
    out_stride: usize,
    x: ActsView<'_>,
    x_rows: Option<View<'_, u32>>,
    w: &MatrixTable,
    groups: &Groups,
) -> Result<(), DeviceError> {
    grouped(out, out_stride, x, x_rows, w, groups, false)
}

/// The same, after another grouped product of these groups: weights are asked for before what comes between has ended.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// As [`grouped_matmul`]. That the other product was started after `groups` were written is for the caller to see to.
pub fn grouped_matmul_next(
    out: ViewMut<'_, f32>,
    out_stride: usize,
    x: ActsView<'_>,
    x_rows: Option<View<'_, u32>>,
    w: &MatrixTable,
    groups: &Groups,
) -> Result<(), DeviceError> {
    grouped(out, out_stride, x, x_rows, w, groups, true)
}

/// `known`: the groups were there before the kernel before began.
fn grouped(
    out: ViewMut<'_, f32>,
    out_stride: usize,
    x: ActsView<'_>,
    x_rows: Option<View<'_, u32>>,
    w: &MatrixTable,
    groups: &Groups,
    known: bool,
) -> Result<(), DeviceError> {
    let (n, k, rows) = (w.rows(), w.cols(), groups.max_rows);
    if rows == 0 || n == 0 {
        return Ok(());
    }
    let of_x = check_groups(x_rows.as_ref(), w, groups);
    check_lengths(&out, (rows - 1) * out_stride + n, &x, of_x);
    let product = Product {
        out: out.address(),
        device: out.device(),
        out_stride,
        out_batch: 0,
        x,
        x_stride: k,
        x_batch: 0,
        kind: w.kind(),
        n,
        k,
        rows,
        which: Which::Group(w, groups, x_rows),
        known,
        gate: None,
        own: false,
    };
    product.launch()
}

/// How much of the input groups read.
fn check_groups(x_rows: Option<&View<'_, u32>>, w: &MatrixTable, groups: &Groups) -> usize {
    let rows = groups.max_rows;
    assert!(groups.count <= w.count(), "{} groups and {} matrices", groups.count, w.count());
    assert!(groups.offsets.len() > groups.count, "offsets of {} groups", groups.count);
    match x_rows {
        Some(x_rows) => {
            assert!(x_rows.len() >= rows, "{} rows named of {rows}", x_rows.len());
            w.cols()
        }
        None => rows * w.cols(),
    }
}

/// `out[b · out_batch + r · out_stride + o] = Σ_i x[b · x_batch + r · x_stride + i] · w_b[o][i]` for every matrix `b` and `rows`
/// rows each.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If `out` or `x` is shorter than that.
#[allow(clippy::too_many_arguments)]
pub fn batched_matmul(
    out: ViewMut<'_, f32>,
    out_stride: usize,
    out_batch: usize,
    x: ActsView<'_>,
    x_stride: usize,
    x_batch: usize,
    w: &MatrixTable,
    rows: usize,
) -> Result<(), DeviceError> {
    let (n, k, last) = (w.rows(), w.cols(), w.count() - 1);
    if rows == 0 || n == 0 {
        return Ok(());
    }
    let of_out = last * out_batch + (rows - 1) * out_stride + n;
    check_lengths(&out, of_out, &x, last * x_batch + (rows - 1) * x_stride + k);
    let product = Product {
        out: out.address(),
        device: out.device(),
        out_stride,
        out_batch,
        x,
        x_stride,
        x_batch,
        kind: w.kind(),
        n,
        k,
        rows,
        which: Which::Batch(w),
        known: false,
        gate: None,
        own: false,
    };
    product.launch()
}

fn check_lengths(out: &ViewMut<'_, f32>, of_out: usize, x: &ActsView<'_>, of_x: usize) {
    assert!(out.len() >= of_out, "a product of {of_out} elements in {}", out.len());
    assert!(x.len() >= of_x, "a product of {of_x} elements of {}", x.len());
}

/// Of more rows than these dense products in bf16 go to the vendor's library, where it adds up as our kernels do.
/// `FOGGARA_CUDA_LIBRARY_ROWS` says another number, for measurements.
const LIBRARY_ROWS: usize = 64;
/// Outputs of a block of `plain_rows` of `kernels/cu/matmul_plain.cu`, a warp each.
const PLAIN_OUTPUTS: usize = 8;
/// So few outputs have a block each.
const PLAIN_FEW: usize = 264;

/// Whether the library does dense products of so many rows, if it can.
fn are_for_library(rows: usize, kind: WeightKind, x: ActType) -> bool {
    static SAID: OnceLock<Option<usize>> = OnceLock::new();
    let said = || std::env::var("FOGGARA_CUDA_LIBRARY_ROWS").ok()?.parse().ok();
    let least = SAID.get_or_init(said).unwrap_or(LIBRARY_ROWS);
    rows > least && kind == WeightKind::Bf16 && x == ActType::Bf16
}

enum Which<'a> {
    One(&'a DeviceMatrix),
    Batch(&'a MatrixTable),
    Group(&'a MatrixTable, &'a Groups, Option<View<'a, u32>>),
}

/// A product whose lengths have been checked.
struct Product<'a> {
    /// The address of the result: f32, or bf16 where it is gated.
    out: u64,
    device: &'a Device,
    out_stride: usize,
    out_batch: usize,
    x: ActsView<'a>,
    x_stride: usize,
    x_batch: usize,
    kind: WeightKind,
    n: usize,
    k: usize,
    /// Of each batch; of all groups at most.
    rows: usize,
    which: Which<'a>,
    /// Another product of the same groups was started after these were written.
    known: bool,
    /// The result is this of the two halves of the outputs.
    gate: Option<GatedActivation>,
    /// Rows in bf16 meet weights in E4M3, and the kernel makes it of them: where a matrix meets one at most.
    own: bool,
}

/// The compute capability of Hopper.
const HOPPER: (u32, u32) = (9, 0);

impl Product<'_> {
    fn launch(self) -> Result<(), DeviceError> {
        self.check_f8();
        if self.own {
            let launch = F8Form::own().launch_own(&self.sizes(), self.k, 0);
            return self.start(&launch);
        }
        if let Some(launch) = self.streamed() {
            return self.start(&launch);
        }
        let sizes = self.sizes();
        let on_tensor_cores = match self.x.ty() {
            ActType::Bf16 => sizes.launch(sizes.form()),
            ActType::F8 => Some(F8Form::of(&sizes).launch(&sizes)),
            ActType::F32 => None,
        };
        let launch = on_tensor_cores.unwrap_or_else(|| self.plain());
        self.start(&launch)
    }

    /// # Panics
    /// If rows in E4M3 meet what they cannot.
    fn check_f8(&self) {
        let ActsView::F8(x) = &self.x else { return };
        assert!(self.device.multiplies_f8(), "{} does not multiply E4M3 with E4M3", self.device.name());
        assert_eq!(self.kind, WeightKind::F8, "weights that meet rows in E4M3");
        assert_eq!(x.width(), self.k, "numbers of a row that meets weights of as many");
        assert!(!matches!(self.which, Which::Batch(_)), "rows in E4M3 have no batches");
    }

    fn start(self, launch: &Launch) -> Result<(), DeviceError> {
        self.start_with(launch, &[])
    }

    /// The same of a kernel that does more than the product, which takes `more`.
    fn start_with(self, launch: &Launch, more: &[Arg]) -> Result<(), DeviceError> {
        let (one, table, offsets, x_rows, count) = match &self.which {
            Which::One(w) => (Some(*w), None, 0, 0, 1),
            Which::Batch(w) => (None, Some(*w), 0, 0, w.count()),
            Which::Group(w, groups, x_rows) => {
                let x_rows = x_rows.map_or(0, |rows| rows.address());
                (None, Some(*w), groups.offsets.view().address(), x_rows, groups.count)
            }
        };
        let (x_stride, x_scales) = match &self.x {
            ActsView::F8(x) => (x.stride(), Some(x.scales().address())),
            _ if self.own => (self.x_stride * 2, Some(0)),
            _ => (self.x_stride, None),
        };
        let mut args = vec![
            Arg::Ptr(self.out),
            Arg::U64(self.out_stride as u64),
            Arg::U64(self.out_batch as u64),
            Arg::Ptr(self.x.address()),
            Arg::U64(x_stride as u64),
            Arg::U64(self.x_batch as u64),
            Arg::Ptr(x_rows),
        ];
        args.extend(x_scales.map(Arg::Ptr));
        args.extend([
            Arg::Ptr(one.map_or(0, |w| w.data().address())),
            Arg::Ptr(one.and_then(DeviceMatrix::scales).map_or(0, |scales| scales.address())),
            Arg::Ptr(table.map_or(0, |w| w.data_addresses().address())),
            Arg::Ptr(table.and_then(MatrixTable::scale_addresses).map_or(0, |scales| scales.address())),
            Arg::Ptr(offsets),
            Arg::U32(count as u32),
            Arg::U32(self.rows as u32),
            Arg::U32(self.n as u32),
            Arg::U32(self.k as u32),
            Arg::U32(self.known.into()),
        ]);
        args.extend(self.gate.into_iter().flat_map(activation_args));
        args.extend_from_slice(more);
        // SAFETY: the callers have checked the lengths of `out` and `x`, and what is behind `more`; matrices, tables and groups are of
        // the lengths that the kernels read.
        unsafe { self.device.launch(launch, &args) }
    }

    /// What the choice of a kernel depends on.
    fn sizes(&self) -> Sizes {
        let gpu = self.device.driver().as_any().downcast_ref::<Gpu>();
        Sizes {
            kind: self.kind,
            rows: self.rows,
            n: self.n,
            matrices: match &self.which {
                Which::One(_) => Matrices::Batch(1),
                Which::Batch(w) => Matrices::Batch(w.count()),
                Which::Group(_, groups, _) => {
                    Matrices::Groups { count: groups.count, most: groups.most_of_one.min(self.rows) }
                }
            },
            aligned: self.aligned(),
            gated: self.gate.is_some(),
            hopper: gpu.is_some_and(|gpu| gpu.capability() == HOPPER),
        }
    }

    /// Whether all rows of `x` begin at, and have, multiples of 16 bytes.
    fn aligned(&self) -> bool {
        self.x.address().is_multiple_of(16)
            && [self.k, self.x_stride, self.x_batch].iter().all(|n| n % 8 == 0)
    }

    /// Matrices that a kernel of `matmul_plain.cu` may meet.
    fn matrices(&self) -> u32 {
        match &self.which {
            Which::One(_) => 1,
            Which::Batch(w) => w.count() as u32,
            Which::Group(_, groups, _) => groups.count.min(self.rows) as u32,
        }
    }

    fn plain(&self) -> Launch {
        let kernel = match (self.kind, self.x.ty(), self.rows) {
            (_, ActType::F8, _) => unreachable!("rows in E4M3 have kernels of their own"),
            (WeightKind::F32, ActType::F32, 1) => "plain_row_f32",
            (WeightKind::F32, ActType::F32, _) => "plain_rows_f32",
            (WeightKind::F32, ActType::Bf16, 1) => "plain_row_f32_of_bf16",
            (WeightKind::F32, ActType::Bf16, _) => "plain_rows_f32_of_bf16",
            (WeightKind::Bf16, ..) => "plain_rows_bf16",
            (WeightKind::F16, ..) => "plain_rows_f16",
            (WeightKind::F8, ..) => "plain_rows_f8",
            (WeightKind::Q8_0, ..) => "plain_rows_q8_0",
            (WeightKind::Q4_0, ..) => "plain_rows_q4_0",
            (WeightKind::Q4_1, ..) => "plain_rows_q4_1",
            (WeightKind::Q5_1, ..) => "plain_rows_q5_1",
            (WeightKind::Q4_K, ..) => "plain_rows_q4_k",
            (WeightKind::Q5_K, ..) => "plain_rows_q5_k",
            (WeightKind::Q6_K, ..) => "plain_rows_q6_k",
        };
        let blocks = if self.n <= PLAIN_FEW { self.n } else { self.n.div_ceil(PLAIN_OUTPUTS) };
        Launch {
            kernel,
            grid: [blocks as u32, self.matrices(), 1],
            threads: 32 * PLAIN_OUTPUTS as u32,
            shared: 0,
        }
    }
}

#[cfg(test)]
#[path = "matmul_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "matmul/blocks_tests.rs"]
mod blocks_tests;
