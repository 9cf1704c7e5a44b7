//! The decoder's working memory: made once, reused in every step.

use foggara_kernels::op::activations::Activations;
use foggara_models::{ArchSpec, RankSlice};

/// Everything a step writes besides the cache. Lengths follow the rows of the step.
pub(super) struct Buffers {
    hidden: usize,
    qkv_width: usize,
    q_width: usize,
    ffn: usize,
    /// The residual stream.
    pub(super) x: Vec<f32>,
    /// What this rank adds to it; after the all-reduce, what all ranks do.
    pub(super) partial: Vec<f32>,
    pub(super) normed: Activations,
    pub(super) qkv: Vec<f32>,
    pub(super) q: Vec<f32>,
    pub(super) attended: Activations,
    pub(super) gate_up: Vec<f32>,
    pub(super) gated: Activations,
    /// Normed rows that want logits.
    pub(super) last: Activations,
    /// This rank's part of the logits.
    pub(super) scores: Vec<f32>,
    /// Rank 0: everyone's parts, one after the other.
    pub(super) gathered: Vec<f32>,
    /// Rank 0: rows over the whole vocabulary.
    pub(super) logits: Vec<f32>,
}

impl Buffers {
    pub(super) fn new(spec: &ArchSpec, slice: &RankSlice) -> Self {
        let q_width = slice.q_heads.len() * spec.head_dim;
        Self {
            hidden: spec.hidden,
            qkv_width: q_width + 2 * slice.kv_heads.len() * spec.head_dim,
            q_width,
            ffn: slice.ffn.len(),
            x: Vec::new(),
            partial: Vec::new(),
            normed: Activations::new(0, spec.hidden),
            qkv: Vec::new(),
            q: Vec::new(),
            attended: Activations::new(0, q_width),
            gate_up: Vec::new(),
            gated: Activations::new(0, slice.ffn.len()),
            last: Activations::new(0, spec.hidden),
            scores: Vec::new(),
            gathered: Vec::new(),
            logits: Vec::new(),
        }
    }

    /// Makes room for a step of `rows` rows.
    pub(super) fn set_rows(&mut self, rows: usize) {
        self.x.resize(rows * self.hidden, 0.0);
        self.partial.resize(rows * self.hidden, 0.0);
        self.qkv.resize(rows * self.qkv_width, 0.0);
        self.q.resize(rows * self.q_width, 0.0);
        self.gate_up.resize(rows * 2 * self.ffn, 0.0);
        self.normed.set_rows(rows);
        self.attended.set_rows(rows);
        self.gated.set_rows(rows);
    }
}
