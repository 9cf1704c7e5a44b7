//! The paged cache of keys and values of one rank.

use half::f16;

use crate::error::KernelError;

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvType {
    /// As computed.
    F32,
    /// Rounded to half precision.
    F16,
}

impl KvType {
    /// Bytes of an element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// Storage of one kind of element. Zeroed memory comes lazily from the system, so blocks never written cost nothing.
#[derive(Debug)]
pub(crate) enum Store {
    F32 { keys: Vec<f32>, values: Vec<f32> },
    F16 { keys: Vec<u16>, values: Vec<u16> },
}

/// Keys and values of all layers, in blocks of `block_size` positions.
///
/// Within a block of one head, keys are stored dimension by dimension (so that scores of neighbouring positions are lanes)
/// and values position by position, padded to whole vectors.
#[derive(Debug)]
pub struct KvCache {
    pub(crate) store: Store,
    layers: usize,
    blocks: usize,
    pub(crate) block_size: usize,
    pub(crate) kv_heads: usize,
    pub(crate) key_dim: usize,
    pub(crate) value_dim: usize,
    /// `value_dim` rounded up to whole vectors.
    pub(crate) value_stride: usize,
}

impl KvCache {
    /// A cache of `blocks` blocks, of `kv_heads` keys of `key_dim` and values of `value_dim` at each position. `block_size`
    /// must be a multiple of 8.
    ///
    /// # Errors
    /// If the sizes are not usable, or do not fit in memory's address range.
    pub fn new(
        layers: usize,
        blocks: usize,
        block_size: usize,
        kv_heads: usize,
        key_dim: usize,
        value_dim: usize,
        ty: KvType,
    ) -> Result<Self, KernelError> {
        let wrong = |reason: &str| {
            let sizes = format!(
                "{layers} layers × {blocks} blocks × {block_size} × {kv_heads} heads × ({key_dim} + {value_dim})"
            );
            KernelError::new("KV cache", format!("{sizes}: {reason}"))
        };
        if block_size == 0 || !block_size.is_multiple_of(8) {
            return Err(wrong("the block size must be a multiple of 8"));
        }
        let Some(value_stride) = value_dim.checked_next_multiple_of(8) else {
            return Err(wrong("too large"));
        };
        let total = |width: usize| {
            [layers, blocks, kv_heads, block_size].iter().try_fold(width, |a, b| a.checked_mul(*b))
        };
        let (Some(keys), Some(values)) = (total(key_dim), total(value_stride)) else {
            return Err(wrong("too large"));
        };
        if keys.max(values).checked_mul(ty.bytes()).is_none_or(|bytes| bytes > isize::MAX as usize) {
            return Err(wrong("too large"));
        }
        let store = match ty {
            KvType::F32 => Store::F32 { keys: vec![0.0; keys], values: vec![0.0; values] },
            KvType::F16 => Store::F16 { keys: vec![0; keys], values: vec![0; values] },
        };
        Ok(Self { store, layers, blocks, block_size, kv_heads, key_dim, value_dim, value_stride })
    }

    /// Positions in a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks in the cache.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Bytes that a cache of these sizes can come to; `None` if there is no such number.
    pub fn bytes(
        layers: usize,
        blocks: usize,
        block_size: usize,
        kv_heads: usize,
        key_dim: usize,
        value_dim: usize,
        ty: KvType,
    ) -> Option<usize> {
        let both = value_dim.checked_next_multiple_of(8)?.checked_add(key_dim)?;
        [layers, blocks, kv_heads, block_size, ty.bytes()].iter().try_fold(both, |a, b| a.checked_mul(*b))
    }

    /// Index of a head's part of a block.
    pub(crate) fn cell(&self, layer: usize, block: u32, head: usize) -> usize {
        debug_assert!(layer < self.layers && (block as usize) < self.blocks && head < self.kv_heads);
        (layer * self.blocks + block as usize) * self.kv_heads + head
    }

    /// Stores the keys (`kv_heads × key_dim`) and values (`kv_heads × value_dim`) of the position `offset` of `block`.
    ///
    /// # Panics
    /// If the place does not exist.
    pub fn write(&mut self, layer: usize, block: u32, offset: usize, k: &[f32], v: &[f32]) {
        let (size, stride) = (self.block_size, self.value_stride);
        let (key_dim, value_dim) = (self.key_dim, self.value_dim);
        assert!(
            offset < size && k.len() == self.kv_heads * key_dim && v.len() == self.kv_heads * value_dim,
            "KV cache: offset {offset}, {} and {} elements",
            k.len(),
            v.len()
        );
        for head in 0..self.kv_heads {
            let cell = self.cell(layer, block, head);
            let (k, v) = (&k[head * key_dim..][..key_dim], &v[head * value_dim..][..value_dim]);
            let (key_at, value_at) = (cell * key_dim * size, (cell * size + offset) * stride);
            match &mut self.store {
                Store::F32 { keys, values } => {
                    for (d, k) in k.iter().enumerate() {
                        keys[key_at + d * size + offset] = *k;
                    }
                    values[value_at..][..value_dim].copy_from_slice(v);
                }
                Store::F16 { keys, values } => {
                    for (d, k) in k.iter().enumerate() {
                        keys[key_at + d * size + offset] = f16::from_f32(*k).to_bits();
                    }
                    for (to, v) in values[value_at..][..value_dim].iter_mut().zip(v) {
                        *to = f16::from_f32(*v).to_bits();
                    }
                }
            }
        }
    }
}
