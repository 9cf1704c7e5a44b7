//! What sampling needs of rows of logits, so that few of them have to be downloaded: the greatest; ln Σ e^x; the best few.
//!
//! What the host's sampler can do with the best `k` of a row, where nothing changes logits first (no bias, or list of tokens that
//! may or may not be said: those can lift any token above the best, and need the whole row; penalties that lower the logits of `n`
//! tokens need the best `k + n`):
//! * Without temperature: exactly the token it would choose of the whole row. [`argmax`] alone is enough.
//! * `top_k` up to `k`, and then `top_p` and `min_p`: exactly the same tokens with the same weights, for all of these look at no
//!   other; so the token that is drawn is the same.
//! * Temperature, `top_p` or `min_p` without `top_k`: all tokens count, and more than the best are needed; see [`super::draw`].
//! * Log-probabilities: logit less [`log_sum_exp`], of the token and of up to `k` best; the sum differs by rounding.

use crate::cuda::{Arg, Buffer, Device, DeviceError, Launch, View};

/// Tokens that [`top`] gives at most.
pub const MAX_TOP: usize = 256;
/// Logits of a block.
const CHUNK: usize = 2048;

/// Where a step's results are kept.
#[derive(Debug)]
pub struct SampleBuffers {
    max_rows: usize,
    vocab: usize,
    max_top: usize,
    /// Of each row the place of the greatest logit; then of each row that logit.
    greatest: Buffer<u32>,
    /// `[rows]`: ln Σ e^x.
    pub sums: Buffer<f32>,
    /// `[rows][k]`: places of the best `k` logits; then `[rows][k]`: those logits.
    best: Buffer<u32>,
    /// Of each chunk of each row.
    parts: Buffer<u64>,
    /// Of what was left of those, in turns with them.
    left: Buffer<u64>,
}

impl SampleBuffers {
    /// Buffers for up to `max_rows` rows of `vocab` logits, of which up to `max_top` best are wanted.
    ///
    /// # Errors
    /// If there is no memory.
    ///
    /// # Panics
    /// If there is no vocabulary, or more than it or [`MAX_TOP`] are wanted.
    pub fn new(device: &Device, max_rows: usize, vocab: usize, max_top: usize) -> Result<Self, DeviceError> {
        assert!(vocab > 0 && u32::try_from(vocab).is_ok(), "a vocabulary of {vocab}");
        assert!(max_top <= MAX_TOP && max_top <= vocab, "the best {max_top} of {vocab}");
        let chunks = vocab.div_ceil(CHUNK);
        let left = (chunks * max_top).div_ceil(CHUNK);
        Ok(Self {
            max_rows,
            vocab,
            max_top,
            greatest: device.alloc(2 * max_rows)?,
            sums: device.alloc(max_rows)?,
            best: device.alloc(2 * max_rows * max_top)?,
            parts: device.alloc(max_rows * chunks * max_top.max(1))?,
            left: device.alloc(max_rows * left * max_top)?,
        })
    }

    /// Logits of a row.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// The best logits that are wanted at most.
    pub fn max_top(&self) -> usize {
        self.max_top
    }

    /// What [`argmax`] has found of `rows` rows, in one piece: of each row the place of the greatest logit (of equals the first;
    /// what is not a number is never it), then the bits of each of these logits.
    ///
    /// # Panics
    /// If there are more rows than the buffers are for.
    pub fn greatest(&self, rows: usize) -> View<'_, u32> {
        self.greatest.view().slice(0..2 * rows)
    }

    /// What [`top`] has found of `rows` rows, in one piece: `[rows][k]`, the places of the best `k` logits, best first (of equals
    /// the lower first, and what is not a number as -∞), then the bits of each of these logits.
    ///
    /// # Panics
    /// If there are more rows or logits than the buffers are for.
    pub fn best(&self, rows: usize, k: usize) -> View<'_, u32> {
        self.best.view().slice(0..2 * rows * k)
    }

    fn check(&self, logits: View<'_, f32>, rows: usize, stride: usize) {
        assert!(rows <= self.max_rows, "{rows} rows of {}", self.max_rows);
        assert!(stride >= self.vocab, "rows of {}, {stride} apart", self.vocab);
        let needed = rows.checked_sub(1).map_or(0, |before| before * stride + self.vocab);
        assert!(logits.len() >= needed, "{rows} rows, {stride} apart, in {} logits", logits.len());
    }

    fn chunks(&self) -> usize {
        self.vocab.div_ceil(CHUNK)
    }

    /// # Safety
    /// The arguments are the kernel's.
    unsafe fn launch(
        &self,
        kernel: &'static str,
        grid: [usize; 2],
        threads: u32,
        args: &[Arg],
    ) -> Result<(), DeviceError> {
        let grid = [grid[0] as u32, grid[1] as u32, 1];
        // SAFETY: as the caller says.
        unsafe { self.parts.device().launch(&Launch { kernel, grid, threads, shared: 0 }, args) }
    }
}

/// Finds the greatest logit of each row, for [`SampleBuffers::greatest`]. Rows are `stride` elements apart.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If there are more rows than the buffers are for, or lengths do not fit.
pub fn argmax(
    buffers: &mut SampleBuffers,
    logits: View<'_, f32>,
    rows: usize,
    stride: usize,
) -> Result<(), DeviceError> {
    buffers.check(logits, rows, stride);
    let parts = Arg::Ptr(buffers.parts.view_mut().address());
    let (logits, far) = (Arg::Ptr(logits.address()), Arg::U64(stride as u64));
    let chunks = buffers.chunks();
    let each = [parts, logits, Arg::U32(buffers.vocab as u32), far];
    let greatest = buffers.greatest.view_mut().address();
    let all = [
        Arg::Ptr(greatest),
        Arg::Ptr(greatest + (rows * size_of::<u32>()) as u64),
        parts,
        logits,
        Arg::U32(chunks as u32),
        far,
    ];
    // SAFETY: of the kernels' types; `check` looked at lengths, and there is a part for each chunk of each row.
    unsafe {
        buffers.launch("sample_argmax_parts", [chunks, rows], 256, &each)?;
        buffers.launch("sample_argmax", [rows, 1], 256, &all)
    }
}

/// Writes ln Σ e^(scale · x) of each row to `buffers.sums`; `scales`: one for each row, 1 if there are none. Rows are `stride`
/// elements apart. The greatest logit where it is infinite.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If there are more rows than the buffers are for, or lengths do not fit.
pub fn log_sum_exp(
    buffers: &mut SampleBuffers,
    logits: View<'_, f32>,
    rows: usize,
    stride: usize,
    scales: Option<View<'_, f32>>,
) -> Result<(), DeviceError> {
    buffers.check(logits, rows, stride);
    assert!(scales.is_none_or(|scales| scales.len() == rows), "a scale for each row");
    let parts = Arg::Ptr(buffers.parts.view_mut().address());
    let scales = Arg::Ptr(scales.map_or(0, |scales| scales.address()));
    let chunks = buffers.chunks();
    let vocab = Arg::U32(buffers.vocab as u32);
    let each = [parts, Arg::Ptr(logits.address()), scales, vocab, Arg::U64(stride as u64)];
    let all = [Arg::Ptr(buffers.sums.view_mut().address()), parts, scales, Arg::U32(chunks as u32)];
    // SAFETY: of the kernels' types; `check` looked at lengths, and there is a part for each chunk of each row.
    unsafe {
        buffers.launch("sample_sum_parts", [chunks, rows], 256, &each)?;
        buffers.launch("sample_sum", [rows, 1], 32, &all)
    }
}

/// Finds the best `k` logits of each row, for [`SampleBuffers::best`]. Rows are `stride` elements apart.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If there are more rows than the buffers are for, or more are wanted, or lengths do not fit.
pub fn top(
    buffers: &mut SampleBuffers,
    logits: View<'_, f32>,
    rows: usize,
    stride: usize,
    k: usize,
) -> Result<(), DeviceError> {
    buffers.check(logits, rows, stride);
    assert!(k <= buffers.max_top, "the best {k}, of at most {}", buffers.max_top);
    if k == 0 {
        return Ok(());
    }
    let count = Arg::U32(k as u32);
    let (mut best, mut free) = (buffers.parts.view_mut().address(), buffers.left.view_mut().address());
    let (logits, far) = (Arg::Ptr(logits.address()), Arg::U64(stride as u64));
    let mut chunks = buffers.chunks();
    let first = [Arg::Ptr(best), logits, Arg::U32(buffers.vocab as u32), far, count];
    // SAFETY: of the kernel's types; `check` looked at lengths, and there is room for `k` of each chunk of each row.
    unsafe { buffers.launch("sample_top_first", [chunks, rows], 1024, &first)? };
    while chunks > 1 {
        let len = chunks * k;
        chunks = len.div_ceil(CHUNK);
        let next = [Arg::Ptr(free), Arg::Ptr(best), Arg::U32(len as u32), count];
        // SAFETY: of the kernel's types; fewer are left each time, so what had room before has.
        unsafe { buffers.launch("sample_top_next", [chunks, rows], 1024, &next)? };
        (best, free) = (free, best);
    }
    let found = buffers.best.view_mut().address();
    let write = [
        Arg::Ptr(found),
        Arg::Ptr(found + (rows * k * size_of::<u32>()) as u64),
        Arg::Ptr(best),
        logits,
        far,
        count,
    ];
    // SAFETY: of the kernel's types; `k` of each row are left.
    unsafe { buffers.launch("sample_top_write", [rows, 1], 256, &write) }
}

#[cfg(test)]
#[path = "sample_tests.rs"]
mod tests;
