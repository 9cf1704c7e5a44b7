//! A batch of activation rows: as floats, as 8-bit codes and as pairs of bf16.

use bytemuck::{Pod, Zeroable};

use super::panels::WeightMatrix;
use crate::cpu::detect::features;
use crate::cpu::lanes::{Codes, Lanes, Wide};
use crate::cpu::pairs::{Pairs, bf16_of};
use crate::cpu::pool::ThreadPool;
use crate::cpu::shared_slice::SharedSlice;
use crate::cpu::{simd, simd_wide};

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

/// Rows of activations: f32 values, and what products take of them once [`prepare`](Self::prepare) has been called.
#[derive(Debug)]
pub struct Activations {
    cols: usize,
    rows: usize,
    values: Vec<f32>,
    blocks: Vec<ActBlock>,
    /// Whether the 8-bit form is that of the values.
    coded: bool,
    /// Of each row, columns rounded to bf16: two in a word, the even one low.
    pairs: Vec<u32>,
    /// The same as floats.
    rounded: Vec<[f32; 2]>,
    /// Whether they are those of the values.
    paired: bool,
}

impl Activations {
    /// Room for `max_rows` rows of `cols`; grows when asked for more.
    pub fn new(max_rows: usize, cols: usize) -> Self {
        let mut new = Self {
            cols,
            rows: 0,
            values: Vec::new(),
            blocks: Vec::new(),
            coded: false,
            pairs: Vec::new(),
            rounded: Vec::new(),
            paired: false,
        };
        new.set_rows(max_rows);
        new
    }

    /// Sets the number of rows. Contents are unspecified afterwards.
    pub fn set_rows(&mut self, rows: usize) {
        self.rows = rows;
        (self.coded, self.paired) = (false, false);
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
        (self.coded, self.paired) = (false, false);
        &mut self.values[..self.rows * self.cols]
    }

    /// Row `t`.
    pub fn row(&self, t: usize) -> &[f32] {
        &self.f32_rows()[t * self.cols..][..self.cols]
    }

    /// Makes the 8-bit form of every row, if it has not been made since they were written. Of a last block shorter than 32 the
    /// rest counts as 0.
    pub fn quantize(&mut self, pool: &ThreadPool) {
        if !self.coded {
            let paired = self.paired;
            self.fill(pool, true, |_, _| ());
            self.paired = paired;
        }
    }

    /// Makes what products with `weights` take beside the values: the 8-bit form of every row, or its pairs of bf16.
    pub fn prepare(&mut self, pool: &ThreadPool, weights: &WeightMatrix) {
        if weights.is_quantized() {
            self.quantize(pool);
        } else if weights.is_multiplied_in_bf16() {
            self.pair(pool);
        }
    }

    /// Whether what products with `weights` take has been made since the values were written.
    pub(crate) fn is_prepared_for(&self, weights: &WeightMatrix) -> bool {
        (self.coded || !weights.is_quantized()) && (self.paired || !weights.is_multiplied_in_bf16())
    }

    /// Rounds every row to bf16, if it has not been done since they were written: in the form that products take here. A row alone
    /// is met as floats everywhere.
    fn pair(&mut self, pool: &ThreadPool) {
        let native = features().multiplies_bf16();
        self.pair_as(pool, native, !native || self.rows == 1);
    }

    pub(crate) fn pair_as(&mut self, pool: &ThreadPool, words: bool, floats: bool) {
        if self.paired {
            return;
        }
        let (cols, per_row) = (self.cols, self.cols.div_ceil(2));
        let [of_words, of_floats] = [words, floats].map(|wanted| if wanted { per_row } else { 0 });
        if self.pairs.len() < self.rows * of_words {
            self.pairs.resize(self.rows * of_words, 0);
        }
        if self.rounded.len() < self.rows * of_floats {
            self.rounded.resize(self.rows * of_floats, [0.0; 2]);
        }
        let values = &self.values;
        let (pairs, rounded) = (SharedSlice::new(&mut self.pairs), SharedSlice::new(&mut self.rounded));
        pool.run(self.rows, |t| {
            let x = &values[t * cols..][..cols];
            if words {
                // SAFETY: each task has a row of its own.
                pair_row(x, unsafe { pairs.part(t * per_row, per_row) });
            }
            if floats {
                // SAFETY: as above.
                round_row(x, unsafe { rounded.part(t * per_row, per_row) });
            }
        });
        self.paired = true;
    }

    /// Row `t` in pairs of bf16; after a last column that is alone comes a zero.
    #[inline(always)]
    pub(crate) fn in_pairs<L, const P: usize, D: Pairs<L, P>>(&self, t: usize) -> &[D::Activations] {
        let per_row = self.cols.div_ceil(2);
        &D::choose(&self.pairs, &self.rounded)[t * per_row..][..per_row]
    }

    /// Has every row written by `write`, which is told its number, and where `coded` makes its 8-bit form, as
    /// [`quantize`](Self::quantize), while it is in the cache.
    pub fn fill(&mut self, pool: &ThreadPool, coded: bool, write: impl Fn(usize, &mut [f32]) + Sync) {
        let per_row = if coded { self.cols.div_ceil(32) } else { 0 };
        let needed = self.rows * per_row;
        if self.blocks.len() < needed {
            self.blocks.resize(needed, EMPTY);
        }
        (self.coded, self.paired) = (coded, false);
        let cols = self.cols;
        let (values, blocks) = (SharedSlice::new(&mut self.values), SharedSlice::new(&mut self.blocks));
        pool.run(self.rows, |t| {
            // SAFETY: each task has a row of its own.
            let (row, blocks) = unsafe { (values.part(t * cols, cols), blocks.part(t * per_row, per_row)) };
            write(t, row);
            if coded {
                quantize_row(row, blocks);
            }
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

simd! { fn pair_row(x: &[f32], pairs: &mut [u32]) => pair_row_body }

/// (The lanes are only for the compiler to know which instructions it may use.)
#[inline(always)]
#[allow(clippy::extra_unused_type_parameters, reason = "of the macro that enters it")]
fn pair_row_body<L: Lanes>(x: &[f32], pairs: &mut [u32]) {
    let (whole, rest) = x.as_chunks::<2>();
    for ([even, odd], pair) in whole.iter().zip(pairs.iter_mut()) {
        *pair = bf16_of(*even) | bf16_of(*odd) << 16;
    }
    if let ([last], Some(pair)) = (rest, pairs.last_mut()) {
        *pair = bf16_of(*last);
    }
}

simd! { fn round_row(x: &[f32], pairs: &mut [[f32; 2]]) => round_row_body }

/// As `pair_row_body`.
#[inline(always)]
#[allow(clippy::extra_unused_type_parameters, reason = "of the macro that enters it")]
fn round_row_body<L: Lanes>(x: &[f32], pairs: &mut [[f32; 2]]) {
    let (whole, rest) = x.as_chunks::<2>();
    for (pair, rounded) in whole.iter().zip(pairs.iter_mut()) {
        *rounded = pair.map(|x| f32::from_bits(bf16_of(x) << 16));
    }
    if let ([last], Some(rounded)) = (rest, pairs.last_mut()) {
        *rounded = [f32::from_bits(bf16_of(*last) << 16), 0.0];
    }
}

simd_wide! { fn quantize_row(x: &[f32], blocks: &mut [ActBlock]) => quantize_row_body }

#[inline(always)]
fn quantize_row_body<W: Wide>(x: &[f32], blocks: &mut [ActBlock]) {
    let (whole, rest) = x.as_chunks::<32>();
    let (of_whole, of_rest) = blocks.split_at_mut(whole.len());
    for (x, block) in whole.iter().zip(of_whole) {
        quantize_block::<W>(x, block);
    }
    if let Some(block) = of_rest.first_mut() {
        let mut padded = [0.0; 32];
        padded[..rest.len()].copy_from_slice(rest);
        quantize_block::<W>(&padded, block);
    }
}

#[inline(always)]
fn quantize_block<W: Wide>(x: &[f32; 32], block: &mut ActBlock) {
    let halves = x.as_chunks::<16>().0;
    let [a, b] = [W::load(&halves[0]), W::load(&halves[1])];
    let zero = W::splat(0.0);
    let largest = a.max(zero.sub(a)).max(b).max(zero.sub(b)).greatest();
    // Below it 127 / largest would be infinite.
    let inverse = W::splat(if largest > f32::MIN_POSITIVE * 256.0 { 127.0 / largest } else { 0.0 });
    block.coded = W::to_codes([a.mul(inverse), b.mul(inverse)]);
    block.scale = largest / 127.0;
    let [low, high] = block.coded.totals;
    block.sum = block.scale * (low + high) as f32;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::portable;
    use crate::dtype::WeightType;

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
        quantize_row_body::<[portable::F32x8; 2]>(&x, &mut portable_blocks);
        assert_eq!(activations.blocks(0), portable_blocks);
    }

    #[test]
    fn the_eight_bit_form_is_that_of_what_was_written_last() {
        let pool = ThreadPool::new(2);
        let mut x = Activations::new(3, 70);
        let value = |t: usize, i: usize| ((t * 31 + i * 17) % 23) as f32 - 11.0;
        x.fill(&pool, true, |t, row| row.iter_mut().enumerate().for_each(|(i, x)| *x = value(t, i)));
        let filled = x.block_rows(0, 3).to_vec();
        for (t, row) in x.f32_rows_mut().chunks_exact_mut(70).enumerate() {
            row.iter_mut().enumerate().for_each(|(i, x)| *x = value(t, i));
        }
        x.quantize(&pool);
        assert_eq!(x.block_rows(0, 3), filled, "in one pass and in two");
        x.f32_rows_mut()[3] = 99.0;
        x.quantize(&pool);
        assert_eq!(x.blocks(0)[0].coded.codes[3], 127, "written after it was made");
        assert_eq!(x.block_rows(1, 2), &filled[3..]);
        x.fill(&pool, false, |_, row| row.fill(1.0));
        x.quantize(&pool);
        assert_eq!(x.blocks(2)[2].coded.totals, [6 * 127, 0]);
    }

    #[test]
    fn what_products_take_is_made_once_and_anew_when_something_was_written() {
        let pool = ThreadPool::new(2);
        let weights = |ty: WeightType| {
            WeightMatrix::pack(ty, 1, 32, 0, 32, &vec![0; ty.row_bytes(32)]).expect("sizes agree")
        };
        let (plain, codes) = (weights(WeightType::BF16), weights(WeightType::Q8_0));
        let pairs = weights(WeightType::BF16).multiplied_in_bf16();
        let mut x = Activations::new(2, 32);
        assert!(x.is_prepared_for(&plain) && !x.is_prepared_for(&codes) && !x.is_prepared_for(&pairs));
        x.prepare(&pool, &codes);
        assert!(x.is_prepared_for(&codes) && !x.is_prepared_for(&pairs));
        x.prepare(&pool, &pairs);
        assert!(x.is_prepared_for(&codes) && x.is_prepared_for(&pairs));
        x.f32_rows_mut()[33] = 1.0 + 1.0 / 1024.0;
        assert!(!x.is_prepared_for(&codes) && !x.is_prepared_for(&pairs));
        x.pair_as(&pool, true, true);
        assert_eq!(x.pairs[16], 0x3f80_0000, "the odd one is high, and rounded");
        assert_eq!(x.rounded[16], [0.0, 1.0]);
        x.quantize(&pool);
        assert!(x.is_prepared_for(&pairs), "codes do not take pairs away");
        x.fill(&pool, true, |_, row| row.fill(2.0));
        assert!(x.is_prepared_for(&codes) && !x.is_prepared_for(&pairs));
        x.prepare(&pool, &pairs);
        x.set_rows(1);
        assert!(!x.is_prepared_for(&codes) && !x.is_prepared_for(&pairs));
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
