//! Float weights into stored blocks of fewer bits, as they are loaded.
//!
//! The blocks are GGUF's, so whatever reads that reads these. Each row is encoded by itself, and the same on every machine.
//! Errors are measured with the scales as stored, that is rounded to f16, and squared errors are weighted by `x² + mean x²`
//! of the block: large weights matter more, small ones still do.
//!
//! - Q8_0: scale = greatest |x| / 127, codes are the nearest; off by at most half a step.
//! - Q4_0: of several scales around greatest |x| / 8, with either sign, the one with the least weighted error, after it has
//!   been fitted to the codes it leads to; never worse than GGUF's own rule (the extreme element becomes code -8).
//! - Q4_K: for each run of 32 the best of several fits of scale and minimum; then, with both rounded to 6 bits of the block
//!   of 256's two scales, the best of the neighbouring pairs.
//!
//! Values beyond what a type can hold (8 million for Q8_0, half a million for Q4_0, minus 4 million for Q4_K) are cut off
//! there; those below half of the smallest f16 become zeros.

use half::f16;

use super::quantize_k;
use crate::cpu::lanes::Lanes;
use crate::cpu::simd;
use crate::dtype::WeightType;
use crate::error::KernelError;

/// Blocks whose values are all closer to zero than this are zeros: half of the smallest f16.
pub(super) const NEGLIGIBLE: f32 = f32::from_bits((127 - 25) << 23);
/// The greatest f16.
pub(super) const GREATEST: f32 = 65504.0;

/// Whether [`quantize_row`] can make blocks of `ty`.
pub const fn can_quantize(ty: WeightType) -> bool {
    matches!(ty, WeightType::Q8_0 | WeightType::Q4_0 | WeightType::Q4_K)
}

/// Appends the stored form of `row` in `ty` to `out`.
///
/// # Errors
/// If `ty` is not one of Q8_0, Q4_0 and Q4_K, the row is not whole blocks, or an element is not finite.
pub fn quantize_row(ty: WeightType, row: &[f32], out: &mut Vec<u8>) -> Result<(), KernelError> {
    let wrong = |reason: String| Err(KernelError::new("quantize", reason));
    if !can_quantize(ty) {
        return wrong(format!("{ty} cannot be made; Q8_0, Q4_0 and Q4_K can"));
    }
    if !row.len().is_multiple_of(ty.block_elems()) {
        return wrong(format!("a row of {} is not whole blocks of {}", row.len(), ty.block_elems()));
    }
    // Of what is not finite, all bits of the exponent are set; a greatest can be taken of many lanes at once.
    let magnitude = |x: &f32| (x.to_bits() & 0x7fff_ffff) as i32;
    if row.iter().map(magnitude).fold(0, i32::max) >= f32::INFINITY.to_bits() as i32
        && let Some(i) = row.iter().position(|x| !x.is_finite())
    {
        return wrong(format!("element {i} of a row is {}", row[i]));
    }
    let start = out.len();
    out.resize(start + ty.row_bytes(row.len()), 0);
    let to = &mut out[start..];
    match ty {
        WeightType::Q8_0 => q8_0(row, to),
        WeightType::Q4_0 => q4_0(row, to),
        _ => quantize_k::q4_k(row, to),
    }
    Ok(())
}

/// The f16 nearest to `greatest / steps`, or the next one if `greatest` were more than half a step beyond reach.
pub(super) fn scale_for(greatest: f32, steps: f32) -> f16 {
    let nearest = f16::from_f32((greatest / steps).min(GREATEST));
    match nearest < f16::MAX && greatest > (steps + 0.5) * nearest.to_f32() {
        true => f16::from_bits(nearest.to_bits() + 1),
        false => nearest,
    }
}

/// 1 / x, and 0 for 0.
pub(super) fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

#[inline(always)]
pub(super) fn load<L: Lanes>(x: &[f32; 32]) -> [L; 4] {
    let parts = x.as_chunks::<8>().0;
    [L::load(&parts[0]), L::load(&parts[1]), L::load(&parts[2]), L::load(&parts[3])]
}

/// What squared errors count: x² and its mean.
#[inline(always)]
pub(super) fn weights<L: Lanes>(x: &[L; 4]) -> [L; 4] {
    let squares = [x[0].mul(x[0]), x[1].mul(x[1]), x[2].mul(x[2]), x[3].mul(x[3])];
    let mean = L::splat(sum(&squares) / 32.0);
    [squares[0].add(mean), squares[1].add(mean), squares[2].add(mean), squares[3].add(mean)]
}

/// Sum over the lanes of all four.
#[inline(always)]
pub(super) fn sum<L: Lanes>(x: &[L; 4]) -> f32 {
    x[0].add(x[1]).add(x[2].add(x[3])).sum()
}

/// The greatest and the least.
#[inline(always)]
pub(super) fn extremes<L: Lanes>(x: &[L; 4]) -> (f32, f32) {
    let zero = L::splat(0.0);
    let high = x[0].max(x[1]).max(x[2].max(x[3])).greatest();
    let low = x[0].min(x[1]).min(x[2].min(x[3]));
    (high, -zero.sub(low).greatest())
}

simd! { fn q8_0(row: &[f32], out: &mut [u8]) => q8_0_body }

#[inline(always)]
fn q8_0_body<L: Lanes>(row: &[f32], out: &mut [u8]) {
    for (x, out) in row.as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<34>().0) {
        let x: [L; 4] = load(x);
        let (high, low) = extremes(&x);
        let greatest = high.max(-low);
        if greatest < NEGLIGIBLE {
            out.fill(0);
            continue;
        }
        let scale = scale_for(greatest, 127.0);
        let (inverse, limit) = (L::splat(inverse(scale.to_f32())), L::splat(127.0));
        let least = L::splat(-127.0);
        let mut steps = x;
        for x in &mut steps {
            *x = x.mul(inverse).min(limit).max(least);
        }
        let codes = L::to_codes(steps).codes;
        out[..2].copy_from_slice(&scale.to_le_bytes());
        out[2..].copy_from_slice(bytemuck::cast_slice(&codes));
    }
}

/// Where the extreme element comes to lie, in steps: negative codes reach to -8, positive ones to 7.
const Q4_0_REACHES: [f32; 9] = [-8.0, -7.0, -7.5, -8.5, -9.0, 6.5, 7.0, 7.5, 8.0];

simd! { fn q4_0(row: &[f32], out: &mut [u8]) => q4_0_body }

#[inline(always)]
fn q4_0_body<L: Lanes>(row: &[f32], out: &mut [u8]) {
    for (x, out) in row.as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<18>().0) {
        let (scale, codes) = q4_0_block::<L>(x);
        out[..2].copy_from_slice(&scale.to_le_bytes());
        for (i, out) in out[2..].iter_mut().enumerate() {
            *out = (codes[i] + 8) as u8 | ((codes[16 + i] + 8) as u8) << 4;
        }
    }
}

/// A block in units of its extreme element, which becomes 1: no square can leave the range of floats.
struct Unit<L> {
    extreme: f32,
    x: [L; 4],
    weights: [L; 4],
}

impl<L: Lanes> Unit<L> {
    #[inline(always)]
    fn codes(&self, inverse: f32) -> [L; 4] {
        let (inverse, high, low) = (L::splat(inverse), L::splat(7.0), L::splat(-8.0));
        let mut q = self.x;
        for q in &mut q {
            *q = q.mul(inverse).min(high).max(low).round();
        }
        q
    }

    /// The best of several scales, fitted to its codes.
    #[inline(always)]
    fn fit(&self) -> f32 {
        let (mut best, mut most) = (0.0, 0.0);
        for reach in Q4_0_REACHES {
            let q = self.codes(reach);
            let (mut xq, mut qq) = (L::splat(0.0), L::splat(0.0));
            for ((w, x), q) in self.weights.iter().zip(&self.x).zip(q) {
                let wq = w.mul(q);
                (xq, qq) = (wq.fma(*x, xq), wq.fma(q, qq));
            }
            // For these codes the best scale is Σwxq / Σwq², and it takes (Σwxq)² / Σwq² off the error.
            let (xq, qq) = (xq.sum(), qq.sum());
            let scale = xq * inverse(qq);
            if scale * xq > most {
                (best, most) = (scale, scale * xq);
            }
        }
        best
    }

    /// `scale` as it would be stored, and the error with it.
    #[inline(always)]
    fn stored(&self, scale: f32) -> (f16, f32) {
        let magnitude = f16::from_f32((scale * self.extreme).abs().min(GREATEST));
        let magnitude = if magnitude == f16::ZERO { f16::from_bits(1) } else { magnitude };
        let stored = if (scale * self.extreme).is_sign_negative() { -magnitude } else { magnitude };
        let scale = stored.to_f32() / self.extreme;
        let (q, back) = (self.codes(inverse(scale)), L::splat(-scale));
        let mut error = L::splat(0.0);
        for ((w, x), q) in self.weights.iter().zip(&self.x).zip(q) {
            let off = back.fma(q, *x);
            error = w.mul(off).fma(off, error);
        }
        (stored, error.sum())
    }
}

/// Scale and codes within -8..=7.
#[inline(always)]
fn q4_0_block<L: Lanes>(x: &[f32; 32]) -> (f16, [i8; 32]) {
    let (limit, least) = (L::splat(8.0 * GREATEST), L::splat(-8.0 * GREATEST));
    let mut x: [L; 4] = load(x);
    for x in &mut x {
        *x = x.min(limit).max(least);
    }
    let (high, low) = extremes(&x);
    let extreme = if high >= -low { high } else { low };
    if extreme.abs() < NEGLIGIBLE {
        return (f16::ZERO, [0; 32]);
    }
    let factor = L::splat(1.0 / extreme);
    for x in &mut x {
        *x = x.mul(factor);
    }
    let unit = Unit { extreme, x, weights: weights(&x) };
    let candidates = [-1.0 / 8.0, unit.fit()];
    let (mut stored, mut least) = (f16::ZERO, f32::INFINITY);
    for scale in candidates {
        let (scale, error) = unit.stored(scale);
        if error < least {
            (stored, least) = (scale, error);
        }
    }
    (stored, L::to_codes(unit.codes(inverse(stored.to_f32() / extreme))).codes)
}

#[cfg(test)]
#[path = "quantize_weights_tests.rs"]
mod tests;
