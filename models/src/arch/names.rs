//! How the two kinds of file name Llama's tensors, and those that other architectures add.

use crate::roles::{LayerRole, Place, TensorRole};

/// One kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    /// safetensors as Hugging Face names them.
    HuggingFace,
    /// GGUF.
    Gguf,
}

impl Naming {
    /// The name of a tensor that belongs to no layer.
    pub(crate) fn global(self, role: TensorRole) -> &'static str {
        match (self, role) {
            (Self::HuggingFace, TensorRole::Embedding) => "model.embed_tokens.weight",
            (Self::HuggingFace, TensorRole::FinalNorm) => "model.norm.weight",
            (Self::HuggingFace, _) => "lm_head.weight",
            (Self::Gguf, TensorRole::Embedding) => "token_embd.weight",
            (Self::Gguf, TensorRole::FinalNorm) => "output_norm.weight",
            (Self::Gguf, _) => "output.weight",
        }
    }

    /// What the names of a layer's tensors begin with.
    pub(crate) fn layer_prefix(self, layer: usize) -> String {
        match self {
            Self::HuggingFace => format!("model.layers.{layer}."),
            Self::Gguf => format!("blk.{layer}."),
        }
    }

    /// Where a layer's tensor lies, by its name within the layer, unless the architecture says otherwise.
    pub(crate) fn layer(self, role: LayerRole) -> Place {
        match self {
            Self::HuggingFace => hugging_face(role),
            Self::Gguf => gguf(role),
        }
    }
}

fn hugging_face(role: LayerRole) -> Place {
    use LayerRole as R;
    let expert = |e: usize, part: &str| Place::whole(format!("mlp.experts.{e}.{part}"));
    Place::whole(match role {
        R::AttnNorm => "input_layernorm.weight",
        R::Q => "self_attn.q_proj.weight",
        R::K => "self_attn.k_proj.weight",
        R::V => "self_attn.v_proj.weight",
        R::O => "self_attn.o_proj.weight",
        R::QBias => "self_attn.q_proj.bias",
        R::KBias => "self_attn.k_proj.bias",
        R::VBias => "self_attn.v_proj.bias",
        R::OBias => "self_attn.o_proj.bias",
        R::QNorm => "self_attn.q_norm.weight",
        R::KNorm => "self_attn.k_norm.weight",
        R::Sinks => "self_attn.sinks",
        R::QDown => "self_attn.q_a_proj.weight",
        R::QDownBias => "self_attn.q_a_proj.bias",
        R::QDownNorm => "self_attn.q_a_layernorm.weight",
        R::QUp => "self_attn.q_b_proj.weight",
        R::KvDown => "self_attn.kv_a_proj_with_mqa.weight",
        R::KvDownBias => "self_attn.kv_a_proj_with_mqa.bias",
        R::KvDownNorm => "self_attn.kv_a_layernorm.weight",
        // Never stored apart here.
        R::KvUp | R::KeyUp(_) | R::ValueUp(_) => "self_attn.kv_b_proj.weight",
        R::MlpNorm | R::PostAttnNorm => "post_attention_layernorm.weight",
        R::PostMlpNorm => "post_feedforward_layernorm.weight",
        R::Gate => "mlp.gate_proj.weight",
        R::Up => "mlp.up_proj.weight",
        R::Down => "mlp.down_proj.weight",
        R::SharedGate => "mlp.shared_experts.gate_proj.weight",
        R::SharedUp => "mlp.shared_experts.up_proj.weight",
        R::SharedDown => "mlp.shared_experts.down_proj.weight",
        R::Router => "mlp.gate.weight",
        R::RouterBias => "mlp.gate.bias",
        R::RouterCorrection => "mlp.gate.e_score_correction_bias",
        R::ExpertGate(e) => return expert(e, "gate_proj.weight"),
        R::ExpertUp(e) => return expert(e, "up_proj.weight"),
        R::ExpertDown(e) => return expert(e, "down_proj.weight"),
        R::ExpertGateBias(e) => return expert(e, "gate_proj.bias"),
        R::ExpertUpBias(e) => return expert(e, "up_proj.bias"),
        R::ExpertDownBias(e) => return expert(e, "down_proj.bias"),
    })
}

fn gguf(role: LayerRole) -> Place {
    use LayerRole as R;
    Place::whole(match role {
        R::AttnNorm => "attn_norm.weight",
        R::Q => "attn_q.weight",
        R::K => "attn_k.weight",
        R::V => "attn_v.weight",
        R::O => "attn_output.weight",
        R::QBias => "attn_q.bias",
        R::KBias => "attn_k.bias",
        R::VBias => "attn_v.bias",
        R::OBias => "attn_output.bias",
        R::QNorm => "attn_q_norm.weight",
        R::KNorm => "attn_k_norm.weight",
        R::Sinks => "attn_sinks.weight",
        R::QDown => "attn_q_a.weight",
        R::QDownBias => "attn_q_a.bias",
        R::QDownNorm => "attn_q_a_norm.weight",
        R::QUp => "attn_q_b.weight",
        R::KvDown => "attn_kv_a_mqa.weight",
        R::KvDownBias => "attn_kv_a_mqa.bias",
        R::KvDownNorm => "attn_kv_a_norm.weight",
        R::KvUp => "attn_kv_b.weight",
        R::KeyUp(head) => return Place::stacked("attn_k_b.weight", head),
        R::ValueUp(head) => return Place::stacked("attn_v_b.weight", head),
        R::MlpNorm => "ffn_norm.weight",
        R::PostAttnNorm => "post_attention_norm.weight",
        R::PostMlpNorm => "post_ffw_norm.weight",
        R::Gate => "ffn_gate.weight",
        R::Up => "ffn_up.weight",
        R::Down => "ffn_down.weight",
        R::SharedGate => "ffn_gate_shexp.weight",
        R::SharedUp => "ffn_up_shexp.weight",
        R::SharedDown => "ffn_down_shexp.weight",
        R::Router => "ffn_gate_inp.weight",
        R::RouterBias => "ffn_gate_inp.bias",
        R::RouterCorrection => "exp_probs_b.bias",
        R::ExpertGate(e) => return Place::stacked("ffn_gate_exps.weight", e),
        R::ExpertUp(e) => return Place::stacked("ffn_up_exps.weight", e),
        R::ExpertDown(e) => return Place::stacked("ffn_down_exps.weight", e),
        R::ExpertGateBias(e) => return Place::stacked_vector("ffn_gate_exps.bias", e),
        R::ExpertUpBias(e) => return Place::stacked_vector("ffn_up_exps.bias", e),
        R::ExpertDownBias(e) => return Place::stacked_vector("ffn_down_exps.bias", e),
    })
}
