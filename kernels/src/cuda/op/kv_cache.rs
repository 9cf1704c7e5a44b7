//! The paged cache of keys and values of one rank, on a device.

use crate::cuda::{Arg, Buffer, Device, DeviceError, Launch};
use crate::op::kv_cache::{KvSizes, Values};

/// How keys and values are kept on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvKind {
    /// As computed.
    F32,
    /// Rounded to half precision; what is too large becomes the largest.
    F16,
    /// Rounded to E4M3, with no scale; what is too large becomes the largest.
    F8,
}

impl KvKind {
    /// Bytes of an element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::F8 => 1,
        }
    }
}

/// Keys and values of all layers: `[layer][block][head][position in the block][element]`, each key and each value padded with
/// zeros to whole 16 bytes.
#[derive(Debug)]
pub struct DeviceKv {
    kind: KvKind,
    sizes: KvSizes,
    /// Elements from one key to the next.
    pub(super) key_stride: usize,
    /// The same of values.
    pub(super) value_stride: usize,
    keys: Buffer<u8>,
    /// Empty where values are in the keys.
    values: Buffer<u8>,
}

impl DeviceKv {
    /// An empty cache.
    ///
    /// # Errors
    /// If there is no memory.
    ///
    /// # Panics
    /// If a size is 0, a value within a key is longer than the key, or a layer has 2³² positions of all heads.
    pub fn new(device: &Device, sizes: KvSizes, kind: KvKind) -> Result<Self, DeviceError> {
        let most = sizes.key_dim;
        assert!(sizes.block_size > 0 && sizes.kv_heads > 0 && most > 0, "KV cache: {sizes:?}");
        assert!(!matches!(sizes.values, Values::InKey(dim) if dim > most), "KV cache: {sizes:?}");
        let [key_stride, value_stride] = strides(&sizes, kind);
        // Kernels number them so.
        let positions = sizes.layers * u32_of(sizes.blocks * sizes.kv_heads * sizes.block_size) as usize;
        let keys = device.zeros(positions * key_stride * kind.size())?;
        let values = device.zeros(positions * value_stride * kind.size())?;
        Ok(Self { kind, sizes, key_stride, value_stride, keys, values })
    }

    /// Bytes that such a cache takes; `None` if there is no such number.
    pub fn bytes_of(sizes: &KvSizes, kind: KvKind) -> Option<usize> {
        let positions = [sizes.blocks, sizes.kv_heads, sizes.block_size]
            .iter()
            .try_fold(sizes.layers, |a, b| a.checked_mul(*b))?;
        let [key, value] = strides(sizes, kind);
        positions.checked_mul(key.checked_add(value)?.checked_mul(kind.size())?)
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        self.keys.len() + self.values.len()
    }

    /// How it is kept.
    pub fn kind(&self) -> KvKind {
        self.kind
    }

    /// Its sizes.
    pub fn sizes(&self) -> &KvSizes {
        &self.sizes
    }

    /// The content of block `from` over that of block `to`, in every layer.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If one of them does not exist.
    pub fn copy_block(&mut self, from: u32, to: u32) -> Result<(), DeviceError> {
        let blocks = self.sizes.blocks;
        assert!(
            (from as usize) < blocks && (to as usize) < blocks,
            "KV cache: block {from} over {to} of {blocks}"
        );
        if from == to {
            return Ok(());
        }
        let positions = self.sizes.kv_heads * self.sizes.block_size * self.kind.size();
        for (data, stride) in [(&self.keys, self.key_stride), (&self.values, self.value_stride)] {
            // In pieces of 16 bytes.
            let block = positions * stride / 16;
            let launch = Launch {
                kernel: "kv_copy_block",
                grid: [u32_of(block.div_ceil(256).min(64)), u32_of(self.sizes.layers), 1],
                threads: 256,
                shared: 0,
            };
            let args = [
                Arg::Ptr(data.view().address()),
                Arg::U64((blocks * block) as u64),
                Arg::U64(block as u64),
                Arg::U32(from),
                Arg::U32(to),
            ];
            // SAFETY: both blocks exist in every layer, and are not the same.
            unsafe { data.device().launch(&launch, &args)? };
        }
        Ok(())
    }

    /// Whether values are in the keys.
    pub(super) fn in_keys(&self) -> bool {
        matches!(self.sizes.values, Values::InKey(_))
    }

    /// Where the keys and the values of a layer begin.
    ///
    /// # Panics
    /// If there is no such layer.
    pub(super) fn layer(&self, layer: usize) -> [Arg; 2] {
        let KvSizes { layers, blocks, block_size, kv_heads, .. } = self.sizes;
        assert!(layer < layers, "KV cache: layer {layer} of {layers}");
        let before = layer * blocks * kv_heads * block_size * self.kind.size();
        [(&self.keys, self.key_stride), (&self.values, self.value_stride)]
            .map(|(data, stride)| Arg::Ptr(data.view().address() + (before * stride) as u64))
    }

    /// All keys, then all values, to be written.
    #[cfg(test)]
    pub(super) fn content(&mut self) -> [&mut Buffer<u8>; 2] {
        [&mut self.keys, &mut self.values]
    }
}

/// Elements from one key to the next, and from one value to the next: whole pieces of 16 bytes.
fn strides(sizes: &KvSizes, kind: KvKind) -> [usize; 2] {
    let own = match sizes.values {
        Values::Own(dim) => dim,
        Values::InKey(_) => 0,
    };
    [sizes.key_dim, own].map(|dim| dim.div_ceil(16 / kind.size()).saturating_mul(16 / kind.size()))
}

/// A size as kernels take it.
///
/// # Panics
/// If it is too large.
pub(super) fn u32_of(x: usize) -> u32 {
    u32::try_from(x).expect("sizes of kernels have 32 bits")
}
