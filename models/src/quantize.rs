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
    /// 8 bits.
    Q8_0,
    /// 4 bits; embedding and output 8.
    Q4_0,
    /// 4 bits with finer scales; embedding and output 8. Rows that are not whole blocks of 256 become Q4_0.
    Q4_K,
}

impl Quantize {
    /// Every choice.
    pub const ALL: [Self; 4] = [Self::None, Self::Q8_0, Self::Q4_0, Self::Q4_K];

    /// Its name on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_K => "q4_k",
        }
    }

    /// The type in which a tensor is held once loaded. Norms, biases, routers and what is quantized already stay as they are,
    /// and so does what does not come in whole runs of 32.
    pub fn loaded(self, role: TensorRole, tensor: &TensorInfo) -> DType {
        self.loaded_as(role, tensor.dtype, tensor.cols)
    }

    /// As [`loaded`](Self::loaded), of a matrix stored in `dtype` whose rows are `cols` long.
    pub fn loaded_as(self, role: TensorRole, dtype: DType, cols: usize) -> DType {
        let matrix = match role {
            TensorRole::Embedding | TensorRole::Output => true,
            TensorRole::FinalNorm => false,
            TensorRole::Layer(_, role) => is_large(role),
        };
        if dtype.is_quantized() || !matrix || !cols.is_multiple_of(32) {
            return dtype;
        }
        let ends = matches!(role, TensorRole::Embedding | TensorRole::Output);
        match self {
            Self::None => dtype,
            Self::Q8_0 => DType::Q8_0,
            Self::Q4_0 | Self::Q4_K if ends => DType::Q8_0,
            Self::Q4_K if cols.is_multiple_of(256) => DType::Q4_K,
            Self::Q4_0 | Self::Q4_K => DType::Q4_0,
        }
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
        known.ok_or_else(|| format!("quantize `{text}` is not one of none, q8_0, q4_0, q4_k"))
    }
}
