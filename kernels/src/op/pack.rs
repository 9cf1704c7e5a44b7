//! Repacking stored rows into panels, eight rows at a time: about as fast as memory can be copied.

use super::blocks;
use super::panels::{PANEL_ROWS, PanelFormat, WeightMatrix};
use crate::cpu::pool::ThreadPool;
use crate::cpu::shared_slice::SharedSlice;
use crate::cpu::transpose;
use crate::dtype::WeightType;
use crate::error::KernelError;

/// Panels of one task.
const TASK_PANELS: usize = 4;

/// Takes a matrix row by row, or many rows at once.
#[derive(Debug)]
pub struct WeightPacker {
    matrix: WeightMatrix,
    source: Source,
    next: usize,
}

/// How stored rows look, and what of them is wanted.
#[derive(Debug, Clone, Copy)]
struct Source {
    ty: WeightType,
    cols_stored: usize,
    col_skip: usize,
    cols: usize,
}

impl Source {
    fn row_bytes(&self) -> usize {
        self.ty.row_bytes(self.cols_stored)
    }
}

impl WeightPacker {
    /// The same of a matrix that [is multiplied in bf16](WeightMatrix::multiplied_in_bf16).
    pub fn multiplied_in_bf16(self) -> Self {
        Self { matrix: self.matrix.multiplied_in_bf16(), ..self }
    }

    pub(super) fn new(matrix: WeightMatrix, cols_stored: usize, col_skip: usize) -> Self {
        let source = Source { ty: matrix.ty, cols_stored, col_skip, cols: matrix.cols };
        Self { matrix, source, next: 0 }
    }

    /// Adds whole rows, as stored. Eight at a time, from a multiple of eight on, are faster by far than single ones.
    ///
    /// # Errors
    /// If `bytes` is not whole rows, or there are too many.
    pub fn push_rows(&mut self, bytes: &[u8]) -> Result<(), KernelError> {
        let row_bytes = self.source.row_bytes();
        let count = bytes.len().checked_div(row_bytes).unwrap_or(0);
        if count * row_bytes != bytes.len() {
            return Err(self.wrong(format!("{} bytes are not rows of {row_bytes}", bytes.len())));
        }
        self.push_with(&ThreadPool::new(1), count, |i| &bytes[i * row_bytes..][..row_bytes])
    }

    /// Adds `count` rows: `row(i)` is the i-th of them, as stored. The threads of `pool` share the work; a row may be asked
    /// for by any of them.
    ///
    /// # Errors
    /// If a row has another length than it must have, or there are too many.
    pub fn push_with<'a>(
        &mut self,
        pool: &ThreadPool,
        count: usize,
        row: impl Fn(usize) -> &'a [u8] + Sync,
    ) -> Result<(), KernelError> {
        let (from, source) = (self.next, self.source);
        let Some(to) = from.checked_add(count).filter(|to| *to <= self.matrix.rows) else {
            return Err(self.wrong(format!("{count} rows are too many")));
        };
        let row_bytes = source.row_bytes();
        if let Some(i) = (0..count).find(|i| row(*i).len() != row_bytes) {
            return Err(self.wrong(format!("row {i} has {} bytes, not {row_bytes}", row(i).len())));
        }
        let panel_bytes = self.matrix.panel_bytes;
        let (first, last) = (from / PANEL_ROWS, to.div_ceil(PANEL_ROWS));
        let panels = SharedSlice::new(self.matrix.bytes_mut());
        pool.run((last - first).div_ceil(TASK_PANELS), |task| {
            let start = first + task * TASK_PANELS;
            for p in start..last.min(start + TASK_PANELS) {
                // SAFETY: each task has panels of its own.
                let panel = unsafe { panels.part(p * panel_bytes, panel_bytes) };
                let begin = p * PANEL_ROWS;
                if cfg!(target_endian = "little") && begin >= from && begin + PANEL_ROWS <= to {
                    put_panel(source, std::array::from_fn(|lane| row(begin + lane - from)), panel);
                } else {
                    for r in begin.max(from)..to.min(begin + PANEL_ROWS) {
                        put_row(source, row(r - from), r - begin, panel);
                    }
                }
            }
            transpose::written();
        });
        self.next = to;
        Ok(())
    }

    fn wrong(&self, what: String) -> KernelError {
        KernelError::new("pack", format!("{what} (after row {} of {})", self.next, self.matrix.rows))
    }

    /// The matrix, once every row is there.
    ///
    /// # Errors
    /// If rows are missing.
    pub fn finish(self) -> Result<WeightMatrix, KernelError> {
        let (got, rows) = (self.next, self.matrix.rows);
        if got != rows && self.source.cols_stored > 0 {
            return Err(KernelError::new("pack", format!("{got} of {rows} rows were given")));
        }
        Ok(self.matrix)
    }
}

/// Copies one stored row to its lane of a panel: the specification of [`put_panel`], and the way of rows that come alone.
fn put_row(source: Source, stored: &[u8], lane: usize, panel: &mut [u8]) {
    let Source { ty, col_skip, cols, .. } = source;
    match PanelFormat::of(ty) {
        Some(format) => {
            for (i, block) in panel.chunks_exact_mut(format.block_bytes()).enumerate() {
                format.put(block, lane, &blocks::decode(ty, stored, col_skip / 32 + i));
            }
        }
        // Little endian as stored; native from here on.
        None if ty == WeightType::F32 => {
            for (k, bytes) in stored.as_chunks::<4>().0[col_skip..][..cols].iter().enumerate() {
                let value = f32::from_le_bytes(*bytes).to_ne_bytes();
                panel[(k * PANEL_ROWS + lane) * 4..][..4].copy_from_slice(&value);
            }
        }
        None => {
            for (k, bytes) in stored.as_chunks::<2>().0[col_skip..][..cols].iter().enumerate() {
                let value = u16::from_le_bytes(*bytes).to_ne_bytes();
                panel[(k * PANEL_ROWS + lane) * 2..][..2].copy_from_slice(&value);
            }
        }
    }
}

/// Copies eight stored rows to a panel.
fn put_panel(source: Source, rows: [&[u8]; PANEL_ROWS], panel: &mut [u8]) {
    let first = source.col_skip / 32;
    match source.ty {
        WeightType::F32 => put_floats::<4>(source, rows, panel),
        WeightType::F16 | WeightType::BF16 => put_floats::<2>(source, rows, panel),
        // Codes lie in a stored block as they do in a lane of the panel.
        WeightType::Q4_0 => put_blocks::<18, 2, 1>(first, rows, panel),
        WeightType::Q4_1 => put_blocks::<20, 4, 1>(first, rows, panel),
        WeightType::Q8_0 => put_blocks::<34, 2, 2>(first, rows, panel),
        WeightType::Q5_0 | WeightType::Q5_1 | WeightType::Q4_K | WeightType::Q5_K | WeightType::Q6_K => {
            put_decoded(source.ty, first, rows, panel)
        }
    }
}

/// Elements of `N` bytes.
fn put_floats<const N: usize>(source: Source, rows: [&[u8]; PANEL_ROWS], panel: &mut [u8]) {
    let rows = rows.map(|row| &row[source.col_skip * N..][..source.cols * N]);
    let whole = source.cols * N / 16 * 16;
    let (to, to_rest) = panel.split_at_mut(whole * PANEL_ROWS);
    transpose::rows::<N>(rows.map(|row| &row[..whole]), to);
    for (lane, row) in rows.into_iter().enumerate() {
        for (k, element) in row[whole..].chunks_exact(N).enumerate() {
            to_rest[(k * PANEL_ROWS + lane) * N..][..N].copy_from_slice(element);
        }
    }
}

/// Stored blocks of `BYTES` that begin with `HEAD` bytes of scale and minimum; `CODES` × 16 bytes of codes follow.
#[inline(always)]
fn put_blocks<const BYTES: usize, const HEAD: usize, const CODES: usize>(
    first: usize,
    rows: [&[u8]; PANEL_ROWS],
    panel: &mut [u8],
) {
    let rows = rows.map(|row| &row.as_chunks::<BYTES>().0[first..]);
    for (i, to) in panel.chunks_exact_mut(CODES * 128 + PANEL_ROWS * HEAD).enumerate() {
        let blocks = rows.map(|row| &row[i]);
        let (codes, heads) = to.split_at_mut(CODES * 128);
        for (c, codes) in codes.as_chunks_mut::<128>().0.iter_mut().enumerate() {
            transpose::quads(
                blocks.map(|block| block[HEAD + c * 16..].first_chunk().expect("it has CODES × 16")),
                codes,
            );
        }
        // All scales, then all minima.
        for (h, to) in heads.as_chunks_mut::<{ 2 * PANEL_ROWS }>().0.iter_mut().enumerate() {
            for (block, to) in blocks.iter().zip(to.as_chunks_mut::<2>().0) {
                *to = [block[h * 2], block[h * 2 + 1]];
            }
        }
    }
}

/// Formats whose codes are put together from several places.
fn put_decoded(ty: WeightType, first: usize, rows: [&[u8]; PANEL_ROWS], panel: &mut [u8]) {
    let Some(format) = PanelFormat::of(ty) else { return };
    for (i, to) in panel.chunks_exact_mut(format.block_bytes()).enumerate() {
        let mut codes = [[[0u8; 16]; 2]; PANEL_ROWS];
        for (lane, row) in rows.iter().enumerate() {
            let run = blocks::decode(ty, row, first + i);
            format.put_scales(to, lane, &run);
            let [low, high]: [u128; 2] = bytemuck::cast(run.codes);
            // Four-bit codes leave room for each other.
            let halves = if format.four_bit { [low | high << 4, 0] } else { [low, high] };
            codes[lane] = halves.map(u128::to_ne_bytes);
        }
        let to = to[..format.code_bytes()].as_chunks_mut::<128>().0;
        for (half, to) in to.iter_mut().enumerate() {
            transpose::quads(codes.each_ref().map(|codes| &codes[half]), to);
        }
    }
}

#[cfg(test)]
#[path = "pack_tests.rs"]
mod tests;
