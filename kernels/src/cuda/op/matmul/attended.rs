//! The product of one row that attention's spans gave, which are put together and rounded to E4M3 in the same launch
//! (`kernels/cu/matmul_f8_attended.cu`).

use super::f8::F8Form;
use super::{Product, Which};
use crate::cuda::op::apart::{ATTENDED, is_apart};
use crate::cuda::{ActsView, Arg, DeviceError, DeviceMatrix, ViewMut, WeightKind};

/// Spans at most: all blocks read all of them.
const MOST_SPANS: usize = 8;
/// Query heads at most: a thread has one.
const MOST_HEADS: usize = 256;

/// A row of so many heads, cut into at most so many spans.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda::op) struct AttendedRow {
    pub heads: usize,
    pub spans: usize,
}

impl AttendedRow {
    /// Whether there is a kernel for its product with `w`.
    pub fn can_meet(self, w: &DeviceMatrix) -> bool {
        !is_apart(ATTENDED)
            && w.device().multiplies_f8()
            && w.kind() == WeightKind::F8
            && w.rows() > 0
            && self.spans <= MOST_SPANS
            && self.heads <= MOST_HEADS
            && F8Form::attended(w.cols()).is_some()
    }

    /// `out` = its product with `w`. `spans`: what the kernel takes to put the row together; `plain` is not read.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If there is no kernel ([`can_meet`](Self::can_meet)), or `out` is too short.
    pub fn product(
        self,
        out: &ViewMut<'_, f32>,
        plain: ActsView<'_>,
        w: &DeviceMatrix,
        spans: &[Arg],
    ) -> Result<(), DeviceError> {
        assert!(out.len() >= w.rows(), "a product of {} elements in {}", w.rows(), out.len());
        assert!(self.can_meet(w), "{self:?} meets {} × {}", w.rows(), w.cols());
        let Some(form) = F8Form::attended(w.cols()) else { unreachable!("it can be met") };
        let (kind, n, k) = (w.kind(), w.rows(), w.cols());
        let product = Product::of_plain(out, n, plain, Which::One(w), (kind, n, k));
        let product = Product { rows: 1, ..product };
        let beside = self.heads * (2 * self.spans + 1) * size_of::<f32>();
        let launch = form.launch_own(&product.sizes(), k, beside);
        product.start_with(&launch, spans)
    }
}
