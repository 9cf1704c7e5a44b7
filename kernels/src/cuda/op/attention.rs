//! Softmax attention of each row over its own cached keys and values, on a device.
//!
//! Rows that are taken alone are cut into spans that are met at the same time; rows that are taken together share what they read. A
//! row's result has the same bits either way, and whatever other rows there are: in which order it is added up depends on its own
//! position only (`kernels/cu/attention.cuh`).

#[path = "attention_codes.rs"]
mod codes;

pub use codes::{attention_codes, attention_matmul};

use super::apart::{EARLY, is_apart};
use super::attention_forms::{Kernel, for_many_rows, for_one_row};
use super::kv_cache::{DeviceKv, u32_of};
use super::step_rows::StepRows;
use crate::cuda::{ActsViewMut, Arg, Buffer, Device, DeviceError, Launch, View};

/// Positions of a span, or twice that, and so on, so that a row sees at most [`PARTS`] (`kernels/cu/attention.cuh`).
const SPAN: usize = 256;
const PARTS: usize = 32;

/// Blocks that rows that are taken together should be at least, if their context can be cut: two or three for each of a GPU's
/// multiprocessors.
const FULL: usize = 264;

/// Rows that are taken alone are cut into spans that are met at the same time unless they are blocks enough as they are, and none sees
/// more than [`SHORT`] spans: what is saved is the beginning of many short blocks, and putting spans together again. A few long rows
/// among short ones end late then, though not by much.
const MANY: usize = 4 * FULL;
const SHORT: usize = 8;

/// The first position after this one whose row has longer spans.
pub(super) fn span_change(position: usize) -> usize {
    let mut change = SPAN * (PARTS - 1);
    while change <= position {
        change *= 2;
    }
    change
}

/// Which head of the cache each query head attends to.
#[derive(Debug)]
pub struct HeadMap {
    heads: usize,
    kv_heads: usize,
    /// For chunks of at most 1, 2, 4 … heads: (first head, heads, head of the cache) of each.
    chunks: Vec<Chunks>,
}

/// Query heads in runs that attend to the same head.
#[derive(Debug)]
struct Chunks {
    records: Buffer<u32>,
    /// Heads of the largest.
    widest: usize,
}

impl Chunks {
    fn len(&self) -> usize {
        self.records.len() / 3
    }
}

impl HeadMap {
    /// `kv_head_of`: for each query head, the cache's head (non-decreasing).
    ///
    /// # Errors
    /// If there is no memory, or the device fails.
    pub fn new(device: &Device, kv_head_of: &[u32]) -> Result<Self, DeviceError> {
        let chunks = (0..=5).map(|power| {
            let (records, widest) = chunks(kv_head_of, 1 << power);
            Ok(Chunks { records: device.upload(&records)?, widest })
        });
        Ok(Self {
            heads: kv_head_of.len(),
            kv_heads: kv_head_of.iter().max().map_or(0, |last| *last as usize + 1),
            chunks: chunks.collect::<Result<_, DeviceError>>()?,
        })
    }

    /// Query heads.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Chunks of at most so many heads, a power of two up to 32.
    fn chunks(&self, most: usize) -> &Chunks {
        &self.chunks[most.ilog2() as usize]
    }
}

/// Runs of heads with the same head of the cache, cut evenly into as few as can be; and the widest of them.
fn chunks(kv_head_of: &[u32], most: usize) -> (Vec<u32>, usize) {
    let (mut records, mut widest, mut first) = (Vec::new(), 0, 0);
    for run in kv_head_of.chunk_by(|a, b| a == b) {
        let count = run.len().div_ceil(most);
        for i in 0..count {
            let heads = run.len() * (i + 1) / count - run.len() * i / count;
            records.extend([u32_of(first), u32_of(heads), run[0]]);
            widest = widest.max(heads);
            first += heads;
        }
    }
    (records, widest)
}

/// Where parts of a row's result wait for each other: one for all layers.
#[derive(Debug)]
pub struct AttentionScratch {
    parts: Buffer<f32>,
}

impl AttentionScratch {
    /// Room for `rows` rows that are taken alone, of `heads` heads, none of which sees more than `context` positions; with more
    /// rows, attention takes several rounds.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn new(
        device: &Device,
        rows: usize,
        heads: usize,
        value_dim: usize,
        context: usize,
    ) -> Result<Self, DeviceError> {
        Ok(Self {
            parts: device
                .alloc(rows.max(1) * Self::row_bytes(heads, value_dim, context) / size_of::<f32>())?,
        })
    }

    /// Bytes of a row's room: at 8,192 positions and more 128 · heads · (value_dim + 2), and less where fewer are seen.
    pub fn row_bytes(heads: usize, value_dim: usize, context: usize) -> usize {
        let parts = match parts_of(context) {
            1 => 0,
            parts => parts,
        };
        parts * heads * (value_dim + 2) * size_of::<f32>()
    }
}

/// No row that sees so many positions, from the first on, has more spans.
fn parts_of(seen: usize) -> usize {
    seen.div_ceil(SPAN).clamp(1, PARTS)
}

/// What all rows of a layer have in common.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Query heads.
    pub heads: &'a HeadMap,
    /// What scores are multiplied by.
    pub scale: f32,
    /// `Some(cap)`: a scaled score becomes `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// A row sees so many positions, its own among them; all up to its own without.
    pub window: Option<usize>,
    /// For each query head, a logit that takes part in the softmax and has no value.
    pub sinks: Option<View<'a, f32>>,
}

/// Attention of the rows of a step: `q` is rows × (heads · key width), `out` rows × (heads · value width). Each row sees the
/// cached positions up to its own. Rows that do not exist have zeros as their result.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If the shapes do not agree, a key or value has more than 768 elements (f32: 640), or there is no scratch for one row.
pub fn attention(
    mut out: ActsViewMut<'_>,
    q: View<'_, f32>,
    kv: &DeviceKv,
    layer: usize,
    rows: &StepRows,
    a: &Attention<'_>,
    scratch: &mut AttentionScratch,
) -> Result<(), DeviceError> {
    let step = Step::new(&mut out, q, kv, layer, rows, a);
    if a.heads.heads == 0 {
        return Ok(());
    }
    step.alone(scratch)?;
    step.together(scratch)
}

/// One call.
struct Step<'a, 'b> {
    out: &'a mut ActsViewMut<'b>,
    q: View<'a, f32>,
    kv: &'a DeviceKv,
    layer: usize,
    rows: &'a StepRows,
    a: &'a Attention<'a>,
}

/// How rows that are taken alone are met.
struct AlonePlan {
    kernel: Kernel,
    /// Spans that a row has at most.
    spans: usize,
    /// Blocks that meet the spans of a row and some heads; 1: one block meets all of them.
    parts: usize,
}

impl<'a, 'b> Step<'a, 'b> {
    /// # Panics
    /// If the shapes do not agree.
    fn new(
        out: &'a mut ActsViewMut<'b>,
        q: View<'a, f32>,
        kv: &'a DeviceKv,
        layer: usize,
        rows: &'a StepRows,
        a: &'a Attention<'a>,
    ) -> Self {
        let (heads, sizes) = (a.heads.heads, kv.sizes());
        assert!(
            q.len() >= rows.rows() * heads * sizes.key_dim
                && out.len() >= rows.rows() * heads * sizes.values.dim(),
            "attention: q and out"
        );
        let pair = 2 * if matches!(out, ActsViewMut::F32(_)) { 4 } else { 2 };
        assert!(
            q.address().is_multiple_of(8) && out.address().is_multiple_of(pair),
            "attention: queries and results are met two by two"
        );
        assert!(a.heads.kv_heads <= sizes.kv_heads, "attention: {} heads of keys", a.heads.kv_heads);
        assert!(a.sinks.is_none_or(|sinks| sinks.len() == heads), "attention: a sink for each head");
        Self { out, q, kv, layer, rows, a }
    }

    /// How rows that are taken alone are met.
    fn alone_plan(&self) -> AlonePlan {
        let (count, context) = self.rows.alone();
        let kernel = for_one_row(self.kv, |most| self.a.heads.chunks(most).widest);
        // A window begins and ends within a span; what is short is met by one block.
        let spans = match self.a.window {
            Some(window) => parts_of(context).min(parts_of(window) + 1),
            None => parts_of(context),
        };
        let blocks = count * self.a.heads.chunks(kernel.chunk).len();
        let many = kernel.meets_spans && blocks >= MANY && spans <= SHORT;
        let one = many || self.a.window.is_some_and(|window| window <= SPAN);
        let parts = if one { 1 } else { spans };
        AlonePlan { kernel: kernel.for_blocks(blocks * parts), spans, parts }
    }

    fn alone(&self, scratch: &mut AttentionScratch) -> Result<(), DeviceError> {
        let (count, _) = self.rows.alone();
        let AlonePlan { kernel, spans, parts } = self.alone_plan();
        let round = if parts == 1 { count.max(1) } else { scratch.parts.len() / (parts * self.part()) };
        assert!(round > 0, "attention: scratch for {parts} parts of {} heads", self.a.heads.heads);
        for first in (0..count).step_by(round) {
            let units = round.min(count - first);
            let at = self.rows.alone_at(first);
            let apart = if parts == 1 { 0 } else { scratch.parts.view_mut().address() };
            self.attend(&kernel, apart, at, [units, parts], 0, spans > 1)?;
            if parts > 1 {
                self.combine(apart, at, [units, parts], false)?;
            }
        }
        Ok(())
    }

    fn together(&self, scratch: &mut AttentionScratch) -> Result<(), DeviceError> {
        let runs = self.rows.together();
        if runs.is_empty() {
            return Ok(());
        }
        let kernel = for_many_rows(self.kv);
        let chunks = self.a.heads.chunks(kernel.chunk);
        let tile = kernel.queries / chunks.widest;
        let tiles: usize = runs.iter().map(|(rows, _)| rows.div_ceil(tile)).sum();
        let rows: usize = runs.iter().map(|(rows, _)| rows).sum();
        let context = runs.iter().map(|(_, seen)| *seen).max().unwrap_or(0);
        // Where there are few blocks, and there is scratch, each meets one span only.
        let parts = parts_of(context);
        let wanted = kernel.cuts && parts > 2 && 2 * tiles * chunks.len() <= FULL;
        let at = self.rows.together_at();
        if !wanted || self.a.window.is_some() || rows * parts * self.part() > scratch.parts.len() {
            return self.attend(&kernel, 0, at, [tiles, 1], tile, true);
        }
        let apart = scratch.parts.view_mut().address();
        self.attend(&kernel, apart, at, [tiles, parts], tile, true)?;
        self.combine(apart, at, [rows, parts], true)
    }

    /// Scratch for one part of a row: of each head the weighted sum of values, the greatest score, and the sum of weights.
    fn part(&self) -> usize {
        self.a.heads.heads * (self.kv.sizes().values.dim() + 2)
    }

    /// Puts the parts of so many rows together.
    fn combine(
        &self,
        apart: u64,
        units_at: Arg,
        [rows, parts]: [usize; 2],
        together: bool,
    ) -> Result<(), DeviceError> {
        let heads = u32_of(self.a.heads.heads);
        let launch =
            Launch { kernel: "attention_combine", grid: [u32_of(rows), heads, 1], threads: 128, shared: 0 };
        let [out, is_bf16] = self.out();
        let args = [
            out,
            is_bf16,
            Arg::Ptr(apart),
            self.rows.address(),
            units_at,
            Arg::U32(u32_of(self.rows.together().len())),
            Arg::U32(u32_of(parts)),
            self.sinks(),
            Arg::U32(heads),
            Arg::U32(u32_of(self.kv.sizes().values.dim())),
            self.window(),
            Arg::U32(u32::from(together)),
        ];
        // SAFETY: there is scratch for so many rows and parts, and `out` was checked.
        unsafe { self.out.device().launch(&launch, &args) }
    }

    /// Starts a kernel for so many units (or tiles of units) and parts; without parts, a block may meet several spans if `spans`.
    fn attend(
        &self,
        kernel: &Kernel,
        apart: u64,
        units_at: Arg,
        [units, parts]: [usize; 2],
        tile: usize,
        spans: bool,
    ) -> Result<(), DeviceError> {
        let (kv, sizes) = (self.kv, self.kv.sizes());
        let chunks = self.a.heads.chunks(kernel.chunk);
        let value_dim = sizes.values.dim();
        let value_stride = if kv.in_keys() { kv.key_stride } else { kv.value_stride };
        let launch = Launch {
            kernel: kernel.name,
            grid: [u32_of(units), u32_of(chunks.len()), u32_of(parts)],
            threads: kernel.threads,
            shared: u32_of(kernel.shared + if spans && apart == 0 { kernel.kept } else { 0 }),
        };
        let [out, is_bf16] = self.out();
        let [keys, values] = kv.layer(self.layer);
        // Runs among which a tile is looked for; of rows that are met one by one it is asked how many the step has.
        let count = match tile {
            0 if is_apart(EARLY) => 0,
            0 => self.rows.rows(),
            _ => self.rows.together().len(),
        };
        let args = [
            out,
            is_bf16,
            Arg::Ptr(apart),
            Arg::Ptr(self.q.address()),
            keys,
            values,
            self.rows.address(),
            units_at,
            Arg::U32(u32_of(count)),
            Arg::U32(u32_of(tile)),
            Arg::Ptr(chunks.records.view().address()),
            self.sinks(),
            Arg::U32(u32_of(self.a.heads.heads)),
            Arg::U32(u32_of(sizes.kv_heads)),
            Arg::U32(u32_of(sizes.key_dim)),
            Arg::U32(u32_of(value_dim)),
            Arg::U32(u32_of(kv.key_stride)),
            Arg::U32(u32_of(value_stride)),
            Arg::U32(u32::from(kv.in_keys())),
            Arg::U32(u32_of(sizes.block_size)),
            self.window(),
            Arg::F32(self.a.scale),
            Arg::F32(self.a.softcap.unwrap_or(0.0)),
        ];
        // SAFETY: lengths were checked; blocks of the rows are blocks of the cache, as whoever made the rows says.
        unsafe { self.out.device().launch(&launch, &args) }
    }

    /// Where results go, and whether as bf16.
    fn out(&self) -> [Arg; 2] {
        [Arg::Ptr(self.out.address()), Arg::U32(u32::from(matches!(self.out, ActsViewMut::Bf16(_))))]
    }

    fn sinks(&self) -> Arg {
        Arg::Ptr(self.a.sinks.map_or(0, |sinks| sinks.address()))
    }

    fn window(&self) -> Arg {
        Arg::U32(self.a.window.map_or(u32::MAX, |window| u32::try_from(window).unwrap_or(u32::MAX)))
    }
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
