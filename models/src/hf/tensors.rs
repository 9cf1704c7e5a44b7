//! The tensors of a folder: one safetensors file, or several with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::read_json;
use crate::dtype::DType;
use crate::error::ModelError;
use crate::mmap::MappedFile;
use crate::slice::TensorInfo;

/// Every tensor of the folder by name.
pub(super) fn open(folder: &Path) -> Result<BTreeMap<String, TensorInfo>, ModelError> {
    let index = folder.join("model.safetensors.index.json");
    if !index.is_file() {
        let single = folder.join("model.safetensors");
        if !single.is_file() {
            let reason = "holds neither model.safetensors nor model.safetensors.index.json";
            return Err(ModelError::io(folder, reason));
        }
        return read(&single);
    }
    let json = read_json(&index)?;
    let map = json.get("weight_map").and_then(Value::as_object);
    let map =
        map.ok_or_else(|| ModelError::corrupt(&index, "field `weight_map` is missing or not an object"))?;
    let files: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    let mut tensors = BTreeMap::new();
    for file in files {
        // The index may name files of its own folder only.
        if Path::new(file).components().count() != 1 || file == ".." {
            return Err(ModelError::corrupt(&index, format!("`{file}` is not a file of this folder")));
        }
        tensors.extend(read(&folder.join(file))?);
    }
    if let Some(missing) = map.keys().find(|name| !tensors.contains_key(*name)) {
        return Err(ModelError::tensor(&index, missing, "is in the index but in none of its files"));
    }
    Ok(tensors)
}

/// The tensors of one file.
fn read(path: &Path) -> Result<BTreeMap<String, TensorInfo>, ModelError> {
    let file = Arc::new(MappedFile::open(path)?);
    let (header, metadata) = SafeTensors::read_metadata(file.bytes())
        .map_err(|e| ModelError::corrupt(path, format!("not a valid safetensors file (truncated?): {e}")))?;
    let data = header + 8;
    let mut tensors = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        let wrong = |reason: String| ModelError::tensor(path, &name, reason);
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => {
                return Err(wrong(format!(
                    "stored as {other:?}, which is not supported (F32, F16 and BF16 are)"
                )));
            }
        };
        let (rows, cols) = match info.shape[..] {
            [cols] => (1, cols),
            [rows, cols] => (rows, cols),
            ref other => {
                return Err(wrong(format!("has shape {other:?}; vectors and matrices are expected")));
            }
        };
        let range = data + info.data_offsets.0..data + info.data_offsets.1;
        if range.end > file.bytes().len() || range.len() != dtype.row_bytes(cols) * rows {
            return Err(wrong(format!("its bytes {range:?} go past the end of the file: truncated?")));
        }
        tensors.insert(name.clone(), TensorInfo { name, dtype, rows, cols, file: Arc::clone(&file), range });
    }
    Ok(tensors)
}
