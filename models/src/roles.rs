//! What a tensor is for, whatever its file calls it.

/// A tensor of the decoder. Per-layer roles carry the layer's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum TensorRole {
    /// vocabulary × hidden.
    Embedding,
    /// hidden.
    FinalNorm,
    /// vocabulary × hidden; the embedding itself where the two are tied.
    Output,
    AttnNorm(usize),
    /// heads · head_dim × hidden.
    Q(usize),
    /// kv_heads · head_dim × hidden.
    K(usize),
    V(usize),
    /// hidden × heads · head_dim.
    O(usize),
    QBias(usize),
    KBias(usize),
    VBias(usize),
    OBias(usize),
    MlpNorm(usize),
    /// ffn × hidden.
    Gate(usize),
    Up(usize),
    /// hidden × ffn.
    Down(usize),
}

impl TensorRole {
    /// The layer and the per-layer name table's index, or the index into the global table.
    fn place(self) -> (Option<usize>, usize) {
        match self {
            Self::Embedding => (None, 0),
            Self::FinalNorm => (None, 1),
            Self::Output => (None, 2),
            Self::AttnNorm(l) => (Some(l), 0),
            Self::Q(l) => (Some(l), 1),
            Self::K(l) => (Some(l), 2),
            Self::V(l) => (Some(l), 3),
            Self::O(l) => (Some(l), 4),
            Self::QBias(l) => (Some(l), 5),
            Self::KBias(l) => (Some(l), 6),
            Self::VBias(l) => (Some(l), 7),
            Self::OBias(l) => (Some(l), 8),
            Self::MlpNorm(l) => (Some(l), 9),
            Self::Gate(l) => (Some(l), 10),
            Self::Up(l) => (Some(l), 11),
            Self::Down(l) => (Some(l), 12),
        }
    }
}

/// How one kind of file names its tensors.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Naming {
    global: [&'static str; 3],
    layer_prefix: &'static str,
    layer: [&'static str; 13],
}

impl Naming {
    /// The name of the tensor with this role.
    pub(crate) fn name(&self, role: TensorRole) -> String {
        match role.place() {
            (None, index) => self.global[index].to_owned(),
            (Some(layer), index) => format!("{}{layer}.{}", self.layer_prefix, self.layer[index]),
        }
    }
}

/// Hugging Face's names.
pub(crate) const HUGGING_FACE: Naming = Naming {
    global: ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"],
    layer_prefix: "model.layers.",
    layer: [
        "input_layernorm.weight",
        "self_attn.q_proj.weight",
        "self_attn.k_proj.weight",
        "self_attn.v_proj.weight",
        "self_attn.o_proj.weight",
        "self_attn.q_proj.bias",
        "self_attn.k_proj.bias",
        "self_attn.v_proj.bias",
        "self_attn.o_proj.bias",
        "post_attention_layernorm.weight",
        "mlp.gate_proj.weight",
        "mlp.up_proj.weight",
        "mlp.down_proj.weight",
    ],
};

/// GGUF's names.
pub(crate) const GGUF: Naming = Naming {
    global: ["token_embd.weight", "output_norm.weight", "output.weight"],
    layer_prefix: "blk.",
    layer: [
        "attn_norm.weight",
        "attn_q.weight",
        "attn_k.weight",
        "attn_v.weight",
        "attn_output.weight",
        "attn_q.bias",
        "attn_k.bias",
        "attn_v.bias",
        "attn_output.bias",
        "ffn_norm.weight",
        "ffn_gate.weight",
        "ffn_up.weight",
        "ffn_down.weight",
    ],
};
