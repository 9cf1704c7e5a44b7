//! Attention of a rank's heads on its device, in both forms.

use foggara_kernels::cuda::op::attention::{
    Attention as Params, AttentionScratch, HeadMap, attention, attention_matmul,
};
use foggara_kernels::cuda::op::convert::convert;
use foggara_kernels::cuda::op::elementwise::add_bias;
use foggara_kernels::cuda::op::kv_cache::DeviceKv;
use foggara_kernels::cuda::op::matmul::{CachedRows, batched_matmul, matmul, matmul_into_cache};
use foggara_kernels::cuda::op::residual::add_and_norm;
use foggara_kernels::cuda::op::rope::{
    DeviceAngles, Grouped as GroupedRows, HeadsAt, LatentKeys, latent_write, rope_and_write, rope_rows,
};
use foggara_kernels::cuda::op::step_rows::StepRows;
use foggara_kernels::cuda::{ActsViewMut, Buffer, DeviceError, DeviceMatrix, View, ViewMut, WeightKind};
use foggara_models::spec::{Attention, Grouped, Latent};

use super::DeviceDecoder;
use super::buffers::Buffers;
use super::inputs::Kinds;
use super::weights::{DeviceAttention, DeviceGrouped, DeviceLatent, Maybe};

/// What a layer's attention needs of the decoder.
struct Context<'a> {
    cache: &'a mut DeviceKv,
    /// Among the layers of this rank's stage.
    layer: usize,
    angles: &'a DeviceAngles,
    rows: &'a StepRows,
    heads: &'a HeadMap,
    scale: f32,
    softcap: Option<f32>,
    window: Option<usize>,
    eps: f32,
    hidden: usize,
}

impl DeviceDecoder {
    /// partial = this rank's heads' part of attention's output, from `normed`.
    pub(super) fn attend(&mut self, local: usize, rows: &StepRows) -> Result<(), DeviceError> {
        let hidden = self.spec.hidden;
        let b = &mut self.buffers;
        let width = rows.rows() * hidden;
        if self.slice.q_heads.is_empty() {
            // A rank without heads still takes part in the sum.
            return b.partial.view_mut().slice(0..width).fill(0);
        }
        let layer = &self.spec.layers[self.slice.layers.start + local];
        let mut c = Context {
            cache: &mut self.cache,
            layer: local,
            angles: &self.angles[layer.rope],
            rows,
            heads: &self.heads,
            scale: self.spec.attention_scale,
            softcap: self.spec.attention_softcap,
            window: layer.window,
            eps: self.spec.norm_eps,
            hidden,
        };
        let bias = match (self.spec.attention, &self.weights.layers[local].attention) {
            (Attention::Grouped(a), DeviceAttention::Grouped(w)) => {
                grouped(b, a, w, &mut c)?;
                &w.o_bias
            }
            (Attention::Latent(a), DeviceAttention::Latent(w)) => {
                latent(b, a, w, &mut c)?;
                project(b, &w.o, &c)?;
                &w.o_bias
            }
            _ => unreachable!("weights are loaded as the architecture says"),
        };
        bias_rows(b.partial.view_mut().slice(0..width), hidden, rows.rows(), bias)
    }
}

/// Adds a bias to every row, where there is one.
pub(super) fn bias_rows(
    x: ViewMut<'_, f32>,
    width: usize,
    rows: usize,
    bias: &Maybe,
) -> Result<(), DeviceError> {
    bias.as_ref().map_or(Ok(()), |bias| add_bias(x, width, rows, bias.view()))
}

/// partial = the product of what was attended to with the output projection.
fn project(b: &mut Buffers, o: &DeviceMatrix, c: &Context<'_>) -> Result<(), DeviceError> {
    let rows = c.rows.rows();
    let attended = b.attended.of(o.kind(), rows, o.cols());
    matmul(b.partial.view_mut().slice(0..rows * c.hidden), c.hidden, attended, o, rows)
}

/// All of it, with the output projection.
fn grouped(b: &mut Buffers, a: Grouped, w: &DeviceGrouped, c: &mut Context<'_>) -> Result<(), DeviceError> {
    let (rows, heads) = (c.rows.rows(), c.heads.heads());
    let width = (heads + 2 * c.cache.sizes().kv_heads) * a.head_dim;
    let q_width = heads * a.head_dim;
    let with = GroupedRows {
        bias: w.qkv_bias.as_ref().map(Buffer::view),
        q_norm: w.q_norm.as_ref().map(Buffer::view),
        k_norm: w.k_norm.as_ref().map(Buffer::view),
        eps: c.eps,
        heads,
    };
    let q = b.q.view_mut().slice(0..rows * q_width);
    if let [all] = w.qkv.as_slice() {
        let x = b.normed.of(all.weights.kind(), rows, c.hidden);
        let r = CachedRows { x, w: &all.weights, qkv: b.qkv.view_mut().slice(0..rows * width), q };
        matmul_into_cache(r, c.cache, c.layer, c.rows, &with, c.angles)?;
    } else {
        for column in &w.qkv {
            let out = b.qkv.view_mut().slice(column.at..rows * width);
            matmul(out, width, b.normed.of(column.weights.kind(), rows, c.hidden), &column.weights, rows)?;
        }
        let qkv = b.qkv.view().slice(0..rows * width);
        rope_and_write(q, c.cache, c.layer, c.rows, qkv, &with, c.angles)?;
    }
    let sinks = w.sinks.as_ref().map(Buffer::view);
    let q = b.q.view().slice(0..rows * q_width);
    let (plain, codes) = b.attended.both_mut(w.o.kind(), rows, q_width);
    if let Some(codes) = codes {
        let out = b.partial.view_mut().slice(0..rows * c.hidden);
        let (scratch, a) = (&mut b.scratch, params(sinks, c));
        return attention_matmul(out, &w.o, codes, plain, q, c.cache, c.layer, c.rows, &a, scratch);
    }
    meet(plain, q, sinks, &mut b.scratch, c)?;
    project(b, &w.o, c)
}

fn params<'a>(sinks: Option<View<'a, f32>>, c: &Context<'a>) -> Params<'a> {
    Params { heads: c.heads, scale: c.scale, softcap: c.softcap, window: c.window, sinks }
}

fn meet(
    out: ActsViewMut<'_>,
    q: View<'_, f32>,
    sinks: Option<View<'_, f32>>,
    scratch: &mut AttentionScratch,
    c: &Context<'_>,
) -> Result<(), DeviceError> {
    attention(out, q, c.cache, c.layer, c.rows, &params(sinks, c), scratch)
}

/// Queries meet the short vectors themselves: see the same function of the CPU's decoder.
fn latent(b: &mut Buffers, a: Latent, w: &DeviceLatent, c: &mut Context<'_>) -> Result<(), DeviceError> {
    let (rows, heads) = (c.rows.rows(), c.heads.heads());
    let head_width = a.nope_dim + a.rope_dim;
    let queries = rows * heads * head_width;
    let normed = |kind: WeightKind| b.normed.of(kind, rows, c.hidden);
    match &w.q_down {
        Some(down) => {
            let len = rows * down.rows();
            matmul(b.qkv.view_mut().slice(0..len), down.rows(), normed(down.kind()), down, rows)?;
            bias_rows(b.qkv.view_mut().slice(0..len), down.rows(), rows, &w.q_down_bias)?;
            let Some(norm) = &w.q_norm else { unreachable!("a short vector has a norm") };
            let short = b.latent.short.normed(Kinds::of([w.q_up.kind()]), rows, down.rows());
            let x = b.qkv.view_mut().slice(0..len);
            add_and_norm(short, x, None, None, norm.view(), rows, down.rows(), a.norm_eps)?;
            let short = b.latent.short.of(w.q_up.kind(), rows, down.rows());
            let out = b.latent.queries.view_mut().slice(0..queries);
            matmul(out, heads * head_width, short, &w.q_up, rows)?;
        }
        None => {
            let out = b.latent.queries.view_mut().slice(0..queries);
            matmul(out, heads * head_width, normed(w.q_up.kind()), &w.q_up, rows)?;
        }
    }

    let width = a.kv_rank + a.rope_dim;
    matmul(b.qkv.view_mut().slice(0..rows * width), width, normed(w.kv_down.kind()), &w.kv_down, rows)?;
    let keys = LatentKeys {
        x: b.qkv.view().slice(0..rows * width),
        bias: w.kv_down_bias.as_ref().map(Buffer::view),
        norm: w.kv_norm.view(),
        eps: a.norm_eps,
    };
    latent_write(c.cache, c.layer, c.rows, &keys, c.angles)?;

    // Rotated parts go where they belong in the queries; the rest is projected onto the short vectors, head by head.
    let key_stride = heads * width;
    let queries = b.latent.queries.view().slice(0..queries);
    let q = b.q.view_mut().slice(0..rows * key_stride);
    let to = HeadsAt { offset: a.kv_rank, row_stride: key_stride, head_stride: width };
    let from = HeadsAt { offset: a.nope_dim, row_stride: heads * head_width, head_stride: head_width };
    rope_rows(q, to, queries, from, heads, c.rows, c.angles)?;
    let unrotated = b.latent.unrotated.view_mut().slice(0..rows * heads * head_width);
    convert(unrotated, queries)?;
    let (Some(key_up), Some(value_up)) = (&w.key_up, &w.value_up) else {
        unreachable!("a rank with heads has their projections")
    };
    batched_matmul(
        b.q.view_mut().slice(0..rows * key_stride),
        key_stride,
        width,
        b.latent.unrotated.view().slice(0..rows * heads * head_width),
        heads * head_width,
        head_width,
        key_up,
        rows,
    )?;
    let out = b.latent.attended.view_mut().slice(0..rows * heads * a.kv_rank);
    meet(out, b.q.view().slice(0..rows * key_stride), None, &mut b.scratch, c)?;
    let out_width = heads * a.value_dim;
    batched_matmul(
        b.latent.values.view_mut().slice(0..rows * out_width),
        out_width,
        a.value_dim,
        b.latent.attended.view().slice(0..rows * heads * a.kv_rank),
        heads * a.kv_rank,
        a.kv_rank,
        value_up,
        rows,
    )?;
    let values = b.latent.values.view().slice(0..rows * out_width);
    b.attended.set(w.o.kind(), values, rows, out_width)
}
