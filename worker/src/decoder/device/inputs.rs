//! What products take: rows in the type of activations, and in E4M3 where weights in it are multiplied so.

use foggara_kernels::cuda::op::convert::convert;
use foggara_kernels::cuda::op::quantize::quantize_rows;
use foggara_kernels::cuda::op::residual::Normed;
use foggara_kernels::cuda::{
    ActType, Acts, ActsView, ActsViewMut, Device, DeviceError, F8Room, F8ViewMut, View, WeightKind,
};

/// How the matrices that take the same rows are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kinds {
    /// Some in E4M3.
    f8: bool,
    /// Some otherwise.
    others: bool,
}

impl Kinds {
    pub(super) fn of(kinds: impl IntoIterator<Item = WeightKind>) -> Self {
        kinds.into_iter().fold(Self { f8: false, others: false }, |all, kind| {
            let f8 = kind == WeightKind::F8;
            Self { f8: all.f8 || f8, others: all.others || !f8 }
        })
    }
}

/// Inputs of products, one step's after the other.
pub(super) struct Inputs {
    plain: Acts,
    codes: F8Room,
    /// Matrices in E4M3 take codes.
    with_codes: bool,
}

impl Inputs {
    /// Room for any of these: rows, and their width.
    pub(super) fn new(
        device: &Device,
        acts: ActType,
        with_codes: bool,
        any: &[(usize, usize)],
    ) -> Result<Self, DeviceError> {
        let len = any.iter().map(|(rows, width)| rows * width).max().unwrap_or(0);
        let codes = F8Room::alloc(device, if with_codes { any } else { &[] })?;
        Ok(Self { plain: Acts::alloc(device, acts, len)?, codes, with_codes })
    }

    fn codes_for(&self, kind: WeightKind) -> bool {
        self.with_codes && kind == WeightKind::F8
    }

    /// Where a norm puts rows that matrices of these kinds take.
    pub(super) fn normed(&mut self, kinds: Kinds, rows: usize, width: usize) -> Normed<'_> {
        let codes = self.with_codes && kinds.f8;
        Normed {
            plain: (kinds.others || !codes).then(|| self.plain.view_mut().slice(0..rows * width)),
            codes: codes.then(|| self.codes.view_mut(rows, width)),
        }
    }

    /// The first `len`, as no matrix in E4M3 takes them; to be written.
    pub(super) fn plain_mut(&mut self, len: usize) -> ActsViewMut<'_> {
        self.plain.view_mut().slice(0..len)
    }

    /// The same of `rows` rows, and where they are to be in E4M3, if a matrix of this kind takes that.
    pub(super) fn both_mut(
        &mut self,
        kind: WeightKind,
        rows: usize,
        width: usize,
    ) -> (ActsViewMut<'_>, Option<F8ViewMut<'_>>) {
        let codes = self.codes_for(kind).then(|| self.codes.view_mut(rows, width));
        (self.plain.view_mut().slice(0..rows * width), codes)
    }

    /// What a matrix of this kind takes of rows that were written for it.
    pub(super) fn of(&self, kind: WeightKind, rows: usize, width: usize) -> ActsView<'_> {
        match self.codes_for(kind) {
            true => ActsView::F8(self.codes.view(rows, width)),
            false => self.plain.view().slice(0..rows * width),
        }
    }

    /// Makes of `x` what a matrix of this kind takes.
    pub(super) fn set(
        &mut self,
        kind: WeightKind,
        x: View<'_, f32>,
        rows: usize,
        width: usize,
    ) -> Result<(), DeviceError> {
        match self.codes_for(kind) {
            true => quantize_rows(self.codes.view_mut(rows, width), ActsView::F32(x), None),
            false => convert(self.plain_mut(rows * width), x),
        }
    }
}
