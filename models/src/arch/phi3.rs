//! Phi-3 (Abdin et al., 2024): query, key and value rows in one tensor, gate and up rows in another.

use super::{Architecture, GgufArchitecture, names::Naming};
use crate::error::ModelError;
use crate::gguf::Header;
use crate::hf::{Config, partial_rotation, rope_kind, rope_spec};
use crate::roles::{LayerRole, Place};
use crate::spec::{ArchSpec, RopeStyle};

pub(crate) const PHI3: Architecture = Architecture {
    hf: "Phi3ForCausalLM",
    hf_fields: &["sliding_window", "partial_rotary_factor", "layer_types"],
    hf_defaults: &[("rms_norm_eps", "1e-5")],
    hf_spec,
    hf_layout: |spec, role| Some(layout(spec, role, Naming::HuggingFace)),
    gguf: Some(GgufArchitecture {
        name: "phi3",
        fields: &["attention.sliding_window"],
        spec: gguf_spec,
        layout: |spec, role| Some(layout(spec, role, Naming::Gguf)),
    }),
};

fn hf_spec(config: &Config<'_>) -> Result<ArchSpec, ModelError> {
    if let Some(kind @ ("linear" | "llama3" | "yarn" | "dynamic")) = rope_kind(config.rope_parameters()) {
        return Err(config.unsupported(format!("rope type `{kind}` (default and longrope are served here)")));
    }
    let mut spec = config.llama_like("phi3")?;
    let rotated = (spec.key_dim() as f64 * partial_rotation(config)?) as usize;
    spec.ropes = vec![rope_spec(config, config.rope_parameters(), rotated, RopeStyle::Half)?.0];
    let everywhere = config.get("sliding_window").is_some();
    config.set_uniform_windows(&mut spec, everywhere)?;
    Ok(spec)
}

fn gguf_spec(header: &Header<'_>) -> Result<ArchSpec, ModelError> {
    let mut spec = header.llama_like("phi3", RopeStyle::Half)?;
    let window = header.optional_count("attention.sliding_window")?.filter(|window| *window > 0);
    spec.layers.iter_mut().for_each(|layer| layer.window = window);
    Ok(spec)
}

fn layout(spec: &ArchSpec, role: LayerRole, naming: Naming) -> Place {
    let (q, kv) = (spec.heads * spec.key_dim(), spec.kv_heads() * spec.key_dim());
    let (qkv, gate_up) = match naming {
        Naming::HuggingFace => ("self_attn.qkv_proj.weight", "mlp.gate_up_proj.weight"),
        Naming::Gguf => ("attn_qkv.weight", "ffn_up.weight"),
    };
    let width = spec.dense_width(0);
    match role {
        LayerRole::Q => Place::rows(qkv, 0, q),
        LayerRole::K => Place::rows(qkv, q, kv),
        LayerRole::V => Place::rows(qkv, q + kv, kv),
        LayerRole::Gate => Place::rows(gate_up, 0, width),
        LayerRole::Up => Place::rows(gate_up, width, width),
        other => naming.layer(other),
    }
}
