//! The forms in which attention meets keys and values, and the loops over floats.
//!
//! Everything here is compiled into functions that know the instructions they may use, hence `#[inline(always)]`.

use crate::cpu::lanes::{Floats, Lanes, Wide};
use crate::cpu::prefetch::prefetch;
use crate::op::kv_cache::{F8, Side};

/// Positions that are met at a time: sixteen lanes.
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
    /// Where its two halves begin in the cell; both at the same place if there is only one.
    #[inline(always)]
    pub(super) fn vectors(&self) -> [usize; 2] {
        [self.first, self.first + self.all - 8]
    }
}

/// Keys of all cells.
pub(super) trait Keys: Copy {
    /// Whether `Q` queries are read dimension by dimension, `S` apart; otherwise they follow each other.
    const PACKED: bool;

    /// q · k of the positions of a part, for each query. Where it has 8, both halves are of those. Asks for the cell ahead.
    fn scores<W: Wide, const Q: usize, const S: usize>(self, part: Part, q: &[f32]) -> [W; Q];

    /// The same for some parts that are whole cells, each.
    #[inline(always)]
    fn scores_together<W: Wide, const Q: usize, const S: usize, const C: usize>(
        self,
        parts: &[Part; C],
        q: &[f32],
    ) -> [[W; Q]; C] {
        let mut scores = [[W::splat(0.0); Q]; C];
        for i in 0..C {
            scores[i] = self.scores::<W, Q, S>(parts[i], q);
        }
        scores
    }
}

/// Values of all cells.
pub(super) trait Values: Copy {
    /// Adds to the queries' outputs, which follow each other, the weighted values of the positions of a part that are seen, in
    /// order. Where queries see different things (`SOME`), each bit of its mask says whether a query sees that position. Asks for
    /// the cell ahead.
    fn add<W: Wide, const Q: usize, const SOME: bool>(
        self,
        part: Part,
        masks: &[u32; Q],
        weights: &[[f32; PART]; Q],
        out: &mut [f32],
    );
}

/// A float of the cache.
pub(super) trait Element: Copy {
    /// Eight of them.
    fn load<L: Lanes>(from: &[Self; 8]) -> L;
    /// Sixteen of them.
    fn load_wide<W: Wide>(from: &[Self; PART]) -> W;
}

impl Element for f32 {
    #[inline(always)]
    fn load<L: Lanes>(from: &[Self; 8]) -> L {
        L::load(from)
    }
    #[inline(always)]
    fn load_wide<W: Wide>(from: &[Self; PART]) -> W {
        W::load(from)
    }
}

impl Element for u16 {
    #[inline(always)]
    fn load<L: Lanes>(from: &[Self; 8]) -> L {
        L::load_f16(from)
    }
    #[inline(always)]
    fn load_wide<W: Wide>(from: &[Self; PART]) -> W {
        W::load_f16(from)
    }
}

/// One by one: it is not for speed.
impl Element for F8 {
    #[inline(always)]
    fn load<L: Lanes>(from: &[Self; 8]) -> L {
        L::load(&from.map(Self::to_f32))
    }
    #[inline(always)]
    fn load_wide<W: Wide>(from: &[Self; PART]) -> W {
        W::load(&from.map(Self::to_f32))
    }
}

/// A code of eight bits.
impl Element for i8 {
    #[inline(always)]
    fn load<L: Lanes>(from: &[Self; 8]) -> L {
        L::load_i8(from)
    }
    #[inline(always)]
    fn load_wide<W: Wide>(from: &[Self; PART]) -> W {
        W::load_i8(from)
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
    fn scores<W: Wide, const Q: usize, const S: usize>(self, part: Part, q: &[f32]) -> [W; Q] {
        let (size, all) = (self.side.size, self.side.elements());
        if size == PART {
            return self.scores_together::<W, Q, S, 1>(&[part], q)[0];
        }
        let keys = &self.keys[part.cell * all..][..all];
        let [low, high] = part.vectors();
        let mut scores = [W::splat(0.0); Q];
        for (d, (keys, q)) in keys.chunks_exact(size).zip(q.as_chunks::<S>().0).enumerate() {
            if let Some(ahead) = part.ahead.filter(|_| d.is_multiple_of(ASKED)) {
                prefetch(part_of(self.keys, all, ahead, d * size, ASKED * size));
            }
            let keys = W::of([E::load(eight_of(&keys[low..])), E::load(eight_of(&keys[high..]))]);
            for i in 0..Q {
                scores[i] = keys.fma(W::splat(q[i]), scores[i]);
            }
        }
        scores
    }

    #[inline(always)]
    fn scores_together<W: Wide, const Q: usize, const S: usize, const C: usize>(
        self,
        parts: &[Part; C],
        q: &[f32],
    ) -> [[W; Q]; C] {
        let (dim, all) = (self.side.dim, self.side.elements());
        let q = &q.as_chunks::<S>().0[..dim];
        let mut keys: [&[[E; PART]]; C] = [&[]; C];
        for c in 0..C {
            keys[c] = &self.keys[parts[c].cell * all..][..all].as_chunks().0[..dim];
        }
        let mut scores = [[W::splat(0.0); Q]; C];
        for some in (0..dim).step_by(ASKED) {
            for part in parts {
                if let Some(ahead) = part.ahead {
                    prefetch(part_of(self.keys, all, ahead, some * PART, ASKED * PART));
                }
            }
            for d in some..dim.min(some + ASKED) {
                for c in 0..C {
                    let keys: W = E::load_wide(&keys[c][d]);
                    for i in 0..Q {
                        scores[c][i] = keys.fma(W::splat(q[d][i]), scores[c][i]);
                    }
                }
            }
        }
        scores
    }
}

/// Dimensions of keys between two times that something is asked for.
const ASKED: usize = 8;

/// Sixteens of values that are met at a time by so many queries: their sums fill the registers. None: eight are.
#[inline(always)]
fn sixteens<W: Wide>(queries: usize) -> usize {
    match (W::ONE_REGISTER, queries) {
        (true, ..=6) => 4,
        (true, _) | (false, ..=3) => 2,
        (false, 4..=6) => 1,
        (false, _) => 0,
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

/// The first sixteen.
#[inline(always)]
pub(super) fn sixteen_of<E>(from: &[E]) -> &[E; PART] {
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
    fn scores<W: Wide, const Q: usize, const S: usize>(self, part: Part, q: &[f32]) -> [W; Q] {
        let (stride, dim) = (self.side.stride, self.side.dim);
        let keys = &self.keys[part.cell * self.side.elements()..][..self.side.elements()];
        let mut each = [q; Q];
        for i in 0..Q {
            each[i] = &q[i * dim..][..dim];
        }
        let mut scores = [[0.0f32; PART]; Q];
        for (half, at) in part.vectors().into_iter().enumerate().take(part.all / 8) {
            for (j, key) in keys[at * stride..][..8 * stride].chunks_exact(stride).enumerate() {
                if let Some(ahead) = part.ahead {
                    prefetch(part_of(self.keys, self.side.elements(), ahead, (at + j) * stride, stride));
                }
                let mut sums = [W::Half::splat(0.0); Q];
                for (n, key) in key.as_chunks::<8>().0.iter().enumerate() {
                    let key: W::Half = E::load(key);
                    for i in 0..Q {
                        sums[i] = key.fma(eight(each[i], n), sums[i]);
                    }
                }
                for i in 0..Q {
                    scores[i][8 * half + j] = sums[i].sum();
                }
            }
        }
        loaded(&scores)
    }
}

/// What was stored.
#[inline(always)]
pub(super) fn loaded<W: Wide, const Q: usize>(scores: &[[f32; PART]; Q]) -> [W; Q] {
    let mut all = [W::splat(0.0); Q];
    for i in 0..Q {
        all[i] = W::load(&scores[i]);
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
    fn add<W: Wide, const Q: usize, const SOME: bool>(
        self,
        part: Part,
        masks: &[u32; Q],
        weights: &[[f32; PART]; Q],
        out: &mut [f32],
    ) {
        let (stride, dim) = (self.side.stride, self.dim);
        let rows = &self.rows[part.cell * self.side.elements() + part.first * stride..][..part.all * stride];
        let all = self.side.elements();
        let some = 8 * (2 * sixteens::<W>(Q)).max(1);
        for from in (0..dim).step_by(some) {
            if let Some(ahead) = part.ahead {
                // As large a part of what is ahead as these columns are of this.
                prefetch(part_of(self.rows, all, ahead, all / dim * from, all / dim * some));
            }
            let columns = from..dim.min(from + some);
            add_rows::<W, E, Q, SOME>(rows, stride, dim, columns, part.seen, masks, weights, out);
        }
    }
}

/// Adds to `columns` of each output of `dim` columns those of the `seen` rows, by their weights, in order.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) fn add_rows<W: Wide, E: Element, const Q: usize, const SOME: bool>(
    rows: &[E],
    stride: usize,
    dim: usize,
    columns: std::ops::Range<usize>,
    seen: (usize, usize),
    masks: &[u32; Q],
    weights: &[[f32; PART]; Q],
    out: &mut [f32],
) {
    let mut at = columns.start;
    while sixteens::<W>(Q) >= 4 && at + 64 <= columns.end {
        add_vectors::<W, E, Q, SOME, 4>(rows, stride, dim, at, seen, masks, weights, out);
        at += 64;
    }
    while sixteens::<W>(Q) >= 2 && at + 32 <= columns.end {
        add_vectors::<W, E, Q, SOME, 2>(rows, stride, dim, at, seen, masks, weights, out);
        at += 32;
    }
    while sixteens::<W>(Q) >= 1 && at + 16 <= columns.end {
        add_vectors::<W, E, Q, SOME, 1>(rows, stride, dim, at, seen, masks, weights, out);
        at += 16;
    }
    while at < columns.end {
        // Rows are filled up to whole vectors, outputs are not.
        let some = (columns.end - at).min(8);
        let mut acc = [W::Half::splat(0.0); Q];
        let mut all = [0.0; 8];
        for i in 0..Q {
            all[..some].copy_from_slice(&out[i * dim + at..][..some]);
            acc[i] = W::Half::load(&all);
        }
        for j in seen.0..seen.1.min(PART) {
            let values: W::Half = E::load(eight_of(&rows[j * stride + at..]));
            for i in 0..Q {
                if !SOME || masks[i] >> j & 1 == 1 {
                    acc[i] = values.fma(W::Half::splat(weights[i][j]), acc[i]);
                }
            }
        }
        for i in 0..Q {
            acc[i].store(&mut all);
            out[i * dim + at..][..some].copy_from_slice(&all[..some]);
        }
        at += some;
    }
}

/// The same for `V` times sixteen columns from `at` on.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn add_vectors<W: Wide, E: Element, const Q: usize, const SOME: bool, const V: usize>(
    rows: &[E],
    stride: usize,
    dim: usize,
    at: usize,
    seen: (usize, usize),
    masks: &[u32; Q],
    weights: &[[f32; PART]; Q],
    out: &mut [f32],
) {
    let mut acc = [[W::splat(0.0); V]; Q];
    for i in 0..Q {
        let out = &out[i * dim + at..][..PART * V];
        for v in 0..V {
            acc[i][v] = W::load(sixteen_of(&out[PART * v..]));
        }
    }
    if V == 1 && !SOME && seen == (0, PART) {
        // Counted at compile time.
        for j in 0..PART {
            add_row::<W, E, Q, SOME, V>(&rows[j * stride + at..], masks, weights, j, &mut acc);
        }
    } else {
        for j in seen.0..seen.1.min(PART) {
            add_row::<W, E, Q, SOME, V>(&rows[j * stride + at..], masks, weights, j, &mut acc);
        }
    }
    for i in 0..Q {
        let out = &mut out[i * dim + at..][..PART * V];
        for v in 0..V {
            acc[i][v].store(out[PART * v..].first_chunk_mut().expect("a whole vector"));
        }
    }
}

/// The same for one row.
#[inline(always)]
fn add_row<W: Wide, E: Element, const Q: usize, const SOME: bool, const V: usize>(
    row: &[E],
    masks: &[u32; Q],
    weights: &[[f32; PART]; Q],
    j: usize,
    acc: &mut [[W; V]; Q],
) {
    let row = &row[..PART * V];
    let mut values = [W::splat(0.0); V];
    for v in 0..V {
        values[v] = E::load_wide(sixteen_of(&row[PART * v..]));
    }
    for i in 0..Q {
        if SOME && masks[i] >> j & 1 == 0 {
            continue;
        }
        let weight = W::splat(weights[i][j]);
        for v in 0..V {
            acc[i][v] = values[v].fma(weight, acc[i][v]);
        }
    }
}
