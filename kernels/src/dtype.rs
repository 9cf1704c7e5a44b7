//! The types in which weights are stored.

use std::fmt;
use std::str::FromStr;

use crate::error::KernelError;

/// A weight's type in a checkpoint. The quantized ones are GGUF's block formats
/// (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md> and ggml's `ggml-common.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, missing_docs)]
pub enum WeightType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl WeightType {
    /// Every type, for tables and tests.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// Elements and bytes of one stored block, and the name.
    const fn layout(self) -> (usize, usize, &'static str) {
        match self {
            Self::F32 => (1, 4, "F32"),
            Self::F16 => (1, 2, "F16"),
            Self::BF16 => (1, 2, "BF16"),
            Self::Q4_0 => (32, 18, "Q4_0"),
            Self::Q4_1 => (32, 20, "Q4_1"),
            Self::Q5_0 => (32, 22, "Q5_0"),
            Self::Q5_1 => (32, 24, "Q5_1"),
            Self::Q8_0 => (32, 34, "Q8_0"),
            Self::Q4_K => (256, 144, "Q4_K"),
            Self::Q5_K => (256, 176, "Q5_K"),
            Self::Q6_K => (256, 210, "Q6_K"),
        }
    }

    /// Elements in a stored block.
    pub const fn block_elems(self) -> usize {
        self.layout().0
    }

    /// Bytes of a stored block.
    pub const fn block_bytes(self) -> usize {
        self.layout().1
    }

    /// Its name in GGUF's spelling.
    pub const fn name(self) -> &'static str {
        self.layout().2
    }

    /// Whether products work on integer codes.
    pub const fn is_quantized(self) -> bool {
        self.block_elems() > 1
    }

    /// Bytes of a row of `cols` elements; `cols` must be whole blocks.
    pub const fn row_bytes(self, cols: usize) -> usize {
        cols / self.block_elems() * self.block_bytes()
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for WeightType {
    type Err = KernelError;

    fn from_str(text: &str) -> Result<Self, KernelError> {
        Self::ALL
            .into_iter()
            .find(|ty| ty.name() == text)
            .ok_or_else(|| KernelError::new("weight type", format!("`{text}` is not one of {:?}", Self::ALL)))
    }
}
