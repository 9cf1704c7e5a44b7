//! The loops over codes of eight bits: products of codes are summed block by block, and each block's sum meets its scale.

use super::forms::{Element, Keys, PART, Part, Values, add_rows, eight, eight_of, loaded, sixteen_of};
use crate::cpu::lanes::{Floats, Lanes, Wide};
use crate::cpu::prefetch::prefetch;
use crate::op::kv_cache::{BLOCK, Codes, Side};

/// Vectors of a block.
const VECTORS: usize = BLOCK / 8;

/// The codes and the scales of a cell.
#[inline(always)]
fn cell_of(codes: &Codes, side: Side, cell: usize) -> (&[i8], &[u16]) {
    let (elements, scales) = (side.elements(), side.scales());
    (&codes.codes[cell * elements..][..elements], &codes.scales[cell * scales..][..scales])
}

/// The eight elements from `low` on, and those from `high` on.
#[inline(always)]
fn both<W: Wide, E: Element>(from: &[E], low: usize, high: usize) -> W {
    if high == low + 8 {
        return E::load_wide(sixteen_of(&from[low..]));
    }
    W::of([E::load(eight_of(&from[low..])), E::load(eight_of(&from[high..]))])
}

/// Asks for a cell.
#[inline(always)]
fn ask(codes: &Codes, side: Side, cell: Option<usize>) {
    if let Some(cell) = cell {
        let (codes, scales) = cell_of(codes, side, cell);
        prefetch(codes);
        prefetch(scales);
    }
}

/// Keys stored dimension by dimension.
#[derive(Clone, Copy)]
pub(super) struct CodesByDimension<'a> {
    keys: &'a Codes,
    side: Side,
}

impl<'a> CodesByDimension<'a> {
    pub(super) fn new(keys: &'a Codes, side: Side) -> Self {
        Self { keys, side }
    }
}

impl Keys for CodesByDimension<'_> {
    const PACKED: bool = true;

    #[inline(always)]
    fn scores<W: Wide, const Q: usize, const S: usize>(self, part: Part, q: &[f32]) -> [W; Q] {
        let (size, dim) = (self.side.size, self.side.dim);
        ask(self.keys, self.side, part.ahead);
        let (codes, scales) = cell_of(self.keys, self.side, part.cell);
        let [low, high] = part.vectors();
        let mut scores = [W::splat(0.0); Q];
        for (b, scales) in scales.chunks_exact(size).enumerate() {
            let mut sums = [W::splat(0.0); Q];
            for d in b * BLOCK..((b + 1) * BLOCK).min(dim) {
                let codes = &codes[d * size..][..size];
                let keys: W = both(codes, low, high);
                let q = &q[d * S..][..Q];
                for i in 0..Q {
                    sums[i] = keys.fma(W::splat(q[i]), sums[i]);
                }
            }
            let scales: W = both(scales, low, high);
            for i in 0..Q {
                scores[i] = sums[i].fma(scales, scores[i]);
            }
        }
        scores
    }
}

/// Keys stored position by position.
#[derive(Clone, Copy)]
pub(super) struct CodesByPosition<'a> {
    keys: &'a Codes,
    side: Side,
}

impl<'a> CodesByPosition<'a> {
    pub(super) fn new(keys: &'a Codes, side: Side) -> Self {
        Self { keys, side }
    }
}

impl Keys for CodesByPosition<'_> {
    const PACKED: bool = false;

    #[inline(always)]
    fn scores<W: Wide, const Q: usize, const S: usize>(self, part: Part, q: &[f32]) -> [W; Q] {
        let dim = self.side.dim;
        let (size, stride) = (self.side.size, self.side.stride);
        ask(self.keys, self.side, part.ahead);
        let (codes, scales) = cell_of(self.keys, self.side, part.cell);
        let mut each = [q; Q];
        for i in 0..Q {
            each[i] = &q[i * dim..][..dim];
        }
        let mut scores = [[0.0f32; PART]; Q];
        for (half, at) in part.vectors().into_iter().enumerate().take(part.all / 8) {
            for (j, key) in codes[at * stride..][..8 * stride].chunks_exact(stride).enumerate() {
                let mut sums = [W::Half::splat(0.0); Q];
                for (b, scales) in scales.chunks_exact(size).enumerate() {
                    let mut products = [W::Half::splat(0.0); Q];
                    for (n, key) in key.as_chunks::<8>().0.iter().enumerate().skip(b * VECTORS).take(VECTORS)
                    {
                        let key = W::Half::load_i8(key);
                        for i in 0..Q {
                            products[i] = key.fma(eight(each[i], n), products[i]);
                        }
                    }
                    let mut scale = [0.0; 8];
                    W::Half::load_f16(eight_of(&scales[at..])).store(&mut scale);
                    for i in 0..Q {
                        sums[i] = products[i].fma(W::Half::splat(scale[j]), sums[i]);
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

/// Values stored position by position: the first `dim` elements of each row.
#[derive(Clone, Copy)]
pub(super) struct CodeValues<'a> {
    rows: &'a Codes,
    side: Side,
    dim: usize,
}

impl<'a> CodeValues<'a> {
    pub(super) fn new(rows: &'a Codes, side: Side, dim: usize) -> Self {
        Self { rows, side, dim }
    }
}

impl Values for CodeValues<'_> {
    #[inline(always)]
    fn add<W: Wide, const Q: usize, const SOME: bool>(
        self,
        part: Part,
        masks: &[u32; Q],
        weights: &[[f32; PART]; Q],
        out: &mut [f32],
    ) {
        let (size, stride, dim) = (self.side.size, self.side.stride, self.dim);
        ask(self.rows, self.side, part.ahead);
        let (codes, scales) = cell_of(self.rows, self.side, part.cell);
        let codes = &codes[part.first * stride..][..part.all * stride];
        for (b, scales) in scales.chunks_exact(size).take(dim.div_ceil(BLOCK)).enumerate() {
            let mut scaled = *weights;
            for (half, at) in part.vectors().into_iter().enumerate().take(part.all / 8) {
                let scale = W::Half::load_f16(eight_of(&scales[at..]));
                for scaled in &mut scaled {
                    let scaled = &mut scaled.as_chunks_mut::<8>().0[half];
                    W::Half::load(scaled).mul(scale).store(scaled);
                }
            }
            let columns = b * BLOCK..((b + 1) * BLOCK).min(dim);
            add_rows::<W, i8, Q, SOME>(codes, stride, dim, columns, part.seen, masks, &scaled, out);
        }
    }
}
