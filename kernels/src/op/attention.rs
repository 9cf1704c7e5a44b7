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

/// Most query heads that share one pass over a key head; larger groups take several.
const HEADS: usize = 4;

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

/// Attention of `rows` rows of `heads` query heads.
///
/// `q` and `out` are rows × (heads · head_dim); `kv_head_of[h]` is the cache's head that query head `h` attends to
/// (non-decreasing); scores are multiplied by `scale`.
///
/// # Panics
/// If the shapes do not agree or a row sees more than its blocks hold.
#[allow(clippy::too_many_arguments)]
pub fn attention(
    pool: &ThreadPool,
    cache: &KvCache,
    layer: usize,
    q: &[f32],
    rows: &[AttentionRow<'_>],
    kv_head_of: &[u32],
    scale: f32,
    out: &mut [f32],
) {
    let (heads, dim) = (kv_head_of.len(), cache.head_dim);
    assert!(
        q.len() >= rows.len() * heads * dim && out.len() >= rows.len() * heads * dim,
        "attention: q and out"
    );
    for row in rows {
        assert!(row.len <= row.blocks.len() * cache.block_size, "attention: {} keys in its blocks", row.len);
    }
    let groups = groups(kv_head_of);
    let out = SharedSlice::new(out);
    pool.run(rows.len() * groups.len(), |task| {
        let (t, (first, count)) = (task / groups.len(), groups[task % groups.len()]);
        let at = (t * heads + first) * dim;
        let head = kv_head_of[first] as usize;
        // SAFETY: each task has heads of its own.
        let out = unsafe { out.part(at, count * dim) };
        let q = &q[at..][..count * dim];
        match &cache.store {
            Store::F32 { keys, values } => {
                attend_f32(&Heads { cache, layer, head, keys, values, scale }, &rows[t], q, out);
            }
            Store::F16 { keys, values } => {
                attend_f16(&Heads { cache, layer, head, keys, values, scale }, &rows[t], q, out);
            }
        }
    });
}

/// Runs of at most [`HEADS`] query heads with the same key head: (first, count).
fn groups(kv_head_of: &[u32]) -> Vec<(usize, usize)> {
    let mut groups: Vec<(usize, usize)> = Vec::new();
    for (h, kv) in kv_head_of.iter().enumerate() {
        match groups.last_mut() {
            Some((first, count)) if kv_head_of[*first] == *kv && *count < HEADS => *count += 1,
            _ => groups.push((h, 1)),
        }
    }
    groups
}

/// What a group of query heads attends to.
struct Heads<'a, E> {
    cache: &'a KvCache,
    layer: usize,
    head: usize,
    keys: &'a [E],
    values: &'a [E],
    scale: f32,
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
    match q.len() / heads.cache.head_dim {
        1 => attend::<L, E, 1>(heads, row, q, out),
        2 => attend::<L, E, 2>(heads, row, q, out),
        3 => attend::<L, E, 3>(heads, row, q, out),
        _ => attend::<L, E, 4>(heads, row, q, out),
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
    let (size, dim) = (cache.block_size, cache.head_dim);
    let q: [&[f32]; N] = std::array::from_fn(|h| &q[h * dim..][..dim]);
    let (mut highest, mut total) = ([f32::NEG_INFINITY; N], [0.0f32; N]);
    out.fill(0.0);
    for (tile, block) in row.blocks[..row.len.div_ceil(size)].iter().enumerate().skip(row.window_start / size)
    {
        let cell = cache.cell(heads.layer, *block, heads.head);
        let keys = &heads.keys[cell * dim * size..][..dim * size];
        let values = &heads.values[cell * size * cache.value_stride..][..size * cache.value_stride];
        let from = row.window_start.saturating_sub(tile * size);
        let to = size.min(row.len - tile * size);
        // Eight positions at a time; the running maximum moves once per eight.
        for (part, base) in (0..size).step_by(8).enumerate() {
            if base >= to || base + 8 <= from {
                continue;
            }
            let scores = scores::<L, E, N>(&q, keys, size, part, heads.scale);
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
