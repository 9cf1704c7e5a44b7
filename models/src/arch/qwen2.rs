//! Qwen2 and 2.5 (Yang et al., 2024): biases on queries, keys and values; a window on the later layers where it is used.

use super::{Architecture, GgufArchitecture, as_llama};
use crate::error::ModelError;
use crate::gguf::Header;
use crate::hf::{Config, grouped, refuse_partial_rotation};
use crate::spec::{ArchSpec, RopeStyle};

pub(crate) const QWEN2: Architecture = Architecture {
    hf: "Qwen2ForCausalLM",
    hf_fields: &["sliding_window", "use_sliding_window", "layer_types", "partial_rotary_factor"],
    hf_defaults: &[("rms_norm_eps", "1e-6"), ("num_key_value_heads", "32"), ("sliding_window", "4096")],
    hf_spec,
    hf_layout: as_llama,
    gguf: Some(GgufArchitecture { name: "qwen2", fields: &[], spec: gguf_spec, layout: as_llama }),
};

fn hf_spec(config: &Config<'_>) -> Result<ArchSpec, ModelError> {
    refuse_partial_rotation(config)?;
    let mut spec = config.llama_like("qwen2")?;
    grouped(&mut spec).qkv_bias = true;
    late_windows(config, &mut spec)?;
    Ok(spec)
}

/// Layers from `max_window_layers` on have a window, if windows are used at all.
pub(super) fn late_windows(config: &Config<'_>, spec: &mut ArchSpec) -> Result<(), ModelError> {
    let used = config.flag("use_sliding_window")?.unwrap_or(false) && config.get("sliding_window").is_some();
    if !used && config.windowed(spec.layers.len(), |_| false)?.contains(&true) {
        let reason = "field `layer_types` has windows, `use_sliding_window` says that none are used";
        return Err(config.unsupported(reason.into()));
    }
    let first = config.optional_count("max_window_layers")?.unwrap_or(28);
    config.set_windows(spec, |layer| used && layer >= first)
}

fn gguf_spec(header: &Header<'_>) -> Result<ArchSpec, ModelError> {
    header.llama_like("qwen2", RopeStyle::Half)
}
