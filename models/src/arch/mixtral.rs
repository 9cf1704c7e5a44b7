//! Mixtral (Jiang et al., "Mixtral of Experts", 2024): Mistral whose MLPs are mixtures. In GGUF it is `llama`.

use super::{Architecture, names::Naming};
use crate::error::ModelError;
use crate::hf::{Config, refuse_partial_rotation};
use crate::roles::{LayerRole, Place};
use crate::spec::{ArchSpec, Mlp, Routing};

pub(crate) const MIXTRAL: Architecture = Architecture {
    hf: "MixtralForCausalLM",
    hf_fields: &[
        "sliding_window",
        "num_local_experts",
        "num_experts_per_tok",
        "partial_rotary_factor",
        "layer_types",
    ],
    hf_defaults: &[("rms_norm_eps", "1e-5"), ("num_key_value_heads", "8"), ("rope_theta", "1000000.0")],
    hf_spec,
    hf_layout,
    gguf: None,
};

fn hf_spec(config: &Config<'_>) -> Result<ArchSpec, ModelError> {
    refuse_partial_rotation(config)?;
    let mut spec = config.llama_like("mixtral")?;
    let everywhere = config.get("sliding_window").is_some();
    config.set_uniform_windows(&mut spec, everywhere)?;
    let width = config.count("intermediate_size")?;
    let experts = config.experts(width, Routing::Softmax { renormalize: true })?;
    spec.layers.iter_mut().for_each(|layer| layer.mlp = Mlp::Experts(experts));
    Ok(spec)
}

fn hf_layout(_: &ArchSpec, role: LayerRole) -> Option<Place> {
    let expert = |e: usize, part: &str| Place::whole(format!("block_sparse_moe.experts.{e}.{part}.weight"));
    Some(match role {
        LayerRole::Router => Place::whole("block_sparse_moe.gate.weight"),
        LayerRole::ExpertGate(e) => expert(e, "w1"),
        LayerRole::ExpertDown(e) => expert(e, "w2"),
        LayerRole::ExpertUp(e) => expert(e, "w3"),
        other => Naming::HuggingFace.layer(other),
    })
}
