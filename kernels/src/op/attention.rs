//! Softmax attention of each row over its own cached keys and values.
//!
//! One pass with a running maximum (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Dao et al.,
//! "FlashAttention", 2022), over tiles of one cache block at absolute positions: a row's result depends on its position and
//! its cache only, never on how the prompt was cut into chunks or what else is in the batch.

use super::kv_cache::{KvCache, Store};
use crate::cpu::lanes::Lanes;
use crate::cpu::pool::ThreadPool;
use crate::cpu::shared_slice::SharedSlice;
use crate::cpu::simd;

/// Query heads that share one pass over a key head; larger groups take several.
const HEADS: usize = 4;
/// As [`HEADS`], where there are so many heads that threads have enough to do.
const MANY_HEADS: usize = 8;

/// What one row may see.
#[derive(Debug, Clone, Copy)]
pub struct AttentionRow<'a> {
    /// The sequence's blocks, in order.
    pub blocks: &'a [u32],
    /// Keys at positions `window_start..len` are seen.
    pub len: usize,
    /// 0 unless attention has a window.
    pub window_start: usize,
}

/// What all rows of a layer have in common.
#[derive(Debug, Clone, Copy)]
pub struct AttentionParams<'a> {
    /// For each query head, the cache's head that it attends to (non-decreasing).
    pub kv_head_of: &'a [u32],
    /// What scores are multiplied by.
    pub scale: f32,
    /// `Some(cap)`: a scaled score becomes `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// For each query head, a logit that takes part in the softmax and has no value; empty for none.
    pub sinks: &'a [f32],
}

/// Attention of `rows`: `q` is rows × (heads · key width), `out` rows × (heads · value width).
///
/// A row that sees no key has zeros as its result.
///
/// # Panics
/// If the shapes do not agree or a row sees more than its blocks hold.
pub fn attention(
    pool: &ThreadPool,
    cache: &KvCache,
    layer: usize,
    q: &[f32],
    rows: &[AttentionRow<'_>],
    params: &AttentionParams<'_>,
    out: &mut [f32],
) {
    let heads = params.kv_head_of.len();
    let (key_dim, value_dim) = (cache.key_dim, cache.value_dim);
    assert!(
        q.len() >= rows.len() * heads * key_dim && out.len() >= rows.len() * heads * value_dim,
        "attention: q and out"
    );
    assert!(params.sinks.is_empty() || params.sinks.len() == heads, "attention: a sink for each head");
    for row in rows {
        assert!(row.len <= row.blocks.len() * cache.block_size, "attention: {} keys in its blocks", row.len);
    }
    let mut groups = groups(params.kv_head_of, MANY_HEADS);
    if rows.len() * groups.len() < 2 * pool.threads() {
        groups = self::groups(params.kv_head_of, HEADS);
    }
    let out = SharedSlice::new(out);
    pool.run(rows.len() * groups.len(), |task| {
        let (t, (first, count)) = (task / groups.len(), groups[task % groups.len()]);
        let at = t * heads + first;
        // SAFETY: each task has heads of its own.
        let out = unsafe { out.part(at * value_dim, count * value_dim) };
        let q = &q[at * key_dim..][..count * key_dim];
        let head = params.kv_head_of[first] as usize;
        let (scale, softcap) = (params.scale, params.softcap);
        let sinks = if params.sinks.is_empty() { &[][..] } else { &params.sinks[first..][..count] };
        match &cache.store {
            Store::F32 { keys, values } => {
                let group = Heads { cache, layer, head, count, keys, values, scale, softcap, sinks };
                attend_f32(&group, &rows[t], q, out);
            }
            Store::F16 { keys, values } => {
                let group = Heads { cache, layer, head, count, keys, values, scale, softcap, sinks };
                attend_f16(&group, &rows[t], q, out);
            }
        }
    });
}

/// Cuts the query heads into runs with the same key head, of 1 to 4 or 8 and at most `most`: (first, count). A head's
/// result does not depend on its company.
fn groups(kv_head_of: &[u32], most: usize) -> Vec<(usize, usize)> {
    let mut groups = Vec::new();
    let mut first = 0;
    for run in kv_head_of.chunk_by(|a, b| a == b) {
        let mut left = run.len();
        while left > 0 {
            let count = if left >= most { most } else { left.min(HEADS) };
            groups.push((first, count));
            (first, left) = (first + count, left - count);
        }
    }
    groups
}

/// What a group of query heads attends to.
struct Heads<'a, E> {
    cache: &'a KvCache,
    layer: usize,
    head: usize,
    /// Query heads: 1 to 4, or 8.
    count: usize,
    keys: &'a [E],
    values: &'a [E],
    scale: f32,
    softcap: Option<f32>,
    /// One for each query head, or empty.
    sinks: &'a [f32],
}

/// An element of the cache.
trait Element: Copy {
    fn load<L: Lanes>(from: &[Self; 8]) -> L;
}

impl Element for f32 {
    #[inline(always)]
    fn load<L: Lanes>(from: &[Self; 8]) -> L {
        L::load(from)
    }
}

impl Element for u16 {
    #[inline(always)]
    fn load<L: Lanes>(from: &[Self; 8]) -> L {
        L::load_f16(from)
    }
}

simd! { fn attend_f32(heads: &Heads<'_, f32>, row: &AttentionRow<'_>, q: &[f32], out: &mut [f32]) => attend_f32_body }
simd! { fn attend_f16(heads: &Heads<'_, u16>, row: &AttentionRow<'_>, q: &[f32], out: &mut [f32]) => attend_f16_body }

#[inline(always)]
fn attend_f32_body<L: Lanes>(heads: &Heads<'_, f32>, row: &AttentionRow<'_>, q: &[f32], out: &mut [f32]) {
    by_count::<L, f32>(heads, row, q, out);
}

#[inline(always)]
fn attend_f16_body<L: Lanes>(heads: &Heads<'_, u16>, row: &AttentionRow<'_>, q: &[f32], out: &mut [f32]) {
    by_count::<L, u16>(heads, row, q, out);
}

#[inline(always)]
fn by_count<L: Lanes, E: Element>(heads: &Heads<'_, E>, row: &AttentionRow<'_>, q: &[f32], out: &mut [f32]) {
    match heads.count {
        1 => attend::<L, E, 1>(heads, row, q, out),
        2 => attend::<L, E, 2>(heads, row, q, out),
        3 => attend::<L, E, 3>(heads, row, q, out),
        4 => attend::<L, E, 4>(heads, row, q, out),
        _ => attend::<L, E, 8>(heads, row, q, out),
    }
}

#[inline(always)]
fn attend<L: Lanes, E: Element, const N: usize>(
    heads: &Heads<'_, E>,
    row: &AttentionRow<'_>,
    q: &[f32],
    out: &mut [f32],
) {
    let cache = heads.cache;
    let (size, key_dim, dim) = (cache.block_size, cache.key_dim, cache.value_dim);
    let q: [&[f32]; N] = std::array::from_fn(|h| &q[h * key_dim..][..key_dim]);
    let (mut highest, mut total) = ([f32::NEG_INFINITY; N], [0.0f32; N]);
    if let Some(sinks) = heads.sinks.first_chunk::<N>() {
        // A sink is a score that was seen before all others and weighs on nothing.
        (highest, total) = (*sinks, [1.0; N]);
    }
    out.fill(0.0);
    for (tile, block) in row.blocks[..row.len.div_ceil(size)].iter().enumerate().skip(row.window_start / size)
    {
        let cell = cache.cell(heads.layer, *block, heads.head);
        let keys = &heads.keys[cell * key_dim * size..][..key_dim * size];
        let values = &heads.values[cell * size * cache.value_stride..][..size * cache.value_stride];
        let from = row.window_start.saturating_sub(tile * size);
        let to = size.min(row.len - tile * size);
        // Eight positions at a time; the running maximum moves once per eight.
        for (part, base) in (0..size).step_by(8).enumerate() {
            if base >= to || base + 8 <= from {
                continue;
            }
            let mut scores = scores::<L, E, N>(&q, keys, size, part, heads.scale);
            if let Some(cap) = heads.softcap {
                let cap = L::splat(cap);
                scores = scores.map(|score| cap.mul(score.div(cap).tanh()));
            }
            let (from, to) = (from.saturating_sub(base), (to - base).min(8));
            let mut weights = [[0.0f32; 8]; N];
            for h in 0..N {
                let mut seen = [f32::NEG_INFINITY; 8];
                scores[h].store(&mut seen);
                seen[..from].fill(f32::NEG_INFINITY);
                seen[to..].fill(f32::NEG_INFINITY);
                let peak = seen.iter().copied().fold(highest[h], f32::max);
                if peak > highest[h] {
                    let shrink = L::splat(highest[h] - peak).exp().greatest();
                    let shrink = if highest[h] == f32::NEG_INFINITY { 0.0 } else { shrink };
                    total[h] *= shrink;
                    for out in &mut out[h * dim..][..dim] {
                        *out *= shrink;
                    }
                    highest[h] = peak;
                }
                L::load(&seen).sub(L::splat(peak)).exp().store(&mut weights[h]);
                weights[h][..from].fill(0.0);
                weights[h][to..].fill(0.0);
                total[h] += L::load(&weights[h]).sum();
            }
            let values = &values[base * cache.value_stride..][..8 * cache.value_stride];
            add_values::<L, E, N>(&weights, values, cache.value_stride, dim, to, out);
        }
    }
    for h in 0..N {
        let inverse = if total[h] > 0.0 { 1.0 / total[h] } else { 0.0 };
        for out in &mut out[h * dim..][..dim] {
            *out *= inverse;
        }
    }
}

/// Scores of eight positions for each head: q · k in increasing dimension.
#[inline(always)]
fn scores<L: Lanes, E: Element, const N: usize>(
    q: &[&[f32]; N],
    keys: &[E],
    size: usize,
    part: usize,
    scale: f32,
) -> [L; N] {
    let mut scores = [L::splat(0.0); N];
    for (d, keys) in keys.chunks_exact(size).enumerate() {
        let keys: L = E::load(&keys.as_chunks::<8>().0[part]);
        for h in 0..N {
            scores[h] = keys.fma(L::splat(q[h][d]), scores[h]);
        }
    }
    scores.map(|score| score.mul(L::splat(scale)))
}

/// Adds the weighted values of positions `0..to` of eight, in order.
#[inline(always)]
fn add_values<L: Lanes, E: Element, const N: usize>(
    weights: &[[f32; 8]; N],
    values: &[E],
    stride: usize,
    dim: usize,
    to: usize,
    out: &mut [f32],
) {
    for part in 0..dim / 8 {
        let mut acc: [L; N] = std::array::from_fn(|h| L::load(&out[h * dim..].as_chunks::<8>().0[part]));
        for j in 0..to {
            let value: L = E::load(&values[j * stride..].as_chunks::<8>().0[part]);
            for h in 0..N {
                acc[h] = value.fma(L::splat(weights[h][j]), acc[h]);
            }
        }
        for h in 0..N {
            acc[h].store(&mut out[h * dim..].as_chunks_mut::<8>().0[part]);
        }
    }
    let done = dim / 8 * 8;
    if done == dim {
        return;
    }
    // The last, partial vector of a head whose dimension is not a multiple of 8: values are padded, outputs are not.
    for h in 0..N {
        let mut rest = [0.0; 8];
        rest[..dim - done].copy_from_slice(&out[h * dim + done..][..dim - done]);
        let mut acc = L::load(&rest);
        for j in 0..to {
            let value: L = E::load(&values[j * stride..].as_chunks::<8>().0[dim / 8]);
            acc = value.fma(L::splat(weights[h][j]), acc);
        }
        acc.store(&mut rest);
        out[h * dim + done..][..dim - done].copy_from_slice(&rest[..dim - done]);
    }
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
