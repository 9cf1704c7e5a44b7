//! The forms in which attention meets keys and values, and the loops over floats.
//!
//! Everything here is compiled into functions that know the instructions they may use, hence `#[inline(always)]`.

use crate::cpu::lanes::Lanes;
use crate::cpu::prefetch::prefetch;
use crate::op::kv_cache::Side;

/// Positions that are met at a time: two vectors.
pub(super) const PART: usize = 16;

/// Positions of a cell that are met at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) cell: usize,
    /// The first of them in the cell.
    pub(super) first: usize,
    /// How many there are: [`PART`], or 8 where the cell ends.
    pub(super) all: usize,
    /// Those that are seen, from and to, counted from the first.
    pub(super) seen: (usize, usize),
    /// The cell that will be met next: to be asked for bit by bit, since the machine waits when too much is asked for at once.
    pub(super) ahead: Option<usize>,
}

impl Part {
    /// Where its two vectors begin in the cell; both at the same place if there is only one.
    #[inline(always)]
    pub(super) fn vectors(&self) -> [usize; 2] {
        [self.first, self.first + self.all - 8]
    }
}

/// Keys of all cells.
pub(super) trait Keys: Copy {
    /// Whether `Q` queries are read dimension by dimension, `S` apart; otherwise they follow each other.
    const PACKED: bool;

    /// q · k of the positions of a part, for each query. Where it has 8, both vectors are of those. Asks for the cell ahead.
    fn scores<L: Lanes, const Q: usize, const S: usize>(self, part: Part, q: &[f32]) -> [[L; 2]; Q];

    /// The same for some parts that are whole cells, each.
    #[inline(always)]
    fn scores_together<L: Lanes, const Q: usize, const S: usize, const C: usize>(
        self,
        parts: &[Part; C],
        q: &[f32],
    ) -> [[[L; 2]; Q]; C] {
        let mut scores = [[[L::splat(0.0); 2]; Q]; C];
        for i in 0..C {
            scores[i] = self.scores::<L, Q, S>(parts[i], q);
        }
        scores
    }
}

/// Values of all cells.
pub(super) trait Values: Copy {
    /// Adds to the queries' outputs, which follow each other, the weighted values of the positions of a part that are seen, in
    /// order. Asks for the cell ahead.
    fn add<L: Lanes, const Q: usize>(self, part: Part, weights: &[[f32; PART]; Q], out: &mut [f32]);
}

/// A float of the cache.
pub(super) trait Element: Copy {
    /// Eight of them.
    fn load<L: Lanes>(from: &[Self; 8]) -> L;
}

impl Element for f32 {
    #[inline(always)]
    fn load<L: Lanes>(from: &[Self; 8]) -> L {
        L::load(from)
    }
}

impl Element for u16 {
    #[inline(always)]
    fn load<L: Lanes>(from: &[Self; 8]) -> L {
        L::load_f16(from)
    }
}

/// A code of eight bits.
impl Element for i8 {
    #[inline(always)]
    fn load<L: Lanes>(from: &[Self; 8]) -> L {
        L::load_i8(from)
    }
}

/// Keys stored dimension by dimension.
#[derive(Clone, Copy)]
pub(super) struct ByDimension<'a, E> {
    keys: &'a [E],
    side: Side,
}

impl<'a, E> ByDimension<'a, E> {
    pub(super) fn new(keys: &'a [E], side: Side) -> Self {
        Self { keys, side }
    }
}

impl<E: Element> Keys for ByDimension<'_, E> {
    const PACKED: bool = true;

    /// In increasing dimension.
    #[inline(always)]
    fn scores<L: Lanes, const Q: usize, const S: usize>(self, part: Part, q: &[f32]) -> [[L; 2]; Q] {
        let (size, all) = (self.side.size, self.side.elements());
        if size == PART {
            return self.scores_together::<L, Q, S, 1>(&[part], q)[0];
        }
        let keys = &self.keys[part.cell * all..][..all];
        let [low, high] = part.vectors();
        let mut scores = [[L::splat(0.0); 2]; Q];
        for (d, (keys, q)) in keys.chunks_exact(size).zip(q.as_chunks::<S>().0).enumerate() {
            if let Some(ahead) = part.ahead.filter(|_| d.is_multiple_of(ASKED)) {
                prefetch(part_of(self.keys, all, ahead, d * size, ASKED * size));
            }
            let low = E::load::<L>(eight_of(&keys[low..]));
            let high = E::load::<L>(eight_of(&keys[high..]));
            for i in 0..Q {
                let q = L::splat(q[i]);
                scores[i] = [low.fma(q, scores[i][0]), high.fma(q, scores[i][1])];
            }
        }
        scores
    }

    #[inline(always)]
    fn scores_together<L: Lanes, const Q: usize, const S: usize, const C: usize>(
        self,
        parts: &[Part; C],
        q: &[f32],
    ) -> [[[L; 2]; Q]; C] {
        let (dim, all) = (self.side.dim, self.side.elements());
        let q = &q.as_chunks::<S>().0[..dim];
        let mut keys: [&[[E; PART]]; C] = [&[]; C];
        for c in 0..C {
            keys[c] = &self.keys[parts[c].cell * all..][..all].as_chunks().0[..dim];
        }
        let mut scores = [[[L::splat(0.0); 2]; Q]; C];
        for some in (0..dim).step_by(ASKED) {
            for part in parts {
                if let Some(ahead) = part.ahead {
                    prefetch(part_of(self.keys, all, ahead, some * PART, ASKED * PART));
                }
            }
            for d in some..dim.min(some + ASKED) {
                for c in 0..C {
                    let [low, high] = halves::<L, E>(&keys[c][d]);
                    for i in 0..Q {
                        let q = L::splat(q[d][i]);
                        scores[c][i] = [low.fma(q, scores[c][i][0]), high.fma(q, scores[c][i][1])];
                    }
                }
            }
        }
        scores
    }
}

/// Both vectors of a part.
#[inline(always)]
fn halves<L: Lanes, E: Element>(from: &[E; PART]) -> [L; 2] {
    [E::load(eight_of(from)), E::load(eight_of(&from[8..]))]
}

/// Dimensions of keys between two times that something is asked for.
const ASKED: usize = 8;

/// Vectors of values that are met at a time by so many queries: their sums fill the registers.
const fn vectors(queries: usize) -> usize {
    match queries {
        ..=3 => 4,
        4..=6 => 2,
        _ => 1,
    }
}

/// `count` elements from `from` on of a cell of `elements`, as far as there are.
#[inline(always)]
pub(super) fn part_of<E>(all: &[E], elements: usize, cell: usize, from: usize, count: usize) -> &[E] {
    let cell = &all[cell * elements..][..elements];
    &cell[from.min(elements)..(from + count).min(elements)]
}

/// The first eight.
#[inline(always)]
pub(super) fn eight_of<E>(from: &[E]) -> &[E; 8] {
    from.first_chunk().expect("a whole vector")
}

/// Keys stored position by position, filled up to whole vectors with zeros.
#[derive(Clone, Copy)]
pub(super) struct ByPosition<'a, E> {
    keys: &'a [E],
    side: Side,
}

impl<'a, E> ByPosition<'a, E> {
    pub(super) fn new(keys: &'a [E], side: Side) -> Self {
        Self { keys, side }
    }
}

impl<E: Element> Keys for ByPosition<'_, E> {
    const PACKED: bool = false;

    /// Eight sums of every eighth dimension, added up at the end.
    #[inline(always)]
    fn scores<L: Lanes, const Q: usize, const S: usize>(self, part: Part, q: &[f32]) -> [[L; 2]; Q] {
        let (stride, dim) = (self.side.stride, self.side.dim);
        let keys = &self.keys[part.cell * self.side.elements()..][..self.side.elements()];
        let mut each = [q; Q];
        for i in 0..Q {
            each[i] = &q[i * dim..][..dim];
        }
        let mut scores = [[[0.0f32; 8]; 2]; Q];
        for (half, at) in part.vectors().into_iter().enumerate().take(part.all / 8) {
            for (j, key) in keys[at * stride..][..8 * stride].chunks_exact(stride).enumerate() {
                if let Some(ahead) = part.ahead {
                    prefetch(part_of(self.keys, self.side.elements(), ahead, (at + j) * stride, stride));
                }
                let mut sums = [L::splat(0.0); Q];
                for (n, key) in key.as_chunks::<8>().0.iter().enumerate() {
                    let key: L = E::load(key);
                    for i in 0..Q {
                        sums[i] = key.fma(eight(each[i], n), sums[i]);
                    }
                }
                for i in 0..Q {
                    scores[i][half][j] = sums[i].sum();
                }
            }
        }
        loaded(&scores)
    }
}

/// What was stored.
#[inline(always)]
pub(super) fn loaded<L: Lanes, const Q: usize>(scores: &[[[f32; 8]; 2]; Q]) -> [[L; 2]; Q] {
    let mut all = [[L::splat(0.0); 2]; Q];
    for i in 0..Q {
        all[i] = [L::load(&scores[i][0]), L::load(&scores[i][1])];
    }
    all
}

/// The `i`th eight elements of a vector, followed by zeros where it ends.
#[inline(always)]
pub(super) fn eight<L: Lanes>(x: &[f32], i: usize) -> L {
    match x.as_chunks::<8>().0.get(i) {
        Some(x) => L::load(x),
        None => {
            let rest = x.get(8 * i..).unwrap_or_default();
            let mut filled = [0.0; 8];
            filled[..rest.len()].copy_from_slice(rest);
            L::load(&filled)
        }
    }
}

/// Values stored position by position: the first `dim` elements of each row.
#[derive(Clone, Copy)]
pub(super) struct ValueRows<'a, E> {
    rows: &'a [E],
    side: Side,
    dim: usize,
}

impl<'a, E> ValueRows<'a, E> {
    pub(super) fn new(rows: &'a [E], side: Side, dim: usize) -> Self {
        Self { rows, side, dim }
    }
}

impl<E: Element> Values for ValueRows<'_, E> {
    #[inline(always)]
    fn add<L: Lanes, const Q: usize>(self, part: Part, weights: &[[f32; PART]; Q], out: &mut [f32]) {
        let (stride, dim) = (self.side.stride, self.dim);
        let rows = &self.rows[part.cell * self.side.elements() + part.first * stride..][..part.all * stride];
        let all = self.side.elements();
        let some = 8 * vectors(Q);
        for from in (0..dim).step_by(some) {
            if let Some(ahead) = part.ahead {
                // As large a part of what is ahead as these columns are of this.
                prefetch(part_of(self.rows, all, ahead, all / dim * from, all / dim * some));
            }
            let columns = from..dim.min(from + some);
            add_rows::<L, E, Q>(rows, stride, dim, columns, part.seen, weights, out);
        }
    }
}

/// Adds to `columns` of each output of `dim` columns those of the `seen` rows, by their weights, in order.
#[inline(always)]
pub(super) fn add_rows<L: Lanes, E: Element, const Q: usize>(
    rows: &[E],
    stride: usize,
    dim: usize,
    columns: std::ops::Range<usize>,
    seen: (usize, usize),
    weights: &[[f32; PART]; Q],
    out: &mut [f32],
) {
    let mut at = columns.start;
    while vectors(Q) >= 4 && at + 32 <= columns.end {
        add_vectors::<L, E, Q, 4>(rows, stride, dim, at, seen, weights, out);
        at += 32;
    }
    while vectors(Q) >= 2 && at + 16 <= columns.end {
        add_vectors::<L, E, Q, 2>(rows, stride, dim, at, seen, weights, out);
        at += 16;
    }
    while at + 8 <= columns.end {
        add_vectors::<L, E, Q, 1>(rows, stride, dim, at, seen, weights, out);
        at += 8;
    }
    if at == columns.end {
        return;
    }
    // The last, partial vector: rows are filled up, outputs are not.
    let rest = columns.end - at;
    for i in 0..Q {
        let out = &mut out[i * dim + at..][..rest];
        let mut all = [0.0; 8];
        all[..rest].copy_from_slice(out);
        let mut acc = L::load(&all);
        for j in seen.0..seen.1 {
            acc = E::load::<L>(eight_of(&rows[j * stride + at..])).fma(L::splat(weights[i][j]), acc);
        }
        acc.store(&mut all);
        out.copy_from_slice(&all[..rest]);
    }
}

/// The same for `V` vectors from column `at` on.
#[inline(always)]
fn add_vectors<L: Lanes, E: Element, const Q: usize, const V: usize>(
    rows: &[E],
    stride: usize,
    dim: usize,
    at: usize,
    seen: (usize, usize),
    weights: &[[f32; PART]; Q],
    out: &mut [f32],
) {
    let mut acc = [[L::splat(0.0); V]; Q];
    for i in 0..Q {
        let out = &out[i * dim + at..][..8 * V];
        for v in 0..V {
            acc[i][v] = L::load(eight_of(&out[8 * v..]));
        }
    }
    if V == 2 && seen == (0, PART) {
        // Counted at compile time.
        for j in 0..PART {
            add_row::<L, E, Q, V>(&rows[j * stride + at..], weights, j, &mut acc);
        }
    } else {
        for j in seen.0..seen.1.min(PART) {
            add_row::<L, E, Q, V>(&rows[j * stride + at..], weights, j, &mut acc);
        }
    }
    for i in 0..Q {
        let out = &mut out[i * dim + at..][..8 * V];
        for v in 0..V {
            acc[i][v].store(out[8 * v..].first_chunk_mut().expect("a whole vector"));
        }
    }
}

/// The same for one row.
#[inline(always)]
fn add_row<L: Lanes, E: Element, const Q: usize, const V: usize>(
    row: &[E],
    weights: &[[f32; PART]; Q],
    j: usize,
    acc: &mut [[L; V]; Q],
) {
    let row = &row[..8 * V];
    let mut values = [L::splat(0.0); V];
    for v in 0..V {
        values[v] = E::load(eight_of(&row[8 * v..]));
    }
    for i in 0..Q {
        let weight = L::splat(weights[i][j]);
        for v in 0..V {
            acc[i][v] = values[v].fma(weight, acc[i][v]);
        }
    }
}
