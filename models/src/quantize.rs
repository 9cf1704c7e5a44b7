//! Which tensors are quantized when they are loaded, and into what.

use std::fmt;
use std::str::FromStr;

use crate::dtype::DType;
use crate::roles::{LayerRole, TensorRole};
use crate::slice::TensorInfo;

/// What float matrices become when they are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[allow(non_camel_case_types)]
pub enum Quantize {
    /// As stored.
    #[default]
    None,
    /// Floats in bf16, and what they are multiplied with rounded to it, too.
    Bf16,
    /// 8 bits.
    Q8_0,
    /// 4 bits; embedding and output 8.
    Q4_0,
    /// 4 bits with finer scales; embedding and output 8. Rows that are not whole blocks of 256 become Q4_0.
    Q4_K,
    /// 8 bits as floats, with a scale for each row; embedding and output as stored. On GPUs only.
    Fp8,
}

/// How a tensor is held once it is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Loaded {
    /// In a type of checkpoints.
    As(DType),
    /// In E4M3 (OCP 8-bit floating point, 2023), with one `f32` a row that its elements are to be multiplied by.
    F8,
}

impl Loaded {
    /// Columns of F8 that begin where loads of a GPU begin.
    const F8_RUN: usize = 16;

    /// Bytes of `rows` rows of `cols` elements.
    pub const fn bytes(self, rows: usize, cols: usize) -> usize {
        match self {
            Self::As(dtype) => rows * dtype.row_bytes(cols.next_multiple_of(dtype.block_elems())),
            Self::F8 => rows * (cols + size_of::<f32>()),
        }
    }

    /// Bytes of them on a GPU, where steps of a K-quant's scales are bytes, and Q6_K's scale is an `f32`.
    pub const fn bytes_on_gpu(self, rows: usize, cols: usize) -> usize {
        let more = match self {
            Self::As(DType::Q4_K | DType::Q5_K) => 4,
            Self::As(DType::Q6_K) => 2,
            Self::As(_) | Self::F8 => 0,
        };
        self.bytes(rows, cols) + rows * cols.div_ceil(256) * more
    }

    /// Columns at which rows of `cols` elements may be cut that are stored in `stored`.
    pub const fn column_granularity(self, stored: DType, cols: usize) -> usize {
        match self {
            Self::As(dtype) => dtype.column_granularity(),
            // What is quantized is cut at whole runs of 32, which are whole runs here, too.
            Self::F8 if stored.is_quantized() || !cols.is_multiple_of(Self::F8_RUN) => {
                stored.column_granularity()
            }
            Self::F8 => Self::F8_RUN,
        }
    }
}

impl Quantize {
    /// Every choice.
    pub const ALL: [Self; 6] = [Self::None, Self::Bf16, Self::Q8_0, Self::Q4_0, Self::Q4_K, Self::Fp8];

    /// Its name on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_K => "q4_k",
            Self::Fp8 => "fp8",
        }
    }

    /// Whether only GPUs compute with it.
    pub const fn needs_gpu(self) -> bool {
        matches!(self, Self::Fp8)
    }

    /// Every name, for messages.
    pub fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    /// How a tensor is held once loaded. Norms, biases and routers stay as they are. So does what is quantized already or does
    /// not come in whole runs of 32, but for F8.
    pub fn loaded(self, role: TensorRole, tensor: &TensorInfo) -> Loaded {
        self.loaded_as(role, tensor.dtype, tensor.cols)
    }

    /// As [`loaded`](Self::loaded), of a matrix stored in `dtype` whose rows are `cols` long.
    pub fn loaded_as(self, role: TensorRole, dtype: DType, cols: usize) -> Loaded {
        let matrix = is_matrix(role);
        let ends = matches!(role, TensorRole::Embedding | TensorRole::Output);
        if self == Self::Fp8 && matrix && !ends {
            // Also of what is quantized already: on a GPU it would take two bytes an element, or one, and inputs in bf16.
            return Loaded::F8;
        }
        if dtype.is_quantized() || !matrix || !cols.is_multiple_of(32) {
            return Loaded::As(dtype);
        }
        Loaded::As(match self {
            Self::None | Self::Fp8 => dtype,
            Self::Bf16 => DType::BF16,
            Self::Q8_0 => DType::Q8_0,
            Self::Q4_0 | Self::Q4_K if ends => DType::Q8_0,
            Self::Q4_K if cols.is_multiple_of(256) => DType::Q4_K,
            Self::Q4_0 | Self::Q4_K => DType::Q4_0,
        })
    }

    /// Whether a CPU rounds activations to bf16 for such a matrix (GPUs do for all floats).
    pub fn multiplies_in_bf16(self, role: TensorRole, dtype: DType) -> bool {
        self == Self::Bf16 && is_matrix(role) && !dtype.is_quantized()
    }

    /// As [`loaded_as`](Self::loaded_as), on a GPU: there large matrices stay in their blocks (of Q5_0 with the bytes of Q8_0), all others
    /// that have some are held in bf16, and floats as they are. Routers are small, and what is taken apart by heads is made anew.
    pub fn loaded_on_gpu(self, role: TensorRole, dtype: DType, cols: usize) -> Loaded {
        match self.loaded_as(role, dtype, cols) {
            Loaded::As(made) if made.is_quantized() && !is_matrix(role) => Loaded::As(DType::BF16),
            Loaded::As(DType::Q5_0) => Loaded::As(DType::Q8_0),
            loaded => loaded,
        }
    }
}

/// Whether it is one of the matrices that make up a model's size.
fn is_matrix(role: TensorRole) -> bool {
    match role {
        TensorRole::Embedding | TensorRole::Output => true,
        TensorRole::FinalNorm => false,
        TensorRole::Layer(_, role) => is_large(role),
    }
}

/// The matrices that make up a model's size. The up projection of latent attention is needed transposed and stays as it is.
fn is_large(role: LayerRole) -> bool {
    use LayerRole as R;
    matches!(
        role,
        R::Q | R::K
            | R::V
            | R::O
            | R::QDown
            | R::QUp
            | R::KvDown
            | R::Gate
            | R::Up
            | R::Down
            | R::SharedGate
            | R::SharedUp
            | R::SharedDown
            | R::ExpertGate(_)
            | R::ExpertUp(_)
            | R::ExpertDown(_)
    )
}

impl fmt::Display for Quantize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Quantize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|choice| choice.name() == text);
        known.ok_or_else(|| format!("quantize `{text}` is not one of {}", Self::names()))
    }
}
