//! The decoder's working memory: made once, reused in every step.

use foggara_kernels::op::activations::Activations;
use foggara_models::{ArchSpec, RankSlice};

/// What every step writes besides the cache. Lengths follow the rows of the step.
pub(super) struct Buffers {
    hidden: usize,
    /// The residual stream.
    pub(super) x: Vec<f32>,
    /// What this rank adds to it; after the all-reduce, what all ranks do.
    pub(super) partial: Vec<f32>,
    pub(super) normed: Activations,
    /// What the output projection of attention takes.
    pub(super) attended: Activations,
    /// Normed rows that want logits.
    pub(super) last: Activations,
}

impl Buffers {
    pub(super) fn new(spec: &ArchSpec, slice: &RankSlice) -> Self {
        Self {
            hidden: spec.hidden,
            x: Vec::new(),
            partial: Vec::new(),
            normed: Activations::new(0, spec.hidden),
            attended: Activations::new(0, slice.q_heads.len() * spec.out_dim()),
            last: Activations::new(0, spec.hidden),
        }
    }

    /// Makes room for a step of `rows` rows.
    pub(super) fn set_rows(&mut self, rows: usize) {
        self.x.resize(rows * self.hidden, 0.0);
        self.partial.resize(rows * self.hidden, 0.0);
        self.normed.set_rows(rows);
        self.attended.set_rows(rows);
    }
}
