//! What low-rank adapters add to products: scale · B·(A·x), for the rows of their sequences alone.
//!
//! Each row's part is a function of that row and its adapter: whatever else is in the batch, a sequence gets the same bits, and rows
//! without an adapter are not touched.

use std::sync::Arc;

use foggara_kernels::ThreadPool;
use foggara_kernels::op::activations::Activations;
use foggara_kernels::op::matmul::matmul;

use crate::weights::{Deltas, LayerAdapter, RankAdapter};

/// The rows of one adapter.
#[derive(Debug)]
pub(super) struct AdaptedRows {
    pub(super) adapter: Arc<RankAdapter>,
    pub(super) rows: Vec<usize>,
}

/// The rows of a step that are adapted, adapter by adapter.
pub(super) type Adapted = [AdaptedRows];

/// The same in one layer: what each adapter adds there, and to which rows.
pub(super) type InLayer<'a> = Vec<(&'a LayerAdapter, &'a [usize])>;

/// What adapters do in the `local`-th layer.
pub(super) fn in_layer(adapted: &Adapted, local: usize) -> InLayer<'_> {
    adapted.iter().map(|of| (of.adapter.layer(local), &of.rows[..])).collect()
}

/// Working memory.
#[derive(Debug, Default)]
pub(super) struct AdapterRunner {
    /// Adapted rows, side by side: one for each width met.
    rows: Vec<Activations>,
    /// A·x of all matrices of one input.
    low: Vec<f32>,
}

/// The buffer of that width.
fn of_width(buffers: &mut Vec<Activations>, width: usize) -> &mut Activations {
    let known = buffers.iter().position(|buffer| buffer.cols() == width);
    let known = known.unwrap_or_else(|| {
        buffers.push(Activations::new(0, width));
        buffers.len() - 1
    });
    &mut buffers[known]
}

impl AdapterRunner {
    /// Adds to the rows `rows` of `out`, each of `width`, what `deltas` make of these rows of `x`.
    pub(super) fn add(
        &mut self,
        pool: &ThreadPool,
        deltas: &Deltas,
        rows: &[usize],
        x: &Activations,
        out: &mut [f32],
        width: usize,
    ) {
        let Some(joined) = deltas.joined().filter(|_| !rows.is_empty()) else { return };
        let adapted = of_width(&mut self.rows, x.cols());
        adapted.set_rows(rows.len());
        for (row, to) in rows.iter().zip(adapted.f32_rows_mut().chunks_exact_mut(x.cols())) {
            to.copy_from_slice(x.row(*row));
        }
        let ranks = joined.a.rows();
        self.low.resize(rows.len() * ranks, 0.0);
        matmul(pool, &joined.a, adapted, &mut self.low, ranks);
        let mut from = 0;
        for part in &joined.parts {
            part.b.add(pool, part.scale, (&self.low[from..], ranks), rows, out, (width, part.at));
            from += part.b.rank();
        }
    }
}
