//! Attention whose results become rows in E4M3, and meet a matrix.

use super::super::kv_cache::{DeviceKv, u32_of};
use super::super::matmul::{AttendedRow, matmul};
use super::super::quantize::quantize_rows;
use super::super::step_rows::StepRows;
use super::{AlonePlan, Attention, AttentionScratch, Step, attention};
use crate::cuda::{ActsView, ActsViewMut, Arg, DeviceError, DeviceMatrix, F8ViewMut, Launch, View, ViewMut};

/// Elements of a row that each thread of the largest block has four of.
const FOURS: usize = 4 * 1024;
/// Bytes of shared memory that every device gives a block without being asked.
const SHARED: usize = 48 * 1024 - 512;

/// [`attention`] into `plain`, and [`quantize_rows`] of that into `codes`, whose rows are all heads of a row. Where every row is
/// taken alone and its spans are met apart, they are put together and rounded in one launch, and `plain` is left as it is.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// As those two.
#[allow(clippy::too_many_arguments)]
pub fn attention_codes(
    codes: F8ViewMut<'_>,
    mut plain: ActsViewMut<'_>,
    q: View<'_, f32>,
    kv: &DeviceKv,
    layer: usize,
    rows: &StepRows,
    a: &Attention<'_>,
    scratch: &mut AttentionScratch,
) -> Result<(), DeviceError> {
    let step = Step::new(&mut plain, q, kv, layer, rows, a);
    if step.can_be_rounded(scratch) {
        return step.alone_to_codes(codes, scratch);
    }
    attention(plain.reborrow(), q, kv, layer, rows, a, scratch)?;
    quantize_rows(codes, plain.as_view(), None)
}

/// [`attention_codes`], and [`matmul`] of the codes with `w` into `out`. Where the step has one row, whose spans are few and are met
/// apart, the product puts them together and rounds them, and `codes` are left as they are, too.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// As those two.
#[allow(clippy::too_many_arguments)]
pub fn attention_matmul(
    out: ViewMut<'_, f32>,
    w: &DeviceMatrix,
    mut codes: F8ViewMut<'_>,
    mut plain: ActsViewMut<'_>,
    q: View<'_, f32>,
    kv: &DeviceKv,
    layer: usize,
    rows: &StepRows,
    a: &Attention<'_>,
    scratch: &mut AttentionScratch,
) -> Result<(), DeviceError> {
    let step = Step::new(&mut plain, q, kv, layer, rows, a);
    let row = AttendedRow { heads: a.heads.heads, spans: step.alone_plan().parts };
    if rows.rows() == 1 && step.can_be_rounded(scratch) && row.can_meet(w) {
        assert_eq!(w.cols(), step.width(), "inputs of what meets attention");
        return step.alone_to_product(out, w, row, scratch);
    }
    attention_codes(codes.reborrow(), plain, q, kv, layer, rows, a, scratch)?;
    matmul(out, w.rows(), ActsView::F8(codes.as_view()), w, rows.rows())
}

impl Step<'_, '_> {
    /// Elements of a row of results.
    fn width(&self) -> usize {
        self.a.heads.heads * self.kv.sizes().values.dim()
    }

    /// Bytes of shared memory of the kernel that does both.
    fn shared(&self) -> usize {
        self.a.heads.heads * (2 * self.alone_plan().parts + 1) * size_of::<f32>()
    }

    fn can_be_rounded(&self, scratch: &AttentionScratch) -> bool {
        let parts = self.alone_plan().parts;
        let (count, _) = self.rows.alone();
        matches!(self.out, ActsViewMut::Bf16(_))
            && self.rows.together().is_empty()
            && parts > 1
            && count * parts * self.part() <= scratch.parts.len()
            && self.kv.sizes().values.dim().is_multiple_of(4)
            && (1..=2 * FOURS).contains(&self.width())
            && self.shared() <= SHARED
    }

    fn alone_to_codes(
        &self,
        codes: F8ViewMut<'_>,
        scratch: &mut AttentionScratch,
    ) -> Result<(), DeviceError> {
        let (count, _) = self.rows.alone();
        let width = self.width();
        assert_eq!((codes.len(), codes.width()), (self.rows.rows() * width, width), "codes of attention");
        let parts = self.alone_apart(scratch)?;
        let fours = codes.stride() / 4;
        let (kernel, per) = match codes.stride() <= FOURS {
            true => ("attention_combine_codes_1", 1),
            false => ("attention_combine_codes_2", 2),
        };
        let launch = Launch {
            kernel,
            grid: [u32_of(count), 1, 1],
            threads: u32_of(fours.div_ceil(per).next_multiple_of(32)),
            shared: u32_of(self.shared()),
        };
        let to =
            [Arg::Ptr(codes.address()), Arg::Ptr(codes.scales_address()), Arg::U32(u32_of(codes.stride()))];
        let args = [&to[..], &parts].concat();
        // SAFETY: the kernel's parameters; there is scratch for so many rows and parts, and `codes` has all rows.
        unsafe { codes.device().launch(&launch, &args) }
    }

    fn alone_to_product(
        &self,
        out: ViewMut<'_, f32>,
        w: &DeviceMatrix,
        row: AttendedRow,
        scratch: &mut AttentionScratch,
    ) -> Result<(), DeviceError> {
        let parts = self.alone_apart(scratch)?;
        row.product(&out, self.out.as_view(), w, &parts)
    }

    /// Meets the spans of rows that are taken alone apart; what puts them together takes of them.
    fn alone_apart(&self, scratch: &mut AttentionScratch) -> Result<[Arg; 8], DeviceError> {
        let (count, _) = self.rows.alone();
        let AlonePlan { kernel, spans, parts } = self.alone_plan();
        let apart = scratch.parts.view_mut().address();
        let at = self.rows.alone_at(0);
        self.attend(&kernel, apart, at, [count, parts], 0, spans > 1)?;
        Ok([
            Arg::Ptr(apart),
            self.rows.address(),
            at,
            Arg::U32(u32_of(parts)),
            self.sinks(),
            Arg::U32(u32_of(self.a.heads.heads)),
            Arg::U32(u32_of(self.kv.sizes().values.dim())),
            self.window(),
        ])
    }
}
