//! adapter_config.json: how much an adapter's products count, and whether it does anything that its tensors do not show.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::error::ModelError;
use crate::hf::read_json;

/// What is read of it.
#[derive(Debug)]
pub(super) struct Config {
    alpha: f64,
    /// For modules whose names end so.
    alpha_pattern: BTreeMap<String, f64>,
    /// Divided by the root of the rank rather than by the rank (Kalajdzievski, "rsLoRA", 2023).
    by_root: bool,
}

/// Fields that change what an adapter computes when they are set.
const UNSUPPORTED: [(&str, &str); 12] = [
    ("use_dora", "magnitudes (DoRA)"),
    ("use_qalora", "QALoRA"),
    ("use_bdlora", "block-diagonal matrices"),
    ("kasa_config", "singular values beside the matrices (KaSA)"),
    ("arrow_config", "routing between adapters (Arrow)"),
    ("lora_bias", "adapted biases"),
    ("fan_in_fan_out", "matrices stored as input × output"),
    ("modules_to_save", "whole modules beside the low-rank ones"),
    ("trainable_token_indices", "trained embeddings of single tokens"),
    ("layer_replication", "layers that are repeated"),
    (
        "target_parameters",
        "adapters of parameters that are no module's weight, such as experts in one tensor",
    ),
    ("alora_invocation_tokens", "adapters that begin to work at a token"),
];

/// Whether a field says anything at all.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    }
}

impl Config {
    pub(super) fn read(path: &Path) -> Result<Self, ModelError> {
        Self::of(path, &read_json(path)?)
    }

    fn of(path: &Path, json: &Value) -> Result<Self, ModelError> {
        let corrupt = |reason: String| ModelError::corrupt(path, reason);
        let unsupported = |reason: String| ModelError::unsupported(path, reason);
        match json.get("peft_type").and_then(Value::as_str) {
            Some("LORA") => {}
            other => {
                return Err(unsupported(format!(
                    "peft_type is {}, LORA is served",
                    other.unwrap_or("missing")
                )));
            }
        }
        for (field, what) in UNSUPPORTED {
            if json.get(field).is_some_and(is_set) {
                return Err(unsupported(format!("{field} is set: {what}")));
            }
        }
        match json.get("bias").and_then(Value::as_str) {
            None | Some("none") => {}
            Some(other) => return Err(unsupported(format!("bias is `{other}`, `none` is served"))),
        }
        let number = |value: &Value| value.as_f64().filter(|number| number.is_finite());
        let alpha = json.get("lora_alpha").and_then(number);
        let alpha = alpha.ok_or_else(|| corrupt("field `lora_alpha` is missing or no number".into()))?;
        let mut alpha_pattern = BTreeMap::new();
        for (name, value) in json.get("alpha_pattern").and_then(Value::as_object).into_iter().flatten() {
            let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "._".contains(c));
            let value = number(value).filter(|_| plain);
            let value = value.ok_or_else(|| {
                unsupported(format!("alpha_pattern `{name}`: names of modules with numbers are served"))
            })?;
            alpha_pattern.insert(name.clone(), value);
        }
        let by_root = json.get("use_rslora").is_some_and(is_set);
        Ok(Self { alpha, alpha_pattern, by_root })
    }

    /// What the products of a module's matrices are multiplied with.
    pub(super) fn scale(&self, module: &str, rank: usize) -> f32 {
        let is_named = |name: &str| {
            module.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        let own = self.alpha_pattern.iter().find(|(name, _)| is_named(name)).map(|(_, alpha)| *alpha);
        let rank = rank as f64;
        (own.unwrap_or(self.alpha) / if self.by_root { rank.sqrt() } else { rank }) as f32
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(json: Value) -> Result<Config, ModelError> {
        Config::of(Path::new("adapter_config.json"), &json)
    }

    #[test]
    fn products_count_as_the_configuration_says() {
        let plain = config(json!({"peft_type": "LORA", "lora_alpha": 16, "bias": "none"})).expect("valid");
        assert_eq!(plain.scale("model.layers.0.self_attn.q_proj", 8), 2.0);
        let root = config(json!({"peft_type": "LORA", "lora_alpha": 16, "use_rslora": true})).expect("valid");
        assert_eq!(root.scale("model.layers.0.self_attn.q_proj", 16), 4.0);
        let pattern = json!({"q_proj": 4, "layers.1.self_attn.v_proj": 2});
        let own = config(json!({"peft_type": "LORA", "lora_alpha": 16, "alpha_pattern": pattern}));
        let own = own.expect("valid");
        assert_eq!(own.scale("model.layers.0.self_attn.q_proj", 4), 1.0);
        assert_eq!(own.scale("model.layers.0.self_attn.v_proj", 4), 4.0);
        assert_eq!(own.scale("model.layers.1.self_attn.v_proj", 4), 0.5);
        assert_eq!(own.scale("model.layers.1.self_attn.aq_proj", 4), 4.0, "another module");
    }

    #[test]
    fn what_would_be_passed_over_is_refused_by_name() {
        for (field, value) in [
            ("peft_type", json!("IA3")),
            ("use_dora", json!(true)),
            ("modules_to_save", json!(["lm_head"])),
            ("fan_in_fan_out", json!(true)),
            ("bias", json!("all")),
            ("target_parameters", json!(["mlp.experts.gate_up_proj"])),
            ("alpha_pattern", json!({"layers\\.(0|1)\\.q": 3})),
            ("lora_alpha", json!("much")),
        ] {
            let mut json =
                json!({"peft_type": "LORA", "lora_alpha": 16, "modules_to_save": null, "use_dora": false});
            json[field] = value;
            let error = config(json).expect_err(field).to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
    }
}
