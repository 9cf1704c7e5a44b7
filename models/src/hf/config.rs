//! config.json, in its fields' old and new spellings: what every architecture's file reads it through.
//!
//! A field that could change numbers and is not understood is refused by name, never ignored.

use std::path::Path;

use serde_json::Value;

use crate::arch::{Architecture, by_class, classes};
use crate::error::ModelError;
use crate::spec::{Activation, ArchSpec, Attention, Experts, Grouped, Layer, Mlp, RopeStyle, Routing};

use super::rope;

/// Fields that are read for every architecture, and fields known to change nothing at inference.
const KNOWN: [&str; 56] = [
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
    "embd_pdrop",
    "resid_pdrop",
    "_name_or_path",
    "is_llama_config",
    "unk_token_id",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "router_aux_loss_coef",
    "router_jitter_noise",
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
    "cache_implementation",
    "architecture",
    "max_window_layers",
    "num_nextn_predict_layers",
    "original_max_position_embeddings",
    "max_sequence_length",
];

/// A config.json and the file it came from.
pub(crate) struct Config<'a> {
    pub(crate) path: &'a Path,
    json: &'a Value,
}

impl Config<'_> {
    pub(crate) fn wrong(&self, field: &str, what: &str) -> ModelError {
        let found =
            self.json.get(field).map_or_else(|| "is missing".into(), |v| format!("is {v}, not {what}"));
        ModelError::corrupt(self.path, format!("field `{field}` {found}"))
    }

    pub(crate) fn unsupported(&self, reason: String) -> ModelError {
        ModelError::unsupported(self.path, reason)
    }

    /// The field's value; `null` counts as absent.
    pub(crate) fn get(&self, field: &str) -> Option<&Value> {
        self.json.get(field).filter(|value| !value.is_null())
    }

    pub(crate) fn optional_count(&self, field: &str) -> Result<Option<usize>, ModelError> {
        let count = |v: &Value| v.as_u64().and_then(|v| usize::try_from(v).ok());
        self.get(field).map(|v| count(v).ok_or_else(|| self.wrong(field, "a whole number"))).transpose()
    }

    pub(crate) fn count(&self, field: &str) -> Result<usize, ModelError> {
        self.optional_count(field)?.ok_or_else(|| self.wrong(field, "a whole number"))
    }

    pub(crate) fn flag(&self, field: &str) -> Result<Option<bool>, ModelError> {
        self.get(field).map(|v| v.as_bool().ok_or_else(|| self.wrong(field, "true or false"))).transpose()
    }

    pub(crate) fn number(&self, field: &str) -> Result<Option<f64>, ModelError> {
        self.get(field).map(|v| v.as_f64().ok_or_else(|| self.wrong(field, "a number"))).transpose()
    }

    /// Refuses a field that is there with another value than `expected`.
    pub(crate) fn only(&self, field: &str, expected: &Value) -> Result<(), ModelError> {
        match self.get(field).filter(|value| *value != expected) {
            Some(value) => {
                Err(self.unsupported(format!("field `{field}` is {value} ({expected} is served)")))
            }
            None => Ok(()),
        }
    }

    /// A decoder as Llama is one, with whatever of it the common fields say. Architectures change the rest.
    pub(crate) fn llama_like(&self, family: &'static str) -> Result<ArchSpec, ModelError> {
        let (hidden, heads) = (self.count("hidden_size")?, self.count("num_attention_heads")?);
        if heads == 0 {
            return Err(self.wrong("num_attention_heads", "at least 1"));
        }
        let head_dim = self.optional_count("head_dim")?.unwrap_or(hidden / heads);
        let eps = self.number("rms_norm_eps")?.ok_or_else(|| self.wrong("rms_norm_eps", "a number"))?;
        let layers = self.count("num_hidden_layers")?;
        if layers > 1 << 12 {
            return Err(ModelError::corrupt(
                self.path,
                format!("layers is {layers}, must be within 1..=4096"),
            ));
        }
        let layer =
            Layer { window: None, rope: 0, mlp: Mlp::Dense { width: self.count("intermediate_size")? } };
        Ok(ArchSpec {
            family,
            hidden,
            heads,
            vocab: self.count("vocab_size")?,
            context: self
                .count("max_position_embeddings")?
                .min(rope::most_positions(self, self.rope_parameters())?.unwrap_or(usize::MAX)),
            norm_eps: eps as f32,
            norm_plus_one: false,
            post_norms: false,
            embedding_scale: 1.0,
            attention: Attention::Grouped(Grouped {
                kv_heads: self.optional_count("num_key_value_heads")?.unwrap_or(heads),
                head_dim,
                qkv_bias: false,
                o_bias: false,
                qk_norm: false,
                sinks: false,
            }),
            attention_scale: ((head_dim.max(1)) as f32).sqrt().recip(),
            attention_softcap: None,
            ropes: vec![rope::spec(self, self.rope_parameters(), head_dim, RopeStyle::Half)?.0],
            activation: self.activation("hidden_act")?,
            layers: vec![layer; layers],
            logit_softcap: None,
            tied_output: self.flag("tie_word_embeddings")?.unwrap_or(false),
        })
    }

    /// Newer files keep everything in `rope_parameters`; older ones have `rope_theta` and `rope_scaling`, which counts where
    /// both are there. An object of objects (one for each kind of layer) is no rotation itself.
    pub(crate) fn rope_parameters(&self) -> Option<&Value> {
        let of = |field: &str| self.get(field).filter(|p| p.as_object().is_none_or(|p| !p.is_empty()));
        let parameters = of("rope_scaling").or_else(|| of("rope_parameters"));
        parameters.filter(|p| !p.as_object().is_some_and(|p| p.values().any(Value::is_object)))
    }

    /// The activation a field names; silu if it is absent.
    pub(crate) fn activation(&self, field: &str) -> Result<Activation, ModelError> {
        match self.get(field).map(|act| act.as_str().unwrap_or_default()) {
            None | Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
            Some(_) => {
                let act = self.get(field).map(Value::to_string).unwrap_or_default();
                Err(self
                    .unsupported(format!("field `{field}` is {act} (silu and gelu_pytorch_tanh are served)")))
            }
        }
    }

    /// Which layers see a window only: as `layer_types` says, or else `default`. True for those that do.
    pub(crate) fn windowed(
        &self,
        layers: usize,
        default: impl Fn(usize) -> bool,
    ) -> Result<Vec<bool>, ModelError> {
        let Some(types) = self.get("layer_types") else { return Ok((0..layers).map(default).collect()) };
        let list = types.as_array().filter(|list| list.len() == layers);
        let list = list.ok_or_else(|| self.wrong("layer_types", "a list with an entry for each layer"))?;
        let kind = |value: &Value| match value.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => Err(self.unsupported(format!(
                "field `layer_types` has {value} (full_attention and sliding_attention are served)"
            ))),
        };
        list.iter().map(kind).collect()
    }

    /// Gives a window to all layers or to none, for architectures that do not heed `layer_types`: it may not say otherwise.
    pub(crate) fn set_uniform_windows(&self, spec: &mut ArchSpec, used: bool) -> Result<(), ModelError> {
        if self.windowed(spec.layers.len(), |_| used)?.contains(&!used) {
            let all = if used { "sliding_attention" } else { "full_attention" };
            return Err(self.unsupported(format!("field `layer_types`: all layers are {all} here")));
        }
        self.set_windows(spec, |_| used)
    }

    /// Gives a window to the layers for which `windowed` is true, if the configuration has one.
    pub(crate) fn set_windows(
        &self,
        spec: &mut ArchSpec,
        default: impl Fn(usize) -> bool,
    ) -> Result<(), ModelError> {
        let windowed = self.windowed(spec.layers.len(), default)?;
        let window = self.optional_count("sliding_window")?;
        if window.is_none() && windowed.contains(&true) {
            return Err(self.wrong("sliding_window", "a whole number, though layers use it"));
        }
        for (layer, windowed) in spec.layers.iter_mut().zip(windowed) {
            layer.window = window.filter(|_| windowed);
        }
        Ok(())
    }

    /// Experts whose count has one of the names in use.
    pub(crate) fn experts(&self, width: usize, routing: Routing) -> Result<Experts, ModelError> {
        let counts = ["num_local_experts", "num_experts", "n_routed_experts"];
        let field = counts.into_iter().find(|field| self.get(field).is_some()).unwrap_or(counts[0]);
        let count = self.count(field)?;
        let top_k = self.count("num_experts_per_tok")?;
        Ok(Experts { count, top_k, width, shared_width: 0, routing, bias: false })
    }
}

/// Grouped attention's own fields, to be changed.
pub(crate) fn grouped(spec: &mut ArchSpec) -> &mut Grouped {
    match &mut spec.attention {
        Attention::Grouped(grouped) => grouped,
        Attention::Latent(_) => unreachable!("a Llama-like decoder has grouped attention"),
    }
}

/// The architecture a config.json describes.
pub(super) fn spec(path: &Path, json: &Value) -> Result<(&'static Architecture, ArchSpec), ModelError> {
    let config = Config { path, json };
    let class = json.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
    let class = class.ok_or_else(|| config.wrong("architectures", "a list with the model's class name"))?;
    let Some(architecture) = by_class(class) else {
        return Err(config.unsupported(format!("architecture `{class}` (served: {})", classes())));
    };
    refuse_unknown(&config, architecture.hf_fields)?;
    let mut complete = json.clone();
    for (field, default) in architecture.hf_defaults {
        if let (Some(fields), None) = (complete.as_object_mut(), json.get(field)) {
            fields.insert((*field).into(), serde_json::from_str(default).unwrap_or(Value::Null));
        }
    }
    let config = Config { path, json: &complete };
    Ok((architecture, (architecture.hf_spec)(&config)?))
}

/// A field nobody here knows may change numbers, unless it is empty or off.
fn refuse_unknown(config: &Config<'_>, own: &[&str]) -> Result<(), ModelError> {
    let Some(fields) = config.json.as_object() else {
        return Err(config.wrong("architectures", "in an object"));
    };
    if let Some(quantization) = config.get("quantization_config") {
        let method = quantization.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
        let method = method.to_uppercase();
        return Err(config.unsupported(format!(
            "field `quantization_config`: weights quantized with {method}; use float weights and --quantize, or a GGUF file"
        )));
    }
    for (field, value) in fields {
        let off = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if !off && !KNOWN.contains(&field.as_str()) && !own.contains(&field.as_str()) {
            return Err(
                config.unsupported(format!("field `{field}` ({value}): what it changes is not known here"))
            );
        }
    }
    Ok(())
}
