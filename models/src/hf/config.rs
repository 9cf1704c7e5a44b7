//! config.json → [`ArchSpec`], in its fields' old and new spellings.
//!
//! A field that could change numbers and is not understood is refused by name, never ignored.

use std::path::Path;

use serde_json::Value;

use crate::arch::rope::{RopeScaling, inv_freq};
use crate::arch::{ARCHITECTURES, supported};
use crate::error::ModelError;
use crate::spec::{ArchSpec, RopeSpec, RopeStyle};

/// Fields that are read here, and fields known to change nothing at inference.
const KNOWN: [&str; 48] = [
    "architectures",
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "hidden_act",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "initializer_range",
    "pretraining_tp",
    "attention_dropout",
    "_name_or_path",
    "rope_interleaved",
    "is_llama_config",
    "unk_token_id",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "id2label",
    "label2id",
    "problem_type",
    "chunk_size_feed_forward",
    "is_encoder_decoder",
    "transformers.js_config",
    "auto_map",
    "tokenizer_class",
    "finetuning_task",
    "gradient_checkpointing",
    "unsloth_fixed",
    "unsloth_version",
    "_attn_implementation_autoset",
];

/// Fields of the rotation that are read here.
const KNOWN_ROPE: [&str; 8] = [
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
];

struct Config<'a> {
    path: &'a Path,
    json: &'a Value,
}

impl Config<'_> {
    fn wrong(&self, field: &str, what: &str) -> ModelError {
        let found =
            self.json.get(field).map_or_else(|| "is missing".into(), |v| format!("is {v}, not {what}"));
        ModelError::corrupt(self.path, format!("field `{field}` {found}"))
    }

    fn unsupported(&self, reason: String) -> ModelError {
        ModelError::unsupported(self.path, reason)
    }

    /// The field's value; `null` counts as absent.
    fn get(&self, field: &str) -> Option<&Value> {
        self.json.get(field).filter(|value| !value.is_null())
    }

    fn optional_count(&self, field: &str) -> Result<Option<usize>, ModelError> {
        let count = |v: &Value| v.as_u64().and_then(|v| usize::try_from(v).ok());
        self.get(field).map(|v| count(v).ok_or_else(|| self.wrong(field, "a whole number"))).transpose()
    }

    fn count(&self, field: &str) -> Result<usize, ModelError> {
        self.optional_count(field)?.ok_or_else(|| self.wrong(field, "a whole number"))
    }

    fn flag(&self, field: &str) -> Result<Option<bool>, ModelError> {
        self.get(field).map(|v| v.as_bool().ok_or_else(|| self.wrong(field, "true or false"))).transpose()
    }
}

/// The architecture a config.json describes.
pub(super) fn spec(path: &Path, json: &Value) -> Result<ArchSpec, ModelError> {
    let config = Config { path, json };
    let class = json.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
    let class = class.ok_or_else(|| config.wrong("architectures", "a list with the model's class name"))?;
    let Some(architecture) = ARCHITECTURES.iter().find(|a| a.hf == class) else {
        return Err(config.unsupported(format!("architecture `{class}` (served: {})", supported(|a| a.hf))));
    };
    refuse_unknown(&config)?;
    if let Some(act) = config.get("hidden_act")
        && act.as_str() != Some("silu")
    {
        return Err(config.unsupported(format!("field `hidden_act` is {act} (\"silu\" is served)")));
    }
    if config.flag("mlp_bias")? == Some(true) {
        return Err(config.unsupported("field `mlp_bias` is true".into()));
    }
    let (hidden, heads) = (config.count("hidden_size")?, config.count("num_attention_heads")?);
    if heads == 0 {
        return Err(config.wrong("num_attention_heads", "at least 1"));
    }
    let head_dim = config.optional_count("head_dim")?.unwrap_or(hidden / heads);
    let eps = config.get("rms_norm_eps").and_then(Value::as_f64);
    Ok(ArchSpec {
        family: architecture.family,
        hidden,
        layers: config.count("num_hidden_layers")?,
        heads,
        kv_heads: config.optional_count("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        ffn: config.count("intermediate_size")?,
        vocab: config.count("vocab_size")?,
        context: config.count("max_position_embeddings")?,
        norm_eps: eps.ok_or_else(|| config.wrong("rms_norm_eps", "a number"))? as f32,
        rope: rope(&config, head_dim)?,
        tied_output: config.flag("tie_word_embeddings")?.unwrap_or(false),
        attention_bias: config.flag("attention_bias")?.unwrap_or(false),
    })
}

/// A field nobody here knows may change numbers, unless it is empty or off.
fn refuse_unknown(config: &Config<'_>) -> Result<(), ModelError> {
    let Some(fields) = config.json.as_object() else {
        return Err(config.wrong("architectures", "in an object"));
    };
    for (field, value) in fields {
        let off = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if !off && !KNOWN.contains(&field.as_str()) {
            return Err(
                config.unsupported(format!("field `{field}` ({value}): what it changes is not known here"))
            );
        }
    }
    if config.flag("rope_interleaved")? == Some(true) {
        return Err(config.unsupported("field `rope_interleaved` is true".into()));
    }
    Ok(())
}

fn rope(config: &Config<'_>, head_dim: usize) -> Result<RopeSpec, ModelError> {
    // Newer files keep everything in `rope_parameters`; older ones have `rope_theta` and `rope_scaling`.
    let parameters = config.get("rope_parameters").or_else(|| config.get("rope_scaling"));
    for (field, value) in parameters.and_then(Value::as_object).into_iter().flatten() {
        if !value.is_null() && !KNOWN_ROPE.contains(&field.as_str()) {
            let reason = format!("rope parameter `{field}` ({value}): what it changes is not known here");
            return Err(config.unsupported(reason));
        }
    }
    let number = |name: &str| parameters.and_then(|p| p.get(name)).and_then(Value::as_f64);
    let theta = match parameters.and_then(|p| p.get("rope_theta")).or_else(|| config.get("rope_theta")) {
        None => 10_000.0,
        Some(theta) => theta.as_f64().ok_or_else(|| {
            ModelError::corrupt(config.path, format!("field `rope_theta` is {theta}, not a number"))
        })?,
    };
    let kind = parameters.and_then(|p| p.get("rope_type").or_else(|| p.get("type")));
    let required = |name: &str| {
        let missing = || {
            ModelError::corrupt(config.path, format!("rope parameter `{name}` is missing or not a number"))
        };
        number(name).ok_or_else(missing)
    };
    if number("partial_rotary_factor").is_some_and(|factor| factor != 1.0) {
        return Err(config.unsupported("rope parameter `partial_rotary_factor` other than 1".into()));
    }
    let scaling = match kind.map(|kind| kind.as_str().unwrap_or_default()) {
        None | Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: required("factor")? },
        Some("llama3") => RopeScaling::Llama3 {
            factor: required("factor")?,
            low: required("low_freq_factor")?,
            high: required("high_freq_factor")?,
            original: required("original_max_position_embeddings")?,
        },
        Some(other) => {
            return Err(
                config.unsupported(format!("rope type `{other}` (default, linear and llama3 are served)"))
            );
        }
    };
    let inv_freq = inv_freq(theta, head_dim, scaling);
    let inv_freq = inv_freq.map_err(|reason| ModelError::corrupt(config.path, reason))?;
    Ok(RopeSpec { style: RopeStyle::Half, inv_freq, scale: 1.0 })
}
