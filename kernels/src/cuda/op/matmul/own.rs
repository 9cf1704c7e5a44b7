//! Products of rows in bf16 with weights in E4M3, whose rows become E4M3 first: by the kernel itself where a matrix meets one row.

use super::f8::OWN_INPUTS;
use super::{Product, Which, check_groups, check_lengths, grouped_matmul_next, matmul};
use crate::cuda::op::quantize::quantize_rows;
use crate::cuda::{
    ActType, ActsView, DeviceError, DeviceMatrix, F8ViewMut, Groups, MatrixTable, ViewMut, WeightKind,
};

/// [`quantize_rows`] of `x` into `codes`, and [`matmul`] of these. One row in bf16 takes one launch, which leaves `codes` as they are.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// As those two.
pub fn matmul_of_plain(
    out: ViewMut<'_, f32>,
    out_stride: usize,
    x: ActsView<'_>,
    mut codes: F8ViewMut<'_>,
    w: &DeviceMatrix,
    rows: usize,
) -> Result<(), DeviceError> {
    let product = Product {
        rows,
        ..Product::of_plain(&out, out_stride, x, Which::One(w), (w.kind(), w.rows(), w.cols()))
    };
    if rows == 1 && product.can_own() {
        check_lengths(&out, w.rows(), &x, w.cols());
        return product.launch();
    }
    quantize_rows(codes.reborrow(), x, None)?;
    matmul(out, out_stride, ActsView::F8(codes.as_view()), w, rows)
}

/// The same of the rows of groups, for [`grouped_matmul_next`].
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// As [`quantize_rows`] and [`grouped_matmul_next`].
pub fn grouped_matmul_next_of_plain(
    out: ViewMut<'_, f32>,
    out_stride: usize,
    x: ActsView<'_>,
    mut codes: F8ViewMut<'_>,
    w: &MatrixTable,
    groups: &Groups,
) -> Result<(), DeviceError> {
    let which = Which::Group(w, groups, None);
    let product = Product {
        rows: groups.max_rows,
        known: true,
        ..Product::of_plain(&out, out_stride, x, which, (w.kind(), w.rows(), w.cols()))
    };
    if groups.most_of_one == 1 && groups.max_rows > 0 && product.can_own() {
        let of_x = check_groups(None, w, groups);
        check_lengths(&out, (groups.max_rows - 1) * out_stride + w.rows(), &x, of_x);
        return product.launch();
    }
    quantize_rows(codes.reborrow(), x, Some(groups))?;
    grouped_matmul_next(out, out_stride, ActsView::F8(codes.as_view()), None, w, groups)
}

impl<'a> Product<'a> {
    /// One that makes codes of its rows.
    pub(super) fn of_plain(
        out: &'a ViewMut<'_, f32>,
        out_stride: usize,
        x: ActsView<'a>,
        which: Which<'a>,
        (kind, n, k): (WeightKind, usize, usize),
    ) -> Self {
        Product {
            out: out.address(),
            device: out.device(),
            out_stride,
            out_batch: 0,
            x,
            x_stride: k,
            x_batch: 0,
            kind,
            n,
            k,
            rows: 0,
            which,
            known: false,
            gate: None,
            own: true,
        }
    }

    /// Whether there is a kernel for it, if its rows are alone.
    fn can_own(&self) -> bool {
        self.device.multiplies_f8()
            && self.kind == WeightKind::F8
            && self.x.ty() == ActType::Bf16
            && self.aligned()
            && self.n > 0
            && (1..=OWN_INPUTS).contains(&self.k)
    }
}

#[cfg(test)]
#[path = "own_tests.rs"]
mod tests;
