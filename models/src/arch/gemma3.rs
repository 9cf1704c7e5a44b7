//! Gemma 3, the text models (Gemma Team, 2025): five layers with a window and a rotation of their own to one without.

use serde_json::Value;

use super::gemma2::{gemma, gguf_gemma, hf_layout};
use super::{Architecture, GgufArchitecture};
use crate::arch::rope::{RopeScaling, inv_freq};
use crate::error::ModelError;
use crate::gguf::Header;
use crate::hf::{Config, grouped, rope_spec};
use crate::spec::{ArchSpec, RopeSpec, RopeStyle};

/// Index of the rotation of layers with a window.
const LOCAL: usize = 1;

pub(crate) const GEMMA3: Architecture = Architecture {
    hf: "Gemma3ForCausalLM",
    hf_fields: &[
        "attention_bias",
        // Not heeded by the class itself.
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "hidden_activation",
        "query_pre_attn_scalar",
        "sliding_window",
        "sliding_window_pattern",
        "_sliding_window_pattern",
        "layer_types",
        "rope_local_base_freq",
        "partial_rotary_factor",
    ],
    hf_defaults: &[
        ("max_position_embeddings", "131072"),
        ("vocab_size", "262208"),
        ("rms_norm_eps", "1e-6"),
        ("head_dim", "256"),
        ("num_key_value_heads", "4"),
        ("sliding_window", "4096"),
    ],
    hf_spec,
    hf_layout,
    gguf: Some(GgufArchitecture {
        name: "gemma3",
        fields: &[
            "attention.sliding_window",
            "attention.sliding_window_pattern",
            "final_logit_softcapping",
            "rope.freq_base_swa",
        ],
        spec: gguf_spec,
        layout: |_, _| None,
    }),
};

fn hf_spec(config: &Config<'_>) -> Result<ArchSpec, ModelError> {
    let mut spec = gemma(config, "gemma3")?;
    let head_dim = grouped(&mut spec).head_dim;
    grouped(&mut spec).qk_norm = true;
    let pattern = match config.optional_count("sliding_window_pattern")? {
        None => config.optional_count("_sliding_window_pattern")?.unwrap_or(6),
        Some(pattern) => pattern,
    };
    config.set_windows(&mut spec, |layer| pattern == 0 || (layer + 1) % pattern != 0)?;
    spec.logit_softcap = config.number("final_logit_softcapping")?.map(|cap| cap as f32);
    // Newer files have both rotations side by side; older ones the global base and scaling as usual, and the local base.
    let of = |kind: &str| config.get("rope_parameters").and_then(|p| p.get(kind)).and_then(Value::as_object);
    let mut global = of("full_attention").cloned().unwrap_or_default();
    let scaling = config.get("rope_scaling").and_then(Value::as_object);
    global.extend(scaling.cloned().unwrap_or_default());
    let mut local = of("sliding_attention").cloned().unwrap_or_default();
    for (rotation, field, default) in
        [(&mut global, "rope_theta", 1e6), (&mut local, "rope_local_base_freq", 1e4)]
    {
        if rotation.get("partial_rotary_factor").is_some_and(|factor| factor.as_f64() != Some(1.0)) {
            return Err(
                config.unsupported("rope parameter `partial_rotary_factor` (1 is served here)".into())
            );
        }
        if !rotation.contains_key("rope_theta") {
            rotation.insert("rope_theta".into(), config.number(field)?.unwrap_or(default).into());
        }
    }
    let rotation = |of| Ok(rope_spec(config, Some(&Value::Object(of)), head_dim, RopeStyle::Half)?.0);
    let (global, local) = (rotation(global)?, rotation(local)?);
    set_rotations(&mut spec, global, local);
    Ok(spec)
}

fn set_rotations(spec: &mut ArchSpec, global: RopeSpec, local: RopeSpec) {
    spec.ropes = vec![global, local];
    for layer in &mut spec.layers {
        layer.rope = if layer.window.is_some() { LOCAL } else { 0 };
    }
}

fn gguf_spec(header: &Header<'_>) -> Result<ArchSpec, ModelError> {
    let mut spec = gguf_gemma(header, "gemma3")?;
    grouped(&mut spec).qk_norm = true;
    if header.optional_count("attention.sliding_window")?.unwrap_or(0) > 0 {
        header.set_windows(&mut spec, 6)?;
    }
    spec.logit_softcap = header.number("final_logit_softcapping")?.map(|cap| cap as f32);
    // The files do not say it: only the largest scales by the width of the residual stream.
    if spec.layers.len() == 62 && header.number("attention.scale")?.is_none() {
        spec.attention_scale = ((spec.hidden / spec.heads) as f32).sqrt().recip();
    }
    let head_dim = grouped(&mut spec).head_dim;
    let theta = header.number("rope.freq_base_swa")?.unwrap_or(10_000.0);
    let local = inv_freq(theta, head_dim, RopeScaling::None);
    let inv_freq = local.map_err(|reason| ModelError::corrupt(header.path(), reason))?;
    let global = spec.ropes[0].clone();
    set_rotations(&mut spec, global, RopeSpec { style: RopeStyle::Half, inv_freq, scale: 1.0 });
    Ok(spec)
}
