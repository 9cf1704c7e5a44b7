//! Elements of eight bits.

use half::f16;

use super::store::{Side, zeroed};
use crate::cpu::lanes::Wide;
use crate::cpu::simd_wide;

/// Elements that share a scale; the last block of a vector may be shorter.
pub(crate) const BLOCK: usize = 32;

/// Codes, and for each block of dimensions the scales of all positions of the cell.
#[derive(Debug)]
pub(crate) struct Codes {
    pub(crate) codes: Vec<i8>,
    /// Half floats, by their bits.
    pub(crate) scales: Vec<u16>,
}

impl Codes {
    pub(super) fn new(side: Side, cells: usize) -> Self {
        Self { codes: zeroed(cells * side.elements()), scales: zeroed(cells * side.scales()) }
    }

    /// Stores a position's elements: each block's scale comes from that block alone.
    pub(super) fn put(&mut self, side: Side, cell: usize, offset: usize, x: &[f32]) {
        let (first, step) = side.place(cell, offset);
        let scales = cell * side.scales() + offset;
        for (b, block) in x.chunks(BLOCK).enumerate() {
            let scale = scale_of(block);
            self.scales[scales + b * side.size] = scale.to_bits();
            let inverse = match scale.to_f32() {
                0.0 => 0.0,
                scale => 1.0 / scale,
            };
            let mut codes = [0; BLOCK];
            codes_of(block, inverse, &mut codes);
            let to = self.codes[first + b * BLOCK * step..].iter_mut().step_by(step);
            for (to, code) in to.zip(&codes[..block.len()]) {
                *to = *code;
            }
        }
    }
}

simd_wide! { fn codes_of(x: &[f32], inverse: f32, codes: &mut [i8; BLOCK]) => codes_of_body }

/// Codes of a block, compiled for what there is: without, rounding is a call for each element.
#[inline(always)]
#[allow(clippy::extra_unused_type_parameters)]
fn codes_of_body<W: Wide>(x: &[f32], inverse: f32, codes: &mut [i8; BLOCK]) {
    for (code, x) in codes.iter_mut().zip(x) {
        // Saturates; a NaN becomes 0.
        *code = (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
    }
}

/// The greatest magnitude becomes 127; what half floats cannot hold is cut off.
fn scale_of(block: &[f32]) -> f16 {
    let greatest = block.iter().fold(0.0f32, |greatest, x| greatest.max(x.abs()));
    f16::from_f32((greatest / 127.0).min(f16::MAX.to_f32()))
}

/// What is stored of a position.
#[cfg(test)]
fn read(codes: &Codes, side: Side, cell: usize, offset: usize) -> Vec<f32> {
    let (first, step) = side.place(cell, offset);
    let scale = |d: usize| codes.scales[cell * side.scales() + d / BLOCK * side.size + offset];
    let value = |d: usize| f32::from(codes.codes[first + d * step]) * f16::from_bits(scale(d)).to_f32();
    (0..side.dim).map(value).collect()
}

/// What is left of a vector that has been stored.
#[cfg(test)]
pub(crate) fn rounded(x: &[f32]) -> Vec<f32> {
    let side = Side::by_position(x.len(), 8).expect("small");
    let mut codes = Codes::new(side, 1);
    codes.put(side, 0, 0, x);
    read(&codes, side, 0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_elements_are_near_and_depend_on_their_position_only() {
        let value = |offset: usize, d: usize| ((offset * 37 + d * 11) % 101) as f32 / 7.0 - 7.0;
        for dim in [8, 20, 32, 40, 64] {
            for side in [Side::by_dimension(dim, 16), Side::by_position(dim, 16)] {
                let side = side.expect("small");
                let mut codes = Codes::new(side, 3);
                let rows: Vec<Vec<f32>> =
                    (0..16).map(|offset| (0..dim).map(|d| value(offset, d)).collect()).collect();
                let mut alone = Vec::new();
                for (offset, row) in rows.iter().enumerate() {
                    codes.put(side, 1, offset, row);
                    alone.push(read(&codes, side, 1, offset));
                }
                for (offset, (row, alone)) in rows.iter().zip(&alone).enumerate() {
                    let stored = read(&codes, side, 1, offset);
                    assert_eq!(stored, *alone, "what came later changed nothing");
                    for (block, stored) in row.chunks(BLOCK).zip(stored.chunks(BLOCK)) {
                        let step = block.iter().fold(0.0f32, |a, x| a.max(x.abs())) / 127.0;
                        for (x, stored) in block.iter().zip(stored) {
                            // Half a step, and what rounding the scale to a half float costs.
                            assert!((x - stored).abs() <= step * 0.57, "{x} {stored}");
                        }
                    }
                }
                assert!(read(&codes, side, 0, 0).iter().chain(&read(&codes, side, 2, 15)).all(|x| *x == 0.0));
            }
        }
    }

    #[test]
    fn extremes_are_stored_without_harm() {
        let side = Side::by_position(4, 8).expect("small");
        let mut codes = Codes::new(side, 1);
        for (row, expected) in [
            ([0.0; 4], [0.0; 4]),
            ([1e-30, -1e-30, 0.0, 1e-38], [0.0; 4]),
            ([f32::MAX, f32::MIN, 0.0, 0.0], [127.0 * 65504.0, -127.0 * 65504.0, 0.0, 0.0]),
        ] {
            codes.put(side, 0, 3, &row);
            assert_eq!(read(&codes, side, 0, 3), expected);
        }
    }
}
