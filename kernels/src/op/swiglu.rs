//! The gated activation of the MLP (Shazeer, "GLU Variants Improve Transformer", 2020).

use crate::cpu::lanes::Lanes;
use crate::cpu::simd;

simd! {
    /// `out[i] = gate[i] / (1 + e^-gate[i]) · up[i]`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) => swiglu_body
}

#[inline(always)]
fn swiglu_lanes<L: Lanes>(gate: L, up: L) -> L {
    let one = L::splat(1.0);
    gate.div(one.add(L::splat(0.0).sub(gate).exp())).mul(up)
}

#[inline(always)]
fn swiglu_body<L: Lanes>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(
        gate.len() == up.len() && up.len() == out.len(),
        "swiglu: {} {} {}",
        gate.len(),
        up.len(),
        out.len()
    );
    let (gates, gate_rest) = gate.as_chunks::<8>();
    let (ups, up_rest) = up.as_chunks::<8>();
    let (outs, out_rest) = out.as_chunks_mut::<8>();
    for ((gate, up), out) in gates.iter().zip(ups).zip(outs) {
        swiglu_lanes(L::load(gate), L::load(up)).store(out);
    }
    let (mut gate, mut up, mut out) = ([0.0; 8], [0.0; 8], [0.0; 8]);
    gate[..gate_rest.len()].copy_from_slice(gate_rest);
    up[..up_rest.len()].copy_from_slice(up_rest);
    swiglu_lanes(L::load(&gate), L::load(&up)).store(&mut out);
    out_rest.copy_from_slice(&out[..out_rest.len()]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::portable;

    #[test]
    fn agrees_with_double_precision_and_across_lanes() {
        let gate: Vec<f32> = (0..1003).map(|i| (i as f32 - 500.0) * 0.3).collect();
        let up: Vec<f32> = (0..1003).map(|i| (i % 17) as f32 - 8.0).collect();
        let (mut out, mut plain) = (vec![0.0; 1003], vec![0.0; 1003]);
        swiglu(&gate, &up, &mut out);
        swiglu_body::<portable::F32x8>(&gate, &up, &mut plain);
        assert_eq!(out, plain);
        for i in 0..1003 {
            let g = f64::from(gate[i]);
            let exact = g / (1.0 + (-g).exp()) * f64::from(up[i]);
            assert!(
                (f64::from(out[i]) - exact).abs() <= 1e-6 * exact.abs() + 1e-30,
                "{g}: {} {exact}",
                out[i]
            );
        }
    }
}
