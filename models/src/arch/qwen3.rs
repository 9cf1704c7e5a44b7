//! Qwen3 (Yang et al., 2025): heads of queries and keys are normed.

use super::{Architecture, GgufArchitecture, as_llama, qwen2::late_windows};
use crate::error::ModelError;
use crate::gguf::Header;
use crate::hf::{Config, grouped, refuse_partial_rotation};
use crate::spec::{ArchSpec, RopeStyle};

pub(crate) const QWEN3: Architecture = Architecture {
    hf: "Qwen3ForCausalLM",
    hf_fields: &[
        "attention_bias",
        "sliding_window",
        "use_sliding_window",
        "layer_types",
        "partial_rotary_factor",
    ],
    hf_defaults: &[
        ("rms_norm_eps", "1e-6"),
        ("head_dim", "128"),
        ("num_key_value_heads", "32"),
        ("sliding_window", "4096"),
    ],
    hf_spec,
    hf_layout: as_llama,
    gguf: Some(GgufArchitecture { name: "qwen3", fields: &[], spec: gguf_spec, layout: as_llama }),
};

fn hf_spec(config: &Config<'_>) -> Result<ArchSpec, ModelError> {
    refuse_partial_rotation(config)?;
    let mut spec = config.llama_like("qwen3")?;
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    let attention = grouped(&mut spec);
    (attention.qkv_bias, attention.o_bias, attention.qk_norm) = (bias, bias, true);
    late_windows(config, &mut spec)?;
    Ok(spec)
}

fn gguf_spec(header: &Header<'_>) -> Result<ArchSpec, ModelError> {
    let mut spec = header.llama_like("qwen3", RopeStyle::Half)?;
    grouped(&mut spec).qk_norm = true;
    Ok(spec)
}
