//! Products with rows of floats as they are stored: eight columns of a panel's rows become lanes in registers, and from there on
//! everything is as with panels, bit for bit.

use super::{Output, PANEL_ROWS, next_tile};
use crate::cpu::lanes::PanelLanes;
use crate::cpu::prefetch::{prefetch_far, prefetch_line};
use crate::cpu::shared_slice::SharedSlice;
use crate::cpu::simd_panels;
use crate::dtype::WeightType;
use crate::op::activations::Activations;
use crate::op::panels::WeightMatrix;
use crate::op::stored::StoredRows;

/// So many bytes of each row are asked for ahead: of all rows of a panel together, about what memory can have on its way.
const AHEAD: usize = 256;
/// Rows shorter than this are asked for in the order of memory, a group ahead: the machine begins to look ahead anew in each page,
/// and with sixteen rows at a time it hardly does in short ones.
const SHORT: usize = 4096;
const LINE: usize = 64;
/// Columns that become lanes at once.
const COLUMNS: usize = 8;
/// With more rows of activations than registers hold sums of, columns are kept as lanes, so many at a time. An even number.
const BLOCK: usize = 128;
/// Rows of activations that share them.
const CHUNK: usize = 64;

/// Panels `from..to` times all rows of `x`.
pub(super) fn run(
    w: &WeightMatrix,
    stored: &StoredRows,
    x: &Activations,
    panels: (usize, usize),
    out: &SharedSlice<'_, f32>,
    stride: usize,
) {
    let out = Output { out, stride, rows: w.rows() };
    match w.weight_type() {
        WeightType::F32 => run_f32(stored, x, panels, &out),
        WeightType::F16 => run_f16(stored, x, panels, &out),
        WeightType::BF16 => run_bf16(stored, x, panels, &out),
        _ => unreachable!("rows as stored are floats"),
    }
}

simd_panels! { fn run_f32(w: &StoredRows, x: &Activations, panels: (usize, usize), out: &Output<'_>) => f32_body }
simd_panels! { fn run_f16(w: &StoredRows, x: &Activations, panels: (usize, usize), out: &Output<'_>) => f16_body }
simd_panels! { fn run_bf16(w: &StoredRows, x: &Activations, panels: (usize, usize), out: &Output<'_>) => bf16_body }

macro_rules! body {
    ($name:ident, $bytes:literal, $columns:ty) => {
        #[inline(always)]
        fn $name<L: PanelLanes<P>, const P: usize>(
            w: &StoredRows,
            x: &Activations,
            panels: (usize, usize),
            out: &Output<'_>,
        ) {
            each_group::<L, P, $bytes, $columns>(w, x, panels, out);
        }
    };
}

body!(f32_body, 32, F32);
body!(f16_body, 16, F16);
body!(bf16_body, 16, Bf16);

/// How eight columns become lanes: `W` bytes of each row.
trait Columns<const W: usize> {
    fn lanes<L: PanelLanes<P>, const P: usize>(rows: [[&[u8; W]; PANEL_ROWS]; P]) -> [L; COLUMNS];
}

struct F32;
struct F16;
struct Bf16;

impl Columns<32> for F32 {
    #[inline(always)]
    fn lanes<L: PanelLanes<P>, const P: usize>(rows: [[&[u8; 32]; PANEL_ROWS]; P]) -> [L; COLUMNS] {
        let (mut low, mut high) = ([[&[0; 16]; PANEL_ROWS]; P], [[&[0; 16]; PANEL_ROWS]; P]);
        for p in 0..P {
            for r in 0..PANEL_ROWS {
                let halves: &[[u8; 16]; 2] = bytemuck::cast_ref(rows[p][r]);
                (low[p][r], high[p][r]) = (&halves[0], &halves[1]);
            }
        }
        let ([a, b, c, d], [e, f, g, h]) = (L::words(low), L::words(high));
        [a, b, c, d, e, f, g, h]
    }
}

impl Columns<16> for F16 {
    #[inline(always)]
    fn lanes<L: PanelLanes<P>, const P: usize>(rows: [[&[u8; 16]; PANEL_ROWS]; P]) -> [L; COLUMNS] {
        // (Not by `map`: vectors that pass through a function of the standard library pass through memory.)
        let [w0, w1, w2, w3] = L::words(rows);
        let ([a, b], [c, d]) = (w0.pair_f16(), w1.pair_f16());
        let ([e, f], [g, h]) = (w2.pair_f16(), w3.pair_f16());
        [a, b, c, d, e, f, g, h]
    }
}

impl Columns<16> for Bf16 {
    #[inline(always)]
    fn lanes<L: PanelLanes<P>, const P: usize>(rows: [[&[u8; 16]; PANEL_ROWS]; P]) -> [L; COLUMNS] {
        // (Not by `map`: vectors that pass through a function of the standard library pass through memory.)
        let [w0, w1, w2, w3] = L::words(rows);
        let ([a, b], [c, d]) = (w0.pair_bf16(), w1.pair_bf16());
        let ([e, f], [g, h]) = (w2.pair_bf16(), w3.pair_bf16());
        [a, b, c, d, e, f, g, h]
    }
}

/// The rows of `P` panels beside each other.
#[derive(Clone, Copy)]
pub(super) struct Group<'a, const P: usize> {
    rows: [[&'a [u8]; PANEL_ROWS]; P],
    /// Bytes of each.
    len: usize,
    /// They lie one after the other, and are short.
    together: bool,
}

impl<'a, const P: usize> Group<'a, P> {
    /// Panels from `panel` on. For a row past the end the last stands in; nothing of it is written.
    #[inline(always)]
    pub(super) fn of(stored: &'a StoredRows, count: usize, panel: usize) -> Self {
        let none: &[u8] = &[];
        let mut rows = [[none; PANEL_ROWS]; P];
        for (i, row) in rows.as_flattened_mut().iter_mut().enumerate() {
            *row = stored.row((panel * PANEL_ROWS + i).min(count - 1));
        }
        let (len, flat) = (rows[0][0].len(), rows.as_flattened());
        let last = flat[flat.len() - 1].as_ptr();
        let together = len < SHORT && last == flat[0].as_ptr().wrapping_add(len * (flat.len() - 1));
        Self { rows, len, together }
    }

    /// Asks for what is [`AHEAD`] of byte `at` of each row, where rows end in those of `next`; for as much of `next`, if that lies together.
    #[inline(always)]
    pub(super) fn ask(&self, next: &Self, at: usize) {
        if next.together {
            let rows = next.rows.as_flattened();
            for line in 0..rows.len() {
                prefetch_far(rows[0].as_ptr().wrapping_add(at * rows.len() + line * LINE));
            }
            return;
        }
        let ahead = at + AHEAD;
        let (rows, at) = if ahead < self.len { (&self.rows, ahead) } else { (&next.rows, ahead - self.len) };
        if at < self.len {
            for row in rows.as_flattened() {
                prefetch_line(row.as_ptr().wrapping_add(at));
            }
        }
    }

    /// Whole chunks of `W` bytes of each row: `count` of them.
    #[inline(always)]
    pub(super) fn chunks<const W: usize>(&self, count: usize) -> [[&'a [[u8; W]]; PANEL_ROWS]; P] {
        let none: &[[u8; W]] = &[];
        let mut chunks = [[none; PANEL_ROWS]; P];
        for (chunk, row) in chunks.as_flattened_mut().iter_mut().zip(self.rows.as_flattened()) {
            *chunk = &row.as_chunks().0[..count];
        }
        chunks
    }

    /// What is left after whole chunks, filled up with zeros.
    #[inline(always)]
    pub(super) fn rest<const W: usize>(&self) -> [[[u8; W]; PANEL_ROWS]; P] {
        let mut rest = [[[0; W]; PANEL_ROWS]; P];
        for (rest, row) in rest.as_flattened_mut().iter_mut().zip(self.rows.as_flattened()) {
            let left = row.as_chunks::<W>().1;
            rest[..left.len()].copy_from_slice(left);
        }
        rest
    }
}

/// Chunk `i` of each row.
#[inline(always)]
pub(super) fn at<'a, const P: usize, const W: usize>(
    chunks: &[[&'a [[u8; W]]; PANEL_ROWS]; P],
    i: usize,
) -> [[&'a [u8; W]; PANEL_ROWS]; P] {
    let mut rows = [[&chunks[0][0][i]; PANEL_ROWS]; P];
    for p in 0..P {
        for r in 0..PANEL_ROWS {
            rows[p][r] = &chunks[p][r][i];
        }
    }
    rows
}

#[inline(always)]
fn each_group<L: PanelLanes<P>, const P: usize, const W: usize, C: Columns<W>>(
    stored: &StoredRows,
    x: &Activations,
    (from, to): (usize, usize),
    out: &Output<'_>,
) {
    let last = (out.rows - 1) / PANEL_ROWS / P * P;
    let mut group = Group::<P>::of(stored, out.rows, from);
    for first in (from..to).step_by(P) {
        let next = Group::of(stored, out.rows, (first + P).min(last));
        match x.rows() {
            1 => out.put(first, 0, few::<L, P, W, C, 1>(&group, &next, x, 0)),
            2 => out.put(first, 0, few::<L, P, W, C, 2>(&group, &next, x, 0)),
            3 => out.put(first, 0, few::<L, P, W, C, 3>(&group, &next, x, 0)),
            4 if L::FLOAT_TILE >= 4 => out.put(first, 0, few::<L, P, W, C, 4>(&group, &next, x, 0)),
            _ => many::<L, P, W, C>(&group, &next, x, first, out),
        }
        group = next;
    }
}

/// A panel's sums of `T` rows, which stay in registers.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn few<L: PanelLanes<P>, const P: usize, const W: usize, C: Columns<W>, const T: usize>(
    group: &Group<'_, P>,
    next: &Group<'_, P>,
    x: &Activations,
    first: usize,
) -> [L; T] {
    let count = x.cols() / COLUMNS;
    let chunks = group.chunks::<W>(count);
    let mut rows: [&[[f32; COLUMNS]]; T] = [&[]; T];
    for (t, row) in rows.iter_mut().enumerate() {
        *row = &x.row(first + t).as_chunks().0[..count];
    }
    let (mut even, mut odd) = ([L::splat(0.0); T], [L::splat(0.0); T]);
    for i in 0..count {
        if (i * W).is_multiple_of(LINE) {
            group.ask(next, i * W);
        }
        let columns: [L; COLUMNS] = C::lanes(at(&chunks, i));
        for pair in 0..COLUMNS / 2 {
            for t in 0..T {
                let x = &rows[t][i];
                even[t] = columns[2 * pair].fma(L::splat(x[2 * pair]), even[t]);
                odd[t] = columns[2 * pair + 1].fma(L::splat(x[2 * pair + 1]), odd[t]);
            }
        }
    }
    if !x.cols().is_multiple_of(COLUMNS) {
        let rest = group.rest::<W>();
        let columns: [L; COLUMNS] = C::lanes(rest.each_ref().map(|panel| panel.each_ref()));
        for t in 0..T {
            for (k, x) in x.row(first + t)[count * COLUMNS..].iter().enumerate() {
                let sum = if k % 2 == 0 { &mut even[t] } else { &mut odd[t] };
                *sum = columns[k].fma(L::splat(*x), *sum);
            }
        }
    }
    for t in 0..T {
        even[t] = even[t].add(odd[t]);
    }
    even
}

/// Sums of some rows of activations with a panel's rows, over even and odd columns.
struct Sums<L> {
    even: [L; CHUNK],
    odd: [L; CHUNK],
}

/// A panel's sums of all rows.
#[inline(always)]
fn many<L: PanelLanes<P>, const P: usize, const W: usize, C: Columns<W>>(
    group: &Group<'_, P>,
    next: &Group<'_, P>,
    x: &Activations,
    panel: usize,
    out: &Output<'_>,
) {
    let mut block = [L::splat(0.0); BLOCK];
    for first in (0..x.rows()).step_by(CHUNK) {
        let end = x.rows().min(first + CHUNK);
        let mut sums = Sums { even: [L::splat(0.0); CHUNK], odd: [L::splat(0.0); CHUNK] };
        for from in (0..x.cols()).step_by(BLOCK) {
            let columns = BLOCK.min(x.cols() - from);
            unpack::<L, P, W, C>(group, next, from, columns, &mut block);
            let block = &block[..columns];
            let mut t = first;
            while t < end {
                let count = next_tile(end - t, L::FLOAT_TILE);
                match count {
                    1 => tile::<L, P, 1>(block, x, from, t, first, &mut sums),
                    2 => tile::<L, P, 2>(block, x, from, t, first, &mut sums),
                    3 => tile::<L, P, 3>(block, x, from, t, first, &mut sums),
                    4 => tile::<L, P, 4>(block, x, from, t, first, &mut sums),
                    8 if L::FLOAT_TILE == 8 => tile::<L, P, 8>(block, x, from, t, first, &mut sums),
                    _ => unreachable!("a tile of {count} rows"),
                }
                t += count;
            }
        }
        for t in first..end {
            out.put(panel, t, [sums.even[t - first].add(sums.odd[t - first])]);
        }
    }
}

/// Columns `from..from + columns` as lanes; `from` is a multiple of [`BLOCK`].
#[inline(always)]
fn unpack<L: PanelLanes<P>, const P: usize, const W: usize, C: Columns<W>>(
    group: &Group<'_, P>,
    next: &Group<'_, P>,
    from: usize,
    columns: usize,
    block: &mut [L; BLOCK],
) {
    let (begin, whole) = (from / COLUMNS, columns / COLUMNS);
    let chunks = group.chunks::<W>(begin + whole);
    for (i, block) in block.as_chunks_mut::<COLUMNS>().0[..whole].iter_mut().enumerate() {
        if ((begin + i) * W).is_multiple_of(LINE) {
            group.ask(next, (begin + i) * W);
        }
        *block = C::lanes(at(&chunks, begin + i));
    }
    if !columns.is_multiple_of(COLUMNS) {
        let rest = group.rest::<W>();
        let lanes: [L; COLUMNS] = C::lanes(rest.each_ref().map(|panel| panel.each_ref()));
        block[whole * COLUMNS..columns].copy_from_slice(&lanes[..columns % COLUMNS]);
    }
}

/// Adds the products of a block's columns, which begin at column `from` of the rows from `t` on.
#[inline(always)]
fn tile<L: PanelLanes<P>, const P: usize, const T: usize>(
    block: &[L],
    x: &Activations,
    from: usize,
    t: usize,
    first: usize,
    sums: &mut Sums<L>,
) {
    let count = block.len() / 2;
    let pairs = &block.as_chunks::<2>().0[..count];
    let mut rows: [&[[f32; 2]]; T] = [&[]; T];
    let (mut even, mut odd) = ([L::splat(0.0); T], [L::splat(0.0); T]);
    for i in 0..T {
        rows[i] = &x.row(t + i)[from..].as_chunks().0[..count];
        (even[i], odd[i]) = (sums.even[t - first + i], sums.odd[t - first + i]);
    }
    for (pair, [w0, w1]) in pairs.iter().enumerate() {
        for i in 0..T {
            let [x0, x1] = rows[i][pair];
            even[i] = w0.fma(L::splat(x0), even[i]);
            odd[i] = w1.fma(L::splat(x1), odd[i]);
        }
    }
    if let [last] = block.as_chunks::<2>().1 {
        for (i, even) in even.iter_mut().enumerate() {
            *even = last.fma(L::splat(x.row(t + i)[from + block.len() - 1]), *even);
        }
    }
    for i in 0..T {
        (sums.even[t - first + i], sums.odd[t - first + i]) = (even[i], odd[i]);
    }
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
