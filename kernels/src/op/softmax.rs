//! Reductions over a row of logits.

use crate::cpu::lanes::{Lanes, Wide};
use crate::cpu::{simd, simd_wide};

simd! {
    /// ln Σ e^x, from which log-probabilities are made: `x[i] - log_sum_exp(x)`. -∞ for an empty row.
    pub fn log_sum_exp(x: &[f32]) -> f32 => log_sum_exp_body
}

#[inline(always)]
fn log_sum_exp_body<L: Lanes>(x: &[f32]) -> f32 {
    let greatest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !greatest.is_finite() {
        return greatest;
    }
    let (whole, rest) = x.as_chunks::<8>();
    let shift = L::splat(greatest);
    let mut total = 0.0f64;
    // 1,024 terms at most 1 each lose nothing that matters in f32; the partial sums are added in f64.
    for run in whole.chunks(128) {
        let mut sum = L::splat(0.0);
        for chunk in run {
            sum = sum.add(L::load(chunk).sub(shift).exp());
        }
        total += f64::from(sum.sum());
    }
    for x in rest {
        total += f64::from(x - greatest).exp();
    }
    (f64::from(greatest) + total.ln()) as f32
}

simd_wide! {
    /// `out[i] = e^((x[i] - shift) · scale)`: the weights a sampler draws from, for `shift` the greatest logit and `scale`
    /// one over the temperature.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn exp_scaled(x: &[f32], shift: f32, scale: f32, out: &mut [f32]) => exp_scaled_body
}

#[inline(always)]
fn exp_scaled_body<W: Wide>(x: &[f32], shift: f32, scale: f32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "exp_scaled");
    let (whole, rest) = x.as_chunks::<16>();
    let (outs, out_rest) = out.as_chunks_mut::<16>();
    let (shift, scale) = (W::splat(shift), W::splat(scale));
    for (x, out) in whole.iter().zip(outs) {
        W::load(x).sub(shift).mul(scale).exp().store(out);
    }
    let (mut last, mut lanes) = ([0.0; 16], [0.0; 16]);
    last[..rest.len()].copy_from_slice(rest);
    W::load(&last).sub(shift).mul(scale).exp().store(&mut lanes);
    out_rest.copy_from_slice(&lanes[..out_rest.len()]);
}

/// Index of the greatest element, the first of equals; NaN is never the greatest. 0 for an empty row.
pub fn argmax(x: &[f32]) -> usize {
    // The greatest of each run first (which vectorises), then its place.
    let greatest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    x.iter().position(|x| *x == greatest).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::portable;

    #[test]
    fn log_sum_exp_agrees_with_double_precision_and_across_lanes() {
        for len in [1, 5, 8, 4099] {
            let x: Vec<f32> = (0..len).map(|i| ((i * 131 % 997) as f32 - 400.0) * 0.02).collect();
            let exact = x.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
            let got = log_sum_exp(&x);
            assert!((f64::from(got) - exact).abs() < 2e-6 * exact.abs().max(1.0), "{len}: {got} {exact}");
            assert_eq!(got.to_bits(), log_sum_exp_body::<portable::F32x8>(&x).to_bits());
        }
        assert_eq!(log_sum_exp(&[]), f32::NEG_INFINITY);
    }

    #[test]
    fn exp_scaled_agrees_with_double_precision_and_across_lanes() {
        let x: Vec<f32> = (0..37).map(|i| i as f32 * 0.7 - 20.0).collect();
        let (mut out, mut plain) = (vec![0.0; 37], vec![0.0; 37]);
        exp_scaled(&x, 5.2, 1.25, &mut out);
        exp_scaled_body::<[portable::F32x8; 2]>(&x, 5.2, 1.25, &mut plain);
        assert_eq!(out, plain);
        for (x, got) in x.iter().zip(&out) {
            let exact = (f64::from((x - 5.2) * 1.25)).exp();
            assert!((f64::from(*got) - exact).abs() <= 1e-6 * exact, "{x}");
        }
    }

    #[test]
    fn argmax_is_the_first_of_equals() {
        for (x, expected) in [
            (&[1.0, 3.0, 3.0, 2.0][..], 1),
            (&[f32::NAN, -1.0], 1),
            (&[f32::NEG_INFINITY; 3], 0),
            (&[], 0),
            (&[0.0, -0.0], 0),
        ] {
            assert_eq!(argmax(x), expected, "{x:?}");
        }
    }
}
