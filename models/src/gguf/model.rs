//! What a GGUF file says about its model.

use std::path::Path;

use super::Gguf;
use super::value::Value;
use crate::arch::names::Naming;
use crate::arch::rope::{RopeScaling, inv_freq, yarn_scale};
use crate::arch::{GgufArchitecture, by_gguf_name, gguf_names};
use crate::checkpoint::Parts;
use crate::error::ModelError;
use crate::roles::{LayerRole, TensorRole};
use crate::spec::{
    Activation, ArchSpec, Attention, Experts, Grouped, Layer, Mlp, RopeSpec, RopeStyle, Routing,
};
use crate::tokenizer::{GgufVocabulary, SpecialTokens, TokenizerSource};

/// Llama 3's scaling of the rotation: a divisor for each frequency.
const ROPE_FACTORS: &str = "rope_freqs.weight";
/// LongRoPE's: of sequences up to the original length, and of longer ones.
const SHORT_FACTORS: &str = "rope_factors_short.weight";
const LONG_FACTORS: &str = "rope_factors_long.weight";

/// Entries under the architecture's name that are read here, and those known to change nothing.
const KNOWN: [&str; 22] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.scale",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.type",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "tensor_data_layout",
    "vocab_size",
];

/// Opens a GGUF checkpoint.
pub(crate) fn open(path: &Path) -> Result<Parts, ModelError> {
    let gguf = Gguf::read(path)?;
    let name = gguf.optional("general.architecture", "a text", Value::as_text)?;
    let name = name.ok_or_else(|| gguf.missing("general.architecture", "a text"))?;
    let Some(architecture) = by_gguf_name(&name) else {
        let reason = format!("architecture `{name}` (served: {})", gguf_names());
        return Err(ModelError::unsupported(path, reason));
    };
    refuse_unknown(&gguf, architecture)?;
    let spec = (architecture.spec)(&Header { gguf: &gguf, arch: architecture.name })?;
    let special = special(&gguf)?;
    let has_tokenizer = gguf.metadata.contains_key("tokenizer.ggml.model");
    let chat_template = gguf.optional("tokenizer.chat_template", "a text", Value::as_text)?;
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let tensors = gguf.tensors.clone();
    Ok(Parts {
        path: path.into(),
        name: stem,
        spec,
        special,
        chat_template,
        tensors,
        naming: Naming::Gguf,
        layout: architecture.layout,
        harmless: Some(&[ROPE_FACTORS, SHORT_FACTORS, LONG_FACTORS]),
        tokenizer: has_tokenizer.then_some(crate::checkpoint::TokenizerPlace::Gguf),
    })
}

/// Reads the vocabulary of the GGUF file at `path`.
pub(crate) fn vocabulary(path: &Path) -> Result<TokenizerSource, ModelError> {
    let gguf = Gguf::read(path)?;
    let text = |value: Value| value.as_text();
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    Ok(TokenizerSource::Gguf(GgufVocabulary {
        model: gguf.optional(&key("model"), "a text", Value::as_text)?.unwrap_or_default(),
        pre: gguf.optional(&key("pre"), "a text", Value::as_text)?.unwrap_or_default(),
        tokens: gguf.array(&key("tokens"), "an array of texts", |a, b| a.read(b, text))?,
        scores: gguf.array(&key("scores"), "an array of numbers", |a, b| {
            a.read(b, |v| v.as_f64().map(|f| f as f32))
        })?,
        token_types: gguf.array(&key("token_type"), "an array of numbers", |a, b| {
            a.read(b, |v| match v {
                Value::Signed(v) => i32::try_from(v).ok(),
                Value::Unsigned(v) => i32::try_from(v).ok(),
                _ => None,
            })
        })?,
        merges: gguf.array(&key("merges"), "an array of texts", |a, b| a.read(b, text))?,
        add_space_prefix: gguf.optional(&key("add_space_prefix"), "true or false", Value::as_bool)?,
        unknown: gguf.optional(&key("unknown_token_id"), "a token id", Value::as_u32)?,
    }))
}

/// Refuses metadata that may change numbers and is not read.
fn refuse_unknown(gguf: &Gguf, architecture: &GgufArchitecture) -> Result<(), ModelError> {
    for (key, value) in &gguf.metadata {
        let name = key.strip_prefix(architecture.name).and_then(|rest| rest.strip_prefix('.'));
        let Some(name) = name else { continue };
        let off = matches!(value, Value::Bool(false)) || value.as_f64() == Some(0.0);
        if !off && !KNOWN.contains(&name) && !architecture.fields.contains(&name) {
            let reason = format!("metadata `{key}` ({value}): what it changes is not known here");
            return Err(ModelError::unsupported(gguf.path(), reason));
        }
    }
    Ok(())
}

/// What the architectures' files read a header through: entries under the architecture's name.
pub(crate) struct Header<'a> {
    gguf: &'a Gguf,
    arch: &'a str,
}

impl Header<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    pub(crate) fn path(&self) -> &Path {
        self.gguf.path()
    }

    pub(crate) fn count(&self, name: &str) -> Result<usize, ModelError> {
        self.gguf.count(&self.key(name))
    }

    pub(crate) fn optional_count(&self, name: &str) -> Result<Option<usize>, ModelError> {
        let count = |value: &Value| value.as_u64().and_then(|v| usize::try_from(v).ok());
        self.gguf.optional(&self.key(name), "a whole number", count)
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<f64>, ModelError> {
        self.gguf.optional(&self.key(name), "a number", Value::as_f64)
    }

    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>, ModelError> {
        self.gguf.optional(&self.key(name), "true or false", Value::as_bool)
    }

    /// Whether the first layer has a tensor, under its usual name.
    pub(crate) fn has(&self, role: LayerRole) -> bool {
        self.layer_has(0, role)
    }

    /// Whether a layer has a tensor, under its usual name.
    pub(crate) fn layer_has(&self, layer: usize, role: LayerRole) -> bool {
        let place = Naming::Gguf.layer(role).under(&Naming::Gguf.layer_prefix(layer));
        self.gguf.tensors.contains_key(&place.name)
    }

    /// A decoder as Llama is one, with whatever of it the common entries say. Architectures change the rest.
    pub(crate) fn llama_like(&self, family: &'static str, style: RopeStyle) -> Result<ArchSpec, ModelError> {
        let (hidden, heads) = (self.count("embedding_length")?, self.count("attention.head_count")?);
        if heads == 0 {
            return Err(ModelError::corrupt(self.path(), "no attention heads"));
        }
        let head_dim = self.optional_count("attention.key_length")?.unwrap_or(hidden / heads);
        let value_dim = self.optional_count("attention.value_length")?.unwrap_or(head_dim);
        let latent = self.optional_count("attention.kv_lora_rank")?.is_some();
        if value_dim != head_dim && !latent {
            return Err(ModelError::unsupported(self.path(), "values of another width than keys"));
        }
        let tensor = |role: TensorRole| self.gguf.tensors.get(Naming::Gguf.global(role));
        let name = Naming::Gguf.global(TensorRole::Embedding);
        let embedding = tensor(TensorRole::Embedding)
            .ok_or_else(|| ModelError::tensor(self.path(), name, "is missing"))?;
        let layers = self.count("block_count")?;
        if layers > 1 << 12 {
            let reason = format!("layers is {layers}, must be within 1..=4096");
            return Err(ModelError::corrupt(self.path(), reason));
        }
        let eps = "attention.layer_norm_rms_epsilon";
        let norm_eps = self.number(eps)?.ok_or_else(|| self.gguf.missing(&self.key(eps), "a number"))?;
        // Models whose every layer has experts may leave the width of MLPs out.
        let width = match self.optional_count("expert_feed_forward_length")? {
            Some(_) => self.optional_count("feed_forward_length")?.unwrap_or(1).max(1),
            None => self.count("feed_forward_length")?,
        };
        let layer = Layer { window: None, rope: 0, mlp: Mlp::Dense { width } };
        Ok(ArchSpec {
            family,
            hidden,
            heads,
            vocab: embedding.rows,
            context: self.most_positions()?,
            norm_eps: norm_eps as f32,
            norm_plus_one: false,
            post_norms: false,
            embedding_scale: 1.0,
            attention: Attention::Grouped(Grouped {
                kv_heads: self.optional_count("attention.head_count_kv")?.unwrap_or(heads),
                head_dim,
                qkv_bias: self.has(LayerRole::QBias),
                o_bias: self.has(LayerRole::OBias),
                qk_norm: false,
                sinks: false,
            }),
            attention_scale: match self.number("attention.scale")?.filter(|scale| *scale != 0.0) {
                Some(scale) => scale as f32,
                None => (head_dim.max(1) as f32).sqrt().recip(),
            },
            attention_softcap: None,
            ropes: vec![self.rope(style, head_dim)?],
            activation: Activation::Silu,
            layers: vec![layer; layers],
            logit_softcap: None,
            tied_output: tensor(TensorRole::Output).is_none(),
        })
    }

    /// The experts of a layer.
    pub(crate) fn experts(&self, width: usize, routing: Routing) -> Result<Experts, ModelError> {
        let (count, top_k) = (self.count("expert_count")?, self.count("expert_used_count")?);
        Ok(Experts { count, top_k, width, shared_width: 0, routing, bias: false })
    }

    fn rope(&self, style: RopeStyle, head_dim: usize) -> Result<RopeSpec, ModelError> {
        let theta = self.number("rope.freq_base")?.unwrap_or(10_000.0);
        let dims = self.optional_count("rope.dimension_count")?.unwrap_or(head_dim);
        let factor = self.number("rope.scaling.factor")?;
        let given = self.number("rope.scaling.attn_factor")?.filter(|given| *given != 0.0).unwrap_or(1.0);
        let mut scale = given;
        let kind = self.gguf.optional(&self.key("rope.scaling.type"), "a text", Value::as_text)?;
        let scaling = match kind.as_deref() {
            Some("none") => RopeScaling::None,
            Some("longrope") if self.gguf.tensors.contains_key(SHORT_FACTORS) => RopeScaling::None,
            // Linear is the format's default; 0 and 1 stand for no scaling.
            None | Some("linear") => match factor.or(self.number("rope.scale_linear")?) {
                Some(factor) if factor != 0.0 && factor != 1.0 => RopeScaling::Linear { factor },
                _ => RopeScaling::None,
            },
            Some("yarn") => {
                let key = self.key("rope.scaling.factor");
                let factor = factor.ok_or_else(|| self.gguf.missing(&key, "a number"))?;
                scale = given * yarn_scale(factor, 1.0);
                let original = match self.number("rope.scaling.original_context_length")? {
                    Some(original) => original,
                    None => self.count("context_length")? as f64,
                };
                RopeScaling::Yarn {
                    factor,
                    original,
                    fast: self.number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                    slow: self.number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                    // The format cannot say it; gpt-oss is the one that does not round.
                    truncate: self.arch != "gpt-oss",
                }
            }
            Some(other) => {
                let reason = format!("rope scaling `{other}` (none, linear and yarn are)");
                return Err(ModelError::unsupported(self.path(), reason));
            }
        };
        let inv_freq = inv_freq(theta, dims, scaling);
        let mut inv_freq = inv_freq.map_err(|reason| ModelError::corrupt(self.path(), reason))?;
        self.divide_by_factors(&mut inv_freq)?;
        Ok(RopeSpec { style, inv_freq, scale: scale as f32 })
    }

    /// Positions that the model is made for, and that can be served: with LongRoPE those up to the original length.
    fn most_positions(&self) -> Result<usize, ModelError> {
        let context = self.count("context_length")?;
        match self.gguf.tensors.contains_key(LONG_FACTORS) {
            true => Ok(context.min(self.count("rope.scaling.original_context_length")?)),
            false => Ok(context),
        }
    }

    /// Gives a window to all layers but every `period`th, or as the file says it: in a number or layer by layer.
    pub(crate) fn set_windows(&self, spec: &mut ArchSpec, period: usize) -> Result<(), ModelError> {
        let window = self.count("attention.sliding_window")?;
        let key = self.key("attention.sliding_window_pattern");
        let windowed: Vec<bool> = match self.gguf.metadata.get(&key) {
            Some(Value::Array(_)) => {
                self.gguf.array(&key, "true or false", |a, b| a.read(b, |v| v.as_bool()))?
            }
            _ => {
                let period = self.optional_count("attention.sliding_window_pattern")?.unwrap_or(period);
                (0..spec.layers.len()).map(|l| period == 0 || (l + 1) % period != 0).collect()
            }
        };
        if windowed.len() != spec.layers.len() {
            return Err(self.gguf.missing(&key, "an entry for each layer"));
        }
        for (layer, windowed) in spec.layers.iter_mut().zip(windowed) {
            layer.window = windowed.then_some(window);
        }
        Ok(())
    }

    fn divide_by_factors(&self, inv_freq: &mut [f32]) -> Result<(), ModelError> {
        let named = |name: &&str| self.gguf.tensors.contains_key(*name);
        let Some(name) = [ROPE_FACTORS, SHORT_FACTORS].into_iter().find(named) else { return Ok(()) };
        let tensor = &self.gguf.tensors[name];
        let wrong = |reason: String| Err(ModelError::tensor(self.path(), name, reason));
        if (tensor.rows, tensor.cols) != (1, inv_freq.len()) {
            let (rows, cols) = (tensor.rows, tensor.cols);
            return wrong(format!("{rows} × {cols} factors for {} frequencies", inv_freq.len()));
        }
        let factors = tensor.slice(0..1, 0..tensor.cols)?.to_f32()?;
        if let Some(factor) = factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
            return wrong(format!("holds the factor {factor}"));
        }
        for (frequency, factor) in inv_freq.iter_mut().zip(factors) {
            *frequency /= factor;
        }
        Ok(())
    }
}

fn special(gguf: &Gguf) -> Result<SpecialTokens, ModelError> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let id = |name: &str| gguf.optional(&key(name), "a token id", Value::as_u32);
    let bos = id("bos_token_id")?;
    let mut eos: Vec<u32> = Vec::new();
    for name in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        eos.extend(id(name)?.filter(|id| !eos.contains(id)));
    }
    let sentencepiece = gguf.optional(&key("model"), "a text", Value::as_text)?.as_deref() == Some("llama");
    let add_bos =
        gguf.optional(&key("add_bos_token"), "true or false", Value::as_bool)?.unwrap_or(sentencepiece);
    let text = |id: Option<u32>| -> Result<Option<String>, ModelError> {
        let Some(id) = id else { return Ok(None) };
        let tokens = gguf.array(&key("tokens"), "an array of texts", |a, b| a.read(b, |v| v.as_text()))?;
        Ok(tokens.get(id as usize).cloned())
    };
    let (bos_text, eos_text) = (text(bos)?, text(eos.first().copied())?);
    Ok(SpecialTokens { bos, eos, pad: id("padding_token_id")?, add_bos: Some(add_bos), bos_text, eos_text })
}
