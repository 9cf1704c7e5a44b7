//! How keys and values are kept, and the bytes that takes: one rule for those who plan memory and those who use it.

use crate::dtype::DType;
use crate::spec::{ArchSpec, Attention};

/// Elements that share a scale where elements are codes.
const CODE_BLOCK: usize = 32;
/// Vectors that lie position by position are filled up to whole lanes.
const LANES: usize = 8;

/// Precision of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvFormat {
    /// As computed.
    F32,
    /// Half precision.
    F16,
    /// Eight bits, with a half-precision scale for every 32 elements.
    Q8_0,
    /// E4M3, with no scale.
    F8,
}

impl KvFormat {
    /// What may be asked for.
    pub const CHOICES: [&str; 5] = ["auto", "f32", "f16", "q8_0", "fp8"];

    /// Every precision.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Q8_0, Self::F8];

    /// Whether GPUs keep it.
    pub const fn on_gpus(self) -> bool {
        !matches!(self, Self::Q8_0)
    }

    /// Whether CPUs keep it.
    pub const fn on_cpus(self) -> bool {
        !matches!(self, Self::F8)
    }

    /// Its name on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::F8 => "fp8",
        }
    }

    /// The precision of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// What `choice` means for a checkpoint stored in `stored`. "auto", and nothing, are as exact as that is.
    ///
    /// # Errors
    /// If there is no such choice.
    pub fn choose(choice: &str, stored: DType) -> Result<Self, String> {
        match choice {
            "auto" | "" if stored == DType::F32 => Ok(Self::F32),
            "auto" | "" | "f16" => Ok(Self::F16),
            "f32" => Ok(Self::F32),
            "q8_0" => Ok(Self::Q8_0),
            "fp8" => Ok(Self::F8),
            other => Err(format!("kv_dtype `{other}` is not one of {}", Self::CHOICES.join(", "))),
        }
    }

    /// Bytes of a vector of `dim` elements.
    const fn vector_bytes(self, dim: usize) -> usize {
        match self {
            Self::F32 => dim * 4,
            Self::F16 => dim * 2,
            Self::F8 => dim,
            Self::Q8_0 => dim + 2 * dim.div_ceil(CODE_BLOCK),
        }
    }

    /// Bytes that a key of one head with its value takes, at one position in one layer.
    pub fn head_bytes(self, spec: &ArchSpec) -> usize {
        let filled_up = |dim: usize| match self {
            // A short last block of codes has one scale, however it is filled up.
            Self::Q8_0 => self.vector_bytes(dim) + dim.next_multiple_of(LANES) - dim,
            _ => self.vector_bytes(dim.next_multiple_of(LANES)),
        };
        match spec.attention {
            Attention::Grouped(_) => self.vector_bytes(spec.key_dim()) + filled_up(spec.value_dim()),
            // The value is the beginning of the key.
            Attention::Latent(_) => filled_up(spec.key_dim()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::footprint::spec_of_config;

    #[test]
    fn choices_are_taken_by_name() {
        for (choice, stored, format) in [
            ("auto", DType::F32, KvFormat::F32),
            ("", DType::BF16, KvFormat::F16),
            ("auto", DType::Q8_0, KvFormat::F16),
            ("f16", DType::F32, KvFormat::F16),
            ("f32", DType::BF16, KvFormat::F32),
            ("q8_0", DType::F32, KvFormat::Q8_0),
            ("fp8", DType::BF16, KvFormat::F8),
        ] {
            assert_eq!(KvFormat::choose(choice, stored), Ok(format), "{choice} {stored:?}");
        }
        assert!(
            KvFormat::choose("int3", DType::F32).is_err_and(|e| e.contains("int3") && e.contains("q8_0"))
        );
        assert!(KvFormat::CHOICES.iter().all(|choice| KvFormat::choose(choice, DType::F16).is_ok()));
    }

    #[test]
    fn latent_attention_keeps_one_vector() {
        let golden = |name: &str| {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
            spec_of_config(&folder).expect("a valid configuration").0
        };
        let (latent, grouped) = (golden("deepseek-v3"), golden("llama"));
        let key = latent.key_dim().next_multiple_of(8);
        assert_eq!(KvFormat::F16.head_bytes(&latent), 2 * key);
        assert_eq!(KvFormat::F8.head_bytes(&latent), key);
        assert!(KvFormat::Q8_0.head_bytes(&latent) >= latent.key_dim() + 2);
        let both = grouped.key_dim() + grouped.value_dim().next_multiple_of(8);
        assert_eq!(KvFormat::F32.head_bytes(&grouped), 4 * both);
        assert_eq!(KvFormat::F8.head_bytes(&grouped), both);
    }
}
