//! The paged cache of keys and values of one rank.

mod q8;
mod store;

use crate::error::KernelError;

#[cfg(test)]
pub(crate) use q8::rounded;
pub(crate) use q8::{BLOCK, Codes};
pub(crate) use store::{F8, Side, Store};
use store::{put_f8, put_f16, put_f32};

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvType {
    /// As computed.
    F32,
    /// Rounded to half precision.
    F16,
    /// Eight bits each, with a half-precision scale for every 32 elements of a head's vector at one position.
    Q8_0,
    /// Rounded to E4M3, with no scale; what is too large becomes the largest. Plain loops: it is what GPUs keep, to compare with.
    F8,
}

/// Where a position's values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// Beside its key, of so many elements.
    Own(usize),
    /// In its key: the first so many elements. (Latent attention.)
    InKey(usize),
}

impl Values {
    /// Elements of a value.
    pub const fn dim(self) -> usize {
        match self {
            Self::Own(dim) | Self::InKey(dim) => dim,
        }
    }
}

/// Sizes of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvSizes {
    /// Layers.
    pub layers: usize,
    /// Blocks of each.
    pub blocks: usize,
    /// Positions in a block: a multiple of 8.
    pub block_size: usize,
    /// Keys at each position.
    pub kv_heads: usize,
    /// Elements of a key.
    pub key_dim: usize,
    /// The values.
    pub values: Values,
}

impl KvSizes {
    /// How keys lie: dimension by dimension, so that scores of neighbouring positions are lanes; position by position where
    /// values are read from them.
    fn keys(&self) -> Option<Side> {
        match self.values {
            Values::Own(_) => Side::by_dimension(self.key_dim, self.block_size),
            Values::InKey(_) => Side::by_position(self.key_dim, self.block_size),
        }
    }

    /// How values lie: position by position.
    fn values(&self) -> Option<Side> {
        match self.values {
            Values::Own(dim) => Side::by_position(dim, self.block_size),
            Values::InKey(_) => Side::by_position(0, self.block_size),
        }
    }

    /// Keys (or values) of one head in one block.
    fn cells(&self) -> Option<usize> {
        [self.blocks, self.kv_heads].iter().try_fold(self.layers, |a, b| a.checked_mul(*b))
    }

    /// Bytes that such a cache can come to; `None` if there is no such number.
    pub fn bytes(&self, ty: KvType) -> Option<usize> {
        let cell = self.keys()?.bytes(ty)?.checked_add(self.values()?.bytes(ty)?)?;
        self.cells()?.checked_mul(cell)
    }
}

/// Keys and values of all layers, in blocks of `block_size` positions. What is stored of a position is a function of its own
/// key and value only.
#[derive(Debug)]
pub struct KvCache {
    pub(crate) store: Store,
    sizes: KvSizes,
    pub(crate) keys: Side,
    /// Of values that are not in the keys.
    pub(crate) values: Side,
}

impl KvCache {
    /// An empty cache.
    ///
    /// # Errors
    /// If the sizes are not usable, or do not fit in memory's address range.
    pub fn new(sizes: KvSizes, ty: KvType) -> Result<Self, KernelError> {
        let wrong = |reason: &str| KernelError::new("KV cache", format!("{sizes:?}: {reason}"));
        if sizes.block_size == 0 || !sizes.block_size.is_multiple_of(8) {
            return Err(wrong("the block size must be a multiple of 8"));
        }
        if matches!(sizes.values, Values::InKey(dim) if dim > sizes.key_dim) {
            return Err(wrong("a value within a key is no longer than the key"));
        }
        let (Some(keys), Some(values), Some(cells)) = (sizes.keys(), sizes.values(), sizes.cells()) else {
            return Err(wrong("too large"));
        };
        if sizes.bytes(ty).is_none_or(|bytes| bytes > isize::MAX as usize) {
            return Err(wrong("too large"));
        }
        Ok(Self { store: Store::new(ty, cells, keys, values), sizes, keys, values })
    }

    /// Positions in a block.
    pub fn block_size(&self) -> usize {
        self.sizes.block_size
    }

    /// Blocks in the cache.
    pub fn blocks(&self) -> usize {
        self.sizes.blocks
    }

    /// Elements of a key.
    pub(crate) fn key_dim(&self) -> usize {
        self.sizes.key_dim
    }

    /// Elements of a value.
    pub(crate) fn value_dim(&self) -> usize {
        self.sizes.values.dim()
    }

    /// Whether values are in the keys.
    pub(crate) fn in_keys(&self) -> bool {
        matches!(self.sizes.values, Values::InKey(_))
    }

    /// Index of a head's part of a block.
    pub(crate) fn cell(&self, layer: usize, block: u32, head: usize) -> usize {
        let s = &self.sizes;
        debug_assert!(layer < s.layers && (block as usize) < s.blocks && head < s.kv_heads);
        (layer * s.blocks + block as usize) * s.kv_heads + head
    }

    /// The content of block `from` over that of block `to`, in every layer.
    ///
    /// # Panics
    /// If one of them does not exist.
    pub fn copy_block(&mut self, from: u32, to: u32) {
        let KvSizes { layers, blocks, kv_heads, .. } = self.sizes;
        assert!(
            (from as usize) < blocks && (to as usize) < blocks,
            "KV cache: block {from} over {to} of {blocks}"
        );
        for layer in 0..layers {
            let [from, to] = [from, to].map(|block| (layer * blocks + block as usize) * kv_heads);
            self.store.copy_cells(self.keys, self.values, from, to, kv_heads);
        }
    }

    /// Stores the keys (`kv_heads × key_dim`) and values (`kv_heads × value_dim`; none where they are in the keys) of the
    /// position `offset` of `block`.
    ///
    /// # Panics
    /// If the place does not exist.
    pub fn write(&mut self, layer: usize, block: u32, offset: usize, k: &[f32], v: &[f32]) {
        let (heads, key_dim, value_dim) = (self.sizes.kv_heads, self.keys.dim, self.values.dim);
        assert!(
            offset < self.sizes.block_size && k.len() == heads * key_dim && v.len() == heads * value_dim,
            "KV cache: offset {offset}, {} and {} elements",
            k.len(),
            v.len()
        );
        for head in 0..heads {
            let cell = self.cell(layer, block, head);
            let (k, v) = (&k[head * key_dim..][..key_dim], &v[head * value_dim..][..value_dim]);
            let places = (self.keys.place(cell, offset), self.values.place(cell, offset));
            match &mut self.store {
                Store::F32 { keys, values } => {
                    put_f32(k, keys, places.0);
                    put_f32(v, values, places.1);
                }
                Store::F16 { keys, values } => {
                    put_f16(k, keys, places.0);
                    put_f16(v, values, places.1);
                }
                Store::F8 { keys, values } => {
                    put_f8(k, keys, places.0);
                    put_f8(v, values, places.1);
                }
                Store::Q8_0 { keys, values } => {
                    keys.put(self.keys, cell, offset, k);
                    values.put(self.values, cell, offset, v);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(key_dim: usize, values: Values) -> KvSizes {
        KvSizes { layers: 2, blocks: 3, block_size: 16, kv_heads: 2, key_dim, values }
    }

    #[test]
    fn bytes_are_those_of_the_store() {
        let positions = 2 * 3 * 16 * 2;
        for (sizes, ty, each) in [
            (sizes(64, Values::Own(64)), KvType::F32, 512),
            (sizes(64, Values::Own(64)), KvType::F16, 256),
            (sizes(64, Values::Own(64)), KvType::Q8_0, 136),
            (sizes(40, Values::Own(20)), KvType::Q8_0, 40 + 2 * 2 + 24 + 2),
            (sizes(576, Values::InKey(512)), KvType::F16, 2 * 576),
            (sizes(40, Values::Own(20)), KvType::F8, 40 + 24),
            (sizes(576, Values::InKey(512)), KvType::F8, 576),
            (sizes(576, Values::InKey(512)), KvType::Q8_0, 576 + 2 * 18),
        ] {
            assert_eq!(sizes.bytes(ty), Some(positions * each), "{sizes:?} {ty:?}");
            let cache = KvCache::new(sizes, ty).expect("fits");
            assert_eq!(cache.store.bytes(), positions * each, "{sizes:?} {ty:?}");
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let usable = sizes(64, Values::Own(64));
        for (wrong, reason) in [
            (KvSizes { block_size: 12, ..usable }, "multiple of 8"),
            (KvSizes { block_size: 0, ..usable }, "multiple of 8"),
            (KvSizes { blocks: usize::MAX / 8, ..usable }, "too large"),
            (KvSizes { key_dim: usize::MAX, ..usable }, "too large"),
            (KvSizes { values: Values::Own(usize::MAX), ..usable }, "too large"),
            (KvSizes { values: Values::InKey(65), ..usable }, "no longer"),
        ] {
            let error = KvCache::new(wrong, KvType::Q8_0).expect_err("cannot be made");
            assert!(error.to_string().contains(reason), "{error}");
        }
    }

    /// Fills all of a cache; block `place` has what `content(place)` would have.
    fn filled(sizes: KvSizes, ty: KvType, content: impl Fn(usize) -> usize) -> KvCache {
        let mut cache = KvCache::new(sizes, ty).expect("fits");
        let value_dim = cache.values.dim;
        for (layer, at) in
            (0..sizes.layers).flat_map(|layer| (0..sizes.blocks * 16).map(move |at| (layer, at)))
        {
            let (block, offset) = (at / 16, at % 16);
            let seed = (layer * 1000 + content(block)) * 16 + offset;
            let row = |width: usize, step: usize| -> Vec<f32> {
                (0..width * 2).map(|i| ((seed * 31 + i * step) % 1009) as f32 - 500.0).collect()
            };
            cache.write(layer, block as u32, offset, &row(sizes.key_dim, 7), &row(value_dim, 11));
        }
        cache
    }

    #[test]
    fn a_copied_block_is_the_same_in_every_layer_and_the_others_stay() {
        for ty in [KvType::F32, KvType::F16, KvType::Q8_0, KvType::F8] {
            for values in [Values::Own(20), Values::InKey(33)] {
                let sizes = KvSizes { blocks: 4, ..sizes(40, values) };
                let mut cache = filled(sizes, ty, |block| block);
                cache.copy_block(3, 1);
                let wanted = filled(sizes, ty, |block| if block == 1 { 3 } else { block });
                assert!(format!("{:?}", cache.store) == format!("{:?}", wanted.store), "{ty:?} {values:?}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "block 2 over 3 of 3")]
    fn a_block_that_does_not_exist_is_not_copied_over() {
        KvCache::new(sizes(8, Values::Own(8)), KvType::F16).expect("fits").copy_block(2, 3);
    }
}
