//! The decoder's working memory: made once, reused in every step.

use foggara_kernels::ThreadPool;
use foggara_kernels::op::activations::Activations;
use foggara_kernels::op::rms_norm::{add_assign, add_rms_norm};
use foggara_models::{ArchSpec, RankSlice};

use crate::draw;

/// What every step writes besides the cache. Lengths follow the rows of the step.
pub(super) struct Buffers {
    hidden: usize,
    /// The residual stream.
    pub(super) x: Vec<f32>,
    /// What this rank adds to it; after the all-reduce, what all ranks do.
    pub(super) partial: Vec<f32>,
    /// Whether that is still to be added to `x`.
    pub(super) pending: bool,
    pub(super) normed: Activations,
    /// What the output projection of attention takes.
    pub(super) attended: Activations,
    /// Normed rows that want logits.
    pub(super) last: Activations,
    /// Their logits, where only the best of some are told, or what is drawn from them.
    pub(super) scores: Vec<f32>,
    pub(super) draw: draw::Scratch,
}

impl Buffers {
    pub(super) fn new(spec: &ArchSpec, slice: &RankSlice) -> Self {
        Self {
            hidden: spec.hidden,
            x: Vec::new(),
            partial: Vec::new(),
            pending: false,
            normed: Activations::new(0, spec.hidden),
            attended: Activations::new(0, slice.q_heads.len() * spec.out_dim()),
            last: Activations::new(0, spec.hidden),
            scores: Vec::new(),
            draw: draw::Scratch::default(),
        }
    }

    /// normed = norm of x, to which what is pending is added in the same pass. `coded`: what takes it has quantized weights.
    pub(super) fn norm(&mut self, pool: &ThreadPool, weight: &[f32], eps: f32, coded: bool) {
        let add = std::mem::take(&mut self.pending).then_some(&self.partial[..]);
        add_rms_norm(pool, &mut self.x, add, weight, eps, coded, &mut self.normed);
    }

    /// Adds to x what is pending.
    pub(super) fn add_pending(&mut self) {
        if std::mem::take(&mut self.pending) {
            add_assign(&mut self.x, &self.partial);
        }
    }

    /// Makes room for a step of `rows` rows.
    pub(super) fn set_rows(&mut self, rows: usize) {
        self.pending = false;
        self.x.resize(rows * self.hidden, 0.0);
        self.partial.resize(rows * self.hidden, 0.0);
        self.normed.set_rows(rows);
        self.attended.set_rows(rows);
    }
}
