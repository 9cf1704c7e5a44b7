//! The kernel of attention that meets keys and values of some shape, for some number of queries.

use super::kv_cache::{DeviceKv, KvKind, u32_of};
use super::matmul::PROCESSORS;
use crate::op::kv_cache::Values;

/// One instance of the kernel of any shape (`kernels/cu/attention.cu`).
#[derive(Debug, Clone, Copy)]
struct Form {
    kernel: &'static str,
    kind: KvKind,
    /// Lanes that share a key, and pieces of it that each has.
    lanes: usize,
    pieces: usize,
    /// Queries of a block.
    queries: usize,
}

/// Warps of a block.
const WARPS: usize = 4;

const fn form(kernel: &'static str, kind: KvKind, lanes: usize, pieces: usize, queries: usize) -> Form {
    Form { kernel, kind, lanes, pieces, queries }
}

/// From the smallest keys to the largest, from the fewest queries to the most.
const FORMS: [Form; 32] = [
    form("attention_f16_8_1_1", KvKind::F16, 8, 1, 1),
    form("attention_f16_8_1_2", KvKind::F16, 8, 1, 2),
    form("attention_f16_8_1_8", KvKind::F16, 8, 1, 8),
    form("attention_f16_16_1_1", KvKind::F16, 16, 1, 1),
    form("attention_f16_16_1_2", KvKind::F16, 16, 1, 2),
    form("attention_f16_16_1_8", KvKind::F16, 16, 1, 8),
    form("attention_f16_32_1_1", KvKind::F16, 32, 1, 1),
    form("attention_f16_32_1_2", KvKind::F16, 32, 1, 2),
    form("attention_f16_32_1_8", KvKind::F16, 32, 1, 8),
    form("attention_f16_32_3_1", KvKind::F16, 32, 3, 1),
    form("attention_f16_32_3_4", KvKind::F16, 32, 3, 4),
    form("attention_f8_8_1_1", KvKind::F8, 8, 1, 1),
    form("attention_f8_8_1_2", KvKind::F8, 8, 1, 2),
    form("attention_f8_8_1_8", KvKind::F8, 8, 1, 8),
    form("attention_f8_16_1_1", KvKind::F8, 16, 1, 1),
    form("attention_f8_16_1_2", KvKind::F8, 16, 1, 2),
    form("attention_f8_16_1_8", KvKind::F8, 16, 1, 8),
    form("attention_f8_32_1_1", KvKind::F8, 32, 1, 1),
    form("attention_f8_32_1_2", KvKind::F8, 32, 1, 2),
    form("attention_f8_32_1_8", KvKind::F8, 32, 1, 8),
    form("attention_f8_32_3_1", KvKind::F8, 32, 3, 1),
    form("attention_f8_32_3_4", KvKind::F8, 32, 3, 4),
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
    /// Elements that all lanes have together. A piece has 16 bytes, but of E4M3 as many elements as of f16.
    fn holds(&self) -> usize {
        self.lanes * self.pieces * 16 / self.kind.size().max(2)
    }

    /// Bytes of shared memory for each query: it, then sums, maximum and total of each warp.
    fn shared(&self, value_stride: usize) -> usize {
        self.queries * (self.holds() + WARPS * (value_stride + 2)) * size_of::<f32>()
    }
}

/// How a kernel is to be used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    pub(super) name: &'static str,
    /// Query heads of a chunk at most.
    pub(super) chunk: usize,
    /// Queries of a block.
    pub(super) queries: usize,
    /// Threads of a block.
    pub(super) threads: u32,
    /// Bytes of shared memory.
    pub(super) shared: usize,
    /// So many more where a block may meet several spans: there it keeps those before.
    pub(super) kept: usize,
    /// The same with twice as many warps, for blocks that have a multiprocessor to themselves, and what it keeps.
    pub(super) eight: Option<(&'static str, usize)>,
    /// Whether what rows see together can be cut into spans that are met by blocks of their own.
    pub(super) cuts: bool,
    /// Whether as many blocks run at once where each keeps spans, or nearly: then one may as well meet several of a row.
    pub(super) meets_spans: bool,
}

impl Kernel {
    /// The kernel for so many blocks: the same bits, sooner.
    pub(super) fn for_blocks(self, blocks: usize) -> Self {
        match self.eight {
            Some((name, kept)) if blocks <= PROCESSORS => {
                Self { name, kept, threads: 2 * self.threads, eight: None, ..self }
            }
            _ => self,
        }
    }
}

/// Threads of a block, but for long heads.
const THREADS: u32 = 128;
/// Query heads of a chunk at most where tensor cores are used.
const CHUNK: usize = 16;
/// Bytes of f16.
const HALF: usize = 2;
/// Queries of a block of `kernels/cu/attention_prefill.cu`.
const PREFILL_QUERIES: usize = 64;

/// What 128 threads keep of so many times 8 columns of 16 queries, in bytes (`merge_onto` of `kernels/cu/attention.cuh`).
const fn kept(columns: usize) -> usize {
    (columns + 1) * 128 * 16
}

/// The kernel for rows that are taken alone. `widest(most)`: heads of the widest chunk where chunks have at most so many.
///
/// It and that of [`for_many_rows`] give a row the same bits: which two they are depends on keys and values only.
///
/// # Panics
/// If keys or values are too long.
pub(super) fn for_one_row(kv: &DeviceKv, widest: impl Fn(usize) -> usize) -> Kernel {
    latent(kv, widest(2 * CHUNK) > CHUNK)
        .or_else(|| decode(kv, widest(CHUNK)))
        .unwrap_or_else(|| general(kv, Some(widest)))
}

/// The kernel for rows that are taken together.
///
/// # Panics
/// If keys or values are too long.
pub(super) fn for_many_rows(kv: &DeviceKv) -> Kernel {
    latent(kv, true).or_else(|| prefill(kv)).unwrap_or_else(|| general(kv, None::<fn(usize) -> usize>))
}

/// The kernel of any shape; for as many queries as can be, unless heads of chunks are given.
fn general(kv: &DeviceKv, widest: Option<impl Fn(usize) -> usize>) -> Kernel {
    let stride = kv.key_stride.max(kv.value_stride);
    let fits = |form: &&Form| form.kind == kv.kind() && form.holds() >= stride;
    let Some(least) = FORMS.iter().find(fits).map(Form::holds) else {
        panic!("attention: {stride} elements of a key or value");
    };
    let forms = || FORMS.iter().filter(fits).filter(|form| form.holds() == least);
    let most = forms().map(|form| form.queries).max().unwrap_or(1);
    let needed = widest.map_or(most, |widest| widest(most));
    let form = forms().find(|form| form.queries >= needed).expect("the largest form has `most` queries");
    let value_stride = if kv.in_keys() { kv.key_stride } else { kv.value_stride };
    Kernel {
        name: form.kernel,
        chunk: most,
        queries: form.queries,
        threads: THREADS,
        shared: form.shared(value_stride),
        kept: form.queries * (kv.sizes().values.dim() + 4) * size_of::<f32>(),
        eight: None,
        cuts: false,
        meets_spans: false,
    }
}

/// Of the two kernels that do the same for f16 and for E4M3.
fn of_kind(kind: KvKind, f16: &'static str, f8: &'static str) -> &'static str {
    if kind == KvKind::F8 { f8 } else { f16 }
}

/// Positions of a tile where tensor cores are used.
const fn tile(dim: usize) -> usize {
    if dim > 128 { 32 } else { 64 }
}

/// The kernel of tensor cores for many rows, if there is one for this cache.
fn prefill(kv: &DeviceKv) -> Option<Kernel> {
    let dim = same_dim(kv)?;
    let name = match dim {
        64 => of_kind(kv.kind(), "attention_prefill_64", "attention_prefill_f8_64"),
        80 => of_kind(kv.kind(), "attention_prefill_80", "attention_prefill_f8_80"),
        96 => of_kind(kv.kind(), "attention_prefill_96", "attention_prefill_f8_96"),
        128 => of_kind(kv.kind(), "attention_prefill_128", "attention_prefill_f8_128"),
        256 => of_kind(kv.kind(), "attention_prefill_256", "attention_prefill_f8_256"),
        _ => return None,
    };
    // Keys and values, as f16; of long heads queries and scores, too, and two warps for each 16 queries.
    let row = (dim + 8) * HALF;
    let (halves, more) = match dim {
        256 => (2, PREFILL_QUERIES * (row + (tile(dim) + 8) * size_of::<f32>())),
        _ => (1, 0),
    };
    Some(Kernel {
        name,
        chunk: CHUNK,
        queries: PREFILL_QUERIES,
        threads: THREADS * u32_of(halves),
        shared: 2 * tile(dim) * row + more,
        kept: halves * kept(dim / 8 / halves),
        eight: None,
        cuts: true,
        meets_spans: false,
    })
}

/// The kernel of tensor cores for single rows, if there is one for this cache.
fn decode(kv: &DeviceKv, widest: usize) -> Option<Kernel> {
    let dim = same_dim(kv)?;
    let name = match dim {
        64 => of_kind(kv.kind(), "attention_decode_64", "attention_decode_f8_64"),
        80 => of_kind(kv.kind(), "attention_decode_80", "attention_decode_f8_80"),
        96 => of_kind(kv.kind(), "attention_decode_96", "attention_decode_f8_96"),
        128 => of_kind(kv.kind(), "attention_decode_128", "attention_decode_f8_128"),
        256 => of_kind(kv.kind(), "attention_decode_256", "attention_decode_f8_256"),
        _ => return None,
    };
    let eight = match dim {
        64 => Some(of_kind(kv.kind(), "attention_decode_eight_64", "attention_decode_eight_f8_64")),
        80 => Some(of_kind(kv.kind(), "attention_decode_eight_80", "attention_decode_eight_f8_80")),
        96 => Some(of_kind(kv.kind(), "attention_decode_eight_96", "attention_decode_eight_f8_96")),
        128 => Some(of_kind(kv.kind(), "attention_decode_eight_128", "attention_decode_eight_f8_128")),
        _ => None,
    };
    // Three tiles, the queries where they are too many for registers, and the scores of two tiles.
    let queries = if dim > 128 { CHUNK * (dim + 8) * HALF } else { 0 };
    let scored = if widest > 8 { CHUNK } else { 8 };
    let scores = 2 * scored * (tile(dim) + 8) * size_of::<f32>();
    // Rows are an odd number of pieces apart, but for those of eight (`Shape` of `kernels/cu/attention_decode.cu`).
    let pieces = match dim * kv.kind().size() / 16 {
        8 => 8,
        pieces => pieces | 1,
    };
    let tiles = 3 * 2 * tile(dim) * pieces * 16;
    Some(Kernel {
        name,
        chunk: CHUNK,
        queries: CHUNK,
        threads: THREADS,
        shared: tiles + queries + scores,
        kept: kept(2 * (dim / 16).div_ceil(WARPS)),
        eight: eight.map(|name| (name, 2 * kept(2 * (dim / 16).div_ceil(2 * WARPS)))),
        cuts: false,
        meets_spans: kv.kind() == KvKind::F8 && dim <= 128,
    })
}

/// Elements of a key, and of a value of its own, in f16 or E4M3.
fn same_dim(kv: &DeviceKv) -> Option<usize> {
    let dim = kv.sizes().key_dim;
    (kv.kind() != KvKind::F32 && kv.sizes().values == Values::Own(dim)).then_some(dim)
}

/// The kernel of tensor cores for values within keys, if there is one for this cache; `many`: for more than 16 queries.
fn latent(kv: &DeviceKv, many: bool) -> Option<Kernel> {
    let sizes = kv.sizes();
    let has = kv.kind() != KvKind::F32
        && (sizes.key_dim, sizes.kv_heads) == (576, 1)
        && sizes.values == Values::InKey(512);
    let (name, queries) = match many {
        true => (of_kind(kv.kind(), "attention_latent_2", "attention_latent_f8_2"), 32),
        false => (of_kind(kv.kind(), "attention_latent_1", "attention_latent_f8_1"), 16),
    };
    // Queries, two tiles of 32 keys, as f16, and the scores of one.
    let shared = (queries + 2 * 32) * (576 + 8) * HALF + queries * 36 * size_of::<f32>();
    let kept = queries / 16 * kept(512 / 8 / WARPS);
    has.then_some(Kernel {
        name,
        chunk: queries,
        queries,
        threads: THREADS,
        shared,
        kept,
        eight: None,
        cuts: false,
        meets_spans: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_have_a_multiprocessor_each_have_eight_warps() {
        let kernel = Kernel {
            name: "four",
            chunk: CHUNK,
            queries: CHUNK,
            threads: THREADS,
            shared: 1000,
            kept: 10,
            eight: Some(("eight", 20)),
            cuts: false,
            meets_spans: false,
        };
        for (blocks, expected) in
            [(1, ("eight", 256, 20)), (132, ("eight", 256, 20)), (133, ("four", 128, 10))]
        {
            let Kernel { name, threads, kept, .. } = kernel.for_blocks(blocks);
            assert_eq!((name, threads, kept), expected, "{blocks} blocks");
        }
        let none = Kernel { eight: None, ..kernel };
        assert_eq!(none.for_blocks(1).name, "four", "long heads");
    }
}
