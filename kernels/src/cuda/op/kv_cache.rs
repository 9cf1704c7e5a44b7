//! The paged cache of keys and values of one rank, on a device.

use crate::cuda::{Buffer, Device, DeviceError};
use crate::op::kv_cache::{KvSizes, Values};

/// How keys and values are kept on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvKind {
    /// As computed.
    F32,
    /// Rounded to half precision; what is too large becomes the largest.
    F16,
}

impl KvKind {
    /// Bytes of an element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// Keys and values of all layers: [layer][block][head][position in the block][element], each key and each value padded with
/// zeros to whole 16 bytes.
#[derive(Debug)]
pub struct DeviceKv {
    kind: KvKind,
    sizes: KvSizes,
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
    /// If a size is 0, or a value within a key is longer than the key.
    pub fn new(device: &Device, sizes: KvSizes, kind: KvKind) -> Result<Self, DeviceError> {
        todo!()
    }

    /// Bytes that such a cache takes; `None` if there is no such number.
    pub fn bytes_of(sizes: &KvSizes, kind: KvKind) -> Option<usize> {
        todo!()
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
        todo!()
    }
}
