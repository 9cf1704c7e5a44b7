//! Where elements of the cache lie.

use std::sync::LazyLock;

use super::KvType;
use super::q8::{BLOCK, Codes};
use crate::cpu::lanes::Wide;
use crate::cpu::lines::advise_huge;
use crate::cpu::simd_wide;
use crate::cuda::{from_f8, to_f8};

/// Storage of one kind of element. Zeroed memory comes lazily from the system, so blocks never written cost nothing.
#[derive(Debug)]
pub(crate) enum Store {
    F32 { keys: Vec<f32>, values: Vec<f32> },
    F16 { keys: Vec<u16>, values: Vec<u16> },
    Q8_0 { keys: Codes, values: Codes },
    F8 { keys: Vec<F8>, values: Vec<F8> },
}

/// A number of E4M3.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct F8(u8);

impl F8 {
    /// The nearest, ties to even; beyond the largest, the largest.
    pub(crate) fn from_f32(x: f32) -> Self {
        Self(to_f8(x))
    }

    /// What it is.
    pub(crate) fn to_f32(self) -> f32 {
        static NUMBERS: LazyLock<[f32; 256]> =
            LazyLock::new(|| std::array::from_fn(|code| from_f8(code as u8)));
        NUMBERS[usize::from(self.0)]
    }
}

impl Store {
    pub(super) fn new(ty: KvType, cells: usize, keys: Side, values: Side) -> Self {
        let (k, v) = (cells * keys.elements(), cells * values.elements());
        match ty {
            KvType::F32 => Self::F32 { keys: zeroed(k), values: zeroed(v) },
            KvType::F16 => Self::F16 { keys: zeroed(k), values: zeroed(v) },
            KvType::F8 => Self::F8 { keys: zeroed(k), values: zeroed(v) },
            KvType::Q8_0 => Self::Q8_0 { keys: Codes::new(keys, cells), values: Codes::new(values, cells) },
        }
    }

    /// The content of `count` cells from `from` on over that of as many from `to` on.
    pub(super) fn copy_cells(&mut self, keys: Side, values: Side, from: usize, to: usize, count: usize) {
        fn copy<E: Copy>(all: &mut [E], each: usize, from: usize, to: usize, count: usize) {
            all.copy_within(from * each..(from + count) * each, to * each);
        }
        let sides = (keys, values);
        match self {
            Self::F32 { keys, values } => {
                copy(keys, sides.0.elements(), from, to, count);
                copy(values, sides.1.elements(), from, to, count);
            }
            Self::F16 { keys, values } => {
                copy(keys, sides.0.elements(), from, to, count);
                copy(values, sides.1.elements(), from, to, count);
            }
            Self::F8 { keys, values } => {
                copy(keys, sides.0.elements(), from, to, count);
                copy(values, sides.1.elements(), from, to, count);
            }
            Self::Q8_0 { keys, values } => {
                for (side, codes) in [(sides.0, keys), (sides.1, values)] {
                    copy(&mut codes.codes, side.elements(), from, to, count);
                    copy(&mut codes.scales, side.scales(), from, to, count);
                }
            }
        }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::F32 { keys, values } => 4 * (keys.len() + values.len()),
            Self::F16 { keys, values } => 2 * (keys.len() + values.len()),
            Self::F8 { keys, values } => keys.len() + values.len(),
            Self::Q8_0 { keys, values } => {
                keys.codes.len() + values.codes.len() + 2 * (keys.scales.len() + values.scales.len())
            }
        }
    }
}

/// Zeros, in huge pages where there are many: blocks lie anywhere, and each in a page of its own would cost a walk through the
/// page tables.
pub(super) fn zeroed<T: Copy + Default>(count: usize) -> Vec<T> {
    let mut memory = vec![T::default(); count];
    advise_huge(&mut memory);
    memory
}

/// How the keys (or values) of one head in one block lie: its cell.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Side {
    /// Elements at each position.
    pub(crate) dim: usize,
    /// From one position to the next where they follow each other: `dim` rounded up to whole vectors.
    pub(crate) stride: usize,
    /// Positions.
    pub(crate) size: usize,
    by_dimension: bool,
}

impl Side {
    /// Positions of a dimension beside each other; `None` if there are more elements than can be counted.
    pub(super) fn by_dimension(dim: usize, size: usize) -> Option<Self> {
        dim.checked_mul(size)?;
        Some(Self { dim, stride: dim, size, by_dimension: true })
    }

    /// Dimensions of a position beside each other, filled up to whole vectors.
    pub(super) fn by_position(dim: usize, size: usize) -> Option<Self> {
        let stride = dim.checked_next_multiple_of(8)?;
        stride.checked_mul(size)?;
        Some(Self { dim, stride, size, by_dimension: false })
    }

    /// Elements of a cell.
    pub(crate) fn elements(&self) -> usize {
        self.stride * self.size
    }

    /// Scales of a cell, for each block of dimensions those of all positions.
    pub(crate) fn scales(&self) -> usize {
        self.dim.div_ceil(BLOCK) * self.size
    }

    /// Bytes of a cell; `None` if there is no such number.
    pub(super) fn bytes(&self, ty: KvType) -> Option<usize> {
        match ty {
            KvType::F32 => self.elements().checked_mul(4),
            KvType::F16 => self.elements().checked_mul(2),
            KvType::F8 => Some(self.elements()),
            KvType::Q8_0 => self.elements().checked_add(self.scales().checked_mul(2)?),
        }
    }

    /// Index of a position's first element, and from one of its elements to the next.
    pub(super) fn place(&self, cell: usize, offset: usize) -> (usize, usize) {
        let first = cell * self.elements();
        match self.by_dimension {
            true => (first + offset, self.size),
            false => (first + offset * self.stride, 1),
        }
    }
}

/// Stores a position's elements at their [`Side::place`].
pub(super) fn put_f32(x: &[f32], store: &mut [f32], place: (usize, usize)) {
    put(x, store, place);
}

/// Stores a position's elements, rounded to E4M3, at their [`Side::place`].
pub(super) fn put_f8(x: &[f32], store: &mut [F8], place: (usize, usize)) {
    let rounded: Vec<F8> = x.iter().map(|x| F8::from_f32(*x)).collect();
    put(&rounded, store, place);
}

simd_wide! {
    /// Stores a position's elements, rounded to half floats, at their [`Side::place`].
    pub(super) fn put_f16(x: &[f32], store: &mut [u16], place: (usize, usize)) => put_f16_body
}

#[inline(always)]
fn put_f16_body<W: Wide>(x: &[f32], store: &mut [u16], (first, step): (usize, usize)) {
    let (whole, rest) = x.as_chunks::<16>();
    let mut halves = [0; 16];
    let mut at = first;
    for x in whole {
        W::load(x).store_f16(&mut halves);
        put(&halves, store, (at, step));
        at += 16 * step;
    }
    let mut filled = [0.0; 16];
    filled[..rest.len()].copy_from_slice(rest);
    W::load(&filled).store_f16(&mut halves);
    put(&halves[..rest.len()], store, (at, step));
}

/// Elements from `first` on, `step` apart.
#[inline(always)]
fn put<E: Copy>(x: &[E], store: &mut [E], (first, step): (usize, usize)) {
    if x.is_empty() {
        return;
    }
    if step == 1 {
        store[first..][..x.len()].copy_from_slice(x);
        return;
    }
    for (to, x) in store[first..][..(x.len() - 1) * step + 1].iter_mut().step_by(step).zip(x) {
        *to = *x;
    }
}
