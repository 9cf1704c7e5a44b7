//! What a GGUF file says about its model.

use std::path::Path;

use super::Gguf;
use super::value::Value;
use crate::arch::rope::{RopeScaling, inv_freq};
use crate::arch::{ARCHITECTURES, supported};
use crate::checkpoint::Parts;
use crate::error::ModelError;
use crate::roles::{GGUF, TensorRole};
use crate::spec::{ArchSpec, RopeSpec, RopeStyle};
use crate::tokenizer::{GgufVocabulary, SpecialTokens, TokenizerSource};

/// Llama 3's scaling of the rotation: a divisor for each frequency.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Entries under the architecture's name that are read here, and those known to change nothing.
const KNOWN: [&str; 18] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
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
    "rope.scaling.type",
    "tensor_data_layout",
    "vocab_size",
];

/// Opens a GGUF checkpoint.
pub(crate) fn open(path: &Path) -> Result<Parts, ModelError> {
    let gguf = Gguf::read(path)?;
    let name = gguf.optional("general.architecture", "a text", Value::as_text)?;
    let name = name.ok_or_else(|| gguf.missing("general.architecture", "a text"))?;
    let Some(architecture) = ARCHITECTURES.iter().find(|a| a.gguf == name) else {
        let reason = format!("architecture `{name}` (served: {})", supported(|a| a.gguf));
        return Err(ModelError::unsupported(path, reason));
    };
    let spec = spec(&gguf, architecture.family, &name)?;
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
        naming: &GGUF,
        harmless: Some(&[ROPE_FACTORS]),
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

fn spec(gguf: &Gguf, family: &'static str, arch: &str) -> Result<ArchSpec, ModelError> {
    let key = |name: &str| format!("{arch}.{name}");
    let count = |name: &str| gguf.count(&key(name));
    let (hidden, heads) = (count("embedding_length")?, count("attention.head_count")?);
    let unsupported = |reason: String| ModelError::unsupported(gguf.path(), reason);
    if heads == 0 {
        return Err(ModelError::corrupt(gguf.path(), "no attention heads"));
    }
    for (key, value) in &gguf.metadata {
        let Some(name) = key.strip_prefix(arch).and_then(|rest| rest.strip_prefix('.')) else { continue };
        let off = matches!(value, Value::Bool(false)) || value.as_f64() == Some(0.0);
        if !off && !KNOWN.contains(&name) {
            return Err(unsupported(format!(
                "metadata `{key}` ({value}): what it changes is not known here"
            )));
        }
    }
    let optional = |name: &str| gguf.optional(&key(name), "a whole number", Value::as_u64);
    let as_usize =
        |value: Option<u64>, default: usize| value.and_then(|v| usize::try_from(v).ok()).unwrap_or(default);
    let head_dim = as_usize(optional("attention.key_length")?, hidden / heads);
    if as_usize(optional("attention.value_length")?, head_dim) != head_dim {
        return Err(unsupported("values of another width than keys".into()));
    }
    let tensor = |role: TensorRole| gguf.tensors.get(&GGUF.name(role));
    let embedding = tensor(TensorRole::Embedding);
    let missing = || ModelError::tensor(gguf.path(), GGUF.name(TensorRole::Embedding), "is missing");
    let vocab = embedding.ok_or_else(missing)?.rows;
    Ok(ArchSpec {
        family,
        hidden,
        layers: count("block_count")?,
        heads,
        kv_heads: as_usize(optional("attention.head_count_kv")?, heads),
        head_dim,
        ffn: count("feed_forward_length")?,
        vocab,
        context: count("context_length")?,
        norm_eps: gguf
            .optional(&key("attention.layer_norm_rms_epsilon"), "a number", Value::as_f64)?
            .ok_or_else(|| gguf.missing(&key("attention.layer_norm_rms_epsilon"), "a number"))?
            as f32,
        rope: rope(gguf, arch, head_dim)?,
        tied_output: tensor(TensorRole::Output).is_none(),
        attention_bias: tensor(TensorRole::QBias(0)).is_some(),
    })
}

fn rope(gguf: &Gguf, arch: &str, head_dim: usize) -> Result<RopeSpec, ModelError> {
    let key = |name: &str| format!("{arch}.rope.{name}");
    let number = |name: &str| gguf.optional(&key(name), "a number", Value::as_f64);
    let theta = number("freq_base")?.unwrap_or(10_000.0);
    let dims = gguf.optional(&key("dimension_count"), "a whole number", Value::as_u64)?;
    let dims = dims.and_then(|d| usize::try_from(d).ok()).unwrap_or(head_dim);
    let scaling = match gguf.optional(&key("scaling.type"), "a text", Value::as_text)?.as_deref() {
        Some("none") => RopeScaling::None,
        // Linear is the format's default; 0 and 1 stand for no scaling.
        None | Some("linear") => match number("scaling.factor")?.or(number("scale_linear")?) {
            Some(factor) if factor != 0.0 && factor != 1.0 => RopeScaling::Linear { factor },
            _ => RopeScaling::None,
        },
        Some(other) => {
            return Err(ModelError::unsupported(
                gguf.path(),
                format!("rope scaling `{other}` (none and linear are)"),
            ));
        }
    };
    let inv_freq = inv_freq(theta, dims, scaling);
    let mut inv_freq = inv_freq.map_err(|reason| ModelError::corrupt(gguf.path(), reason))?;
    if let Some(tensor) = gguf.tensors.get(ROPE_FACTORS) {
        if (tensor.rows, tensor.cols) != (1, inv_freq.len()) {
            let reason =
                format!("{} × {} factors for {} frequencies", tensor.rows, tensor.cols, inv_freq.len());
            return Err(ModelError::tensor(gguf.path(), ROPE_FACTORS, reason));
        }
        let factors = tensor.slice(0..1, 0..tensor.cols)?.to_f32()?;
        if let Some(factor) = factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
            return Err(ModelError::tensor(gguf.path(), ROPE_FACTORS, format!("holds the factor {factor}")));
        }
        for (frequency, factor) in inv_freq.iter_mut().zip(factors) {
            *frequency /= factor;
        }
    }
    Ok(RopeSpec { style: RopeStyle::Interleaved, inv_freq, scale: 1.0 })
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
