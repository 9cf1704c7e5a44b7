//! y = x Wᵀ for a batch of rows: the op nearly all the time goes into.
//!
//! The contract, for each output feature r and each activation row t, whatever the batch, the threads and the lanes:
//! - quantized weights, runs b of 32 columns in increasing order:
//!   `acc = fma(scale_w[r,b] · scale_x[t,b], Σ code_w · code_x, acc)` with an exact integer sum, then, for formats with a
//!   minimum, `acc = fma(min_w[r,b], sum_x[t,b], acc)` (Q6_K: two half runs, each with its scale);
//! - float weights: even and odd columns are summed apart, `acc = fma(w, x, acc)` in increasing order, then added.
//!
//! So a row's result depends on no other row. Weights are read from memory once for the whole batch: panels outside, tiles
//! of [`TILE`] activation rows inside.

use super::activations::{ActBlock, Activations};
use super::panels::{Min, PANEL_ROWS, PanelFormat, WeightMatrix};
use crate::cpu::lanes::Lanes;
use crate::cpu::pool::ThreadPool;
use crate::cpu::shared_slice::SharedSlice;
use crate::cpu::simd;
use crate::dtype::WeightType;

/// Activation rows that share the unpacked weights of a block: with more, accumulators leave the registers.
const TILE: usize = 4;

/// Panels of one task: small enough to balance threads, large enough to be worth claiming.
const TASK_PANELS: usize = 8;

/// `y[t · y_stride + r] = Σ_k w[r, k] · x[t, k]` for every row `t` of `x`; overwrites.
///
/// Quantized weights take the 8-bit form of `x`: [`Activations::quantize`] must have been called since it changed.
///
/// # Panics
/// If the shapes do not agree.
pub fn matmul(pool: &ThreadPool, w: &WeightMatrix, x: &Activations, y: &mut [f32], y_stride: usize) {
    let (rows, batch) = (w.rows(), x.rows());
    if rows == 0 || batch == 0 {
        return;
    }
    assert_eq!(w.cols(), x.cols(), "matmul: columns of the weights and of the activations");
    assert!(
        y_stride >= rows && y.len() >= (batch - 1) * y_stride + rows,
        "matmul: {batch} × {rows} do not fit y"
    );
    let panels = rows.div_ceil(PANEL_ROWS);
    let out = SharedSlice::new(y);
    pool.run(panels.div_ceil(TASK_PANELS), |task| {
        let from = task * TASK_PANELS;
        run_panels(w, x, from, panels.min(from + TASK_PANELS), &out, y_stride);
    });
}

simd! {
    fn run_panels(w: &WeightMatrix, x: &Activations, from: usize, to: usize, out: &SharedSlice<'_, f32>, stride: usize)
        => run_panels_body
}

#[inline(always)]
fn run_panels_body<L: Lanes>(
    w: &WeightMatrix,
    x: &Activations,
    from: usize,
    to: usize,
    out: &SharedSlice<'_, f32>,
    stride: usize,
) {
    use WeightType as T;
    match w.weight_type() {
        T::Q4_0 => each_panel::<L, Quantized<{ T::Q4_0 as u8 }>>(w, x, from, to, out, stride),
        T::Q4_1 => each_panel::<L, Quantized<{ T::Q4_1 as u8 }>>(w, x, from, to, out, stride),
        T::Q4_K => each_panel::<L, Quantized<{ T::Q4_K as u8 }>>(w, x, from, to, out, stride),
        T::Q5_0 | T::Q8_0 => each_panel::<L, Quantized<{ T::Q8_0 as u8 }>>(w, x, from, to, out, stride),
        T::Q5_1 => each_panel::<L, Quantized<{ T::Q5_1 as u8 }>>(w, x, from, to, out, stride),
        T::Q5_K => each_panel::<L, Quantized<{ T::Q5_K as u8 }>>(w, x, from, to, out, stride),
        T::Q6_K => each_panel::<L, Quantized<{ T::Q6_K as u8 }>>(w, x, from, to, out, stride),
        T::F32 => each_panel::<L, FloatF32>(w, x, from, to, out, stride),
        T::F16 => each_panel::<L, FloatF16>(w, x, from, to, out, stride),
        T::BF16 => each_panel::<L, FloatBf16>(w, x, from, to, out, stride),
    }
}

/// How one kind of panel is multiplied with `T` activation rows.
trait PanelProduct {
    fn product<L: Lanes, const T: usize>(panel: &[u8], x: &Activations, first: usize) -> [L; T];
}

#[inline(always)]
fn each_panel<L: Lanes, P: PanelProduct>(
    w: &WeightMatrix,
    x: &Activations,
    from: usize,
    to: usize,
    out: &SharedSlice<'_, f32>,
    stride: usize,
) {
    for p in from..to {
        let panel = w.panel(p);
        let rows = PANEL_ROWS.min(w.rows() - p * PANEL_ROWS);
        let place = Place { out, stride, panel: p, rows };
        let mut t = 0;
        while t + TILE <= x.rows() {
            place.put(t, P::product::<L, TILE>(panel, x, t));
            t += TILE;
        }
        match x.rows() - t {
            1 => place.put(t, P::product::<L, 1>(panel, x, t)),
            2 => place.put(t, P::product::<L, 2>(panel, x, t)),
            3 => place.put(t, P::product::<L, 3>(panel, x, t)),
            _ => {}
        }
    }
}

/// Where a panel's results go.
struct Place<'a> {
    out: &'a SharedSlice<'a, f32>,
    stride: usize,
    panel: usize,
    rows: usize,
}

impl Place<'_> {
    #[inline(always)]
    fn put<L: Lanes, const T: usize>(&self, first: usize, sums: [L; T]) {
        for (i, sum) in sums.into_iter().enumerate() {
            // SAFETY: a panel belongs to one task, and its output features to no other panel.
            let out =
                unsafe { self.out.part((first + i) * self.stride + self.panel * PANEL_ROWS, self.rows) };
            if let Ok(out) = out.try_into() {
                sum.store(out);
            } else {
                let mut lanes = [0.0; PANEL_ROWS];
                sum.store(&mut lanes);
                out.copy_from_slice(&lanes[..self.rows]);
            }
        }
    }
}

/// A quantized type, by its number.
struct Quantized<const TY: u8>;

impl<const TY: u8> Quantized<TY> {
    const FORMAT: PanelFormat = {
        let mut i = 0;
        loop {
            if WeightType::ALL[i] as u8 == TY {
                break match PanelFormat::of(WeightType::ALL[i]) {
                    Some(format) => format,
                    None => panic!("not a quantized type"),
                };
            }
            i += 1;
        }
    };
}

#[inline(always)]
fn scales<L: Lanes>(format: PanelFormat, block: &[u8], at: usize) -> L {
    if format.wide_scales {
        let bytes: &[u8; 32] = block[at..].first_chunk().expect("a block holds its scales");
        L::load(&std::array::from_fn(|i| f32::from_ne_bytes(std::array::from_fn(|j| bytes[4 * i + j]))))
    } else {
        let bytes: &[u8; 16] = block[at..].first_chunk().expect("a block holds its scales");
        L::load_f16(&std::array::from_fn(|i| u16::from_ne_bytes([bytes[2 * i], bytes[2 * i + 1]])))
    }
}

/// A block's codes.
#[inline(always)]
fn code_block<const N: usize>(block: &[u8]) -> &[u8; N] {
    block.first_chunk().expect("a block holds its codes")
}

impl<const TY: u8> PanelProduct for Quantized<TY> {
    #[inline(always)]
    fn product<L: Lanes, const T: usize>(panel: &[u8], x: &Activations, first: usize) -> [L; T] {
        let f = Self::FORMAT;
        let rows: [&[ActBlock]; T] = std::array::from_fn(|t| x.blocks(first + t));
        let mut acc = [L::splat(0.0); T];
        for (b, block) in panel.chunks_exact(f.block_bytes()).enumerate() {
            let scale: L = scales(f, block, f.code_bytes());
            let mut a = [&rows[0][b]; T];
            let mut codes = [&a[0].codes; T];
            for t in 0..T {
                a[t] = &rows[t][b];
                codes[t] = &a[t].codes;
            }
            if f.two_scales {
                let [low, high] = L::halves_i8(code_block(block), codes);
                let second: L = scales(f, block, f.code_bytes() + f.scale_bytes());
                for t in 0..T {
                    let scale_x = L::splat(a[t].scale);
                    acc[t] = scale.mul(scale_x).fma(low[t], acc[t]);
                    acc[t] = second.mul(scale_x).fma(high[t], acc[t]);
                }
            } else {
                let dots = if f.four_bit {
                    L::dots_u4(code_block(block), codes)
                } else {
                    L::dots_i8(code_block(block), codes)
                };
                for t in 0..T {
                    acc[t] = scale.mul(L::splat(a[t].scale)).fma(dots[t], acc[t]);
                }
            }
            let min = match f.min {
                Min::None => continue,
                Min::Minus8Scales => scale.mul(L::splat(-8.0)),
                Min::Stored => scales(f, block, f.min_at()),
            };
            for t in 0..T {
                acc[t] = min.fma(L::splat(a[t].sum), acc[t]);
            }
        }
        acc
    }
}

macro_rules! float_product {
    ($name:ident, $unit:ty, $load:ident) => {
        struct $name;
        impl PanelProduct for $name {
            #[inline(always)]
            fn product<L: Lanes, const T: usize>(panel: &[u8], x: &Activations, first: usize) -> [L; T] {
                let columns: &[[$unit; PANEL_ROWS]] = bytemuck::cast_slice(panel);
                let (pairs, last) = columns.as_chunks::<2>();
                let mut rows: [&[[f32; 2]]; T] = [&[]; T];
                for t in 0..T {
                    rows[t] = &x.row(first + t).as_chunks().0[..pairs.len()];
                }
                let (mut even, mut odd) = ([L::splat(0.0); T], [L::splat(0.0); T]);
                for (pair, [w0, w1]) in pairs.iter().enumerate() {
                    let (w0, w1) = (L::$load(w0), L::$load(w1));
                    for t in 0..T {
                        let [x0, x1] = rows[t][pair];
                        even[t] = w0.fma(L::splat(x0), even[t]);
                        odd[t] = w1.fma(L::splat(x1), odd[t]);
                    }
                }
                if let [last] = last {
                    let last = L::$load(last);
                    for t in 0..T {
                        even[t] = last.fma(L::splat(x.row(first + t)[columns.len() - 1]), even[t]);
                    }
                }
                std::array::from_fn(|t| even[t].add(odd[t]))
            }
        }
    };
}

float_product!(FloatF32, f32, load);
float_product!(FloatF16, u16, load_f16);
float_product!(FloatBf16, u16, load_bf16);

#[cfg(test)]
#[path = "matmul_tests.rs"]
mod tests;
