//! Products of bfloat16, two columns at a time: in panels, and as rows are stored.

use super::rows::{Group, at};
use super::{Output, PANEL_ROWS, PanelProduct, each_panel, next_tile};
use crate::cpu::lanes::PanelLanes;
use crate::cpu::pairs::Pairs;
use crate::cpu::prefetch::prefetch_part;
use crate::cpu::shared_slice::SharedSlice;
use crate::cpu::simd_pairs;
use crate::op::activations::Activations;
use crate::op::panels::WeightMatrix;
use crate::op::stored::StoredRows;

/// Columns that become lanes at once, as pairs.
const COLUMNS: usize = 8;
/// Bytes of them in a row.
const BYTES: usize = 2 * COLUMNS;
const PAIRS: usize = COLUMNS / 2;
const LINE: usize = 64;
/// With more rows of activations than registers hold sums of, pairs are kept as lanes, so many at a time. An even number.
const BLOCK: usize = 64;
/// Rows of activations that share them.
const CHUNK: usize = 64;

/// Panels `from..to` times all rows of `x`.
pub(super) fn run(
    w: &WeightMatrix,
    x: &Activations,
    panels: (usize, usize),
    out: &SharedSlice<'_, f32>,
    stride: usize,
) {
    let out = Output { out, stride, rows: w.rows() };
    match w.stored() {
        Some(stored) => run_rows(stored, x, panels, &out),
        None => run_panels(w, x, panels, &out),
    }
}

simd_pairs! { fn run_panels(w: &WeightMatrix, x: &Activations, panels: (usize, usize), out: &Output<'_>) => panels_body }
simd_pairs! { fn run_rows(w: &StoredRows, x: &Activations, panels: (usize, usize), out: &Output<'_>) => rows_body }

#[inline(always)]
pub(super) fn panels_body<L: PanelLanes<P>, const P: usize, D: Pairs<L, P>>(
    w: &WeightMatrix,
    x: &Activations,
    (from, to): (usize, usize),
    out: &Output<'_>,
) {
    each_panel::<L, P, InPairs<D>>(w, x, 0, from, to, out);
}

/// Panels of bfloat16.
pub(super) struct InPairs<D>(std::marker::PhantomData<D>);

impl<L: PanelLanes<P>, const P: usize, D: Pairs<L, P>> PanelProduct<L, P> for InPairs<D> {
    #[inline(always)]
    fn tile() -> usize {
        L::FLOAT_TILE
    }

    #[inline(always)]
    fn product<const T: usize>(
        panels: [&[u8]; P],
        ahead: Option<&[u8]>,
        x: &Activations,
        first: usize,
    ) -> [L; T] {
        let columns: [&[[u16; PANEL_ROWS]]; P] = panels.map(bytemuck::cast_slice);
        let count = columns[0].len();
        let (whole, left) = (count / 4, count % 4);
        let mut rows: [&[D::Activations]; T] = [&[]; T];
        let mut twos: [&[[D::Activations; 2]]; T] = [&[]; T];
        for t in 0..T {
            rows[t] = x.in_pairs::<L, P, D>(first + t);
            twos[t] = &rows[t].as_chunks().0[..whole];
        }
        let fours = columns.map(|columns| &columns.as_chunks::<4>().0[..whole]);
        let mut sums = [[L::splat(0.0); T]; 2];
        let bytes = P * size_of::<[[u16; PANEL_ROWS]; 4]>();
        for n in 0..whole {
            if let Some(ahead) = ahead {
                prefetch_part(ahead, n * bytes, bytes);
            }
            let mut all = [&fours[0][n]; P];
            for p in 0..P {
                all[p] = &fours[p][n];
            }
            let (mut x0, mut x1) = ([twos[0][n][0]; T], [twos[0][n][1]; T]);
            for t in 0..T {
                [x0[t], x1[t]] = twos[t][n];
            }
            D::add(&mut sums[0], pair::<L, P, D>(all, 0), x0);
            D::add(&mut sums[1], pair::<L, P, D>(all, 2), x1);
        }
        if left > 0 {
            // Filled up with zeros.
            let mut rest = [[[0; PANEL_ROWS]; 4]; P];
            for p in 0..P {
                rest[p][..left].copy_from_slice(&columns[p][4 * whole..]);
            }
            let (w0, w1) = (pair::<L, P, D>(rest.each_ref(), 0), pair::<L, P, D>(rest.each_ref(), 2));
            D::add(&mut sums[0], w0, each(&rows, 2 * whole));
            if left > 2 {
                D::add(&mut sums[1], w1, each(&rows, 2 * whole + 1));
            }
        }
        added(sums)
    }
}

/// Columns `at` and `at + 1` of four of each panel.
#[inline(always)]
fn pair<L: PanelLanes<P>, const P: usize, D: Pairs<L, P>>(
    fours: [&[[u16; PANEL_ROWS]; 4]; P],
    at: usize,
) -> D::Weights {
    let (mut even, mut odd) = ([&fours[0][0]; P], [&fours[0][0]; P]);
    for p in 0..P {
        (even[p], odd[p]) = (&fours[p][at], &fours[p][at + 1]);
    }
    D::columns(even, odd)
}

/// Element `i` of each row.
#[inline(always)]
fn each<X: Copy, const T: usize>(rows: &[&[X]; T], i: usize) -> [X; T] {
    let mut x = [rows[0][i]; T];
    for t in 0..T {
        x[t] = rows[t][i];
    }
    x
}

#[inline(always)]
fn added<L: PanelLanes<P>, const P: usize, const T: usize>([mut sums, others]: [[L; T]; 2]) -> [L; T] {
    for t in 0..T {
        sums[t] = sums[t].add(others[t]);
    }
    sums
}

#[inline(always)]
pub(super) fn rows_body<L: PanelLanes<P>, const P: usize, D: Pairs<L, P>>(
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
            1 => out.put(first, 0, few::<L, P, D, 1>(&group, &next, x)),
            2 => out.put(first, 0, few::<L, P, D, 2>(&group, &next, x)),
            3 => out.put(first, 0, few::<L, P, D, 3>(&group, &next, x)),
            4 if L::FLOAT_TILE >= 4 => out.put(first, 0, few::<L, P, D, 4>(&group, &next, x)),
            _ => many::<L, P, D>(&group, &next, x, first, out),
        }
        group = next;
    }
}

/// A panel's sums of all `T` rows, which stay in registers.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn few<L: PanelLanes<P>, const P: usize, D: Pairs<L, P>, const T: usize>(
    group: &Group<'_, P>,
    next: &Group<'_, P>,
    x: &Activations,
) -> [L; T] {
    let count = x.cols() / COLUMNS;
    let chunks = group.chunks::<BYTES>(count);
    let mut rows: [&[[D::Activations; PAIRS]]; T] = [&[]; T];
    let mut rests: [&[D::Activations]; T] = [&[]; T];
    for t in 0..T {
        let (whole, rest) = x.in_pairs::<L, P, D>(t).split_at(count * PAIRS);
        (rows[t], rests[t]) = (whole.as_chunks().0, rest);
    }
    let mut sums = [[L::splat(0.0); T]; 2];
    for i in 0..count {
        if (i * BYTES).is_multiple_of(LINE) {
            group.ask(next, i * BYTES);
        }
        let words = L::words(at(&chunks, i));
        for k in 0..PAIRS {
            let w = D::words(words[k]);
            let mut x = [rows[0][i][k]; T];
            for t in 0..T {
                x[t] = rows[t][i][k];
            }
            D::add(&mut sums[k % 2], w, x);
        }
    }
    if !x.cols().is_multiple_of(COLUMNS) {
        let words = rest::<L, P>(group);
        for k in 0..rests[0].len() {
            let w = D::words(words[k]);
            D::add(&mut sums[k % 2], w, each(&rests, k));
        }
    }
    added(sums)
}

/// The columns after the last eight, filled up with zeros.
#[inline(always)]
fn rest<L: PanelLanes<P>, const P: usize>(group: &Group<'_, P>) -> [L; PAIRS] {
    let rest = group.rest::<BYTES>();
    let mut rows = [[&[0; BYTES]; PANEL_ROWS]; P];
    for p in 0..P {
        rows[p] = rest[p].each_ref();
    }
    L::words(rows)
}

/// Sums of some rows of activations with a panel's rows, over every other pair of columns.
type Sums<L> = [[L; CHUNK]; 2];

/// A panel's sums of all rows.
#[inline(always)]
fn many<L: PanelLanes<P>, const P: usize, D: Pairs<L, P>>(
    group: &Group<'_, P>,
    next: &Group<'_, P>,
    x: &Activations,
    panel: usize,
    out: &Output<'_>,
) {
    let all = x.cols().div_ceil(2);
    let mut block = [D::words(L::splat(0.0)); BLOCK];
    for first in (0..x.rows()).step_by(CHUNK) {
        let end = x.rows().min(first + CHUNK);
        let mut sums: Sums<L> = [[L::splat(0.0); CHUNK]; 2];
        for from in (0..all).step_by(BLOCK) {
            let count = BLOCK.min(all - from);
            unpack::<L, P, D>(group, next, from, x.cols() - 2 * from, &mut block);
            let block = &block[..count];
            let mut t = first;
            while t < end {
                let count = next_tile(end - t, L::FLOAT_TILE);
                match count {
                    1 => tile::<L, P, D, 1>(block, x, from, t, first, &mut sums),
                    2 => tile::<L, P, D, 2>(block, x, from, t, first, &mut sums),
                    3 => tile::<L, P, D, 3>(block, x, from, t, first, &mut sums),
                    4 => tile::<L, P, D, 4>(block, x, from, t, first, &mut sums),
                    8 if L::FLOAT_TILE == 8 => tile::<L, P, D, 8>(block, x, from, t, first, &mut sums),
                    _ => unreachable!("a tile of {count} rows"),
                }
                t += count;
            }
        }
        for t in first..end {
            out.put(panel, t, [sums[0][t - first].add(sums[1][t - first])]);
        }
    }
}

/// As many pairs as there is room for from pair `from` on, where `left` columns are left; `from` is a multiple of [`BLOCK`].
#[inline(always)]
fn unpack<L: PanelLanes<P>, const P: usize, D: Pairs<L, P>>(
    group: &Group<'_, P>,
    next: &Group<'_, P>,
    from: usize,
    left: usize,
    block: &mut [D::Weights; BLOCK],
) {
    let (begin, whole) = (from / PAIRS, left.min(2 * BLOCK) / COLUMNS);
    let chunks = group.chunks::<BYTES>(begin + whole);
    let parts = block.as_chunks_mut::<PAIRS>().0;
    for (i, block) in parts[..whole].iter_mut().enumerate() {
        if ((begin + i) * BYTES).is_multiple_of(LINE) {
            group.ask(next, (begin + i) * BYTES);
        }
        let words = L::words(at(&chunks, begin + i));
        for k in 0..PAIRS {
            block[k] = D::words(words[k]);
        }
    }
    if left < 2 * BLOCK && !left.is_multiple_of(COLUMNS) {
        let words = rest::<L, P>(group);
        for k in 0..PAIRS {
            parts[whole][k] = D::words(words[k]);
        }
    }
}

/// Adds the products of a block's pairs, which begin at pair `from` of the rows from `t` on.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn tile<L: PanelLanes<P>, const P: usize, D: Pairs<L, P>, const T: usize>(
    block: &[D::Weights],
    x: &Activations,
    from: usize,
    t: usize,
    first: usize,
    all: &mut Sums<L>,
) {
    let (twos, last) = block.as_chunks::<2>();
    let mut rows: [&[[D::Activations; 2]]; T] = [&[]; T];
    let mut sums = [[L::splat(0.0); T]; 2];
    for i in 0..T {
        rows[i] = &x.in_pairs::<L, P, D>(t + i)[from..].as_chunks().0[..twos.len()];
        (sums[0][i], sums[1][i]) = (all[0][t - first + i], all[1][t - first + i]);
    }
    for (n, [w0, w1]) in twos.iter().enumerate() {
        let (mut x0, mut x1) = ([rows[0][n][0]; T], [rows[0][n][1]; T]);
        for i in 0..T {
            [x0[i], x1[i]] = rows[i][n];
        }
        D::add(&mut sums[0], *w0, x0);
        D::add(&mut sums[1], *w1, x1);
    }
    if let [last] = last {
        let mut all = [&[][..]; T];
        for i in 0..T {
            all[i] = x.in_pairs::<L, P, D>(t + i);
        }
        D::add(&mut sums[0], *last, each(&all, from + block.len() - 1));
    }
    for i in 0..T {
        (all[0][t - first + i], all[1][t - first + i]) = (sums[0][i], sums[1][i]);
    }
}
