//! The kernel that meets keys and values of some shape, for some number of queries.

use super::kv_cache::{DeviceKv, KvKind};
use crate::op::kv_cache::Values;

/// One instance of the kernel of any shape (`kernels/cu/attention.cu`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    pub(super) kernel: &'static str,
    kind: KvKind,
    /// Lanes that share a key, and pieces of 16 bytes of it that each has.
    lanes: usize,
    pieces: usize,
    /// Queries of a block.
    pub(super) queries: usize,
    /// Heads of a chunk at most.
    pub(super) most: usize,
}

/// Warps of a block.
const WARPS: usize = 4;

const fn form(kernel: &'static str, kind: KvKind, lanes: usize, pieces: usize, queries: usize) -> Form {
    Form { kernel, kind, lanes, pieces, queries, most: 0 }
}

/// From the smallest keys to the largest, from the fewest queries to the most.
const FORMS: [Form; 24] = [
    form("attention_f16_8_1_1", KvKind::F16, 8, 1, 1),
    form("attention_f16_8_1_2", KvKind::F16, 8, 1, 2),
    form("attention_f16_8_1_4", KvKind::F16, 8, 1, 4),
    form("attention_f16_8_1_8", KvKind::F16, 8, 1, 8),
    form("attention_f16_16_1_1", KvKind::F16, 16, 1, 1),
    form("attention_f16_16_1_2", KvKind::F16, 16, 1, 2),
    form("attention_f16_16_1_4", KvKind::F16, 16, 1, 4),
    form("attention_f16_16_1_8", KvKind::F16, 16, 1, 8),
    form("attention_f16_32_1_1", KvKind::F16, 32, 1, 1),
    form("attention_f16_32_1_2", KvKind::F16, 32, 1, 2),
    form("attention_f16_32_1_4", KvKind::F16, 32, 1, 4),
    form("attention_f16_32_1_8", KvKind::F16, 32, 1, 8),
    form("attention_f16_32_3_1", KvKind::F16, 32, 3, 1),
    form("attention_f16_32_3_4", KvKind::F16, 32, 3, 4),
    form("attention_f32_8_1_1", KvKind::F32, 8, 1, 1),
    form("attention_f32_8_1_4", KvKind::F32, 8, 1, 4),
    form("attention_f32_16_1_1", KvKind::F32, 16, 1, 1),
    form("attention_f32_16_1_4", KvKind::F32, 16, 1, 4),
    form("attention_f32_32_1_1", KvKind::F32, 32, 1, 1),
    form("attention_f32_32_1_4", KvKind::F32, 32, 1, 4),
    form("attention_f32_32_2_1", KvKind::F32, 32, 2, 1),
    form("attention_f32_32_2_4", KvKind::F32, 32, 2, 4),
    form("attention_f32_32_5_1", KvKind::F32, 32, 5, 1),
    form("attention_f32_32_5_4", KvKind::F32, 32, 5, 4),
];

impl Form {
    /// Bytes of a piece's elements that all lanes have together.
    fn holds(&self) -> usize {
        self.lanes * self.pieces * 16 / self.kind.size()
    }

    /// Bytes of shared memory: queries first, then sums, maxima and totals of each warp.
    pub(super) fn shared(&self, value_stride: usize) -> usize {
        let (queries, warps) = (self.queries * self.holds(), WARPS * self.queries * (value_stride + 2));
        queries.max(warps) * size_of::<f32>()
    }
}

/// The kernel for this cache. `widest(most)`: heads of the widest chunk where chunks have at most so many. With `all`, as many
/// queries as can be.
///
/// # Panics
/// If keys or values are too long.
pub(super) fn general(kv: &DeviceKv, widest: impl Fn(usize) -> usize, all: bool) -> Form {
    let stride = kv.key_stride.max(kv.value_stride);
    let fits = |form: &&Form| form.kind == kv.kind() && form.holds() >= stride;
    let Some(least) = FORMS.iter().find(fits).map(Form::holds) else {
        panic!("attention: {stride} elements of a key or value");
    };
    let forms = || FORMS.iter().filter(fits).filter(|form| form.holds() == least);
    let most = forms().map(|form| form.queries).max().unwrap_or(1);
    let needed = if all { most } else { widest(most) };
    let form = forms().find(|form| form.queries >= needed).expect("the largest form has `most` queries");
    Form { most, ..*form }
}

/// Query heads of a chunk at most where tensor cores are used.
pub(super) const CHUNK: usize = 16;
/// Queries of a block that has many rows (`kernels/cu/attention_prefill.cu`).
pub(super) const PREFILL_QUERIES: usize = 64;
/// From so many query heads of one head of the cache on, tensor cores are used for rows that are taken alone: with fewer, the
/// kernel of any shape is no slower, and rounds nothing.
const DECODE_FROM: usize = 5;

/// The kernel of tensor cores for many rows in this cache, if there is one, and bytes of its shared memory.
pub(super) fn prefill(kv: &DeviceKv) -> Option<(&'static str, usize)> {
    let dim = kv.sizes().key_dim;
    if kv.kind() != KvKind::F16 || kv.sizes().values != Values::Own(dim) {
        return None;
    }
    // Two tiles of keys and values, and the queries where they are too many for registers.
    let (kernel, positions, queries) = match dim {
        64 => ("attention_prefill_64", 64, 0),
        80 => ("attention_prefill_80", 64, 0),
        96 => ("attention_prefill_96", 64, 0),
        128 => ("attention_prefill_128", 64, 0),
        256 => ("attention_prefill_256", 32, PREFILL_QUERIES),
        _ => return None,
    };
    Some((kernel, (4 * positions + queries) * (dim + 8) * kv.kind().size()))
}

/// The kernel of tensor cores for rows that are taken alone, if there is one for this cache and so many heads of a chunk, and
/// bytes of its shared memory (`kernels/cu/attention_decode.cu`).
pub(super) fn decode(kv: &DeviceKv, widest: usize) -> Option<(&'static str, usize)> {
    let dim = kv.sizes().key_dim;
    if kv.kind() != KvKind::F16 || kv.sizes().values != Values::Own(dim) || widest < DECODE_FROM {
        return None;
    }
    // Stages of each warp, and the queries where they are too many for registers.
    let (kernel, stages, queries) = match dim {
        64 => ("attention_decode_64", 3, 0),
        80 => ("attention_decode_80", 3, 0),
        96 => ("attention_decode_96", 3, 0),
        128 => ("attention_decode_128", 3, 0),
        256 => ("attention_decode_256", 2, CHUNK),
        _ => return None,
    };
    let tiles = (WARPS * stages * 2 * 16 + queries) * (dim + 8) * kv.kind().size();
    Some((kernel, tiles.max(WARPS * CHUNK * (dim + 2) * size_of::<f32>())))
}
