//! The gated activations of the MLP (Shazeer, "GLU Variants Improve Transformer", 2020).

use crate::cpu::lanes::{Floats, Wide};
use crate::cpu::simd_wide;

/// How the gate acts on the other half.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum GatedActivation {
    /// `gate · sigmoid(gate) · up`.
    Silu,
    /// `gelu(gate) · up` with the approximation by tanh:
    /// `gelu(g) = g/2 · (1 + tanh(√(2/π) · (g + 0.044715 g³)))`.
    GeluTanh,
    /// `g · sigmoid(alpha · g) · (u + 1)` with `g = min(gate, limit)` and `u = clamp(up, -limit, limit)`.
    ClampedSwiglu {
        /// Steepness of the gate.
        alpha: f32,
        /// Where both halves are cut off.
        limit: f32,
    },
}

simd_wide! {
    /// `out[i] = activation(gate[i], up[i])`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn gated(activation: GatedActivation, gate: &[f32], up: &[f32], out: &mut [f32]) => gated_body
}

#[inline(always)]
fn gated_body<W: Wide>(activation: GatedActivation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    match activation {
        GatedActivation::Silu => each::<W, _>(gate, up, out, &Silu),
        GatedActivation::GeluTanh => each::<W, _>(gate, up, out, &GeluTanh),
        GatedActivation::ClampedSwiglu { alpha, limit } => {
            let splat = W::splat;
            each::<W, _>(
                gate,
                up,
                out,
                &Clamped { alpha: splat(alpha), high: splat(limit), low: splat(-limit) },
            );
        }
    }
}

/// An activation on lanes. (A closure would not be compiled for the instructions its caller may use.)
trait Gate<W: Floats> {
    fn apply(&self, gate: W, up: W) -> W;
}

struct Silu;
struct GeluTanh;
struct Clamped<W> {
    alpha: W,
    high: W,
    low: W,
}

impl<W: Floats> Gate<W> for Silu {
    #[inline(always)]
    fn apply(&self, gate: W, up: W) -> W {
        swish(gate, gate).mul(up)
    }
}

impl<W: Floats> Gate<W> for GeluTanh {
    #[inline(always)]
    fn apply(&self, gate: W, up: W) -> W {
        // (1 + tanh(x)) / 2 = sigmoid(2x), which loses nothing where tanh is close to -1.
        let cubic = W::splat(0.044_715).mul(gate).mul(gate).fma(gate, gate);
        swish(gate, W::splat(1.595_769).mul(cubic)).mul(up)
    }
}

impl<W: Floats> Gate<W> for Clamped<W> {
    #[inline(always)]
    fn apply(&self, gate: W, up: W) -> W {
        // In this order of operands NaN stays NaN.
        let (gate, up) = (self.high.min(gate), self.low.max(self.high.min(up)));
        swish(gate, self.alpha.mul(gate)).mul(up.add(W::splat(1.0)))
    }
}

/// `x · sigmoid(by)`.
#[inline(always)]
fn swish<W: Floats>(x: W, by: W) -> W {
    x.div(W::splat(1.0).add(W::splat(0.0).sub(by).exp()))
}

#[inline(always)]
fn each<W: Wide, G: Gate<W>>(gate: &[f32], up: &[f32], out: &mut [f32], f: &G) {
    assert!(
        gate.len() == up.len() && up.len() == out.len(),
        "gated: {} {} {}",
        gate.len(),
        up.len(),
        out.len()
    );
    let (gates, gate_rest) = gate.as_chunks::<16>();
    let (ups, up_rest) = up.as_chunks::<16>();
    let (outs, out_rest) = out.as_chunks_mut::<16>();
    for ((gate, up), out) in gates.iter().zip(ups).zip(outs) {
        f.apply(W::load(gate), W::load(up)).store(out);
    }
    let (mut gate, mut up, mut out) = ([0.0; 16], [0.0; 16], [0.0; 16]);
    gate[..gate_rest.len()].copy_from_slice(gate_rest);
    up[..up_rest.len()].copy_from_slice(up_rest);
    f.apply(W::load(&gate), W::load(&up)).store(&mut out);
    out_rest.copy_from_slice(&out[..out_rest.len()]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::portable;

    fn exact(activation: GatedActivation, gate: f32, up: f32) -> f64 {
        let (g, u) = (f64::from(gate), f64::from(up));
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        match activation {
            GatedActivation::Silu => g * sigmoid(g) * u,
            GatedActivation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044_715 * g.powi(3));
                0.5 * g * (1.0 + inner.tanh()) * u
            }
            GatedActivation::ClampedSwiglu { alpha, limit } => {
                let limit = f64::from(limit);
                let (g, u) = (g.min(limit), u.clamp(-limit, limit));
                g * sigmoid(f64::from(alpha) * g) * (u + 1.0)
            }
        }
    }

    #[test]
    fn agrees_with_double_precision_and_across_lanes() {
        let gate: Vec<f32> = (0..1003).map(|i| (i as f32 - 500.0) * 0.03).collect();
        let wide: Vec<f32> = gate.iter().map(|x| x * 10.0).collect();
        let up: Vec<f32> = (0..1003).map(|i| (i % 17) as f32 - 8.0).collect();
        let clamped = GatedActivation::ClampedSwiglu { alpha: 1.702, limit: 7.0 };
        // Far out on the negative side the argument's own rounding is what is seen, of results that vanish.
        for (activation, gate, vanishing) in [
            (GatedActivation::Silu, &wide, 1e-30),
            (GatedActivation::Silu, &gate, 0.0),
            (GatedActivation::GeluTanh, &gate, 1e-6),
            (GatedActivation::GeluTanh, &wide, 1e-6),
            (clamped, &gate, 1e-7),
            (clamped, &wide, 1e-7),
        ] {
            let (mut out, mut plain) = (vec![0.0; 1003], vec![0.0; 1003]);
            gated(activation, gate, &up, &mut out);
            gated_body::<[portable::F32x8; 2]>(activation, gate, &up, &mut plain);
            assert_eq!(out, plain, "{activation:?}");
            for i in 0..1003 {
                let exact = exact(activation, gate[i], up[i]);
                assert!(
                    (f64::from(out[i]) - exact).abs() <= 1e-6 * exact.abs() + vanishing,
                    "{activation:?} {} {}: {} {exact}",
                    gate[i],
                    up[i],
                    out[i]
                );
            }
        }
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        let clamped = GatedActivation::ClampedSwiglu { alpha: 1.702, limit: 7.0 };
        for activation in [GatedActivation::Silu, GatedActivation::GeluTanh, clamped] {
            let mut out = [0.0; 3];
            gated(activation, &[f32::NAN, 1.0, 1.0], &[1.0, f32::NAN, 1.0], &mut out);
            assert!(out[0].is_nan() && out[1].is_nan() && out[2].is_finite(), "{activation:?} {out:?}");
        }
    }
}
