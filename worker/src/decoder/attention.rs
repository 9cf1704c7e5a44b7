//! Attention of one rank's heads over its cache, in both forms.

use foggara_kernels::ThreadPool;
use foggara_kernels::op::activations::Activations;
use foggara_kernels::op::attention::{AttentionParams, AttentionRow, attention};
use foggara_kernels::op::kv_cache::KvCache;
use foggara_kernels::op::rms_norm::{rms_norm, rms_norm_heads};
use foggara_kernels::op::rope::{RopeAngles, RopeTable};
use foggara_models::spec::{Attention, Grouped, Latent};
use foggara_models::{ArchSpec, RankSlice};

use super::adapted::{AdapterRunner, InLayer};
use super::project::{self, add_bias, product, project};
use crate::weights::{AttentionWeights, GroupedWeights, LatentWeights};

/// One of this rank's rows: its sequence's blocks and its position.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) blocks: &'a [u32],
    pub(super) position: usize,
}

/// What attention of every layer shares.
pub(super) struct Attender {
    heads: usize,
    kv_heads: usize,
    kv_head_of: Vec<u32>,
    scale: f32,
    softcap: Option<f32>,
    eps: f32,
    q: Vec<f32>,
    /// Queries, keys and values side by side; of latent attention the short vector and the shared key.
    qkv: Vec<f32>,
    latent: LatentBuffers,
}

/// Working memory of latent attention.
struct LatentBuffers {
    /// What queries are made from.
    short: Activations,
    queries: Vec<f32>,
    rotated: Vec<f32>,
    /// One head's part of a product.
    head: Activations,
    attended: Vec<f32>,
    value_in: Activations,
}

/// What a layer's attention needs of the decoder.
pub(super) struct Context<'a> {
    pub(super) pool: &'a ThreadPool,
    pub(super) cache: &'a mut KvCache,
    /// Among the layers of this rank's stage.
    pub(super) layer: usize,
    pub(super) rope: &'a RopeTable,
    pub(super) angles: &'a RopeAngles,
    pub(super) window: Option<usize>,
    pub(super) rows: &'a [Row<'a>],
    pub(super) adapted: &'a InLayer<'a>,
    pub(super) adapter: &'a mut AdapterRunner,
}

/// Whether any of the products of its normed rows takes their 8-bit form.
pub(super) fn takes_codes(weights: &AttentionWeights) -> bool {
    match weights {
        AttentionWeights::Grouped(w) => project::takes_codes(&w.qkv),
        AttentionWeights::Latent(w) => {
            w.kv_down.is_quantized() || w.q_down.as_ref().unwrap_or(&w.q_up).is_quantized()
        }
    }
}

impl Attender {
    pub(super) fn new(spec: &ArchSpec, slice: &RankSlice) -> Self {
        let group = spec.heads_per_kv();
        let local = |head: usize| u32::try_from(head / group - slice.kv_heads.start).expect("heads are few");
        let (short, nope, value_in) = match spec.attention {
            Attention::Grouped(_) => (0, 0, 0),
            Attention::Latent(a) => (a.q_rank.unwrap_or(0), a.nope_dim, a.kv_rank),
        };
        Self {
            heads: slice.q_heads.len(),
            kv_heads: slice.kv_heads.len(),
            kv_head_of: slice.q_heads.clone().map(local).collect(),
            scale: spec.attention_scale,
            softcap: spec.attention_softcap,
            eps: spec.norm_eps,
            q: Vec::new(),
            qkv: Vec::new(),
            latent: LatentBuffers {
                short: Activations::new(0, short),
                queries: Vec::new(),
                rotated: Vec::new(),
                head: Activations::new(0, nope),
                attended: Vec::new(),
                value_in: Activations::new(0, value_in),
            },
        }
    }

    /// partial = this rank's heads' part of attention's output, from `normed`.
    pub(super) fn run(
        &mut self,
        spec: &ArchSpec,
        weights: &AttentionWeights,
        normed: &mut Activations,
        attended: &mut Activations,
        partial: &mut [f32],
        context: &mut Context<'_>,
    ) {
        if self.heads == 0 {
            // A rank without heads still takes part in the sum.
            partial.fill(0.0);
            return;
        }
        let (o, o_bias) = match (spec.attention, weights) {
            (Attention::Grouped(a), AttentionWeights::Grouped(w)) => {
                self.grouped(a, w, normed, attended, context);
                (&w.o, &w.o_bias[..])
            }
            (Attention::Latent(a), AttentionWeights::Latent(w)) => {
                self.latent(a, w, normed, attended, context);
                (&w.o, &w.o_bias[..])
            }
            _ => unreachable!("weights are loaded as the architecture says"),
        };
        product(context.pool, o, attended, partial);
        add_bias(partial, o_bias);
        for (layer, rows) in context.adapted {
            context.adapter.add(context.pool, &layer.o, rows, attended, partial, o.rows());
        }
    }

    fn grouped(
        &mut self,
        a: Grouped,
        w: &GroupedWeights,
        normed: &mut Activations,
        attended: &mut Activations,
        c: &mut Context<'_>,
    ) {
        let (rows, dim) = (c.rows.len(), a.head_dim);
        let (q_width, kv_width) = (self.heads * dim, self.kv_heads * dim);
        let width = q_width + 2 * kv_width;
        let qkv = &mut self.qkv;
        qkv.resize(rows * width, 0.0);
        project(c.pool, &w.qkv, normed, qkv, width);
        add_bias(qkv, &w.qkv_bias);
        for (layer, rows) in c.adapted {
            c.adapter.add(c.pool, &layer.qkv, rows, normed, qkv, width);
        }
        if a.qk_norm {
            rms_norm_heads(c.pool, qkv, rows, width, self.heads, &w.q_norm, self.eps);
            rms_norm_heads(c.pool, &mut qkv[q_width..], rows, width, self.kv_heads, &w.k_norm, self.eps);
        }
        c.rope.rotate(c.angles, qkv, width, self.heads, dim);
        c.rope.rotate(c.angles, &mut qkv[q_width..], width, self.kv_heads, dim);
        let size = c.cache.block_size();
        self.q.resize(rows * q_width, 0.0);
        for ((row, qkv), q) in
            c.rows.iter().zip(qkv.chunks_exact(width)).zip(self.q.chunks_exact_mut(q_width))
        {
            let (k, v) = qkv[q_width..].split_at(kv_width);
            c.cache.write(c.layer, row.blocks[row.position / size], row.position % size, k, v);
            q.copy_from_slice(&qkv[..q_width]);
        }
        self.attend(&w.sinks, attended.f32_rows_mut(), c);
    }

    fn attend(&self, sinks: &[f32], out: &mut [f32], c: &Context<'_>) {
        let seen: Vec<AttentionRow<'_>> = c
            .rows
            .iter()
            .map(|row| {
                let len = row.position + 1;
                let window_start = c.window.map_or(0, |window| len.saturating_sub(window));
                AttentionRow { blocks: row.blocks, len, window_start }
            })
            .collect();
        let params =
            AttentionParams { kv_head_of: &self.kv_head_of, scale: self.scale, softcap: self.softcap, sinks };
        attention(c.pool, c.cache, c.layer, &self.q, &seen, &params, out);
    }

    /// Queries meet the short vectors themselves: the projections that would make keys and values of them are applied to
    /// the queries before, and to what was attended to after (the "absorbed" form of DeepSeek-V2, section 2.1.2).
    fn latent(
        &mut self,
        a: Latent,
        w: &LatentWeights,
        normed: &mut Activations,
        attended: &mut Activations,
        c: &mut Context<'_>,
    ) {
        let (rows, heads) = (c.rows.len(), self.heads);
        let b = &mut self.latent;
        let head_width = a.nope_dim + a.rope_dim;
        b.queries.resize(rows * heads * head_width, 0.0);
        match &w.q_down {
            Some(down) => {
                b.short.set_rows(rows);
                self.qkv.resize(rows * down.rows(), 0.0);
                product(c.pool, down, normed, &mut self.qkv);
                add_bias(&mut self.qkv, &w.q_down_bias);
                rms_norm(c.pool, &self.qkv, rows, &w.q_norm, a.norm_eps, b.short.f32_rows_mut());
                product(c.pool, &w.q_up, &mut b.short, &mut b.queries);
            }
            None => product(c.pool, &w.q_up, normed, &mut b.queries),
        }
        b.rotated.resize(rows * heads * a.rope_dim, 0.0);
        for (query, rotated) in b.queries.chunks_exact(head_width).zip(b.rotated.chunks_exact_mut(a.rope_dim))
        {
            rotated.copy_from_slice(&query[a.nope_dim..]);
        }
        c.rope.rotate(c.angles, &mut b.rotated, heads * a.rope_dim, heads, a.rope_dim);

        let width = a.kv_rank + a.rope_dim;
        self.qkv.resize(rows * width, 0.0);
        product(c.pool, &w.kv_down, normed, &mut self.qkv);
        add_bias(&mut self.qkv, &w.kv_down_bias);
        rms_norm_heads(c.pool, &mut self.qkv, rows, width, 1, &w.kv_norm, a.norm_eps);
        c.rope.rotate(c.angles, &mut self.qkv[a.kv_rank..], width, 1, a.rope_dim);
        let size = c.cache.block_size();
        for (row, key) in c.rows.iter().zip(self.qkv.chunks_exact(width)) {
            let block = row.blocks[row.position / size];
            c.cache.write(c.layer, block, row.position % size, key, &[]);
        }

        let key_stride = heads * width;
        self.q.resize(rows * key_stride, 0.0);
        b.head.set_rows(rows);
        for (h, into) in w.key_up.iter().enumerate() {
            let each = b.head.f32_rows_mut().chunks_exact_mut(a.nope_dim);
            for (t, to) in each.enumerate() {
                to.copy_from_slice(&b.queries[(t * heads + h) * head_width..][..a.nope_dim]);
            }
            b.head.prepare(c.pool, into);
            foggara_kernels::op::matmul::matmul(c.pool, into, &b.head, &mut self.q[h * width..], key_stride);
        }
        for (q, rotated) in self.q.chunks_exact_mut(width).zip(b.rotated.chunks_exact(a.rope_dim)) {
            q[a.kv_rank..].copy_from_slice(rotated);
        }

        let mut latent_out = std::mem::take(&mut self.latent.attended);
        latent_out.resize(rows * heads * a.kv_rank, 0.0);
        self.attend(&[], &mut latent_out, c);
        let b = &mut self.latent;
        b.attended = latent_out;
        b.value_in.set_rows(rows);
        let out_stride = heads * a.value_dim;
        for (h, up) in w.value_up.iter().enumerate() {
            for (t, to) in b.value_in.f32_rows_mut().chunks_exact_mut(a.kv_rank).enumerate() {
                to.copy_from_slice(&b.attended[(t * heads + h) * a.kv_rank..][..a.kv_rank]);
            }
            let out = &mut attended.f32_rows_mut()[h * a.value_dim..];
            b.value_in.prepare(c.pool, up);
            foggara_kernels::op::matmul::matmul(c.pool, up, &b.value_in, out, out_stride);
        }
    }
}
