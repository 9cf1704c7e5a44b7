//! What PEFT calls the tensors of an adapter.

use crate::roles::LayerRole;

/// Which of the two matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    /// rank × input.
    A,
    /// output × rank.
    B,
}

/// What a tensor is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) layer: usize,
    pub(super) role: LayerRole,
    pub(super) half: Half,
    /// As the model's own code calls the matrix.
    pub(super) module: String,
}

/// What stands before the model's own names.
const PREFIX: &str = "base_model.model.";

/// `base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight` and its like; the reason if it is none.
pub(super) fn target(name: &str) -> Result<Target, String> {
    let own = name.strip_prefix(PREFIX).unwrap_or(name);
    let (module, half) = halves(own).ok_or_else(|| unsupported(own))?;
    let (layer, part) = module
        .strip_prefix("model.layers.")
        .and_then(|rest| rest.split_once('.'))
        .and_then(|(layer, part)| Some((layer.parse().ok()?, part)))
        .ok_or_else(|| format!("only matrices of layers can be adapted, `{module}` is none"))?;
    let role = role(part).ok_or_else(|| format!("`{part}` of a layer cannot be adapted; {ADAPTED} can"))?;
    Ok(Target { layer, role, half, module: module.to_owned() })
}

/// What can be adapted, for messages.
const ADAPTED: &str =
    "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, the router, and experts' matrices";

fn halves(name: &str) -> Option<(&str, Half)> {
    // Older versions put the adapter's name, "default", in between.
    let name = name.strip_suffix(".weight")?;
    let name = name.strip_suffix(".default").unwrap_or(name);
    let a = name.strip_suffix(".lora_A").map(|module| (module, Half::A));
    a.or_else(|| name.strip_suffix(".lora_B").map(|module| (module, Half::B)))
}

fn unsupported(name: &str) -> String {
    let what = if name.contains("lora_magnitude_vector") {
        "adapters with magnitudes (DoRA) are not supported"
    } else if name.contains("lora_embedding") {
        "adapted embeddings are not supported"
    } else if name.ends_with(".bias") {
        "adapted biases are not supported"
    } else {
        "whole tensors beside the low-rank ones (modules_to_save) are not supported"
    };
    format!("is neither lora_A nor lora_B: {what}")
}

fn role(part: &str) -> Option<LayerRole> {
    use LayerRole as R;
    Some(match part {
        "self_attn.q_proj" => R::Q,
        "self_attn.k_proj" => R::K,
        "self_attn.v_proj" => R::V,
        "self_attn.o_proj" => R::O,
        "mlp.gate_proj" => R::Gate,
        "mlp.up_proj" => R::Up,
        "mlp.down_proj" => R::Down,
        "block_sparse_moe.gate" | "mlp.gate" => R::Router,
        _ => {
            let experts = ["block_sparse_moe.experts.", "mlp.experts."];
            let rest = experts.iter().find_map(|experts| part.strip_prefix(experts))?;
            let (expert, matrix) = rest.split_once('.')?;
            let expert = expert.parse().ok()?;
            match matrix {
                "w1" | "gate_proj" => R::ExpertGate(expert),
                "w3" | "up_proj" => R::ExpertUp(expert),
                "w2" | "down_proj" => R::ExpertDown(expert),
                _ => return None,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_layer_matrix_and_half() {
        use LayerRole as R;
        for (name, layer, role, half) in [
            ("base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight", 3, R::Q, Half::A),
            ("base_model.model.model.layers.11.mlp.down_proj.lora_B.default.weight", 11, R::Down, Half::B),
            ("model.layers.0.self_attn.o_proj.lora_B.weight", 0, R::O, Half::B),
            ("base_model.model.model.layers.2.block_sparse_moe.gate.lora_A.weight", 2, R::Router, Half::A),
            (
                "base_model.model.model.layers.2.block_sparse_moe.experts.7.w2.lora_A.weight",
                2,
                R::ExpertDown(7),
                Half::A,
            ),
            (
                "base_model.model.model.layers.1.mlp.experts.12.up_proj.lora_B.weight",
                1,
                R::ExpertUp(12),
                Half::B,
            ),
        ] {
            let target = target(name).expect(name);
            assert_eq!((target.layer, target.role, target.half), (layer, role, half), "{name}");
        }
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (name, said) in [
            ("base_model.model.lm_head.lora_A.weight", "`lm_head` is none"),
            ("base_model.model.model.embed_tokens.lora_embedding_A", "embeddings"),
            ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", "DoRA"),
            ("base_model.model.model.layers.0.self_attn.q_proj.bias", "biases"),
            ("base_model.model.model.layers.0.self_attn.q_proj.weight", "modules_to_save"),
            ("base_model.model.model.layers.0.self_attn.qkv_proj.lora_A.weight", "`self_attn.qkv_proj`"),
            ("base_model.model.model.layers.x.self_attn.q_proj.lora_A.weight", "only matrices of layers"),
            ("base_model.model.model.layers.0.mlp.experts.lora_A.weight", "`mlp.experts`"),
        ] {
            let reason = target(name).expect_err(name);
            assert!(reason.contains(said), "{name}: {reason}");
        }
    }
}
