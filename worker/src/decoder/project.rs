//! Products of several matrices with the same rows.

use foggara_kernels::ThreadPool;
use foggara_kernels::op::activations::Activations;
use foggara_kernels::op::matmul::matmul;
use foggara_kernels::op::panels::WeightMatrix;
use foggara_kernels::op::rms_norm::add_assign;

use crate::weights::Column;

/// Whether any of them takes the 8-bit form of rows.
pub(super) fn takes_codes(columns: &[Column]) -> bool {
    columns.iter().any(|column| column.weights.is_quantized())
}

/// Products of every column group, side by side in rows of `width`.
pub(super) fn project(
    pool: &ThreadPool,
    columns: &[Column],
    x: &mut Activations,
    out: &mut [f32],
    width: usize,
) {
    #[cfg(test)]
    let mut rounded = columns.first().and_then(|column| super::rounding::rounded(&column.weights, x, true));
    #[cfg(test)]
    let x = rounded.as_mut().unwrap_or(x);
    for column in columns {
        x.prepare(pool, &column.weights);
        matmul(pool, &column.weights, x, &mut out[column.at..], width);
    }
}

/// The product of one matrix, in rows as wide as it makes them.
pub(super) fn product(pool: &ThreadPool, w: &WeightMatrix, x: &mut Activations, out: &mut [f32]) {
    #[cfg(test)]
    let mut rounded = super::rounding::rounded(w, x, false);
    #[cfg(test)]
    let x = rounded.as_mut().unwrap_or(x);
    x.prepare(pool, w);
    matmul(pool, w, x, out, w.rows());
}

/// Adds `bias` to every row; nothing if it is empty.
pub(super) fn add_bias(x: &mut [f32], bias: &[f32]) {
    if !bias.is_empty() {
        for row in x.chunks_exact_mut(bias.len()) {
            add_assign(row, bias);
        }
    }
}
