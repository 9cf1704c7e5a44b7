//! Logits of a rank's part of the vocabulary.

use foggara_kernels::cuda::op::elementwise::gather_rows;
use foggara_kernels::cuda::op::matmul::matmul;
use foggara_kernels::cuda::op::residual::add_and_norm;
use foggara_kernels::cuda::{ActsView, ActsViewMut, DeviceError};
use foggara_models::ArchSpec;

use super::buffers::Buffers;
use super::weights::DeviceWeights;
use crate::decoder::score::Wanted;

/// scores = this rank's part of the logits of rows of the residual stream.
pub(super) fn score_wanted(
    b: &mut Buffers,
    weights: &DeviceWeights,
    spec: &ArchSpec,
    wanted: &[Wanted],
    scores: &mut Vec<f32>,
) -> Result<(), DeviceError> {
    let (rows, hidden) = (wanted.len(), spec.hidden);
    if rows == 0 {
        return Ok(());
    }
    let numbers: Vec<u32> = wanted.iter().map(|wanted| wanted.row as u32).collect();
    b.wanted.view_mut().slice(0..rows).upload(&numbers)?;
    let out = ActsViewMut::F32(b.last_x.view_mut().slice(0..rows * hidden));
    gather_rows(out, ActsView::F32(b.x.view()), b.wanted.view().slice(0..rows), hidden)?;
    let out = b.last.view_mut().slice(0..rows * hidden);
    let x = b.last_x.view_mut().slice(0..rows * hidden);
    add_and_norm(Some(out), x, None, None, weights.final_norm.view(), rows, hidden, spec.norm_eps)?;
    let vocab = product(b, weights, rows, hidden)?;
    scores.resize(rows * vocab, 0.0);
    b.scores.view().slice(0..rows * vocab).download(scores)
}

/// The same of all `rows` rows, left on the device; returns this rank's part of the vocabulary.
pub(super) fn score_all(
    b: &mut Buffers,
    weights: &DeviceWeights,
    spec: &ArchSpec,
    rows: usize,
) -> Result<(), DeviceError> {
    let hidden = spec.hidden;
    let out = b.last.view_mut().slice(0..rows * hidden);
    let x = b.x.view_mut().slice(0..rows * hidden);
    add_and_norm(Some(out), x, None, None, weights.final_norm.view(), rows, hidden, spec.norm_eps)?;
    product(b, weights, rows, hidden).map(|_| ())
}

fn product(
    b: &mut Buffers,
    weights: &DeviceWeights,
    rows: usize,
    hidden: usize,
) -> Result<usize, DeviceError> {
    let output = weights.output.as_ref().or(weights.embedding.as_ref());
    let output = output.expect("the last stage holds the output layer");
    let vocab = output.rows();
    let out = b.scores.view_mut().slice(0..rows * vocab);
    matmul(out, vocab, b.last.view().slice(0..rows * hidden), output, rows)?;
    Ok(vocab)
}
