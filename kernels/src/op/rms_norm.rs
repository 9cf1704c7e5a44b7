//! Root-mean-square normalisation (Zhang and Sennrich, 2019), and adding the residual.

use super::activations::Activations;
use crate::cpu::lanes::{Lanes, Wide};
use crate::cpu::pool::ThreadPool;
use crate::cpu::shared_slice::SharedSlice;
use crate::cpu::{simd, simd_wide};

/// `out[t, i] = x[t, i] / sqrt(mean(x[t]²) + eps) · weight[i]` for `rows` rows of `weight.len()`.
///
/// Squares are summed in eight lanes, then pairwise: one order on every machine.
///
/// # Panics
/// If `x` or `out` is shorter than that.
pub fn rms_norm(pool: &ThreadPool, x: &[f32], rows: usize, weight: &[f32], eps: f32, out: &mut [f32]) {
    let cols = weight.len();
    let out = SharedSlice::new(&mut out[..rows * cols]);
    pool.run(rows, |t| {
        // SAFETY: each task has a row of its own.
        let out = unsafe { out.part(t * cols, cols) };
        rms_norm_row(&x[t * cols..][..cols], weight, eps, out);
    });
}

/// [`rms_norm`] of every row of `x` into the rows of `out`, whose number counts, and where `coded` their 8-bit form. With `add`,
/// `x += add` before. All of it is done with a row while it is in the cache.
///
/// # Panics
/// If the shapes do not agree.
pub fn add_rms_norm(
    pool: &ThreadPool,
    x: &mut [f32],
    add: Option<&[f32]>,
    weight: &[f32],
    eps: f32,
    coded: bool,
    out: &mut Activations,
) {
    let (rows, cols) = (out.rows(), weight.len());
    assert!(
        out.cols() == cols && x.len() >= rows * cols && add.is_none_or(|add| add.len() >= rows * cols),
        "add_rms_norm: {rows} rows of {cols}"
    );
    let x = SharedSlice::new(x);
    out.fill(pool, coded, |t, out| {
        // SAFETY: each task has a row of its own.
        let x = unsafe { x.part(t * cols, cols) };
        if let Some(add) = add {
            add_assign(x, &add[t * cols..][..cols]);
        }
        rms_norm_row(x, weight, eps, out);
    });
}

/// As [`rms_norm`], in place, over heads: head `h` of row `t` is the `weight.len()` elements from
/// `x[t · row_stride + h · weight.len()]` on, and each of the `heads` heads is normalised by itself.
///
/// # Panics
/// If `x` is too short, or the heads of a row do not fit its stride.
pub fn rms_norm_heads(
    pool: &ThreadPool,
    x: &mut [f32],
    rows: usize,
    row_stride: usize,
    heads: usize,
    weight: &[f32],
    eps: f32,
) {
    let width = heads * weight.len();
    assert!(width <= row_stride || rows <= 1, "rms_norm_heads: {heads} heads in a row of {row_stride}");
    if width == 0 {
        return;
    }
    let x = SharedSlice::new(x);
    pool.run(rows, |t| {
        // SAFETY: rows do not overlap (checked above), and each task has one of its own.
        let row = unsafe { x.part(t * row_stride, width) };
        row.chunks_exact_mut(weight.len()).for_each(|head| rms_norm_head(head, weight, eps));
    });
}

simd_wide! { fn rms_norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) => rms_norm_body }
simd! { fn rms_norm_head(x: &mut [f32], weight: &[f32], eps: f32) => rms_norm_head_body }

/// 1 / sqrt(mean(x²) + eps).
#[inline(always)]
fn scale_of<L: Lanes>(x: &[f32], eps: f32) -> f32 {
    let (whole, rest) = x.as_chunks::<8>();
    let mut squares = L::splat(0.0);
    for chunk in whole {
        let x = L::load(chunk);
        squares = x.fma(x, squares);
    }
    let tail = rest.iter().fold(0.0f32, |sum, x| x * x + sum);
    let mean = (squares.sum() + tail) / x.len() as f32;
    1.0 / (mean + eps).sqrt()
}

#[inline(always)]
fn rms_norm_body<W: Wide>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = scale_of::<W::Half>(x, eps);
    let lanes = W::splat(scale);
    let (whole, rest) = x.as_chunks::<16>();
    let at = whole.len() * 16;
    for ((x, w), out) in whole.iter().zip(weight.as_chunks::<16>().0).zip(out.as_chunks_mut::<16>().0) {
        W::load(x).mul(lanes).mul(W::load(w)).store(out);
    }
    for ((x, w), out) in rest.iter().zip(&weight[at..]).zip(&mut out[at..]) {
        *out = x * scale * w;
    }
}

#[inline(always)]
fn rms_norm_head_body<L: Lanes>(x: &mut [f32], weight: &[f32], eps: f32) {
    let scale = scale_of::<L>(x, eps);
    let lanes = L::splat(scale);
    let (whole, rest) = x.as_chunks_mut::<8>();
    let (weights, weight_rest) = weight.as_chunks::<8>();
    for (x, w) in whole.iter_mut().zip(weights) {
        L::load(x).mul(lanes).mul(L::load(w)).store(x);
    }
    for (x, w) in rest.iter_mut().zip(weight_rest) {
        *x = *x * scale * w;
    }
}

simd_wide! {
    /// `x += y`, element by element.
    pub fn add_assign(x: &mut [f32], y: &[f32]) => add_assign_body
}
simd_wide! {
    /// `out = a + b`, element by element.
    pub(crate) fn add_to(out: &mut [f32], a: &[f32], b: &[f32]) => add_to_body
}

#[inline(always)]
fn add_assign_body<W: Wide>(x: &mut [f32], y: &[f32]) {
    debug_assert_eq!(x.len(), y.len());
    let (whole, rest) = x.as_chunks_mut::<16>();
    let (whole_y, rest_y) = y.as_chunks::<16>();
    for (x, y) in whole.iter_mut().zip(whole_y) {
        W::load(x).add(W::load(y)).store(x);
    }
    for (x, y) in rest.iter_mut().zip(rest_y) {
        *x += y;
    }
}

#[inline(always)]
fn add_to_body<W: Wide>(out: &mut [f32], a: &[f32], b: &[f32]) {
    debug_assert!(out.len() == a.len() && a.len() == b.len());
    let ((whole, rest), (whole_a, rest_a), (whole_b, rest_b)) =
        (out.as_chunks_mut::<16>(), a.as_chunks::<16>(), b.as_chunks::<16>());
    for ((out, a), b) in whole.iter_mut().zip(whole_a).zip(whole_b) {
        W::load(a).add(W::load(b)).store(out);
    }
    for ((out, a), b) in rest.iter_mut().zip(rest_a).zip(rest_b) {
        *out = a + b;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::portable;

    #[test]
    fn agrees_with_double_precision_and_across_lanes() {
        for cols in [1, 7, 8, 64, 100] {
            let x: Vec<f32> = (0..cols * 3).map(|i| ((i * 29 % 83) as f32 - 41.0) * 0.07).collect();
            let weight: Vec<f32> = (0..cols).map(|i| 0.5 + i as f32 * 0.01).collect();
            let mut out = vec![0.0; cols * 3];
            rms_norm(&ThreadPool::new(2), &x, 3, &weight, 1e-5, &mut out);
            for t in 0..3 {
                let row = &x[t * cols..][..cols];
                let mean = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / cols as f64;
                for i in 0..cols {
                    let exact = f64::from(row[i]) / (mean + 1e-5).sqrt() * f64::from(weight[i]);
                    assert!(
                        (f64::from(out[t * cols + i]) - exact).abs() <= 1e-6 * exact.abs() + 1e-9,
                        "{cols}"
                    );
                }
                let mut plain = vec![0.0; cols];
                rms_norm_body::<[portable::F32x8; 2]>(row, &weight, 1e-5, &mut plain);
                assert_eq!(plain, out[t * cols..][..cols]);
            }
        }
    }

    #[test]
    fn adding_norming_and_coding_in_one_pass_are_the_three_one_after_the_other() {
        for (rows, cols) in [(1, 64), (5, 100), (3, 7), (0, 8)] {
            let x: Vec<f32> = (0..cols * rows).map(|i| ((i * 29 % 83) as f32 - 41.0) * 0.07).collect();
            let y: Vec<f32> = (0..cols * rows).map(|i| ((i * 13 % 71) as f32 - 35.0) * 0.11).collect();
            let weight: Vec<f32> = (0..cols).map(|i| 0.5 + i as f32 * 0.01).collect();
            for add in [None, Some(&y[..])] {
                let mut expected: Vec<f32> = x.clone();
                if add.is_some() {
                    expected.iter_mut().zip(&y).for_each(|(x, y)| *x += y);
                }
                let mut apart = Activations::new(rows, cols);
                rms_norm(&ThreadPool::new(1), &expected, rows, &weight, 1e-5, apart.f32_rows_mut());
                apart.quantize(&ThreadPool::new(1));
                let (mut sum, mut out) = (x.clone(), Activations::new(rows, cols));
                add_rms_norm(&ThreadPool::new(2), &mut sum, add, &weight, 1e-5, true, &mut out);
                assert_eq!(sum, expected);
                assert_eq!(out.f32_rows(), apart.f32_rows());
                assert_eq!(out.block_rows(0, rows), apart.block_rows(0, rows));
            }
        }
    }

    #[test]
    fn sums_are_those_of_each_element() {
        for len in [0, 1, 15, 16, 33, 100] {
            let a: Vec<f32> = (0..len).map(|i| i as f32 * 0.3 - 4.0).collect();
            let b: Vec<f32> = (0..len).map(|i| 7.0 - i as f32 * i as f32 * 0.01).collect();
            let expected: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
            let (mut sum, mut to) = (a.clone(), vec![f32::NAN; len]);
            add_assign(&mut sum, &b);
            add_to(&mut to, &a, &b);
            assert_eq!((&sum, &to), (&expected, &expected));
        }
    }

    #[test]
    fn heads_are_normalised_in_place_and_the_rest_of_a_row_is_left_alone() {
        for (dim, heads) in [(8, 3), (20, 2), (64, 1), (8, 0)] {
            let (rows, stride) = (3, heads * dim + 5);
            let x: Vec<f32> = (0..rows * stride).map(|i| ((i * 31 % 89) as f32 - 44.0) * 0.03).collect();
            let weight: Vec<f32> = (0..dim).map(|i| 1.5 - i as f32 * 0.02).collect();
            let (mut got, mut expected) = (x.clone(), x.clone());
            rms_norm_heads(&ThreadPool::new(2), &mut got, rows, stride, heads, &weight, 1e-6);
            for t in 0..rows {
                for h in 0..heads {
                    let at = t * stride + h * dim;
                    let mut out = vec![0.0; dim];
                    rms_norm(&ThreadPool::new(1), &x[at..], 1, &weight, 1e-6, &mut out);
                    expected[at..][..dim].copy_from_slice(&out);
                    let mut plain = x[at..][..dim].to_vec();
                    rms_norm_head_body::<portable::F32x8>(&mut plain, &weight, 1e-6);
                    assert_eq!(plain, out);
                }
            }
            assert_eq!(got, expected, "{heads} heads of {dim}");
        }
    }
}
