//! Weights repacked for the CPU: panels of eight rows, interleaved so that the lanes of a vector are rows. (Or as they are
//! stored, where that is as good: see `stored.rs`.)
//!
//! For each run of 32 columns a quantized panel holds one block: the codes of the eight rows, then eight scales (sixteen
//! where the halves differ), then eight minima where the format has them. Vector `v` of the codes holds columns `4v..4v + 4`
//! of each row, four bytes to a row; 4-bit codes share a byte with the vector four further on. A float panel holds, for
//! each column, the eight rows' values.

use std::sync::Arc;

use half::{bf16, f16};

use super::blocks::Block32;
use super::dequantize::dequantize;
use super::pack::WeightPacker;
use super::repack::{Placed, Repacking};
use super::stored::{RowRun, StoredRows};
use crate::cpu::lines::Lines;
use crate::dtype::WeightType;
use crate::error::KernelError;

/// Rows of a panel: the lanes of a vector.
pub const PANEL_ROWS: usize = 8;

/// How many bytes ahead of where it begins the last of the panels that are read at a time is asked for. About what memory gives
/// while a line is on its way; more would fill the nearest cache.
pub(crate) const LEAD: usize = 4096;

/// How a quantized format is laid out in a panel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PanelFormat {
    /// Codes are 4-bit and unsigned, else 8-bit and signed.
    pub(crate) four_bit: bool,
    /// Scales and minima are f32, else f16.
    pub(crate) wide_scales: bool,
    /// The halves of a run have scales of their own.
    pub(crate) two_scales: bool,
    /// Where the minimum comes from.
    pub(crate) min: Min,
}

/// Where a format's minimum comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Min {
    /// There is none.
    None,
    /// -8 × scale (codes are stored with an offset of 8).
    Minus8Scales,
    /// It is stored.
    Stored,
}

impl PanelFormat {
    /// The format of a quantized type; `None` for floats.
    pub(crate) const fn of(ty: WeightType) -> Option<Self> {
        let (four_bit, wide_scales, two_scales, min) = match ty {
            WeightType::Q4_0 => (true, false, false, Min::Minus8Scales),
            WeightType::Q4_1 => (true, false, false, Min::Stored),
            WeightType::Q4_K => (true, true, false, Min::Stored),
            WeightType::Q5_0 | WeightType::Q8_0 => (false, false, false, Min::None),
            WeightType::Q5_1 => (false, false, false, Min::Stored),
            WeightType::Q5_K => (false, true, false, Min::Stored),
            WeightType::Q6_K => (false, true, true, Min::None),
            WeightType::F32 | WeightType::F16 | WeightType::BF16 => return None,
        };
        Some(Self { four_bit, wide_scales, two_scales, min })
    }

    pub(crate) const fn code_bytes(self) -> usize {
        if self.four_bit { 128 } else { 256 }
    }

    /// Bytes of eight scales.
    pub(crate) const fn scale_bytes(self) -> usize {
        if self.wide_scales { 32 } else { 16 }
    }

    /// Where the minima begin.
    pub(crate) const fn min_at(self) -> usize {
        self.code_bytes() + self.scale_bytes() * if self.two_scales { 2 } else { 1 }
    }

    /// Bytes of a block: 8 rows × 32 columns.
    pub(crate) const fn block_bytes(self) -> usize {
        self.min_at() + if matches!(self.min, Min::Stored) { self.scale_bytes() } else { 0 }
    }

    /// Writes one row's run into the panel's block.
    pub(super) fn put(self, panel_block: &mut [u8], row: usize, run: &Block32) {
        if self.four_bit {
            for c in 0..4 {
                for i in 0..4 {
                    let (low, high) = (run.codes[4 * c + i], run.codes[16 + 4 * c + i]);
                    panel_block[c * 32 + row * 4 + i] = low as u8 | (high as u8) << 4;
                }
            }
        } else {
            for (v, four) in run.codes.as_chunks::<4>().0.iter().enumerate() {
                panel_block[v * 32 + row * 4..][..4].copy_from_slice(&four.map(|code| code as u8));
            }
        }
        self.put_scales(panel_block, row, run);
    }

    /// Writes one row's scales and minimum.
    #[inline(always)]
    pub(super) fn put_scales(self, panel_block: &mut [u8], row: usize, run: &Block32) {
        self.put_scale(&mut panel_block[self.code_bytes()..], row, run.scales[0]);
        if self.two_scales {
            self.put_scale(&mut panel_block[self.code_bytes() + self.scale_bytes()..], row, run.scales[1]);
        }
        if self.min == Min::Stored {
            self.put_scale(&mut panel_block[self.min_at()..], row, run.min);
        }
    }

    fn put_scale(self, scales: &mut [u8], row: usize, scale: f32) {
        if self.wide_scales {
            scales[row * 4..][..4].copy_from_slice(&scale.to_ne_bytes());
        } else {
            // Exact: it came from an f16.
            scales[row * 2..][..2].copy_from_slice(&f16::from_f32(scale).to_ne_bytes());
        }
    }

    fn get_scale(self, scales: &[u8], row: usize) -> f32 {
        if self.wide_scales {
            f32::from_ne_bytes(std::array::from_fn(|i| scales[row * 4 + i]))
        } else {
            f16::from_ne_bytes([scales[row * 2], scales[row * 2 + 1]]).to_f32()
        }
    }

    /// Reads one row's run back.
    fn get(self, panel_block: &[u8], row: usize) -> Block32 {
        let codes = std::array::from_fn(|k| {
            if self.four_bit {
                let byte = panel_block[k % 16 / 4 * 32 + row * 4 + k % 4];
                (if k < 16 { byte & 15 } else { byte >> 4 }) as i8
            } else {
                panel_block[k / 4 * 32 + row * 4 + k % 4] as i8
            }
        });
        let scale = self.get_scale(&panel_block[self.code_bytes()..], row);
        let scales = match self.two_scales {
            true => [scale, self.get_scale(&panel_block[self.code_bytes() + self.scale_bytes()..], row)],
            false => [scale; 2],
        };
        let min = match self.min {
            Min::None => 0.0,
            Min::Minus8Scales => -8.0 * scale,
            Min::Stored => self.get_scale(&panel_block[self.min_at()..], row),
        };
        Block32 { codes, scales, min }
    }
}

/// Where the weights are.
#[derive(Debug)]
enum Storage {
    /// Panel after panel.
    Panels(Lines),
    /// Where they lie in memory of someone else's, until panels have been made of them.
    Rows(Arc<Placed>),
}

/// A matrix of weights, repacked or as stored. Rows are output features, columns input features.
#[derive(Debug)]
pub struct WeightMatrix {
    pub(crate) ty: WeightType,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Bytes from one panel to the next.
    pub(crate) panel_bytes: usize,
    /// Whether activations are rounded for it, too.
    in_bf16: bool,
    storage: Storage,
}

impl WeightMatrix {
    /// A matrix of rows as they are stored, run after run; each begins with the first of `cols` elements of `ty`, a type of floats.
    /// Nothing is copied: whoever holds them keeps them, unchanged, for as long as the matrix lives.
    ///
    /// # Errors
    /// If the type is quantized, rows are not within what is held, or this machine is not little endian as files are.
    pub fn of_stored(ty: WeightType, cols: usize, runs: Vec<RowRun>) -> Result<Self, KernelError> {
        let stored = StoredRows::new(ty, cols, runs)?;
        let (rows, storage) = (stored.rows(), Storage::Rows(Arc::new(Placed::new(stored))));
        let panel_bytes = cols * PANEL_ROWS * ty.block_bytes();
        Ok(Self { ty, rows, cols, panel_bytes, in_bf16: false, storage })
    }

    /// What makes panels of rows that are as stored, while products use them; `None` where there are panels.
    pub fn repacking(&self) -> Option<Repacking> {
        match &self.storage {
            Storage::Panels(_) => None,
            Storage::Rows(placed) => Some(Repacking::new(placed, self.ty, self.rows, self.cols)),
        }
    }

    /// Repacks a whole matrix: `bytes` is row-major, each row `cols_stored` elements of `ty`; columns
    /// `col_skip..col_skip + cols` are kept. For quantized types `col_skip` and `cols` are multiples of 32.
    ///
    /// # Errors
    /// If the sizes do not agree.
    pub fn pack(
        ty: WeightType,
        rows: usize,
        cols_stored: usize,
        col_skip: usize,
        cols: usize,
        bytes: &[u8],
    ) -> Result<Self, KernelError> {
        let mut packer = Self::packer(ty, rows, cols_stored, col_skip, cols)?;
        packer.push_rows(bytes)?;
        packer.finish()
    }

    /// As [`pack`](Self::pack), fed piece by piece.
    ///
    /// # Errors
    /// If the sizes do not agree.
    pub fn packer(
        ty: WeightType,
        rows: usize,
        cols_stored: usize,
        col_skip: usize,
        cols: usize,
    ) -> Result<WeightPacker, KernelError> {
        let wrong = |reason: String| KernelError::new("pack", format!("{rows} × {cols} of {ty}: {reason}"));
        if !cols_stored.is_multiple_of(ty.block_elems()) {
            return Err(wrong(format!("a row of {cols_stored} is not whole blocks of {}", ty.block_elems())));
        }
        if col_skip.checked_add(cols).is_none_or(|end| end > cols_stored) {
            return Err(wrong(format!("columns {col_skip}+{cols} of a row of {cols_stored}")));
        }
        let format = PanelFormat::of(ty);
        if format.is_some() && !(col_skip.is_multiple_of(32) && cols.is_multiple_of(32)) {
            return Err(wrong(format!("columns {col_skip}+{cols} are not multiples of 32")));
        }
        let panel_bytes = match format {
            Some(format) => cols / 32 * format.block_bytes(),
            None => cols * PANEL_ROWS * ty.block_bytes(),
        };
        let panels = rows.div_ceil(PANEL_ROWS);
        let total = panels.checked_mul(panel_bytes).ok_or_else(|| wrong("too large".into()))?;
        let storage = Storage::Panels(Lines::zeroed(total));
        let matrix = Self { ty, rows, cols, panel_bytes, in_bf16: false, storage };
        Ok(WeightPacker::new(matrix, cols_stored, col_skip))
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of memory, all of which one product reads.
    pub fn bytes(&self) -> usize {
        match self.panels() {
            Some(memory) => memory.bytes().len(),
            None => self.rows * self.ty.row_bytes(self.cols),
        }
    }

    /// The panels, if there are any by now.
    fn panels(&self) -> Option<&Lines> {
        match &self.storage {
            Storage::Panels(memory) => Some(memory),
            Storage::Rows(placed) => placed.panels(),
        }
    }

    /// The rows, where they are as stored, and there are no panels yet.
    pub(crate) fn stored(&self) -> Option<&StoredRows> {
        match &self.storage {
            Storage::Rows(placed) if placed.panels().is_none() => Some(placed.stored()),
            _ => None,
        }
    }

    /// The type it was stored in.
    pub fn weight_type(&self) -> WeightType {
        self.ty
    }

    /// The same, whose products take activations rounded to bf16; only weights in bf16 do, all others stay as they are.
    pub fn multiplied_in_bf16(self) -> Self {
        Self { in_bf16: self.ty == WeightType::BF16, ..self }
    }

    /// Whether products take activations rounded to bf16.
    pub fn is_multiplied_in_bf16(&self) -> bool {
        self.in_bf16
    }

    /// Whether products use the 8-bit form of activations.
    pub fn is_quantized(&self) -> bool {
        self.ty.is_quantized()
    }

    /// Panel `p`: rows `8p..8p + 8` (rows past the end are zeros). Nothing, where rows are as stored.
    pub(crate) fn panel(&self, p: usize) -> &[u8] {
        self.panels().map_or(&[], |memory| &memory.bytes()[p * self.panel_bytes..][..self.panel_bytes])
    }

    /// Bytes `from..to` of all panels, which lie one after the other; as many of them as there are.
    pub(crate) fn bytes_between(&self, from: usize, to: usize) -> &[u8] {
        let bytes = self.panels().map_or(&[][..], Lines::bytes);
        &bytes[from.min(bytes.len())..to.min(bytes.len())]
    }

    /// The panels' memory, of a matrix that was made of such.
    pub(super) fn into_panels(self) -> Option<Lines> {
        match self.storage {
            Storage::Panels(memory) => Some(memory),
            Storage::Rows(_) => None,
        }
    }

    /// All panels, to be filled.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.storage {
            Storage::Panels(memory) => memory.bytes_mut(),
            Storage::Rows(_) => &mut [],
        }
    }

    /// Writes the values of row `row`, as stored, to `out` (`cols` long).
    ///
    /// # Panics
    /// If the row does not exist or `out` has another length.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert!(
            row < self.rows && out.len() == self.cols,
            "row {row} of {}, {} of {}",
            self.rows,
            out.len(),
            self.cols
        );
        if let Some(stored) = self.stored() {
            dequantize(self.ty, stored.row(row), out)
                .expect("a stored row has as many columns as the matrix");
            return;
        }
        let (panel, lane) = (self.panel(row / PANEL_ROWS), row % PANEL_ROWS);
        let Some(format) = PanelFormat::of(self.ty) else {
            let bytes = self.ty.block_bytes();
            for (k, out) in out.iter_mut().enumerate() {
                let at = &panel[(k * PANEL_ROWS + lane) * bytes..][..bytes];
                *out = match self.ty {
                    WeightType::F16 => f16::from_ne_bytes([at[0], at[1]]).to_f32(),
                    WeightType::BF16 => bf16::from_ne_bytes([at[0], at[1]]).to_f32(),
                    _ => f32::from_ne_bytes([at[0], at[1], at[2], at[3]]),
                };
            }
            return;
        };
        for (block, out) in panel.chunks_exact(format.block_bytes()).zip(out.as_chunks_mut::<32>().0) {
            let run = format.get(block, lane);
            *out = std::array::from_fn(|i| run.value(i));
        }
    }
}
