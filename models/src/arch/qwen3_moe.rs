//! Qwen3-MoE (Yang et al., 2025): Qwen3 with experts in most layers.

use serde_json::Value;

use super::{Architecture, GgufArchitecture, as_llama};
use crate::error::ModelError;
use crate::gguf::Header;
use crate::hf::{Config, grouped, refuse_partial_rotation};
use crate::spec::{ArchSpec, Mlp, RopeStyle, Routing};

pub(crate) const QWEN3_MOE: Architecture = Architecture {
    hf: "Qwen3MoeForCausalLM",
    hf_fields: &[
        "attention_bias",
        "sliding_window",
        "use_sliding_window",
        "num_experts",
        "num_local_experts",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "norm_topk_prob",
        "decoder_sparse_step",
        "mlp_only_layers",
        "layer_types",
        "partial_rotary_factor",
    ],
    hf_defaults: &[("rms_norm_eps", "1e-6"), ("num_key_value_heads", "4"), ("sliding_window", "4096")],
    hf_spec,
    hf_layout: as_llama,
    gguf: Some(GgufArchitecture {
        name: "qwen3moe",
        fields: &["expert_count", "expert_used_count", "expert_feed_forward_length"],
        spec: gguf_spec,
        layout: as_llama,
    }),
};

fn hf_spec(config: &Config<'_>) -> Result<ArchSpec, ModelError> {
    refuse_partial_rotation(config)?;
    let mut spec = config.llama_like("qwen3_moe")?;
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    let attention = grouped(&mut spec);
    (attention.qkv_bias, attention.o_bias, attention.qk_norm) = (bias, bias, true);
    let used = config.flag("use_sliding_window")?.unwrap_or(false) && config.get("sliding_window").is_some();
    config.set_uniform_windows(&mut spec, used)?;
    let renormalize = config.flag("norm_topk_prob")?.unwrap_or(false);
    let experts = config.experts(config.count("moe_intermediate_size")?, Routing::Softmax { renormalize })?;
    let step = config.optional_count("decoder_sparse_step")?.unwrap_or(1);
    if step == 0 {
        return Err(config.wrong("decoder_sparse_step", "at least 1"));
    }
    let dense = match config.get("mlp_only_layers") {
        None => Vec::new(),
        Some(list) => {
            let layers = list.as_array().and_then(|list| list.iter().map(Value::as_u64).collect());
            layers.ok_or_else(|| config.wrong("mlp_only_layers", "a list of layers"))?
        }
    };
    for (l, layer) in spec.layers.iter_mut().enumerate() {
        if (l + 1) % step == 0 && !dense.contains(&(l as u64)) {
            layer.mlp = Mlp::Experts(experts);
        }
    }
    Ok(spec)
}

fn gguf_spec(header: &Header<'_>) -> Result<ArchSpec, ModelError> {
    let mut spec = header.llama_like("qwen3_moe", RopeStyle::Half)?;
    grouped(&mut spec).qk_norm = true;
    let width = header.count("expert_feed_forward_length")?;
    let experts = header.experts(width, Routing::Softmax { renormalize: true })?;
    spec.layers.iter_mut().for_each(|layer| layer.mlp = Mlp::Experts(experts));
    Ok(spec)
}
