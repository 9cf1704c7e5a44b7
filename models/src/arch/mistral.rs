//! Mistral 7B (Jiang et al., 2023): Llama with a sliding window. In GGUF it is `llama`.

use super::{Architecture, as_llama};
use crate::error::ModelError;
use crate::hf::{Config, refuse_partial_rotation};
use crate::spec::ArchSpec;

pub(crate) const MISTRAL: Architecture = Architecture {
    hf: "MistralForCausalLM",
    hf_fields: &["sliding_window", "layer_types", "partial_rotary_factor"],
    hf_defaults: &[("rms_norm_eps", "1e-6"), ("num_key_value_heads", "8"), ("sliding_window", "4096")],
    hf_spec,
    hf_layout: as_llama,
    gguf: None,
};

fn hf_spec(config: &Config<'_>) -> Result<ArchSpec, ModelError> {
    refuse_partial_rotation(config)?;
    let mut spec = config.llama_like("mistral")?;
    let everywhere = config.get("sliding_window").is_some();
    config.set_uniform_windows(&mut spec, everywhere)?;
    Ok(spec)
}
