//! Drawing a token from a row of logits: what everyone who draws does alike, so that all draw the same one.
//!
//! The contract:
//! 1. A token's weight is e^((logit - greatest) · scale), the f32 of [`exp_scaled`], at most 1; in units of 2^-40, rounded down. It is 0
//!    for what is not a number, for -∞, and for what weighs less than `least` of the likeliest. Weights are integers so that
//!    their sums do not depend on the order, or on how many parts a row is cut into.
//! 2. Kept are the fewest tokens, best first (the greater logit, of equals the smaller id), whose weights sum to `share` of all.
//! 3. Of these, in order of their ids, it is the first at which the sum so far is above `uniform` of their sum.
//!
//! So what is less than 2^-40 as likely as the likeliest is never drawn. Where no logit is possible, it is token 0.

use bytemuck::{Pod, Zeroable};

use super::softmax::exp_scaled;
use crate::cpu::lanes::Lanes;
use crate::cpu::simd;

/// What the likeliest token weighs.
pub const ONE: u64 = 1 << 40;
/// Shares are counted in parts of 2^53: this is all.
pub const WHOLE: u64 = 1 << 53;

/// How the tokens of a sequence are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    /// One over the temperature.
    pub scale: f32,
    /// Min-p: tokens that weigh less, where the likeliest weighs 1, are not drawn.
    pub least: f32,
    /// Top-p, in parts of [`WHOLE`].
    pub share: u64,
    /// What the random numbers are made of, with positions.
    pub seed: u64,
}

impl Rule {
    /// The rule of these parameters.
    pub fn new(temperature: f32, top_p: f32, min_p: f32, seed: u64) -> Self {
        // What is no number says nothing.
        let share = if top_p < 1.0 { (f64::from(top_p) * WHOLE as f64) as u64 } else { WHOLE };
        let least = if min_p < 1.0 { min_p } else { 1.0 };
        Self { scale: 1.0 / temperature, least: if min_p.is_nan() { 0.0 } else { least }, share, seed }
    }

    /// How the token at a position is.
    pub fn at(&self, position: usize) -> Draw {
        let Self { scale, least, share, seed } = *self;
        Draw { scale, least, share, uniform: random(seed, position) }
    }

    /// Whether top-p may leave something out.
    pub fn cuts(&self) -> bool {
        self.share < WHOLE
    }
}

/// How one token is drawn. Kernels know its form.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Draw {
    /// As the [`Rule`] says.
    pub scale: f32,
    /// Likewise.
    pub least: f32,
    /// Likewise.
    pub share: u64,
    /// A random number below [`WHOLE`].
    pub uniform: u64,
}

/// A random number below [`WHOLE`], of a seed and a position: SplitMix64's output function (Steele, Lea and Flood, "Fast splittable
/// pseudorandom number generators", 2014) of both.
pub fn random(seed: u64, position: usize) -> u64 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let state = mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15))
        .wrapping_add((position as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mix(state) >> 11
}

/// The weights of a row whose greatest logit is `greatest`.
pub fn weigh(row: &[f32], greatest: f32, scale: f32, least: f32, weights: &mut Vec<u64>) {
    const AT_ONCE: usize = 1024;
    let mut floats = [0.0; AT_ONCE];
    weights.resize(row.len(), 0);
    for (logits, weights) in row.chunks(AT_ONCE).zip(weights.chunks_mut(AT_ONCE)) {
        let floats = &mut floats[..logits.len()];
        exp_scaled(logits, greatest, scale, floats);
        in_units(logits, floats, least, weights);
    }
}

simd! { fn in_units(logits: &[f32], floats: &[f32], least: f32, weights: &mut [u64]) => in_units_body }

/// (The lanes are only for the compiler to know which instructions it may use.)
#[inline(always)]
#[allow(clippy::extra_unused_type_parameters, reason = "of the macro that enters it")]
fn in_units_body<L: Lanes>(logits: &[f32], floats: &[f32], least: f32, weights: &mut [u64]) {
    for ((logit, float), weight) in logits.iter().zip(floats).zip(weights) {
        let float = if *float < 1.0 { *float } else { 1.0 };
        // ⌊float · 2^40⌋ by its bits: a conversion would be done one by one.
        let (exponent, digits) = (float.to_bits() >> 23, float.to_bits() & 0x7f_ffff | 0x80_0000);
        let units = (u64::from(digits) << 17) >> 127u32.wrapping_sub(exponent).min(63);
        // The exponential gives these a weight, too: a small one, or that of a very large number.
        let impossible = logit.is_nan() | (*logit == f32::NEG_INFINITY);
        *weight = if impossible | (float < least) { 0 } else { units };
    }
}

/// What must be reached of `total` for a share of it, in parts of [`WHOLE`].
pub fn enough(total: u64, share: u64) -> u64 {
    (u128::from(total) * u128::from(share)).div_ceil(u128::from(WHOLE)) as u64
}

/// What must be passed of `total`: less than it.
pub fn passed(total: u64, uniform: u64) -> u64 {
    (u128::from(total) * u128::from(uniform) / u128::from(WHOLE)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(row: &[f32], scale: f32, least: f32) -> Vec<u64> {
        let (mut weights, greatest) = (Vec::new(), row[super::super::softmax::argmax(row)]);
        weigh(row, greatest, scale, least, &mut weights);
        weights
    }

    #[test]
    fn the_likeliest_weigh_one_and_what_cannot_be_nothing() {
        let (nan, infinite) = (f32::NAN, f32::INFINITY);
        assert_eq!(weights(&[2.0, nan, 2.0, -infinite], 0.7, 0.0), [ONE, 0, ONE, 0]);
        assert_eq!(weights(&[infinite, 1.0, infinite, nan], 1.0, 0.0), [ONE, 0, ONE, 0]);
        assert_eq!(weights(&[0.0, -0.0], 100.0, 1.0), [ONE, ONE]);
        let halves = weights(&[0.0, -std::f32::consts::LN_2, -28.0, -27.0], 1.0, 0.0);
        assert!(halves[1].abs_diff(ONE / 2) < 1 << 18, "{halves:?}");
        assert_eq!(halves[2..], [0, 2], "e^-28 and e^-27 of 2^40");
        assert_eq!(weights(&[0.0, -1.0, -2.0], 1.0, 0.2).iter().filter(|weight| **weight > 0).count(), 2);
        let below: Vec<f32> = (0..300).map(|i| i as f32 * -0.1).collect();
        let mut floats = vec![0.0; below.len()];
        exp_scaled(&below, 0.0, 1.0, &mut floats);
        let converted: Vec<u64> = floats.iter().map(|float| (float.min(1.0) * ONE as f32) as u64).collect();
        assert_eq!(weights(&below, 1.0, 0.0), converted);
        // However long a row is, each weighs what it weighs alone.
        let long: Vec<f32> = (0..5000).map(|i| ((i * 131) % 997) as f32 * -0.02).collect();
        let all = weights(&long, 1.3, 0.0);
        assert!(long.iter().zip(&all).all(|(logit, weight)| weights(&[0.0, *logit], 1.3, 0.0)[1] == *weight));
    }

    #[test]
    fn shares_are_exact() {
        assert_eq!((enough(10, WHOLE / 2), enough(11, WHOLE / 2), enough(11, WHOLE)), (5, 6, 11));
        assert_eq!((enough(11, 0), enough(1 << 62, WHOLE), enough(1 << 62, 1)), (0, 1 << 62, 512));
        assert_eq!((passed(10, WHOLE / 2), passed(11, WHOLE / 2), passed(10, WHOLE - 1)), (5, 5, 9));
        assert_eq!(passed((1 << 62) - 1, WHOLE - 1), (1 << 62) - 513);
    }

    #[test]
    fn parameters_that_say_nothing_leave_all() {
        let rule = Rule::new(0.5, 1.0, 0.0, 7);
        assert_eq!(rule, Rule { scale: 2.0, least: 0.0, share: WHOLE, seed: 7 });
        assert!(!rule.cuts() && !Rule::new(1.0, f32::NAN, 0.0, 0).cuts());
        assert!(Rule::new(1.0, 1.0 - f32::EPSILON, 0.0, 0).cuts() && Rule::new(1.0, 0.0, 0.0, 0).share == 0);
        assert_eq!(Rule::new(1.0, 0.75, 0.0, 0).share, WHOLE / 4 * 3);
        assert_eq!([2.0, f32::NAN, 0.5].map(|min_p| Rule::new(1.0, 1.0, min_p, 0).least), [1.0, 0.0, 0.5]);
    }
}
