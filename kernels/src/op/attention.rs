//! Softmax attention of each row over its own cached keys and values.
//!
//! One pass with a running maximum (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Dao et al.,
//! "FlashAttention", 2022), over tiles of one cache block at absolute positions: a row's result depends on its position and
//! its cache only, never on how the prompt was cut into chunks or what else is in the batch.

mod forms;
mod q8;

use super::kv_cache::{KvCache, Store};
use crate::cpu::lanes::Lanes;
use crate::cpu::pool::ThreadPool;
use crate::cpu::shared_slice::SharedSlice;
use crate::cpu::simd;
use forms::{ByDimension, ByPosition, Keys, ValueRows, Values};
use q8::{CodeValues, CodesByDimension, CodesByPosition};

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
    let (key_dim, value_dim) = (cache.key_dim(), cache.value_dim());
    assert!(
        q.len() >= rows.len() * heads * key_dim && out.len() >= rows.len() * heads * value_dim,
        "attention: q and out"
    );
    assert!(params.sinks.is_empty() || params.sinks.len() == heads, "attention: a sink for each head");
    for row in rows {
        assert!(
            row.len <= row.blocks.len() * cache.block_size(),
            "attention: {} keys in its blocks",
            row.len
        );
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
        let sinks = if params.sinks.is_empty() { &[][..] } else { &params.sinks[first..][..count] };
        let heads = Heads { cache, layer, head, count, scale: params.scale, softcap: params.softcap, sinks };
        heads.attend(&rows[t], q, out);
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
struct Heads<'a> {
    cache: &'a KvCache,
    layer: usize,
    head: usize,
    /// Query heads: 1 to 4, or 8.
    count: usize,
    scale: f32,
    softcap: Option<f32>,
    /// One for each query head, or empty.
    sinks: &'a [f32],
}

impl Heads<'_> {
    fn attend(&self, row: &AttentionRow<'_>, q: &[f32], out: &mut [f32]) {
        let (cache, k, v) = (self.cache, self.cache.keys, self.cache.values);
        let dim = cache.value_dim();
        match (&cache.store, cache.in_keys()) {
            (Store::F32 { keys, values }, false) => {
                attend_f32(self, ByDimension::new(keys, k), ValueRows::new(values, v, dim), row, q, out);
            }
            (Store::F16 { keys, values }, false) => {
                attend_f16(self, ByDimension::new(keys, k), ValueRows::new(values, v, dim), row, q, out);
            }
            (Store::Q8_0 { keys, values }, false) => {
                attend_q8(self, CodesByDimension::new(keys, k), CodeValues::new(values, v, dim), row, q, out);
            }
            (Store::F32 { keys, .. }, true) => {
                attend_f32_shared(self, ByPosition::new(keys, k), ValueRows::new(keys, k, dim), row, q, out);
            }
            (Store::F16 { keys, .. }, true) => {
                attend_f16_shared(self, ByPosition::new(keys, k), ValueRows::new(keys, k, dim), row, q, out);
            }
            (Store::Q8_0 { keys, .. }, true) => {
                attend_q8_shared(
                    self,
                    CodesByPosition::new(keys, k),
                    CodeValues::new(keys, k, dim),
                    row,
                    q,
                    out,
                );
            }
        }
    }
}

/// Attention over one form of keys and values, compiled for the widest lanes.
macro_rules! over {
    ($name:ident, $body:ident, $keys:ty, $values:ty) => {
        simd! {
            fn $name(
                heads: &Heads<'_>,
                keys: $keys,
                values: $values,
                row: &AttentionRow<'_>,
                q: &[f32],
                out: &mut [f32],
            ) => $body
        }

        #[inline(always)]
        fn $body<L: Lanes>(
            heads: &Heads<'_>,
            keys: $keys,
            values: $values,
            row: &AttentionRow<'_>,
            q: &[f32],
            out: &mut [f32],
        ) {
            by_count::<L, _, _>(heads, keys, values, row, q, out);
        }
    };
}

over!(attend_f32, attend_f32_body, ByDimension<'_, f32>, ValueRows<'_, f32>);
over!(attend_f16, attend_f16_body, ByDimension<'_, u16>, ValueRows<'_, u16>);
over!(attend_q8, attend_q8_body, CodesByDimension<'_>, CodeValues<'_>);
over!(attend_f32_shared, attend_f32_shared_body, ByPosition<'_, f32>, ValueRows<'_, f32>);
over!(attend_f16_shared, attend_f16_shared_body, ByPosition<'_, u16>, ValueRows<'_, u16>);
over!(attend_q8_shared, attend_q8_shared_body, CodesByPosition<'_>, CodeValues<'_>);

#[inline(always)]
fn by_count<L: Lanes, K: Keys, V: Values>(
    heads: &Heads<'_>,
    keys: K,
    values: V,
    row: &AttentionRow<'_>,
    q: &[f32],
    out: &mut [f32],
) {
    match heads.count {
        1 => attend::<L, K, V, 1>(heads, keys, values, row, q, out),
        2 => attend::<L, K, V, 2>(heads, keys, values, row, q, out),
        3 => attend::<L, K, V, 3>(heads, keys, values, row, q, out),
        4 => attend::<L, K, V, 4>(heads, keys, values, row, q, out),
        _ => attend::<L, K, V, 8>(heads, keys, values, row, q, out),
    }
}

#[inline(always)]
fn attend<L: Lanes, K: Keys, V: Values, const N: usize>(
    heads: &Heads<'_>,
    keys: K,
    values: V,
    row: &AttentionRow<'_>,
    q: &[f32],
    out: &mut [f32],
) {
    let cache = heads.cache;
    let (size, key_dim, dim) = (cache.block_size(), cache.key_dim(), cache.value_dim());
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
        let from = row.window_start.saturating_sub(tile * size);
        let to = size.min(row.len - tile * size);
        // Eight positions at a time; the running maximum moves once per eight.
        for (part, base) in (0..size).step_by(8).enumerate() {
            if base >= to || base + 8 <= from {
                continue;
            }
            let scale = L::splat(heads.scale);
            let mut scores = keys.scores::<L, N>(cell, part, &q).map(|score| score.mul(scale));
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
            values.add::<L, N>(cell, base, &weights, to, out);
        }
    }
    for h in 0..N {
        let inverse = if total[h] > 0.0 { 1.0 / total[h] } else { 0.0 };
        for out in &mut out[h * dim..][..dim] {
            *out *= inverse;
        }
    }
}

#[cfg(test)]
mod tests;
