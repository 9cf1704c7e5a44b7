//! DeepSeek-V3 (DeepSeek-AI, 2024): latent attention, shared and routed experts, a few dense layers first.

use serde_json::json;

use super::{Architecture, GgufArchitecture};
use crate::error::ModelError;
use crate::gguf::Header;
use crate::hf::{Config, refuse_partial_rotation, rope_spec};
use crate::roles::{LayerRole, Place};
use crate::spec::{ArchSpec, Attention, Experts, Latent, Mlp, RopeStyle, Routing};

/// The norms of the short vectors have this epsilon, whatever the others have.
const LATENT_EPS: f32 = 1e-6;

pub(crate) const DEEPSEEK_V3: Architecture = Architecture {
    hf: "DeepseekV3ForCausalLM",
    hf_fields: &[
        "attention_bias",
        "first_k_dense_replace",
        "kv_lora_rank",
        "moe_intermediate_size",
        "moe_layer_freq",
        "n_group",
        "n_routed_experts",
        "n_shared_experts",
        "num_mtp_layers",
        "norm_topk_prob",
        "num_experts_per_tok",
        "q_lora_rank",
        "qk_head_dim",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "rope_interleave",
        "routed_scaling_factor",
        "scoring_func",
        "topk_group",
        "topk_method",
        "v_head_dim",
        // Training only.
        "aux_loss_alpha",
        "ep_size",
        "seq_aux",
    ],
    hf_defaults: &[
        ("rms_norm_eps", "1e-6"),
        ("first_k_dense_replace", "3"),
        ("n_group", "8"),
        ("n_shared_experts", "1"),
        ("q_lora_rank", "1536"),
        ("routed_scaling_factor", "2.5"),
        ("topk_group", "4"),
    ],
    hf_spec,
    hf_layout,
    gguf: Some(GgufArchitecture {
        name: "deepseek2",
        fields: &[
            "attention.key_length_mla",
            "attention.kv_lora_rank",
            "attention.q_lora_rank",
            "attention.value_length_mla",
            "expert_count",
            "expert_feed_forward_length",
            "expert_gating_func",
            "expert_group_count",
            "expert_group_used_count",
            "expert_shared_count",
            "expert_used_count",
            "expert_weights_norm",
            "expert_weights_scale",
            "leading_dense_block_count",
            "rope.scaling.yarn_log_multiplier",
        ],
        spec: gguf_spec,
        layout: gguf_layout,
    }),
};

fn hf_spec(config: &Config<'_>) -> Result<ArchSpec, ModelError> {
    for (field, served) in
        [("moe_layer_freq", json!(1)), ("scoring_func", json!("sigmoid")), ("topk_method", json!("noaux_tc"))]
    {
        config.only(field, &served)?;
    }
    refuse_partial_rotation(config)?;
    let mut spec = config.llama_like("deepseek_v3")?;
    let latent = Latent {
        q_rank: config.optional_count("q_lora_rank")?,
        kv_rank: config.count("kv_lora_rank")?,
        nope_dim: config.count("qk_nope_head_dim")?,
        rope_dim: config.count("qk_rope_head_dim")?,
        value_dim: config.count("v_head_dim")?,
        bias: config.flag("attention_bias")?.unwrap_or(false),
        split_up: false,
        norm_eps: LATENT_EPS,
    };
    let style = match config.flag("rope_interleave")?.unwrap_or(true) {
        true => RopeStyle::Interleaved,
        false => RopeStyle::Half,
    };
    let (rope, stretch) = rope_spec(config, config.rope_parameters(), latent.rope_dim, style)?;
    spec.ropes = vec![rope];
    spec.attention_scale = ((latent.nope_dim + latent.rope_dim) as f32).sqrt().recip() * stretch;
    spec.attention = Attention::Latent(latent);
    let routing = Routing::GroupedSigmoid {
        groups: config.optional_count("n_group")?.unwrap_or(1),
        top_groups: config.optional_count("topk_group")?.unwrap_or(1),
        renormalize: config.flag("norm_topk_prob")?.unwrap_or(true),
        scale: config.number("routed_scaling_factor")?.unwrap_or(1.0) as f32,
    };
    let width = config.count("moe_intermediate_size")?;
    let shared = config.optional_count("n_shared_experts")?.unwrap_or(0);
    let experts = Experts { shared_width: shared * width, ..config.experts(width, routing)? };
    let dense = config.optional_count("first_k_dense_replace")?.unwrap_or(0);
    spec.layers.iter_mut().skip(dense).for_each(|layer| layer.mlp = Mlp::Experts(experts));
    Ok(spec)
}

fn hf_layout(spec: &ArchSpec, role: LayerRole) -> Option<Place> {
    match (role, spec.attention) {
        (LayerRole::QUp, Attention::Latent(Latent { q_rank: None, .. })) => {
            Some(Place::whole("self_attn.q_proj.weight"))
        }
        _ => None,
    }
}

fn gguf_spec(header: &Header<'_>) -> Result<ArchSpec, ModelError> {
    let mut spec = header.llama_like("deepseek_v3", RopeStyle::Interleaved)?;
    let rope_dim = header.count("rope.dimension_count")?;
    // Newer files have the lengths of what is cached where older ones have those of a head, and those of a head besides.
    let length = |each: &str, cached: &str| match header.optional_count(each)? {
        Some(length) => Ok(length),
        None => header.count(cached),
    };
    let key = length("attention.key_length_mla", "attention.key_length")?;
    let value_dim = length("attention.value_length_mla", "attention.value_length")?;
    let nope_dim = key.checked_sub(rope_dim).ok_or_else(|| {
        ModelError::corrupt(header.path(), format!("{rope_dim} rotated elements in keys of {key}"))
    })?;
    let latent = Latent {
        q_rank: header.optional_count("attention.q_lora_rank")?,
        kv_rank: header.count("attention.kv_lora_rank")?,
        nope_dim,
        rope_dim,
        value_dim,
        bias: header.has(LayerRole::KvDownBias),
        split_up: header.has(LayerRole::KeyUp(0)),
        norm_eps: LATENT_EPS,
    };
    // YaRN as these models have it: its factor multiplies scores, not sines and cosines.
    let multiplier = header.number("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0);
    let factor = header.number("rope.scaling.factor")?.unwrap_or(1.0);
    let stretch = 1.0 + multiplier * factor.max(1.0).ln();
    if multiplier != 0.0 {
        spec.ropes[0].scale = 1.0;
    }
    spec.attention_scale = ((key as f64).sqrt().recip() * stretch * stretch) as f32;
    spec.attention = Attention::Latent(latent);
    let dense = header.optional_count("leading_dense_block_count")?.unwrap_or(0);
    // Where the files do not say it, it is the softmax of the older models of this name, which have no correction either.
    let sigmoid = match header.optional_count("expert_gating_func")? {
        None => header.layer_has(dense, LayerRole::RouterCorrection),
        Some(function) => function == 2,
    };
    if !sigmoid {
        let reason = "an expert gating function other than the sigmoid";
        return Err(ModelError::unsupported(header.path(), reason));
    }
    let routing = Routing::GroupedSigmoid {
        groups: header.optional_count("expert_group_count")?.unwrap_or(1),
        top_groups: header.optional_count("expert_group_used_count")?.unwrap_or(1),
        renormalize: header.flag("expert_weights_norm")?.unwrap_or(false),
        scale: header.number("expert_weights_scale")?.unwrap_or(1.0) as f32,
    };
    let width = header.count("expert_feed_forward_length")?;
    let shared = header.optional_count("expert_shared_count")?.unwrap_or(0);
    let experts = Experts { shared_width: shared * width, ..header.experts(width, routing)? };
    spec.layers.iter_mut().skip(dense).for_each(|layer| layer.mlp = Mlp::Experts(experts));
    Ok(spec)
}

fn gguf_layout(spec: &ArchSpec, role: LayerRole) -> Option<Place> {
    match (role, spec.attention) {
        (LayerRole::QUp, Attention::Latent(Latent { q_rank: None, .. })) => {
            Some(Place::whole("attn_q.weight"))
        }
        _ => None,
    }
}
