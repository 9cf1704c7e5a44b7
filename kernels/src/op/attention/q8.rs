//! The loops over codes of eight bits: products of codes are summed block by block, and each block's sum meets its scale.

use super::forms::{Keys, Values, eight};
use crate::cpu::lanes::Lanes;
use crate::op::kv_cache::{BLOCK, Codes, Side};

/// Vectors of a block.
const VECTORS: usize = BLOCK / 8;

/// The codes and the scales of a cell.
#[inline(always)]
fn cell_of(codes: &Codes, side: Side, cell: usize) -> (&[i8], &[u16]) {
    let (elements, scales) = (side.elements(), side.scales());
    (&codes.codes[cell * elements..][..elements], &codes.scales[cell * scales..][..scales])
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
    #[inline(always)]
    fn scores<L: Lanes, const N: usize>(self, cell: usize, part: usize, q: &[&[f32]; N]) -> [L; N] {
        let size = self.side.size;
        let (codes, scales) = cell_of(self.keys, self.side, cell);
        let mut scores = [L::splat(0.0); N];
        for (b, (codes, scales)) in codes.chunks(BLOCK * size).zip(scales.chunks_exact(size)).enumerate() {
            let mut sums = [L::splat(0.0); N];
            for (d, codes) in codes.chunks_exact(size).enumerate() {
                let key = L::load_i8(&codes.as_chunks::<8>().0[part]);
                for h in 0..N {
                    sums[h] = key.fma(L::splat(q[h][b * BLOCK + d]), sums[h]);
                }
            }
            let scale = L::load_f16(&scales.as_chunks::<8>().0[part]);
            for h in 0..N {
                scores[h] = sums[h].fma(scale, scores[h]);
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
    #[inline(always)]
    fn scores<L: Lanes, const N: usize>(self, cell: usize, part: usize, q: &[&[f32]; N]) -> [L; N] {
        let (size, stride) = (self.side.size, self.side.stride);
        let (codes, scales) = cell_of(self.keys, self.side, cell);
        let keys = &codes[8 * part * stride..][..8 * stride];
        let mut scores = [[0.0f32; 8]; N];
        for (j, key) in keys.chunks_exact(stride).enumerate() {
            let mut sums = [L::splat(0.0); N];
            for (b, scales) in scales.chunks_exact(size).enumerate() {
                let mut products = [L::splat(0.0); N];
                for (i, key) in key.as_chunks::<8>().0.iter().enumerate().skip(b * VECTORS).take(VECTORS) {
                    let key = L::load_i8(key);
                    for h in 0..N {
                        products[h] = key.fma(eight(q[h], i), products[h]);
                    }
                }
                let mut scale = [0.0; 8];
                L::load_f16(&scales.as_chunks::<8>().0[part]).store(&mut scale);
                for h in 0..N {
                    sums[h] = products[h].fma(L::splat(scale[j]), sums[h]);
                }
            }
            for h in 0..N {
                scores[h][j] = sums[h].sum();
            }
        }
        scores.map(|scores| L::load(&scores))
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
    fn add<L: Lanes, const N: usize>(
        self,
        cell: usize,
        first: usize,
        weights: &[[f32; 8]; N],
        to: usize,
        out: &mut [f32],
    ) {
        let (size, stride, dim) = (self.side.size, self.side.stride, self.dim);
        let (codes, scales) = cell_of(self.rows, self.side, cell);
        let codes = &codes[first * stride..][..8 * stride];
        for (b, scales) in scales.chunks_exact(size).take(dim.div_ceil(BLOCK)).enumerate() {
            let scale = L::load_f16(&scales.as_chunks::<8>().0[first / 8]);
            let mut scaled = [[0.0f32; 8]; N];
            for h in 0..N {
                L::load(&weights[h]).mul(scale).store(&mut scaled[h]);
            }
            for part in b * VECTORS..((b + 1) * VECTORS).min(dim / 8) {
                let mut acc = [L::splat(0.0); N];
                for h in 0..N {
                    acc[h] = L::load(&out[h * dim..].as_chunks::<8>().0[part]);
                }
                for j in 0..to {
                    let value = L::load_i8(&codes[j * stride..].as_chunks::<8>().0[part]);
                    for h in 0..N {
                        acc[h] = value.fma(L::splat(scaled[h][j]), acc[h]);
                    }
                }
                for h in 0..N {
                    acc[h].store(&mut out[h * dim..].as_chunks_mut::<8>().0[part]);
                }
            }
            // The last, partial vector of a head whose dimension is not a multiple of 8 is in the last block.
            let (done, part) = (dim / 8 * 8, dim / 8);
            if done == dim || part / VECTORS != b {
                continue;
            }
            for h in 0..N {
                let rest = &mut out[h * dim + done..][..dim - done];
                let mut acc = eight::<L>(rest, 0);
                for j in 0..to {
                    let value = L::load_i8(&codes[j * stride..].as_chunks::<8>().0[part]);
                    acc = value.fma(L::splat(scaled[h][j]), acc);
                }
                let mut all = [0.0; 8];
                acc.store(&mut all);
                rest.copy_from_slice(&all[..dim - done]);
            }
        }
    }
}
