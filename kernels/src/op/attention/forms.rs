//! The forms in which attention meets keys and values, and the loops over floats.
//!
//! Everything here is compiled into functions that know the instructions they may use, hence `#[inline(always)]`.

use crate::cpu::lanes::Lanes;
use crate::op::kv_cache::Side;

/// Keys of all cells.
pub(super) trait Keys: Copy {
    /// q · k of the eight positions `8 · part ..` of a cell, for each head.
    fn scores<L: Lanes, const N: usize>(self, cell: usize, part: usize, q: &[&[f32]; N]) -> [L; N];
}

/// Values of all cells.
pub(super) trait Values: Copy {
    /// Adds the weighted values of the positions `first .. first + to` of a cell, in order; `to` is at most 8.
    fn add<L: Lanes, const N: usize>(
        self,
        cell: usize,
        first: usize,
        weights: &[[f32; 8]; N],
        to: usize,
        out: &mut [f32],
    );
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
    /// In increasing dimension.
    #[inline(always)]
    fn scores<L: Lanes, const N: usize>(self, cell: usize, part: usize, q: &[&[f32]; N]) -> [L; N] {
        let keys = &self.keys[cell * self.side.elements()..][..self.side.elements()];
        let mut scores = [L::splat(0.0); N];
        for (d, keys) in keys.chunks_exact(self.side.size).enumerate() {
            let keys: L = E::load(&keys.as_chunks::<8>().0[part]);
            for h in 0..N {
                scores[h] = keys.fma(L::splat(q[h][d]), scores[h]);
            }
        }
        scores
    }
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
    /// Eight sums of every eighth dimension, added up at the end.
    #[inline(always)]
    fn scores<L: Lanes, const N: usize>(self, cell: usize, part: usize, q: &[&[f32]; N]) -> [L; N] {
        let stride = self.side.stride;
        let keys = &self.keys[cell * self.side.elements() + 8 * part * stride..][..8 * stride];
        let mut scores = [[0.0f32; 8]; N];
        for (j, key) in keys.chunks_exact(stride).enumerate() {
            let mut sums = [L::splat(0.0); N];
            for (i, key) in key.as_chunks::<8>().0.iter().enumerate() {
                let key: L = E::load(key);
                for h in 0..N {
                    sums[h] = key.fma(eight(q[h], i), sums[h]);
                }
            }
            for h in 0..N {
                scores[h][j] = sums[h].sum();
            }
        }
        scores.map(|scores| L::load(&scores))
    }
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
    fn add<L: Lanes, const N: usize>(
        self,
        cell: usize,
        first: usize,
        weights: &[[f32; 8]; N],
        to: usize,
        out: &mut [f32],
    ) {
        let (stride, dim) = (self.side.stride, self.dim);
        let values = &self.rows[cell * self.side.elements() + first * stride..][..8 * stride];
        for part in 0..dim / 8 {
            let mut acc: [L; N] = std::array::from_fn(|h| L::load(&out[h * dim..].as_chunks::<8>().0[part]));
            for j in 0..to {
                let value: L = E::load(&values[j * stride..].as_chunks::<8>().0[part]);
                for h in 0..N {
                    acc[h] = value.fma(L::splat(weights[h][j]), acc[h]);
                }
            }
            for h in 0..N {
                acc[h].store(&mut out[h * dim..].as_chunks_mut::<8>().0[part]);
            }
        }
        let done = dim / 8 * 8;
        if done == dim {
            return;
        }
        // The last, partial vector of a head whose dimension is not a multiple of 8: rows are filled up, outputs are not.
        for h in 0..N {
            let mut rest = [0.0; 8];
            rest[..dim - done].copy_from_slice(&out[h * dim + done..][..dim - done]);
            let mut acc = L::load(&rest);
            for j in 0..to {
                let value: L = E::load(&values[j * stride..].as_chunks::<8>().0[dim / 8]);
                acc = value.fma(L::splat(weights[h][j]), acc);
            }
            acc.store(&mut rest);
            out[h * dim + done..][..dim - done].copy_from_slice(&rest[..dim - done]);
        }
    }
}
