//! The loop over positions: each part of the keys and values is met by all rows of a task while it is in the cache, a tile of
//! them at a time.
//!
//! Everything here is compiled into functions that know the instructions they may use, hence `#[inline(always)]`.

use std::f32::consts::LOG2_E;

use super::AttentionRow;
use super::forms::{Keys, PART, Part, Values};
use crate::cpu::lanes::{Floats, Lanes, Wide};
use crate::cpu::shared_slice::SharedSlice;
use crate::op::kv_cache::KvCache;

/// Queries of a task at most.
pub(super) const QUERIES: usize = 96;

/// Some rows of one sequence and some query heads that attend to the same key head.
pub(super) struct Task<'a> {
    pub(super) cache: &'a KvCache,
    pub(super) layer: usize,
    /// The cache's head.
    pub(super) head: usize,
    /// Query heads of a row.
    pub(super) heads: usize,
    /// The first of those of the task.
    pub(super) first: usize,
    /// Those of the task: one of the counts that there are loops for.
    pub(super) count: usize,
    pub(super) first_row: usize,
    /// All of one list of blocks; times `count` at most [`QUERIES`].
    pub(super) rows: &'a [AttentionRow<'a>],
    pub(super) scale: f32,
    pub(super) softcap: Option<f32>,
    /// One for each of the task's heads, or empty.
    pub(super) sinks: &'a [f32],
    /// Of all rows and heads.
    pub(super) q: &'a [f32],
    pub(super) out: &'a SharedSlice<'a, f32>,
    /// What will be met after it.
    pub(super) next: Option<Next<'a>>,
}

/// Blocks of another task, to be asked for.
#[derive(Clone, Copy)]
pub(super) struct Next<'a> {
    /// The cache's head.
    pub(super) head: usize,
    pub(super) blocks: &'a [u32],
}

impl Task<'_> {
    /// Index of the first head of the task's `row`th row among the heads of all rows.
    fn place(&self, row: usize) -> usize {
        (self.first_row + row) * self.heads + self.first
    }
}

/// A thread's working memory.
#[derive(Default)]
pub(super) struct Scratch {
    /// Queries, a tile after the other and in it dimension by dimension.
    q: Vec<f32>,
    /// Outputs, before they are divided by the total of their weights.
    out: Vec<f32>,
    /// What is known of each query's softmax so far.
    softmax: Vec<Softmax>,
}

impl Scratch {
    /// Takes the queries of a task, `tile` together. Of the last tile, what there are no rows for is left as it was.
    fn pack(&mut self, task: &Task<'_>, tile: usize) {
        let (dim, count) = (task.cache.key_dim(), task.count);
        let tiles = (task.rows.len() * count).div_ceil(tile);
        // One tile more, so that whole ones can be read wherever a row's begin.
        self.q.resize((tiles * dim + 1) * tile, 0.0);
        for row in 0..task.rows.len() {
            let (number, place) = (row * count / tile, row * count % tile);
            let to = &mut self.q[number * tile * dim..][..tile * dim];
            for head in 0..count {
                let from = &task.q[(task.place(row) + head) * dim..][..dim];
                for (to, q) in to.iter_mut().skip(place + head).step_by(tile).zip(from) {
                    *to = *q;
                }
            }
        }
    }
}

/// What is known of a query so far. Scores are times log2 e: powers of two are what is computed.
#[derive(Clone, Copy)]
struct Softmax {
    highest: f32,
    /// Sums of the weights, of every sixteenth position each.
    totals: [f32; PART],
}

impl Softmax {
    const NEW: Self = Self { highest: f32::NEG_INFINITY, totals: [0.0; PART] };

    /// A sink is a score that was seen before all others and weighs on nothing.
    fn after_sink(sink: f32) -> Self {
        let mut totals = [0.0; PART];
        totals[0] = 1.0;
        Self { highest: sink * LOG2_E, totals }
    }
}

/// Attention of all of the task's queries: `N` in a row, `M` in a whole tile of rows. A row that is alone meets `C` parts at a time:
/// their scores hang on nothing but themselves, so that registers are filled and none waits for another.
#[inline(always)]
pub(super) fn attend<W: Wide, K: Keys, V: Values, const N: usize, const M: usize, const C: usize>(
    task: &Task<'_>,
    keys: K,
    values: V,
    scratch: &mut Scratch,
) {
    let (rows, size, dim) = (task.rows, task.cache.block_size(), task.cache.value_dim());
    let (queries, key_dim) = (rows.len() * N, task.cache.key_dim());
    assert!(task.count == N && M.is_multiple_of(N) && queries <= QUERIES, "attention: a task's queries");
    if K::PACKED {
        scratch.pack(task, M);
    }
    let Scratch { q: packed, out, softmax } = scratch;
    softmax.clear();
    match task.sinks {
        [] => softmax.resize(queries, Softmax::NEW),
        sinks => softmax.extend((0..queries).map(|query| Softmax::after_sink(sinks[query % N]))),
    }
    out.clear();
    // A tile that is met as a whole has a place for each query that there might be.
    let last = is_dense::<K, N, M>(rows.len() % (M / N));
    out.resize(if last { queries.next_multiple_of(M) } else { queries } * dim, 0.0);
    let cells = met(rows, size);
    let before = reach(rows).0 / size;
    let together = if size == PART { C } else { 1 };
    for block in (0..cells.len()).step_by(together) {
        // Blocks lie anywhere in memory: the machine cannot guess which is next. Whoever meets one first asks for the one that will
        // be met in its place, of the next task where this one's end.
        let mut stretch: Stretch<C> = Stretch::default();
        for (i, place) in stretch.cells[..together.min(cells.len() - block)].iter_mut().enumerate() {
            let cell = |block: u32, head: usize| task.cache.cell(task.layer, block, head);
            let ahead = block + together + i;
            let of_next = |next: Next<'_>| Some(cell(*next.blocks.get(ahead - cells.len())?, next.head));
            let ahead = match cells.get(ahead) {
                Some(ahead) => Some(cell(*ahead, task.head)),
                None => task.next.and_then(of_next),
            };
            *place = (cell(cells[block + i], task.head), ahead);
            stretch.count += 1;
        }
        let start = (before + block) * size;
        for (tile, rows) in rows.chunks(M / N).enumerate() {
            let (whole, dense) = (M > N && rows.len() == M / N, is_dense::<K, N, M>(rows.len()));
            if C > 1 && !dense && stretch.count > 1 {
                for (i, row) in rows.iter().enumerate() {
                    let (q, query) = (&packed[tile * M * key_dim + i * N..], tile * M + i * N);
                    let stretch = &mut stretch;
                    meet_together::<W, K, V, N, M, C>(
                        task, keys, values, stretch, row, start, q, query, softmax, out,
                    );
                }
                continue;
            }
            for cell in 0..stretch.count {
                let start = start + cell * size;
                if whole && all_see(rows, start, size) {
                    let q = &packed[tile * M * key_dim..][..(key_dim + 1) * M];
                    for first in (0..size).step_by(PART) {
                        let part = stretch.part(cell, first, size, (0, usize::MAX));
                        meet::<W, K, V, M, M>(task, keys, values, part, q, tile * M, softmax, out);
                    }
                    continue;
                }
                if dense {
                    let q = &packed[tile * M * key_dim..][..(key_dim + 1) * M];
                    for first in (0..size).step_by(PART) {
                        let at = start + first;
                        if rows.iter().any(|row| row.sees(at, PART.min(size - first))) {
                            let part = stretch.part(cell, first, size, (0, usize::MAX));
                            let query = tile * M;
                            meet_some::<W, K, V, N, M>(
                                task, keys, values, part, rows, at, q, query, softmax, out,
                            );
                        }
                    }
                    continue;
                }
                // Rows that end here, or that have not begun, see different things.
                for (i, row) in rows.iter().enumerate() {
                    let query = tile * M + i * N;
                    let q = match K::PACKED {
                        true => &packed[tile * M * key_dim + i * N..],
                        false => &task.q[task.place(tile * (M / N) + i) * key_dim..][..N * key_dim],
                    };
                    for first in (0..size).step_by(PART) {
                        let seen = row.seen(start + first, PART.min(size - first));
                        if seen.0 < seen.1 {
                            let part = stretch.part(cell, first, size, seen);
                            meet::<W, K, V, N, M>(task, keys, values, part, q, query, softmax, out);
                        }
                    }
                }
            }
        }
    }
    for row in 0..rows.len() {
        // SAFETY: tasks have rows and heads of their own, and the parts of this one's rows do not overlap.
        let to = unsafe { task.out.part(task.place(row) * dim, N * dim) };
        let softmax = &softmax[row * N..][..N];
        for ((to, out), softmax) in
            to.chunks_exact_mut(dim).zip(out[row * N * dim..].chunks_exact(dim)).zip(softmax)
        {
            let total = W::load(&softmax.totals).sum();
            let inverse = if total > 0.0 { 1.0 / total } else { 0.0 };
            for (to, out) in to.iter_mut().zip(out) {
                *to = out * inverse;
            }
        }
    }
}

/// Whether a tile of so many rows, of `N` queries each, is met at a time although it has room for `M` queries: what is read of keys
/// and values costs more than queries that are not there.
#[inline(always)]
fn is_dense<K: Keys, const N: usize, const M: usize>(rows: usize) -> bool {
    K::PACKED && M > N && 2 * rows * N > M
}

/// Whether all rows see all of the `all` positions from `start` on.
#[inline(always)]
fn all_see(rows: &[AttentionRow<'_>], start: usize, all: usize) -> bool {
    for row in rows {
        if row.seen(start, all) != (0, all) {
            return false;
        }
    }
    true
}

/// The blocks of `size` positions that rows of one sequence see something of.
pub(super) fn met<'a>(rows: &[AttentionRow<'a>], size: usize) -> &'a [u32] {
    let (from, to) = reach(rows);
    &rows[0].blocks[(from / size).min(to.div_ceil(size))..to.div_ceil(size)]
}

/// Positions that any of the rows sees, from and to.
fn reach(rows: &[AttentionRow<'_>]) -> (usize, usize) {
    let seen = rows.iter().filter(|row| row.window_start < row.len);
    let from = seen.map(|row| row.window_start).min().unwrap_or_default();
    (from, rows.iter().map(|row| row.len).max().unwrap_or_default())
}

impl AttentionRow<'_> {
    /// What it sees of the `all` positions from `start` on, counted from there.
    #[inline(always)]
    fn seen(&self, start: usize, all: usize) -> (usize, usize) {
        (self.window_start.saturating_sub(start).min(all), self.len.saturating_sub(start).min(all))
    }

    /// Whether it sees any of them.
    #[inline(always)]
    fn sees(&self, start: usize, all: usize) -> bool {
        let (from, to) = self.seen(start, all);
        from < to
    }
}

/// Some cells that follow each other.
struct Stretch<const C: usize> {
    /// Each with the one to ask for when it is met.
    cells: [(usize, Option<usize>); C],
    count: usize,
}

impl<const C: usize> Default for Stretch<C> {
    #[inline(always)]
    fn default() -> Self {
        Self { cells: [(0, None); C], count: 0 }
    }
}

impl<const C: usize> Stretch<C> {
    /// A part of its `i`th cell, of which `seen` is seen.
    #[inline(always)]
    fn part(&mut self, i: usize, first: usize, size: usize, seen: (usize, usize)) -> Part {
        let (cell, ahead) = &mut self.cells[i];
        let all = PART.min(size - first);
        Part { cell: *cell, first, all, seen: (seen.0, seen.1.min(all)), ahead: ahead.take() }
    }
}

/// The `Q` queries of a row, from `query` on, meet what it sees of a stretch from position `start` on, in order.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn meet_together<W: Wide, K: Keys, V: Values, const Q: usize, const S: usize, const C: usize>(
    task: &Task<'_>,
    keys: K,
    values: V,
    stretch: &mut Stretch<C>,
    row: &AttentionRow<'_>,
    start: usize,
    q: &[f32],
    query: usize,
    softmax: &mut [Softmax],
    out: &mut [f32],
) {
    if row.seen(start, stretch.count * PART).1 == 0 {
        return;
    }
    // Where cells are missing, the first stands in for them; nothing is seen of it then.
    let mut parts = [Part { cell: stretch.cells[0].0, first: 0, all: PART, seen: (0, 0), ahead: None }; C];
    for (i, (part, (cell, ahead))) in parts.iter_mut().zip(&mut stretch.cells).take(stretch.count).enumerate()
    {
        (part.cell, part.ahead, part.seen) = (*cell, ahead.take(), row.seen(start + i * PART, PART));
    }
    let scores = keys.scores_together::<W, Q, S, C>(&parts, q);
    for i in 0..C {
        if parts[i].seen.0 < parts[i].seen.1 {
            weigh_and_add::<W, V, Q>(task, values, parts[i], &scores[i], query, softmax, out);
        }
    }
}

/// `Q` queries from `query` on meet a part; `S` is how far apart dimensions are in `q`, where it is packed.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn meet<W: Wide, K: Keys, V: Values, const Q: usize, const S: usize>(
    task: &Task<'_>,
    keys: K,
    values: V,
    part: Part,
    q: &[f32],
    query: usize,
    softmax: &mut [Softmax],
    out: &mut [f32],
) {
    let scores = keys.scores::<W, Q, S>(part, q);
    weigh_and_add::<W, V, Q>(task, values, part, &scores, query, softmax, out);
}

/// Rows of a tile of `M` queries, `N` each, from `query` on meet a part that begins at position `start`, of which they see
/// different things, or which is not whole.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn meet_some<W: Wide, K: Keys, V: Values, const N: usize, const M: usize>(
    task: &Task<'_>,
    keys: K,
    values: V,
    mut part: Part,
    rows: &[AttentionRow<'_>],
    start: usize,
    q: &[f32],
    query: usize,
    softmax: &mut [Softmax],
    out: &mut [f32],
) {
    let dim = task.cache.value_dim();
    let scores = keys.scores::<W, M, M>(part, q);
    let (mut weights, mut masks) = ([[0.0f32; PART]; M], [0u32; M]);
    let out = &mut out[query * dim..][..M * dim];
    let (mut first, mut end) = (PART, 0);
    for (i, row) in rows.iter().enumerate() {
        let seen = row.seen(start, part.all);
        if seen.0 < seen.1 {
            let (place, all) = (i * N, query + i * N);
            let out = &mut out[place * dim..][..N * dim];
            let weights = &mut weights[place..][..N];
            weigh::<W, N>(task, seen, &scores[place..][..N], &mut softmax[all..][..N], weights, out);
            masks[place..][..N].fill((1 << seen.1) - (1 << seen.0));
            (first, end) = (first.min(seen.0), end.max(seen.1));
        }
    }
    part.seen = (first, end);
    values.add::<W, M, true>(part, &masks, &weights, out);
}

/// Scores of a part become weights, and its values are added by them.
#[inline(always)]
fn weigh_and_add<W: Wide, V: Values, const Q: usize>(
    task: &Task<'_>,
    values: V,
    part: Part,
    scores: &[W; Q],
    query: usize,
    softmax: &mut [Softmax],
    out: &mut [f32],
) {
    let dim = task.cache.value_dim();
    let out = &mut out[query * dim..][..Q * dim];
    let mut weights = [[0.0f32; PART]; Q];
    weigh::<W, Q>(task, part.seen, scores, &mut softmax[query..][..Q], &mut weights, out);
    values.add::<W, Q, false>(part, &[0; Q], &weights, out);
}

/// Scores of `Q` queries become weights of the positions that are seen, from and to; others have none. Totals of weights and
/// what has been added up in `out` shrink where a score is higher than all before.
#[inline(always)]
fn weigh<W: Wide, const Q: usize>(
    task: &Task<'_>,
    (from, to): (usize, usize),
    scores: &[W],
    softmax: &mut [Softmax],
    weights: &mut [[f32; PART]],
    out: &mut [f32],
) {
    let dim = task.cache.value_dim();
    let whole = (from, to) == (0, PART);
    let (softmax, scores, weights) = (&mut softmax[..Q], &scores[..Q], &mut weights[..Q]);
    let scale = W::splat(task.scale * if task.softcap.is_some() { 1.0 } else { LOG2_E });
    for i in 0..Q {
        let mut scores = scores[i].mul(scale);
        if let Some(cap) = task.softcap {
            scores = scores.div(W::splat(cap)).tanh().mul(W::splat(cap * LOG2_E));
        }
        if !whole {
            scores.store(&mut weights[i]);
            weights[i][..from].fill(f32::NEG_INFINITY);
            weights[i][to..].fill(f32::NEG_INFINITY);
            scores = W::load(&weights[i]);
        }
        let Softmax { highest, totals } = &mut softmax[i];
        if scores.any_above(W::splat(*highest)) {
            let peak = scores.greatest();
            let shrink = W::Half::splat(*highest - peak).exp2_of_negative().greatest();
            let shrink = if *highest == f32::NEG_INFINITY { 0.0 } else { shrink };
            totals.iter_mut().for_each(|total| *total *= shrink);
            for out in &mut out[i * dim..][..dim] {
                *out *= shrink;
            }
            *highest = peak;
        }
        let mut each = scores.sub(W::splat(*highest)).exp2_of_negative();
        each.store(&mut weights[i]);
        if !whole {
            weights[i][..from].fill(0.0);
            weights[i][to..].fill(0.0);
            each = W::load(&weights[i]);
        }
        W::load(totals).add(each).store(totals);
    }
}
