//! gpt-oss (OpenAI, 2025): sinks in the softmax, every other layer a window, biases everywhere, a clamped activation.
//!
//! Float weights only: the released files hold their experts in MXFP4, which is refused by name.

use serde_json::json;

use super::{Architecture, GgufArchitecture, names::Naming};
use crate::error::ModelError;
use crate::gguf::Header;
use crate::hf::{Config, grouped, refuse_partial_rotation, rope_spec};
use crate::roles::{LayerRole, Place};
use crate::spec::{Activation, ArchSpec, Experts, Mlp, RopeStyle, Routing};

/// Steepness and bound of the activation where a file does not say them.
const ALPHA: f64 = 1.702;
const LIMIT: f64 = 7.0;

pub(crate) const GPT_OSS: Architecture = Architecture {
    hf: "GptOssForCausalLM",
    hf_fields: &[
        "attention_bias",
        "sliding_window",
        "layer_types",
        "num_local_experts",
        "num_experts_per_tok",
        "experts_per_token",
        "initial_context_length",
        "swiglu_alpha",
        "swiglu_limit",
        "partial_rotary_factor",
    ],
    hf_defaults: &[
        ("rms_norm_eps", "1e-5"),
        ("head_dim", "64"),
        ("num_key_value_heads", "8"),
        ("rope_theta", "150000.0"),
        ("sliding_window", "128"),
    ],
    hf_spec,
    hf_layout,
    gguf: Some(GgufArchitecture {
        name: "gpt-oss",
        fields: &[
            "attention.sliding_window",
            "attention.sliding_window_pattern",
            "expert_count",
            "expert_used_count",
            "expert_feed_forward_length",
        ],
        spec: gguf_spec,
        layout: gguf_layout,
    }),
};

fn hf_spec(config: &Config<'_>) -> Result<ArchSpec, ModelError> {
    refuse_partial_rotation(config)?;
    let mut spec = config.llama_like("gpt_oss")?;
    let bias = config.flag("attention_bias")?.unwrap_or(true);
    let experts =
        config.experts(config.count("intermediate_size")?, Routing::Softmax { renormalize: true })?;
    let alpha = config.number("swiglu_alpha")?.unwrap_or(ALPHA);
    let limit = config.number("swiglu_limit")?.unwrap_or(LIMIT);
    complete(&mut spec, bias, experts, alpha, limit);
    if config.rope_parameters().is_none() {
        let yarn = json!({ "rope_type": "yarn", "factor": 32.0, "truncate": false,
            "original_max_position_embeddings": 4096 });
        spec.ropes = vec![rope_spec(config, Some(&yarn), spec.key_dim(), RopeStyle::Half)?.0];
    }
    config.set_windows(&mut spec, |layer| layer % 2 == 0)?;
    Ok(spec)
}

/// What both kinds of file leave unsaid.
fn complete(spec: &mut ArchSpec, bias: bool, experts: Experts, alpha: f64, limit: f64) {
    let attention = grouped(spec);
    (attention.qkv_bias, attention.o_bias, attention.sinks) = (bias, bias, true);
    spec.activation = Activation::ClampedSwiglu { alpha: alpha as f32, limit: limit as f32 };
    let experts = Experts { bias: true, ..experts };
    spec.layers.iter_mut().for_each(|layer| layer.mlp = Mlp::Experts(experts));
}

fn hf_layout(_: &ArchSpec, role: LayerRole) -> Option<Place> {
    let expert = |part: &str| format!("mlp.experts.{part}");
    Some(match role {
        LayerRole::Router => Place::whole("mlp.router.weight"),
        LayerRole::RouterBias => Place::whole("mlp.router.bias"),
        // Gate and up features take turns.
        LayerRole::ExpertGate(e) => Place::strided(expert("gate_up_proj"), e, 0, 2),
        LayerRole::ExpertUp(e) => Place::strided(expert("gate_up_proj"), e, 1, 2),
        LayerRole::ExpertDown(e) => Place::strided(expert("down_proj"), e, 0, 1),
        LayerRole::ExpertGateBias(e) => Place::strided(expert("gate_up_proj_bias"), e, 0, 2),
        LayerRole::ExpertUpBias(e) => Place::strided(expert("gate_up_proj_bias"), e, 1, 2),
        LayerRole::ExpertDownBias(e) => Place::strided(expert("down_proj_bias"), e, 0, 1),
        other => Naming::HuggingFace.layer(other),
    })
}

fn gguf_spec(header: &Header<'_>) -> Result<ArchSpec, ModelError> {
    let mut spec = header.llama_like("gpt_oss", RopeStyle::Half)?;
    let width = header.count("expert_feed_forward_length")?;
    let experts = header.experts(width, Routing::Softmax { renormalize: true })?;
    complete(&mut spec, header.has(LayerRole::QBias), experts, ALPHA, LIMIT);
    header.set_windows(&mut spec, 2)?;
    Ok(spec)
}

fn gguf_layout(_: &ArchSpec, role: LayerRole) -> Option<Place> {
    match role {
        LayerRole::MlpNorm => Some(Place::whole("post_attention_norm.weight")),
        _ => None,
    }
}
