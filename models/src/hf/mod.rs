//! Hugging Face folders: config.json, safetensors (one file or an index of shards), tokenizer files.

mod config;
mod rope;
pub(crate) mod tensors;

use std::path::Path;

use serde_json::Value;

use crate::arch::names::Naming;
use crate::checkpoint::{Parts, TokenizerPlace};
use crate::dtype::DType;
use crate::error::ModelError;
use crate::roles::TensorRole;
use crate::spec::ArchSpec;
use crate::tokenizer::SpecialTokens;

pub(crate) use config::{Config, grouped};
pub(crate) use rope::{
    kind as rope_kind, partial_factor as partial_rotation, refuse_partial as refuse_partial_rotation,
    spec as rope_spec,
};

/// Largest text that is read, JSON or template (tokenizer.json is not read here).
const MAX_TEXT: u64 = 64 << 20;

/// Opens a Hugging Face folder.
pub(crate) fn open(path: &Path) -> Result<Parts, ModelError> {
    let config_path = path.join("config.json");
    let config = read_json(&config_path)?;
    let (architecture, mut spec) = config::spec(&config_path, &config)?;
    let tensors = tensors::open(path)?;
    // A checkpoint may carry an output layer although its configuration ties it; then it uses the tied one, as
    // transformers does. One that says it is untied must have it.
    let has_output = tensors.contains_key(Naming::HuggingFace.global(TensorRole::Output));
    if !spec.tied_output && !has_output && config.get("tie_word_embeddings").is_none() {
        spec.tied_output = true;
    }
    let tokenizer_config = optional_json(&path.join("tokenizer_config.json"))?.unwrap_or(Value::Null);
    let generation = optional_json(&path.join("generation_config.json"))?.unwrap_or(Value::Null);
    let tokenizer = path.join("tokenizer.json");
    let name = path.canonicalize().unwrap_or_else(|_| path.into());
    let name = name.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Parts {
        path: path.into(),
        name,
        spec,
        special: special(&config, &generation, &tokenizer_config),
        chat_template: chat_template(path, &tokenizer_config)?,
        tensors,
        naming: Naming::HuggingFace,
        layout: architecture.hf_layout,
        harmless: None,
        tokenizer: tokenizer.is_file().then_some(TokenizerPlace::Json(tokenizer)),
    })
}

/// The architecture and the stored type that a config.json (or the one in a folder) describes.
pub(crate) fn spec_of_config(path: &Path) -> Result<(ArchSpec, DType), ModelError> {
    let path = if path.is_dir() { path.join("config.json") } else { path.into() };
    let config = read_json(&path)?;
    let (_, spec) = config::spec(&path, &config)?;
    spec.check().map_err(|reason| ModelError::corrupt(&path, reason))?;
    let dtype = config.get("dtype").or_else(|| config.get("torch_dtype")).and_then(Value::as_str);
    let dtype = match dtype {
        Some("float32") => DType::F32,
        Some("float16") => DType::F16,
        _ => DType::BF16,
    };
    Ok((spec, dtype))
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, ModelError> {
    let metadata = std::fs::metadata(path).map_err(|e| ModelError::io(path, e))?;
    if metadata.len() > MAX_TEXT {
        let reason = format!("{} bytes, at most {MAX_TEXT}", metadata.len());
        return Err(ModelError::corrupt(path, reason));
    }
    std::fs::read(path).map_err(|e| ModelError::io(path, e))
}

pub(crate) fn read_json(path: &Path) -> Result<Value, ModelError> {
    serde_json::from_slice(&read_bytes(path)?)
        .map_err(|e| ModelError::corrupt(path, format!("not valid JSON: {e}")))
}

fn optional_json(path: &Path) -> Result<Option<Value>, ModelError> {
    if path.is_file() { read_json(path).map(Some) } else { Ok(None) }
}

/// One id or a list of them.
fn ids(value: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

fn special(config: &Value, generation: &Value, tokenizer_config: &Value) -> SpecialTokens {
    let mut eos = ids(generation.get("eos_token_id"));
    for id in ids(config.get("eos_token_id")) {
        if !eos.contains(&id) {
            eos.push(id);
        }
    }
    let first = |key: &str| ids(config.get(key)).first().or(ids(generation.get(key)).first()).copied();
    // A token is a text, or an object that has it as its content.
    let text = |key: &str| {
        let token = tokenizer_config.get(key)?;
        token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
    };
    SpecialTokens {
        bos: first("bos_token_id"),
        eos,
        pad: first("pad_token_id"),
        add_bos: None,
        bos_text: text("bos_token"),
        eos_text: text("eos_token"),
    }
}

/// From its own file, or the tokenizer's configuration: a text, or a list of named ones of which "default" is taken.
fn chat_template(path: &Path, tokenizer_config: &Value) -> Result<Option<String>, ModelError> {
    let own = path.join("chat_template.jinja");
    if own.is_file() {
        let text = String::from_utf8(read_bytes(&own)?);
        return text.map(Some).map_err(|e| ModelError::corrupt(&own, format!("not UTF-8: {e}")));
    }
    let named = |template: &Value| {
        (template.get("name")?.as_str()? == "default")
            .then(|| template.get("template")?.as_str().map(str::to_owned))?
    };
    Ok(match tokenizer_config.get("chat_template") {
        Some(Value::String(template)) => Some(template.clone()),
        Some(Value::Array(templates)) => templates.iter().find_map(named),
        _ => None,
    })
}

#[cfg(test)]
mod released_tests;
#[cfg(test)]
mod tests;
