//! The forward pass: one decoder for every architecture an `ArchSpec` can describe.
//!
//! Every rank runs it on the same [`StepInput`]. Attention and MLP are split over ranks; what each computes of the residual
//! stream is summed after each of the two, and each rank scores its part of the vocabulary.

mod buffers;
mod input;

use std::ops::Range;

use foggara_kernels::collective::{Collective, CollectiveError};
use foggara_kernels::op::activations::Activations;
use foggara_kernels::op::attention::{AttentionParams, AttentionRow, attention};
use foggara_kernels::op::gated::{GatedActivation, gated};
use foggara_kernels::op::kv_cache::{KvCache, KvType};
use foggara_kernels::op::matmul::matmul;
use foggara_kernels::op::rms_norm::{add_assign, rms_norm};
use foggara_kernels::op::rope::{RopeAngles, RopeStyle, RopeTable};
use foggara_kernels::{KernelError, ThreadPool};
use foggara_models::{ArchSpec, RankSlice};

use crate::weights::{Column, LayerWeights, RankWeights};

use buffers::Buffers;
pub use input::{BlockTables, InputError, Segment, StepInput};

/// Rows of logits that exist at once: many would be hundreds of megabytes.
const LOGIT_ROWS: usize = 32;

/// One rank of the decoder.
pub struct Decoder {
    spec: ArchSpec,
    slice: RankSlice,
    /// Vocabulary rows of each rank.
    vocab_counts: Vec<usize>,
    weights: RankWeights,
    rope: RopeTable,
    kv_head_of: Vec<u32>,
    cache: KvCache,
    pool: ThreadPool,
    buffers: Buffers,
    angles: RopeAngles,
}

/// How a decoder keeps its keys and values.
#[derive(Debug, Clone, Copy)]
pub struct CacheConfig {
    /// Blocks in the pool.
    pub blocks: usize,
    /// Positions in a block.
    pub block_size: usize,
    /// Precision.
    pub ty: KvType,
}

impl CacheConfig {
    /// Bytes that the cache of one rank can come to; `None` if there is no such number.
    pub fn bytes(&self, spec: &ArchSpec, slice: &RankSlice) -> Option<usize> {
        let heads = slice.kv_heads.len();
        KvCache::bytes(
            spec.layers,
            self.blocks,
            self.block_size,
            heads,
            spec.head_dim,
            spec.head_dim,
            self.ty,
        )
    }
}

impl Decoder {
    /// A decoder of `slices[rank]` with an empty cache.
    ///
    /// # Errors
    /// If the cache cannot be made.
    pub fn new(
        spec: &ArchSpec,
        slices: &[RankSlice],
        rank: usize,
        weights: RankWeights,
        cache: CacheConfig,
        pool: ThreadPool,
    ) -> Result<Self, KernelError> {
        let slice = slices[rank].clone();
        let style = match spec.rope.style {
            foggara_models::RopeStyle::Interleaved => RopeStyle::Interleaved,
            foggara_models::RopeStyle::Half => RopeStyle::Half,
        };
        let group = spec.heads_per_kv();
        let local = |head: usize| u32::try_from(head / group - slice.kv_heads.start).expect("heads are few");
        let kv_head_of = slice.q_heads.clone().map(local).collect();
        let kv_heads = slice.kv_heads.len();
        let dim = spec.head_dim;
        let cache = KvCache::new(spec.layers, cache.blocks, cache.block_size, kv_heads, dim, dim, cache.ty)?;
        Ok(Self {
            spec: spec.clone(),
            vocab_counts: slices.iter().map(|slice| slice.vocab.len()).collect(),
            weights,
            rope: RopeTable::new(spec.rope.inv_freq.clone(), style, spec.rope.scale),
            kv_head_of,
            cache,
            pool,
            buffers: Buffers::new(spec, &slice),
            angles: RopeAngles::default(),
            slice,
        })
    }

    /// The architecture.
    pub fn spec(&self) -> &ArchSpec {
        &self.spec
    }

    /// Blocks in the cache.
    pub fn blocks(&self) -> usize {
        self.cache.blocks()
    }

    /// Runs one step. On rank 0, `on_logits(i, logits)` is called for each row that wants them, in order; `logits` spans
    /// the vocabulary.
    ///
    /// # Errors
    /// If the collectives fail; the group is unusable then.
    ///
    /// # Panics
    /// If `input` does not fit `tables` or the vocabulary: [`StepInput::check`] says so beforehand.
    pub fn forward(
        &mut self,
        input: &StepInput,
        tables: &BlockTables,
        collective: &mut dyn Collective,
        on_logits: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), CollectiveError> {
        let rows = input.tokens.len();
        if rows == 0 {
            return Ok(());
        }
        let positions = input.positions();
        self.rope.angles(&positions, &mut self.angles);
        self.buffers.set_rows(rows);
        self.embed(&input.tokens);
        collective.all_reduce(&mut self.buffers.x)?;
        for layer in 0..self.spec.layers {
            self.attend(layer, input, tables, &positions);
            collective.all_reduce(&mut self.buffers.partial)?;
            add_assign(&mut self.buffers.x, &self.buffers.partial);
            self.mlp(layer);
            collective.all_reduce(&mut self.buffers.partial)?;
            add_assign(&mut self.buffers.x, &self.buffers.partial);
        }
        let wanted = input.logit_rows();
        for (tile, rows) in wanted.chunks(LOGIT_ROWS).enumerate() {
            self.score(rows, collective)?;
            if collective.rank() == 0 {
                for (i, logits) in
                    self.buffers.logits.chunks_exact(self.spec.vocab).take(rows.len()).enumerate()
                {
                    on_logits(tile * LOGIT_ROWS + i, logits);
                }
            }
        }
        Ok(())
    }

    /// x = rows of the embedding; zeros for tokens of other ranks.
    fn embed(&mut self, tokens: &[u32]) {
        let vocab = &self.slice.vocab;
        for (token, x) in tokens.iter().zip(self.buffers.x.chunks_exact_mut(self.spec.hidden)) {
            match (*token as usize).checked_sub(vocab.start).filter(|row| *row < vocab.len()) {
                Some(row) => self.weights.embedding.dequantize_row(row, x),
                None => x.fill(0.0),
            }
        }
    }

    /// partial = this rank's heads' part of the attention's output.
    fn attend(&mut self, layer: usize, input: &StepInput, tables: &BlockTables, positions: &[u32]) {
        let w = &self.weights.layers[layer];
        let b = &mut self.buffers;
        let (rows, dim) = (positions.len(), self.spec.head_dim);
        let (q_width, kv_width) = (self.slice.q_heads.len() * dim, self.slice.kv_heads.len() * dim);
        let width = q_width + 2 * kv_width;
        if q_width == 0 {
            // A rank without heads still takes part in the sum.
            b.partial.fill(0.0);
            return;
        }
        rms_norm(&self.pool, &b.x, rows, &w.attn_norm, self.spec.norm_eps, b.normed.f32_rows_mut());
        project(&self.pool, &w.qkv, &mut b.normed, &mut b.qkv, width);
        add_bias(&mut b.qkv, &w.qkv_bias);
        self.rope.rotate(&self.angles, &mut b.qkv, width, self.slice.q_heads.len(), dim);
        self.rope.rotate(&self.angles, &mut b.qkv[q_width..], width, self.slice.kv_heads.len(), dim);
        let size = self.cache.block_size();
        let mut seen: Vec<AttentionRow<'_>> = Vec::with_capacity(rows);
        for segment in &input.segments {
            let blocks = tables.blocks(segment.slot);
            for position in segment.positions() {
                let row = seen.len();
                let qkv = &b.qkv[row * width..][..width];
                let (k, v) = qkv[q_width..].split_at(kv_width);
                self.cache.write(layer, blocks[position / size], position % size, k, v);
                seen.push(AttentionRow { blocks, len: position + 1, window_start: 0 });
            }
        }
        for (row, qkv) in b.qkv.chunks_exact(width).enumerate() {
            b.q[row * q_width..][..q_width].copy_from_slice(&qkv[..q_width]);
        }
        let params = AttentionParams {
            kv_head_of: &self.kv_head_of,
            scale: 1.0 / (dim as f32).sqrt(),
            softcap: None,
            sinks: &[],
        };
        attention(&self.pool, &self.cache, layer, &b.q, &seen, &params, b.attended.f32_rows_mut());
        if w.o.is_quantized() {
            b.attended.quantize(&self.pool);
        }
        matmul(&self.pool, &w.o, &b.attended, &mut b.partial, self.spec.hidden);
        add_bias(&mut b.partial, &w.o_bias);
    }

    /// partial = this rank's columns' part of the MLP's output.
    fn mlp(&mut self, layer: usize) {
        let w: &LayerWeights = &self.weights.layers[layer];
        let b = &mut self.buffers;
        let (rows, ffn) = (b.normed.rows(), self.slice.ffn.len());
        if ffn == 0 {
            b.partial.fill(0.0);
            return;
        }
        rms_norm(&self.pool, &b.x, rows, &w.mlp_norm, self.spec.norm_eps, b.normed.f32_rows_mut());
        project(&self.pool, &w.gate_up, &mut b.normed, &mut b.gate_up, 2 * ffn);
        for (both, out) in b.gate_up.chunks_exact(2 * ffn).zip(b.gated.f32_rows_mut().chunks_exact_mut(ffn)) {
            let (gate, up) = both.split_at(ffn);
            gated(GatedActivation::Silu, gate, up, out);
        }
        if w.down.is_quantized() {
            b.gated.quantize(&self.pool);
        }
        matmul(&self.pool, &w.down, &b.gated, &mut b.partial, self.spec.hidden);
    }

    /// Rank 0's logits = scores of the rows `wanted` over the whole vocabulary.
    fn score(&mut self, wanted: &[usize], collective: &mut dyn Collective) -> Result<(), CollectiveError> {
        let (hidden, vocab, count) = (self.spec.hidden, self.spec.vocab, wanted.len());
        let b = &mut self.buffers;
        b.last.set_rows(count);
        for (row, to) in wanted.iter().zip(b.last.f32_rows_mut().chunks_exact_mut(hidden)) {
            let x = &b.x[row * hidden..][..hidden];
            rms_norm(&self.pool, x, 1, &self.weights.final_norm, self.spec.norm_eps, to);
        }
        let output = self.weights.output.as_ref().unwrap_or(&self.weights.embedding);
        if output.is_quantized() {
            b.last.quantize(&self.pool);
        }
        let local = self.slice.vocab.len();
        b.scores.resize(count * local, 0.0);
        matmul(&self.pool, output, &b.last, &mut b.scores, local);
        let leads = collective.rank() == 0;
        if collective.size() == 1 || count == 1 {
            // One row, or one rank: the parts lie in order as they come.
            b.logits.resize(if leads { count * vocab } else { 0 }, 0.0);
            let counts: Vec<usize> = self.vocab_counts.iter().map(|part| part * count).collect();
            return collective.gather(&b.scores, &counts, &mut b.logits);
        }
        let counts: Vec<usize> = self.vocab_counts.iter().map(|part| part * count).collect();
        b.gathered.resize(if leads { count * vocab } else { 0 }, 0.0);
        collective.gather(&b.scores, &counts, &mut b.gathered)?;
        if leads {
            b.logits.resize(count * vocab, 0.0);
            interleave(&b.gathered, &self.vocab_counts, count, &mut b.logits);
        }
        Ok(())
    }
}

/// From rank-major parts (each `rows` × its count) to rows over the whole vocabulary.
fn interleave(parts: &[f32], counts: &[usize], rows: usize, out: &mut [f32]) {
    let vocab: usize = counts.iter().sum();
    let (mut start, mut column) = (0, 0);
    for count in counts {
        for row in 0..rows {
            let from = &parts[start + row * count..][..*count];
            out[row * vocab + column..][..*count].copy_from_slice(from);
        }
        start += rows * count;
        column += count;
    }
}

/// Products of every column group, side by side in rows of `width`.
fn project(pool: &ThreadPool, columns: &[Column], x: &mut Activations, out: &mut [f32], width: usize) {
    if columns.iter().any(|column| column.weights.is_quantized()) {
        x.quantize(pool);
    }
    for column in columns {
        matmul(pool, &column.weights, x, &mut out[column.at..], width);
    }
}

/// Adds `bias` to every row; nothing if it is empty.
fn add_bias(x: &mut [f32], bias: &[f32]) {
    if !bias.is_empty() {
        for row in x.chunks_exact_mut(bias.len()) {
            add_assign(row, bias);
        }
    }
}

/// Rows of a segment as a range of absolute positions.
fn span(start: u32, len: u32) -> Range<usize> {
    start as usize..start as usize + len as usize
}

#[cfg(test)]
mod tests;
