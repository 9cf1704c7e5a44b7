//! Pairs of bfloat16 in each lane, and what multiplies them.
//!
//! What two weights and two activations add to a sum is `fma(w_even, x_even, fma(w_odd, x_odd, sum))`: what VDPBF16PS of AVX512_BF16
//! does (Intel, "Architecture Instruction Set Extensions Programming Reference"), and what two multiply-adds do elsewhere, so that
//! results agree bit for bit. They differ only for numbers below 1.2 · 10^-38, of which the instruction makes zeros.

use super::lanes::PanelLanes;

/// How lanes hold pairs of weights and multiply them.
pub trait Pairs<L, const P: usize> {
    /// A pair for each lane.
    type Weights: Copy;
    /// A pair of activations.
    type Activations: Copy;
    /// Those of the forms of activations that are taken: pairs of bfloat16 by their bits, the even one low, or as floats.
    fn choose<'a>(pairs: &'a [u32], floats: &'a [[f32; 2]]) -> &'a [Self::Activations];
    /// Pairs from two columns of each panel, given by their bits.
    fn columns(even: [&[u16; 8]; P], odd: [&[u16; 8]; P]) -> Self::Weights;
    /// The pairs that each lane's bits are, the even ones low.
    fn words(bits: L) -> Self::Weights;
    /// Adds to each sum the products of the weights with its pair of activations.
    fn add<const T: usize>(sums: &mut [L; T], weights: Self::Weights, x: [Self::Activations; T]);
}

/// Halves become floats.
#[derive(Debug)]
pub struct Widened;

impl<L: PanelLanes<P>, const P: usize> Pairs<L, P> for Widened {
    type Weights = [L; 2];
    type Activations = [f32; 2];
    #[inline(always)]
    fn choose<'a>(_: &'a [u32], floats: &'a [[f32; 2]]) -> &'a [[f32; 2]] {
        floats
    }
    #[inline(always)]
    fn columns(even: [&[u16; 8]; P], odd: [&[u16; 8]; P]) -> [L; 2] {
        [L::load_bf16(even), L::load_bf16(odd)]
    }
    #[inline(always)]
    fn words(bits: L) -> [L; 2] {
        bits.pair_bf16()
    }
    #[inline(always)]
    fn add<const T: usize>(sums: &mut [L; T], [even, odd]: [L; 2], x: [[f32; 2]; T]) {
        // (Not row by row: registers are not enough for both, where lanes are few.)
        for t in 0..T {
            sums[t] = odd.fma(L::splat(x[t][1]), sums[t]);
        }
        for t in 0..T {
            sums[t] = even.fma(L::splat(x[t][0]), sums[t]);
        }
    }
}

/// `x` rounded to the nearest bfloat16 (ties to even), by its bits. What is below the normal numbers becomes a zero.
#[inline(always)]
pub(crate) fn bf16_of(x: f32) -> u32 {
    let bits = x.to_bits();
    let sign = bits & 0x8000_0000;
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let rounded = if bits - sign < 0x0080_0000 { sign } else { rounded };
    // Rounding must not make an infinity of what is no number.
    let rounded = if bits - sign > 0x7f80_0000 { bits | 0x0040_0000 } else { rounded };
    rounded >> 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::portable::F32x8;

    #[test]
    fn rounding_is_that_of_the_crate_for_half_floats() {
        let mut state = 1u64;
        for _ in 0..200_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let x = f32::from_bits((state >> 32) as u32);
            let expected = half::bf16::from_f32(x);
            let got = half::bf16::from_bits(bf16_of(x) as u16);
            if x.is_nan() {
                assert!(got.is_nan(), "{x:?}");
            } else if x.is_subnormal() {
                assert_eq!(got.to_bits() & 0x7fff, 0, "{x:e}");
            } else {
                assert_eq!(got.to_bits(), expected.to_bits(), "{x:e}");
            }
        }
        for (x, bits) in
            [(0.0, 0), (-0.0, 0x8000), (f32::INFINITY, 0x7f80), (f32::MAX, 0x7f80), (-1.0, 0xbf80)]
        {
            assert_eq!(bf16_of(x), bits, "{x}");
        }
    }

    #[test]
    fn the_odd_product_comes_first() {
        let bits = |x: f32| [half::bf16::from_f32(x).to_bits(); 8];
        let weights = <Widened as Pairs<F32x8, 1>>::columns([&bits(-16_777_216.0)], [&bits(16_777_216.0)]);
        // 2^24 + 1 is rounded to 2^24, of which -2^24 leaves nothing; the other way round 1 would be left.
        let mut sum = [PanelLanes::splat(1.0)];
        <Widened as Pairs<F32x8, 1>>::add(&mut sum, weights, [[1.0, 1.0]]);
        let mut out = [1.0; 8];
        PanelLanes::store(sum[0], 0, &mut out);
        assert_eq!(out, [0.0; 8]);
    }
}
