//! The tensors of a folder: one safetensors file, or several with an index.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Component, Path};
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
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return read(&single);
    }
    let index = folder.join("model.safetensors.index.json");
    if !index.is_file() {
        let reason = "holds neither model.safetensors nor model.safetensors.index.json";
        return Err(ModelError::io(folder, reason));
    }
    let json = read_json(&index)?;
    let map = json.get("weight_map").and_then(Value::as_object);
    let map =
        map.ok_or_else(|| ModelError::corrupt(&index, "field `weight_map` is missing or not an object"))?;
    let mut shards: BTreeMap<&str, BTreeMap<String, TensorInfo>> = BTreeMap::new();
    let mut tensors = BTreeMap::new();
    for (name, file) in map {
        let file = file.as_str().filter(|file| is_plain(file)).ok_or_else(|| {
            ModelError::tensor(&index, name, format!("is said to be in {file}, not a file of this folder"))
        })?;
        let path = folder.join(file);
        let shard = match shards.entry(file) {
            Entry::Occupied(shard) => shard.into_mut(),
            Entry::Vacant(place) => place.insert(read(&path)?),
        };
        let tensor = shard.remove(name);
        let tensor = tensor
            .ok_or_else(|| ModelError::tensor(&path, name, "is missing, though the index says it is here"))?;
        tensors.insert(name.clone(), tensor);
    }
    Ok(tensors)
}

/// A name that leads to no other folder.
fn is_plain(file: &str) -> bool {
    let mut parts = Path::new(file).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
}

/// The tensors of one file.
pub(crate) fn read(path: &Path) -> Result<BTreeMap<String, TensorInfo>, ModelError> {
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
        let (count, rows, cols) = match info.shape[..] {
            [cols] => (1, 1, cols),
            [rows, cols] => (1, rows, cols),
            [count, rows, cols] => (count, rows, cols),
            ref other => {
                return Err(wrong(format!(
                    "has shape {other:?}; vectors, matrices and stacks of them are expected"
                )));
            }
        };
        let range = data + info.data_offsets.0..data + info.data_offsets.1;
        let elements = rows.checked_mul(cols).and_then(|elements| elements.checked_mul(count));
        let needed = elements.and_then(|elements| elements.checked_mul(dtype.block_bytes()));
        if range.end > file.bytes().len() || Some(range.len()) != needed {
            let total = file.bytes().len();
            let reason =
                format!("its bytes {range:?} of {total} do not hold {count} × {rows} × {cols} of {dtype}");
            return Err(wrong(reason));
        }
        let info = TensorInfo::stored(name.clone(), dtype, [count, rows, cols], Arc::clone(&file), range);
        tensors.insert(name, info);
    }
    Ok(tensors)
}
