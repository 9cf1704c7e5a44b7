//! Drawing tokens from rows of logits, so that of a row nothing but its token has to be downloaded: the contract, and the bits, are
//! those of [`crate::op::draw`].

use super::sample::SampleBuffers;
use crate::cuda::{Arg, Buffer, Device, DeviceError, Launch, View};
use crate::op::draw::{Draw, WHOLE};

/// Logits of a block.
const CHUNK: usize = 2048;
/// Digits by which top-p finds where to cut, and how many values each has.
const DIGITS: usize = 5;
const VALUES: usize = 256;
/// More tokens could weigh more than 64 bits hold.
const MOST_TOKENS: usize = 1 << 23;

/// A row of which nothing is drawn.
const NOT_DRAWN: Draw = Draw { scale: 0.0, least: 0.0, share: WHOLE, uniform: u64::MAX };

/// How rows are drawn from, and the tokens that are: at the same addresses in every step.
#[derive(Debug)]
pub struct DrawBuffers {
    max_rows: usize,
    vocab: usize,
    draws: Buffer<Draw>,
    tokens: Buffer<u32>,
    /// Of each chunk of each row what it weighs, and how many are as good as the last that top-p keeps.
    sums: Buffer<u64>,
    equals: Buffer<u32>,
    /// Of each row with top-p the weights by digits.
    by_digit: Buffer<u64>,
}

impl DrawBuffers {
    /// Buffers for up to `max_rows` rows of `vocab` logits.
    ///
    /// # Errors
    /// If there is no memory.
    ///
    /// # Panics
    /// If there is no vocabulary, or one of more than 2^23 tokens.
    pub fn new(device: &Device, max_rows: usize, vocab: usize) -> Result<Self, DeviceError> {
        assert!(vocab > 0 && vocab <= MOST_TOKENS, "a vocabulary of {vocab}");
        let chunks = max_rows * vocab.div_ceil(CHUNK);
        Ok(Self {
            max_rows,
            vocab,
            draws: device.upload(&vec![NOT_DRAWN; max_rows])?,
            tokens: device.zeros(max_rows)?,
            sums: device.alloc(chunks)?,
            equals: device.alloc(chunks)?,
            by_digit: device.alloc(max_rows * DIGITS * VALUES)?,
        })
    }

    /// How each of the first rows is drawn from the next time; `None`: not at all.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If there are more rows than the buffers are for.
    pub fn set(&mut self, draws: impl Iterator<Item = Option<Draw>>) -> Result<(), DeviceError> {
        let draws: Vec<Draw> = draws.map(|draw| draw.unwrap_or(NOT_DRAWN)).collect();
        self.draws.view_mut().slice(0..draws.len()).upload(&draws)
    }

    /// What was drawn of the first `rows` rows; of those that nothing was drawn of, anything.
    ///
    /// # Panics
    /// If there are more rows than the buffers are for.
    pub fn tokens(&self, rows: usize) -> View<'_, u32> {
        self.tokens.view().slice(0..rows)
    }
}

/// Draws from rows of logits as they were [`set`](DrawBuffers::set), where `greatest` has been told the greatest of each by
/// [`argmax`](super::sample::argmax). Rows are `stride` elements apart. `cuts`: the share of some may be less than all.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If there are more rows than the buffers are for, or lengths do not fit.
pub fn draw(
    buffers: &mut DrawBuffers,
    greatest: &SampleBuffers,
    logits: View<'_, f32>,
    rows: usize,
    stride: usize,
    cuts: bool,
) -> Result<(), DeviceError> {
    let vocab = buffers.vocab;
    assert!(rows <= buffers.max_rows && greatest.vocab() == vocab, "{rows} rows of {vocab} logits");
    assert!(stride >= vocab, "rows of {vocab}, {stride} apart");
    let needed = rows.checked_sub(1).map_or(0, |before| before * stride + vocab);
    assert!(logits.len() >= needed, "{rows} rows, {stride} apart, in {} logits", logits.len());
    let device = buffers.draws.device().clone();
    let launch = |kernel, grid: [usize; 2], own: &[Arg], rest: &[Arg]| {
        let grid = [grid[0] as u32, grid[1] as u32, 1];
        let args = [own, rest].concat();
        // SAFETY: of the kernel's types, see below; lengths were looked at, and each row and each chunk of it has its place.
        unsafe { device.launch(&Launch { kernel, grid, threads: 256, shared: 0 }, &args) }
    };
    let tokens = Arg::Ptr(buffers.tokens.view_mut().address());
    let sums = Arg::Ptr(buffers.sums.view_mut().address());
    let equals = Arg::Ptr(buffers.equals.view_mut().address());
    let by_digit = Arg::Ptr(buffers.by_digit.view_mut().address());
    // Behind the places of the greatest.
    let values = greatest.greatest(rows).slice(rows..2 * rows).address();
    let each = [
        Arg::Ptr(buffers.draws.view().address()),
        Arg::Ptr(values),
        Arg::Ptr(logits.address()),
        Arg::U32(vocab as u32),
        Arg::U64(stride as u64),
    ];
    let chunks = [vocab.div_ceil(CHUNK), rows];
    launch("draw_sums", chunks, &[sums, by_digit], &each)?;
    if cuts {
        for nth in 0..DIGITS {
            let nth = Arg::U32(nth as u32);
            launch("draw_digit", chunks, &[by_digit], &[&each[..], &[nth]].concat())?;
        }
        launch("draw_kept", chunks, &[sums, equals, by_digit], &each)?;
    }
    launch("draw_pick", [rows, 1], &[tokens, sums, equals, by_digit], &each)
}

#[cfg(test)]
#[path = "draw_tests.rs"]
mod tests;
