//! Making the manifest of a model that lies here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::tables::{gguf_head, safetensors_head};
use super::{Hash, Hashes, Head, Manifest, ManifestFile, Progress, tables};
use crate::adapter::{ADAPTER_CONFIG, ADAPTER_TENSORS, Adapter, is_adapter};
use crate::checkpoint::Checkpoint;
use crate::error::ModelError;

/// The index of a model in several files.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// A model's only file of tensors, where there is no index.
pub(super) const SINGLE: &str = "model.safetensors";
/// Files beside the tensors that say something about a model; all but the first may be absent.
pub(super) const DESCRIPTIONS: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    INDEX,
];

/// A model, or an adapter of one, as it lies on a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Where.
    pub path: PathBuf,
    /// Its files.
    pub manifest: Manifest,
    /// How many; 0 of an adapter.
    pub layers: usize,
    /// Of the layer with most; 0 if it has none.
    pub experts: usize,
}

impl Described {
    /// Of what lies at `path`: a GGUF file, or a folder with a model or an adapter. It must be one that can be opened.
    ///
    /// # Errors
    /// If it cannot, or a file cannot be read.
    pub fn of(path: &Path, hashes: &Hashes, progress: &mut Progress<'_>) -> Result<Self, ModelError> {
        if is_adapter(path) {
            return adapter(path, hashes, progress);
        }
        let checkpoint = Checkpoint::open(path)?;
        let opened = checkpoint.path();
        let files = match opened.is_dir() {
            true => folder(opened, hashes, progress)?,
            false => vec![gguf(opened, hashes, progress)?],
        };
        let manifest = Manifest::new(files).map_err(|reason| ModelError::corrupt(opened, reason))?;
        let spec = checkpoint.spec();
        let experts = spec.moe_layers().map(|(_, experts)| experts.count).max().unwrap_or(0);
        Ok(Self { path: path.to_owned(), manifest, layers: spec.layers.len(), experts })
    }
}

fn adapter(path: &Path, hashes: &Hashes, progress: &mut Progress<'_>) -> Result<Described, ModelError> {
    Adapter::open(path)?;
    let tensors = path.join(ADAPTER_TENSORS);
    let files = vec![
        whole(path, ADAPTER_CONFIG, hashes, progress)?,
        with_head(&tensors, ADAPTER_TENSORS.into(), safetensors_head(&tensors)?, hashes, progress)?,
    ];
    let manifest = Manifest::new(files).map_err(|reason| ModelError::corrupt(path, reason))?;
    Ok(Described { path: path.to_owned(), manifest, layers: 0, experts: 0 })
}

fn gguf(path: &Path, hashes: &Hashes, progress: &mut Progress<'_>) -> Result<ManifestFile, ModelError> {
    let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let name = name.filter(|name| name.ends_with(".gguf"));
    let name = name.ok_or_else(|| ModelError::io(path, "its name must be UTF-8 and end in .gguf"))?;
    with_head(path, name, gguf_head(path)?, hashes, progress)
}

fn folder(
    path: &Path,
    hashes: &Hashes,
    progress: &mut Progress<'_>,
) -> Result<Vec<ManifestFile>, ModelError> {
    let mut files = Vec::new();
    for name in DESCRIPTIONS {
        if path.join(name).is_file() {
            files.push(whole(path, name, hashes, progress)?);
        }
    }
    for name in shards(path)? {
        let file = path.join(&name);
        files.push(with_head(&file, name, safetensors_head(&file)?, hashes, progress)?);
    }
    Ok(files)
}

/// A small file that everybody needs all of.
fn whole(
    folder: &Path,
    name: &str,
    hashes: &Hashes,
    progress: &mut Progress<'_>,
) -> Result<ManifestFile, ModelError> {
    let file = folder.join(name);
    let bytes = std::fs::metadata(&file).map_err(|e| ModelError::io(&file, e))?.len();
    let hash = hashes.of(&file, progress)?;
    Ok(ManifestFile { name: name.into(), bytes, hash, head: None })
}

/// The files that hold tensors.
fn shards(path: &Path) -> Result<BTreeSet<String>, ModelError> {
    let index = path.join(INDEX);
    if !index.is_file() {
        return Ok(BTreeSet::from([SINGLE.to_owned()]));
    }
    let corrupt = |reason: String| ModelError::corrupt(&index, reason);
    let text = std::fs::read(&index).map_err(|e| ModelError::io(&index, e))?;
    let value: Value = serde_json::from_slice(&text).map_err(|e| corrupt(e.to_string()))?;
    let map = value.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| corrupt("has no weight_map".into()))?;
    let name = |name: &Value| name.as_str().map(str::to_owned);
    map.values().map(name).collect::<Option<_>>().ok_or_else(|| corrupt("a file's name is no text".into()))
}

fn with_head(
    path: &Path,
    name: String,
    head_bytes: u64,
    hashes: &Hashes,
    progress: &mut Progress<'_>,
) -> Result<ManifestFile, ModelError> {
    let bytes = std::fs::metadata(path).map_err(|e| ModelError::io(path, e))?.len();
    let head = Head { bytes: head_bytes, hash: Hash::of(&tables::beginning(path, head_bytes)?) };
    Ok(ManifestFile { name, bytes, hash: hashes.of(path, progress)?, head: Some(head) })
}
