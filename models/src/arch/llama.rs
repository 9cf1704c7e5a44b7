//! Llama 1 to 3.x (Touvron et al., 2023), and every model of its shape (SmolLM2 among them). In GGUF, Mistral and Mixtral too.

use super::{Architecture, GgufArchitecture, as_llama};
use crate::error::ModelError;
use crate::gguf::Header;
use crate::hf::{Config, grouped, refuse_partial_rotation};
use crate::spec::{ArchSpec, Mlp, RopeStyle, Routing};

pub(crate) const LLAMA: Architecture = Architecture {
    hf: "LlamaForCausalLM",
    hf_fields: &["attention_bias", "mlp_bias", "rope_interleaved", "partial_rotary_factor"],
    hf_defaults: &[("rms_norm_eps", "1e-6")],
    hf_spec,
    hf_layout: as_llama,
    gguf: Some(GgufArchitecture {
        name: "llama",
        fields: &["expert_count", "expert_used_count"],
        spec: gguf_spec,
        layout: as_llama,
    }),
};

fn hf_spec(config: &Config<'_>) -> Result<ArchSpec, ModelError> {
    refuse_partial_rotation(config)?;
    for field in ["mlp_bias", "rope_interleaved"] {
        if config.flag(field)? == Some(true) {
            return Err(config.unsupported(format!("field `{field}` is true")));
        }
    }
    let mut spec = config.llama_like("llama")?;
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    (grouped(&mut spec).qkv_bias, grouped(&mut spec).o_bias) = (bias, bias);
    Ok(spec)
}

fn gguf_spec(header: &Header<'_>) -> Result<ArchSpec, ModelError> {
    let mut spec = header.llama_like("llama", RopeStyle::Interleaved)?;
    if header.optional_count("expert_count")?.unwrap_or(0) > 0 {
        spec.family = "mixtral";
        let width = header.count("feed_forward_length")?;
        let experts = header.experts(width, Routing::Softmax { renormalize: true })?;
        spec.layers.iter_mut().for_each(|layer| layer.mlp = Mlp::Experts(experts));
    }
    Ok(spec)
}
