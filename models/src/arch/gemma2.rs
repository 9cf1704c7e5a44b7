//! Gemma 2 (Gemma Team, 2024): norms around both halves of a layer, bounded scores and logits, every other layer a window.

use super::{Architecture, GgufArchitecture, names::Naming};
use crate::error::ModelError;
use crate::gguf::Header;
use crate::hf::{Config, grouped, refuse_partial_rotation};
use crate::roles::{LayerRole, Place};
use crate::spec::{Activation, ArchSpec, RopeStyle};

pub(crate) const GEMMA2: Architecture = Architecture {
    hf: "Gemma2ForCausalLM",
    hf_fields: &[
        "attention_bias",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "hidden_activation",
        "query_pre_attn_scalar",
        "sliding_window",
        // Of older files, beside the one that counts.
        "sliding_window_size",
        "layer_types",
        "partial_rotary_factor",
    ],
    hf_defaults: &[
        ("rms_norm_eps", "1e-6"),
        ("attn_logit_softcapping", "50.0"),
        ("final_logit_softcapping", "30.0"),
        ("head_dim", "256"),
        ("num_key_value_heads", "4"),
        ("sliding_window", "4096"),
    ],
    hf_spec,
    hf_layout,
    gguf: Some(GgufArchitecture {
        name: "gemma2",
        fields: &[
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "attention.sliding_window",
            "attention.sliding_window_pattern",
        ],
        spec: gguf_spec,
        layout: |_, _| None,
    }),
};

fn hf_spec(config: &Config<'_>) -> Result<ArchSpec, ModelError> {
    let mut spec = gemma(config, "gemma2")?;
    // The first layer has a window, the second has not, and so on.
    config.set_windows(&mut spec, |layer| layer % 2 == 0)?;
    spec.attention_softcap = config.number("attn_logit_softcapping")?.map(|cap| cap as f32);
    spec.logit_softcap = config.number("final_logit_softcapping")?.map(|cap| cap as f32);
    Ok(spec)
}

/// What the second and the third Gemma have in common.
pub(super) fn gemma(config: &Config<'_>, family: &'static str) -> Result<ArchSpec, ModelError> {
    refuse_partial_rotation(config)?;
    let mut spec = config.llama_like(family)?;
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    (grouped(&mut spec).qkv_bias, grouped(&mut spec).o_bias) = (bias, bias);
    // `hidden_act` is an older name of the field and was never heeded.
    spec.activation = match config.get("hidden_activation") {
        Some(_) => config.activation("hidden_activation")?,
        None => Activation::GeluTanh,
    };
    let scalar = config.number("query_pre_attn_scalar")?.unwrap_or(256.0);
    spec.attention_scale = scalar.sqrt().recip() as f32;
    spec.embedding_scale = (spec.hidden as f64).sqrt() as f32;
    spec.tied_output = config.flag("tie_word_embeddings")?.unwrap_or(true);
    (spec.norm_plus_one, spec.post_norms) = (true, true);
    Ok(spec)
}

pub(super) fn hf_layout(_: &ArchSpec, role: LayerRole) -> Option<Place> {
    Some(match role {
        LayerRole::MlpNorm => Place::whole("pre_feedforward_layernorm.weight"),
        other => Naming::HuggingFace.layer(other),
    })
}

fn gguf_spec(header: &Header<'_>) -> Result<ArchSpec, ModelError> {
    let mut spec = gguf_gemma(header, "gemma2")?;
    header.set_windows(&mut spec, 2)?;
    spec.attention_softcap = header.number("attn_logit_softcapping")?.map(|cap| cap as f32);
    spec.logit_softcap = header.number("final_logit_softcapping")?.map(|cap| cap as f32);
    // The files do not say it: only the largest scales by the width of the residual stream.
    if spec.layers.len() == 46 && header.number("attention.scale")?.is_none() {
        spec.attention_scale = ((spec.hidden / spec.heads) as f32).sqrt().recip();
    }
    Ok(spec)
}

/// What the second and the third Gemma have in common. The files' norms have the 1 added already.
pub(super) fn gguf_gemma(header: &Header<'_>, family: &'static str) -> Result<ArchSpec, ModelError> {
    let mut spec = header.llama_like(family, RopeStyle::Half)?;
    spec.activation = Activation::GeluTanh;
    spec.embedding_scale = (spec.hidden as f64).sqrt() as f32;
    spec.post_norms = true;
    Ok(spec)
}
