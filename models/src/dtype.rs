//! The types in which checkpoints store tensors.

use std::fmt;

/// A stored type. The quantized ones are GGUF's block formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, missing_docs)]
pub enum DType {
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

impl DType {
    /// Elements and bytes of a block, and the name.
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

    /// Elements in a block.
    pub const fn block_elems(self) -> usize {
        self.layout().0
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        self.layout().1
    }

    /// GGUF's name for it.
    pub const fn name(self) -> &'static str {
        self.layout().2
    }

    /// Whether it is a block format.
    pub const fn is_quantized(self) -> bool {
        self.block_elems() > 1
    }

    /// Columns at which a row may be cut: runs of 32 in every quantized format (the 256-element ones are cut inside their
    /// blocks), anywhere in floats.
    pub const fn column_granularity(self) -> usize {
        if self.is_quantized() { 32 } else { 1 }
    }

    /// Bytes of a row of `cols` elements (whole blocks).
    pub const fn row_bytes(self, cols: usize) -> usize {
        cols / self.block_elems() * self.block_bytes()
    }

    /// The type with ggml's number (ggml.h, `enum ggml_type`), or the name of one we do not read.
    pub(crate) fn from_ggml(number: u32) -> Result<Self, String> {
        Ok(match number {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4_K,
            13 => Self::Q5_K,
            14 => Self::Q6_K,
            30 => Self::BF16,
            other => return Err(ggml_name(other).map_or_else(|| format!("type {other}"), str::to_owned)),
        })
    }
}

/// Names of ggml types we know of but do not read.
fn ggml_name(number: u32) -> Option<&'static str> {
    let names = [
        (9, "Q8_1"),
        (10, "Q2_K"),
        (11, "Q3_K"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (20, "IQ4_NL"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (23, "IQ4_XS"),
        (24, "I8"),
        (25, "I16"),
        (26, "I32"),
        (27, "I64"),
        (28, "F64"),
        (29, "IQ1_M"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (39, "MXFP4"),
        (40, "NVFP4"),
        (41, "Q1_0"),
    ];
    names.iter().find(|(n, _)| *n == number).map(|(_, name)| *name)
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
