//! A batch of activation rows, as floats and as 8-bit codes.

use bytemuck::{Pod, Zeroable};

use crate::cpu::lanes::{Codes, Lanes};
use crate::cpu::pool::ThreadPool;
use crate::cpu::shared_slice::SharedSlice;
use crate::cpu::simd;

/// The 8-bit form of 32 consecutive activations: `x ≈ scale × code`.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct ActBlock {
    /// max |x| / 127, from these 32 alone.
    pub(crate) scale: f32,
    /// scale × Σ codes: what a weight's minimum is multiplied with.
    pub(crate) sum: f32,
    /// Nearest integers to x / scale.
    pub(crate) coded: Codes,
}

impl ActBlock {
    /// Bytes before the codes.
    pub(crate) const CODES_AT: usize = std::mem::offset_of!(Self, coded) + std::mem::offset_of!(Codes, codes);
}

const EMPTY: ActBlock = ActBlock { scale: 0.0, sum: 0.0, coded: Codes { totals: [0; 2], codes: [0; 32] } };

/// Rows of activations: f32 values, and their 8-bit form once [`quantize`](Self::quantize) has been called.
#[derive(Debug)]
pub struct Activations {
    cols: usize,
    rows: usize,
    values: Vec<f32>,
    blocks: Vec<ActBlock>,
}

impl Activations {
    /// Room for `max_rows` rows of `cols`; grows when asked for more.
    pub fn new(max_rows: usize, cols: usize) -> Self {
        let mut new = Self { cols, rows: 0, values: Vec::new(), blocks: Vec::new() };
        new.set_rows(max_rows);
        new
    }

    /// Sets the number of rows. Contents are unspecified afterwards.
    pub fn set_rows(&mut self, rows: usize) {
        self.rows = rows;
        if self.values.len() < rows * self.cols {
            self.values.resize(rows * self.cols, 0.0);
        }
    }

    /// Rows in use.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All rows, one after the other.
    pub fn f32_rows(&self) -> &[f32] {
        &self.values[..self.rows * self.cols]
    }

    /// All rows, to be written.
    pub fn f32_rows_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.rows * self.cols]
    }

    /// Row `t`.
    pub fn row(&self, t: usize) -> &[f32] {
        &self.f32_rows()[t * self.cols..][..self.cols]
    }

    /// Makes the 8-bit form of every row. Of a last block shorter than 32 the rest counts as 0.
    pub fn quantize(&mut self, pool: &ThreadPool) {
        let per_row = self.cols.div_ceil(32);
        let needed = self.rows * per_row;
        if self.blocks.len() < needed {
            self.blocks.resize(needed, EMPTY);
        }
        if needed == 0 {
            return;
        }
        let (values, cols) = (&self.values, self.cols);
        let blocks = SharedSlice::new(&mut self.blocks);
        pool.run(self.rows, |t| {
            // SAFETY: each task has a row of its own.
            let blocks = unsafe { blocks.part(t * per_row, per_row) };
            quantize_row(&values[t * cols..][..cols], blocks);
        });
    }

    /// The 8-bit form of row `t`.
    pub(crate) fn blocks(&self, t: usize) -> &[ActBlock] {
        self.block_rows(t, 1)
    }

    /// The 8-bit form of `count` rows from `t` on, one after the other.
    pub(crate) fn block_rows(&self, t: usize, count: usize) -> &[ActBlock] {
        let per_row = self.cols.div_ceil(32);
        &self.blocks[t * per_row..][..count * per_row]
    }
}

simd! { fn quantize_row(x: &[f32], blocks: &mut [ActBlock]) => quantize_row_body }

#[inline(always)]
fn quantize_row_body<L: Lanes>(x: &[f32], blocks: &mut [ActBlock]) {
    for (chunk, block) in x.chunks(32).zip(blocks) {
        let mut padded = [0.0; 32];
        padded[..chunk.len()].copy_from_slice(chunk);
        let parts = padded.as_chunks::<8>().0;
        let parts: [L; 4] = std::array::from_fn(|i| L::load(&parts[i]));
        let zero = L::splat(0.0);
        let largest = parts.iter().fold(zero, |largest, x| largest.max(*x).max(zero.sub(*x))).greatest();
        // Below it 127 / largest would be infinite.
        let inverse = L::splat(if largest > f32::MIN_POSITIVE * 256.0 { 127.0 / largest } else { 0.0 });
        block.coded = L::to_codes(parts.map(|x| x.mul(inverse)));
        block.scale = largest / 127.0;
        block.sum = block.scale * block.coded.totals.iter().sum::<i32>() as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::portable;

    #[test]
    fn codes_are_within_half_a_step_and_the_same_on_all_lanes() {
        let x: Vec<f32> =
            (0..100).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.013 * (1 + i / 32) as f32).collect();
        let mut activations = Activations::new(1, 100);
        activations.f32_rows_mut().copy_from_slice(&x);
        activations.quantize(&ThreadPool::new(1));
        for (i, x) in x.iter().enumerate() {
            let block = &activations.blocks(0)[i / 32];
            let error = (block.scale * f32::from(block.coded.codes[i % 32]) - x).abs();
            assert!(error <= block.scale * 0.501, "{i}: {error}");
        }
        let mut portable_blocks = vec![EMPTY; 4];
        quantize_row_body::<portable::F32x8>(&x, &mut portable_blocks);
        assert_eq!(activations.blocks(0), portable_blocks);
    }

    #[test]
    fn zeros_and_extremes_have_codes() {
        let mut activations = Activations::new(2, 32);
        activations.f32_rows_mut()[40] = f32::MAX;
        activations.quantize(&ThreadPool::new(1));
        assert_eq!(activations.blocks(0)[0], EMPTY);
        assert_eq!(activations.blocks(1)[0].coded.codes[8], 127);
    }
}
