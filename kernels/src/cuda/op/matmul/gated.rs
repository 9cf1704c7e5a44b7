//! Products with the gates and the others of an MLP, and the activation of both, in one kernel.

use super::{Product, Which, are_for_library, check_groups};
use crate::cuda::{
    ActType, ActsView, ActsViewMut, DeviceError, DeviceMatrix, Groups, MatrixTable, View, WeightKind,
};
use crate::op::gated::GatedActivation;

/// `out[r][i]` = the activation of `Σ_j x[r][j] · w[i][j]` and of `Σ_j x[r][j] · w[width + i][j]` for `rows` rows, where `w` has
/// `2 · width` rows: the numbers of [`matmul`](super::matmul) and [`gated`](crate::cuda::op::elementwise::gated). False, and
/// nothing is done, where no kernel does it at once: for other types than bf16 for `out` and `x`, some sizes, or many rows of one
/// matrix in bf16, which the vendor's library may do faster.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If `out` or `x` is shorter than that.
pub fn gated_matmul(
    out: ActsViewMut<'_>,
    x: ActsView<'_>,
    w: &DeviceMatrix,
    rows: usize,
    activation: GatedActivation,
) -> Result<bool, DeviceError> {
    let of_x = rows * w.cols();
    gated(&out, x, (w.kind(), w.rows(), w.cols()), rows, of_x, Which::One(w), activation)
}

/// The same of rows of groups, which meet matrix g each, as [`grouped_matmul`](super::grouped_matmul).
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If `out` has no room for `groups.max_rows` rows, `x` or `x_rows` is too short, or there are fewer matrices than groups.
pub fn grouped_gated_matmul(
    out: ActsViewMut<'_>,
    x: ActsView<'_>,
    x_rows: Option<View<'_, u32>>,
    w: &MatrixTable,
    groups: &Groups,
    activation: GatedActivation,
) -> Result<bool, DeviceError> {
    let of_x = check_groups(x_rows.as_ref(), w, groups);
    let which = Which::Group(w, groups, x_rows);
    gated(&out, x, (w.kind(), w.rows(), w.cols()), groups.max_rows, of_x, which, activation)
}

/// `of_x`: elements of `x` that are read.
fn gated(
    out: &ActsViewMut<'_>,
    x: ActsView<'_>,
    (kind, n, k): (WeightKind, usize, usize),
    rows: usize,
    of_x: usize,
    which: Which<'_>,
    activation: GatedActivation,
) -> Result<bool, DeviceError> {
    let width = n / 2;
    if out.ty() != ActType::Bf16 || rows == 0 || n == 0 || n % 2 != 0 {
        return Ok(false);
    }
    assert!(out.len() >= rows * width, "a product of {} elements in {}", rows * width, out.len());
    assert!(x.len() >= of_x, "a product of {of_x} elements of {}", x.len());
    let product = Product {
        out: out.address(),
        device: out.device(),
        out_stride: width,
        out_batch: 0,
        x,
        x_stride: k,
        x_batch: 0,
        kind,
        n,
        k,
        rows,
        which,
        known: false,
        gate: Some(activation),
        own: false,
    };
    if !product.can_be_gated() {
        return Ok(false);
    }
    product.launch().map(|()| true)
}

impl Product<'_> {
    /// Whether there is a kernel that does the activation, too.
    fn can_be_gated(&self) -> bool {
        let library =
            matches!(self.which, Which::One(_)) && are_for_library(self.rows, self.kind, self.x.ty());
        match self.x.ty() {
            ActType::F8 => true,
            ActType::Bf16 => !library && self.sizes().can_be_gated(),
            ActType::F32 => false,
        }
    }
}

#[cfg(test)]
#[path = "gated_tests.rs"]
mod tests;
