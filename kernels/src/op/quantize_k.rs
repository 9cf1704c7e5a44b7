//! Blocks of 256 with 6-bit scales and minima for each run of 32.

use half::f16;

use super::quantize_weights::{GREATEST, NEGLIGIBLE, extremes, inverse, load, scale_for, sum, weights};
use crate::cpu::lanes::Lanes;
use crate::cpu::simd;

/// Most that a 6-bit scale or minimum can be.
const STEPS: f32 = 63.0;
/// Steps that the range of a run is cut into at first: fewer than the 15 there are, or more, which cuts the ends off.
const REACHES: [f32; 7] = [15.0, 13.5, 14.25, 14.6, 15.5, 16.2, 17.0];

simd! { pub(super) fn q4_k(row: &[f32], out: &mut [u8]) => q4_k_body }

#[inline(always)]
pub(super) fn q4_k_body<L: Lanes>(row: &[f32], out: &mut [u8]) {
    for (x, out) in row.as_chunks::<256>().0.iter().zip(out.as_chunks_mut::<144>().0) {
        block::<L>(x, out);
    }
}

/// Thirty-two values and what an error in each costs.
#[derive(Clone, Copy)]
struct Run<L> {
    x: [L; 4],
    weights: [L; 4],
}

/// `value = scale · code - min`, neither negative.
#[derive(Clone, Copy, Default)]
struct Line {
    scale: f32,
    min: f32,
}

impl<L: Lanes> Run<L> {
    /// Values times `unit`.
    #[inline(always)]
    fn new(x: &[f32; 32], unit: f32) -> Self {
        let (high, low) = (L::splat(GREATEST * STEPS * 15.0), L::splat(-GREATEST * STEPS));
        let unit = L::splat(unit);
        let mut x: [L; 4] = load(x);
        for x in &mut x {
            *x = x.min(high).max(low).mul(unit);
        }
        Self { x, weights: weights(&x) }
    }

    /// The nearest codes.
    #[inline(always)]
    fn codes(&self, line: Line) -> [L; 4] {
        let (inverse, min) = (L::splat(inverse(line.scale)), L::splat(line.min));
        let mut q = self.x;
        for q in &mut q {
            *q = q.add(min).mul(inverse).min(L::splat(15.0)).max(L::splat(0.0)).round();
        }
        q
    }

    /// The weighted squared error with the nearest codes.
    #[inline(always)]
    fn error(&self, line: Line) -> f32 {
        let q = self.codes(line);
        let (scale, min) = (L::splat(-line.scale), L::splat(line.min));
        let mut error = L::splat(0.0);
        for ((w, x), q) in self.weights.iter().zip(&self.x).zip(q) {
            let off = scale.fma(q, x.add(min));
            error = w.mul(off).fma(off, error);
        }
        error.sum()
    }

    /// The best of several fits.
    #[inline(always)]
    fn fit(&self) -> Line {
        let (high, low) = extremes(&self.x);
        let low = low.min(0.0);
        let range = high - low;
        let mut best = Line { scale: range / 15.0, min: -low };
        if range <= 0.0 {
            // A run of one negative value needs no scale, one of zeros nothing.
            return best;
        }
        let w = sum(&self.weights);
        let mut wx = L::splat(0.0);
        for (w, x) in self.weights.iter().zip(&self.x) {
            wx = w.fma(*x, wx);
        }
        let wx = wx.sum();
        let mut most = f32::NEG_INFINITY;
        for reach in REACHES {
            let q = self.codes(Line { scale: range / reach, min: -low });
            let (mut wq, mut wqq, mut wqx) = (L::splat(0.0), L::splat(0.0), L::splat(0.0));
            for ((w, x), q) in self.weights.iter().zip(&self.x).zip(q) {
                let one = w.mul(q);
                (wq, wqq, wqx) = (wq.add(one), one.fma(q, wqq), one.fma(*x, wqx));
            }
            let (wq, wqq, wqx) = (wq.sum(), wqq.sum(), wqx.sum());
            // Least squares of scale · q + offset, and with the offset held at 0 where it would be positive.
            let determinant = w * wqq - wq * wq;
            let mut scale = (w * wqx - wq * wx) * inverse(determinant);
            let mut offset = (wqq * wx - wq * wqx) * inverse(determinant);
            if determinant <= 0.0 || offset > 0.0 {
                (scale, offset) = (wqx * inverse(wqq), 0.0);
            }
            // What is taken off the error.
            let gain = scale * wqx + offset * wx;
            if scale >= 0.0 && gain > most {
                (best, most) = (Line { scale, min: -offset }, gain);
            }
        }
        best
    }
}

/// A block's two scales, in units of its greatest value.
#[derive(Clone, Copy)]
struct Scales {
    scale: f32,
    min: f32,
}

impl Scales {
    fn line(self, steps: [u8; 2]) -> Line {
        Line { scale: self.scale * f32::from(steps[0]), min: self.min * f32::from(steps[1]) }
    }
}

#[inline(always)]
fn block<L: Lanes>(x: &[f32; 256], out: &mut [u8; 144]) {
    out.fill(0);
    let greatest = x.iter().fold(0.0f32, |greatest, x| greatest.max(x.abs())).min(GREATEST * STEPS * 15.0);
    if greatest < NEGLIGIBLE {
        return;
    }
    let runs = x.as_chunks::<32>().0;
    let unit = 1.0 / greatest;
    let mut lines = [Line::default(); 8];
    for (line, run) in lines.iter_mut().zip(runs) {
        *line = Run::<L>::new(run, unit).fit();
    }
    let most = |of: fn(&Line) -> f32| lines.iter().map(of).fold(0.0, f32::max);
    let stored =
        [most(|line| line.scale), most(|line| line.min)].map(|most| scale_for(most * greatest, STEPS));
    let [scale, min] = stored.map(|stored| stored.to_f32() / greatest);
    let scales = Scales { scale, min };
    let mut steps = [[0; 2]; 8];
    for (j, run) in runs.iter().enumerate() {
        let run = Run::<L>::new(run, unit);
        steps[j] = nearby_best(&run, lines[j], scales);
        let codes = L::to_codes(run.codes(scales.line(steps[j]))).codes;
        // Two runs share bytes: low nibbles, then high ones.
        for (to, code) in out[16 + j / 2 * 32..][..32].iter_mut().zip(codes) {
            *to |= (code as u8) << (j % 2 * 4);
        }
    }
    write(out, stored, &steps);
}

/// The 6-bit scale and minimum with the least error, among those next to `line`.
#[inline(always)]
fn nearby_best<L: Lanes>(run: &Run<L>, line: Line, scales: Scales) -> [u8; 2] {
    let nearest = |x: f32, unit: f32| (x * inverse(unit)).round_ties_even().clamp(0.0, STEPS) as u8;
    let (scale, min) = (nearest(line.scale, scales.scale), nearest(line.min, scales.min));
    let around = |at: u8| at.saturating_sub(1)..=(at + 1).min(STEPS as u8);
    let (mut best, mut least) = ([scale, min], f32::INFINITY);
    for scale in around(scale) {
        for min in around(min) {
            let error = run.error(scales.line([scale, min]));
            if error < least {
                (best, least) = ([scale, min], error);
            }
        }
    }
    best
}

/// The head of a block: two f16, then twelve bytes that hold eight pairs of six bits.
fn write(out: &mut [u8; 144], stored: [f16; 2], steps: &[[u8; 2]; 8]) {
    out[..2].copy_from_slice(&stored[0].to_le_bytes());
    out[2..4].copy_from_slice(&stored[1].to_le_bytes());
    let packed = &mut out[4..16];
    for j in 0..4 {
        let ([scale, min], [late_scale, late_min]) = (steps[j], steps[j + 4]);
        packed[j] = scale | (late_scale >> 4) << 6;
        packed[j + 4] = min | (late_min >> 4) << 6;
        packed[j + 8] = (late_scale & 15) | (late_min & 15) << 4;
    }
}
