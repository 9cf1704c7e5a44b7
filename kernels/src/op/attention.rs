//! Softmax attention of each row over its own cached keys and values.
//!
//! One pass with a running maximum (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Dao et al.,
//! "FlashAttention", 2022), over parts of up to 16 positions at absolute positions: a row's result depends on its position and
//! its cache only, never on how the prompt was cut into chunks or what else is in the batch.

mod cut;
mod forms;
mod q8;
mod tile;

use std::cell::Cell;

use super::kv_cache::{KvCache, Store};
use crate::cpu::lanes::Wide;
use crate::cpu::pool::ThreadPool;
use crate::cpu::portable;
use crate::cpu::shared_slice::SharedSlice;
use crate::cpu::simd_wide;
use cut::{groups, spans};
use forms::{ByDimension, ByPosition, Keys, ValueRows, Values};
use q8::{CodeValues, CodesByDimension, CodesByPosition};
use tile::{Next, Scratch, Task, attend, met};

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
    let groups = groups(params.kv_head_of, rows.len(), cache.in_keys(), pool.threads());
    let spans = spans(rows, &groups, pool.threads());
    let out = SharedSlice::new(out);
    let tasks = spans.len() * groups.len();
    let parts = |task: usize| (spans[task / groups.len()].clone(), groups[task % groups.len()]);
    pool.run(tasks, |task| {
        // Most likely this thread's next.
        let next = Some(task + pool.threads()).filter(|next| *next < tasks).map(|next| {
            let (span, (first, _)) = parts(next);
            Next { head: params.kv_head_of[first] as usize, blocks: met(&rows[span], cache.block_size()) }
        });
        let (span, (first, count)) = parts(task);
        let task = Task {
            cache,
            layer,
            head: params.kv_head_of[first] as usize,
            heads,
            first,
            count,
            first_row: span.start,
            rows: &rows[span],
            scale: params.scale,
            softcap: params.softcap,
            sinks: if params.sinks.is_empty() { &[] } else { &params.sinks[first..][..count] },
            q,
            out: &out,
            next,
        };
        let mut scratch = SCRATCH.take();
        run(&task, &mut scratch);
        SCRATCH.set(scratch);
    });
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

fn run(task: &Task<'_>, scratch: &mut Scratch) {
    let (cache, k, v) = (task.cache, task.cache.keys, task.cache.values);
    let dim = cache.value_dim();
    match (&cache.store, cache.in_keys()) {
        (Store::F32 { keys, values }, false) => {
            attend_f32(task, ByDimension::new(keys, k), ValueRows::new(values, v, dim), scratch);
        }
        (Store::F16 { keys, values }, false) => {
            attend_f16(task, ByDimension::new(keys, k), ValueRows::new(values, v, dim), scratch);
        }
        (Store::Q8_0 { keys, values }, false) => {
            attend_q8(task, CodesByDimension::new(keys, k), CodeValues::new(values, v, dim), scratch);
        }
        (Store::F8 { keys, values }, false) => {
            attend_plain(task, ByDimension::new(keys, k), ValueRows::new(values, v, dim), scratch);
        }
        (Store::F32 { keys, .. }, true) => {
            attend_f32_shared(task, ByPosition::new(keys, k), ValueRows::new(keys, k, dim), scratch);
        }
        (Store::F16 { keys, .. }, true) => {
            attend_f16_shared(task, ByPosition::new(keys, k), ValueRows::new(keys, k, dim), scratch);
        }
        (Store::F8 { keys, .. }, true) => {
            attend_plain(task, ByPosition::new(keys, k), ValueRows::new(keys, k, dim), scratch);
        }
        (Store::Q8_0 { keys, .. }, true) => {
            let (keys, values) = (CodesByPosition::new(keys, k), CodeValues::new(keys, k, dim));
            attend_q8_shared(task, keys, values, scratch);
        }
    }
}

/// Attention over one form of keys and values, compiled for the widest lanes and for each number of query heads that there can
/// be in a task: so many in a row, so many in a tile; a row alone meets so many parts at a time. Where sixteen floats are one of
/// 32 registers, tiles are of as many queries as the second number, and parts as many as the last.
macro_rules! over {
    ($name:ident, $keys:ty, $values:ty, $($row:literal in $tile:literal or $large:literal by $parts:literal or $many:literal),+) => {
        fn $name(task: &Task<'_>, keys: $keys, values: $values, scratch: &mut Scratch) {
            match task.count {
                $($row => {
                    simd_wide! { fn wide(task: &Task<'_>, keys: $keys, values: $values, scratch: &mut Scratch) => body }

                    #[inline(always)]
                    fn body<W: Wide>(task: &Task<'_>, keys: $keys, values: $values, scratch: &mut Scratch) {
                        if W::ONE_REGISTER {
                            attend::<W, _, _, $row, $large, $many>(task, keys, values, scratch);
                        } else {
                            attend::<W, _, _, $row, $tile, $parts>(task, keys, values, scratch);
                        }
                    }
                    wide(task, keys, values, scratch);
                })+
                count => unreachable!("a task of {count} heads"),
            }
        }
    };
}

over!(
    attend_f32, ByDimension<'_, f32>, ValueRows<'_, f32>,
    1 in 6 or 12 by 1 or 4, 2 in 6 or 12 by 1 or 4, 3 in 6 or 12 by 1 or 4, 4 in 4 or 12 by 1 or 2, 6 in 6 or 12 by 1 or 2
);
over!(
    attend_f16, ByDimension<'_, u16>, ValueRows<'_, u16>,
    1 in 6 or 12 by 4 or 4, 2 in 6 or 12 by 2 or 4, 3 in 6 or 12 by 2 or 4, 4 in 4 or 12 by 1 or 2, 6 in 6 or 12 by 1 or 2
);
over!(
    attend_q8, CodesByDimension<'_>, CodeValues<'_>,
    1 in 6 or 12 by 1 or 1, 2 in 6 or 12 by 1 or 1, 3 in 6 or 12 by 1 or 1, 4 in 4 or 12 by 1 or 1, 6 in 6 or 12 by 1 or 1
);
over!(
    attend_f32_shared, ByPosition<'_, f32>, ValueRows<'_, f32>,
    1 in 1 or 1 by 1 or 1, 2 in 2 or 2 by 1 or 1, 4 in 4 or 4 by 1 or 1, 8 in 8 or 8 by 1 or 1
);
over!(
    attend_f16_shared, ByPosition<'_, u16>, ValueRows<'_, u16>,
    1 in 1 or 1 by 1 or 1, 2 in 2 or 2 by 1 or 1, 4 in 4 or 4 by 1 or 1, 8 in 8 or 8 by 1 or 1
);
over!(
    attend_q8_shared, CodesByPosition<'_>, CodeValues<'_>,
    1 in 1 or 1 by 1 or 1, 2 in 2 or 2 by 1 or 1, 4 in 4 or 4 by 1 or 1, 8 in 8 or 8 by 1 or 1
);

/// The same with plain lanes, which give the same bits: for E4M3, which is there to be compared with.
fn attend_plain<K: Keys, V: Values>(task: &Task<'_>, keys: K, values: V, scratch: &mut Scratch) {
    type Plain = [portable::F32x8; 2];
    match task.count {
        1 => attend::<Plain, _, _, 1, 1, 1>(task, keys, values, scratch),
        2 => attend::<Plain, _, _, 2, 2, 1>(task, keys, values, scratch),
        3 => attend::<Plain, _, _, 3, 3, 1>(task, keys, values, scratch),
        4 => attend::<Plain, _, _, 4, 4, 1>(task, keys, values, scratch),
        6 => attend::<Plain, _, _, 6, 6, 1>(task, keys, values, scratch),
        8 => attend::<Plain, _, _, 8, 8, 1>(task, keys, values, scratch),
        count => unreachable!("a task of {count} heads"),
    }
}

#[cfg(test)]
mod tests;
