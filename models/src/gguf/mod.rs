//! GGUF files: header, metadata and tensor table (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>).
//!
//! Nothing in the header is trusted: every length is checked against the file before it is used.

mod cursor;
mod model;
mod value;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::dtype::DType;
use crate::error::ModelError;
use crate::mmap::MappedFile;
use crate::slice::TensorInfo;

use cursor::Cursor;
pub(crate) use model::{Header, open, vocabulary};
use value::{Array, Value};

/// Far above any real file, far below what could hurt.
const MAX_ENTRIES: u64 = 1 << 20;

/// A parsed header.
pub(crate) struct Gguf {
    file: Arc<MappedFile>,
    metadata: BTreeMap<String, Value>,
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
}

impl Gguf {
    /// Reads the header of `path`.
    pub(crate) fn read(path: &Path) -> Result<Self, ModelError> {
        let file = Arc::new(MappedFile::open(path)?);
        let corrupt = |reason: String| ModelError::corrupt(path, reason);
        let mut cursor = Cursor::new(file.bytes());
        if cursor.take(4).map_err(corrupt)? != b"GGUF" {
            return Err(corrupt("not a GGUF file (its first bytes are not `GGUF`)".into()));
        }
        let version = cursor.u32().map_err(corrupt)?;
        if !(2..=3).contains(&version) {
            let reason = format!("GGUF version {version} (2 and 3 can be read; big-endian files cannot)");
            return Err(ModelError::unsupported(path, reason));
        }
        let (tensor_count, entry_count) = (cursor.u64().map_err(corrupt)?, cursor.u64().map_err(corrupt)?);
        if tensor_count > MAX_ENTRIES || entry_count > MAX_ENTRIES {
            return Err(corrupt(format!(
                "header says {tensor_count} tensors and {entry_count} metadata entries"
            )));
        }
        let mut metadata = BTreeMap::new();
        for _ in 0..entry_count {
            let key = cursor.string().map_err(|e| corrupt(format!("metadata: {e}")))?;
            let value = Value::read(&mut cursor).map_err(|e| corrupt(format!("metadata `{key}`: {e}")))?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(corrupt(format!("metadata `{key}` is there twice")));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(value) => {
                value.as_u64().filter(|a| a.is_power_of_two() && *a <= 1 << 20).ok_or_else(|| {
                    corrupt("metadata `general.alignment` is not a power of two up to 2^20".into())
                })?
            }
        };
        let mut table = Vec::new();
        for _ in 0..tensor_count {
            table.push(Entry::read(&mut cursor).map_err(|e| corrupt(format!("tensor table: {e}")))?);
        }
        let data = (cursor.position() as u64).next_multiple_of(alignment);
        let mut tensors = BTreeMap::new();
        for entry in table {
            let name = entry.name.clone();
            let info = entry.place(&file, data, alignment)?;
            if tensors.insert(name.clone(), info).is_some() {
                return Err(ModelError::tensor(path, name, "is there twice"));
            }
        }
        refuse_overlap(path, &tensors)?;
        Ok(Self { file, metadata, tensors })
    }

    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    fn missing(&self, key: &str, what: &str) -> ModelError {
        let found = match self.metadata.get(key) {
            None => "is missing".into(),
            Some(value) => format!("is {value}, not {what}"),
        };
        ModelError::corrupt(self.path(), format!("metadata `{key}` {found}"))
    }

    /// An entry that must be there as a whole number.
    fn count(&self, key: &str) -> Result<usize, ModelError> {
        let value = self.metadata.get(key).and_then(Value::as_u64).and_then(|v| usize::try_from(v).ok());
        value.filter(|v| *v <= 1 << 32).ok_or_else(|| self.missing(key, "a whole number"))
    }

    /// An entry that may be absent, but not of another type.
    fn optional<T>(
        &self,
        key: &str,
        what: &str,
        get: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(value) => get(value).map(Some).ok_or_else(|| self.missing(key, what)),
        }
    }

    /// The elements of an array entry; empty if absent.
    fn array<T>(
        &self,
        key: &str,
        what: &str,
        read: impl Fn(&Array, &[u8]) -> Result<Vec<T>, String>,
    ) -> Result<Vec<T>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(array)) => read(array, self.file.bytes())
                .map_err(|e| ModelError::corrupt(self.path(), format!("metadata `{key}`: {e}"))),
            Some(_) => Err(self.missing(key, what)),
        }
    }
}

/// No byte belongs to two tensors.
fn refuse_overlap(path: &Path, tensors: &BTreeMap<String, TensorInfo>) -> Result<(), ModelError> {
    let mut in_order: Vec<&TensorInfo> = tensors.values().filter(|tensor| !tensor.range.is_empty()).collect();
    in_order.sort_by_key(|tensor| tensor.range.start);
    for two in in_order.windows(2) {
        let (first, second) = (two[0], two[1]);
        if second.range.start < first.range.end {
            let reason =
                format!("its bytes {:?} overlap `{}`, at {:?}", second.range, first.name, first.range);
            return Err(ModelError::tensor(path, &second.name, reason));
        }
    }
    Ok(())
}

/// A row of the tensor table.
struct Entry {
    name: String,
    dims: Vec<u64>,
    ty: u32,
    offset: u64,
}

impl Entry {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, String> {
        let name = cursor.string()?;
        let rank = cursor.u32()?;
        if !(1..=4).contains(&rank) {
            return Err(format!("`{name}` has {rank} dimensions"));
        }
        let dims = (0..rank).map(|_| cursor.u64()).collect::<Result<_, _>>()?;
        Ok(Self { name, dims, ty: cursor.u32()?, offset: cursor.u64()? })
    }

    fn place(self, file: &Arc<MappedFile>, data: u64, alignment: u64) -> Result<TensorInfo, ModelError> {
        let wrong = |reason: String| ModelError::tensor(file.path(), &self.name, reason);
        let dtype = DType::from_ggml(self.ty).map_err(|name| {
            wrong(format!("stored as {name}, which is not supported (F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K are)"))
        })?;
        let cols = usize::try_from(self.dims[0]).map_err(|_| wrong("too large".into()))?;
        let size = |d: &u64| usize::try_from(*d).ok();
        let rows = self.dims.get(1).map_or(Some(1), size).ok_or_else(|| wrong("too large".into()))?;
        let outer = self.dims.get(2..).unwrap_or(&[]);
        let count = outer.iter().try_fold(1usize, |a, d| a.checked_mul(size(d)?));
        let count = count.ok_or_else(|| wrong("too large".into()))?;
        if !cols.is_multiple_of(dtype.block_elems()) {
            return Err(wrong(format!("rows of {cols} elements are not whole blocks of {dtype}")));
        }
        if !self.offset.is_multiple_of(alignment) {
            return Err(wrong(format!("offset {} is not aligned to {alignment}", self.offset)));
        }
        let bytes =
            (cols / dtype.block_elems()).checked_mul(dtype.block_bytes()).and_then(|b| b.checked_mul(rows));
        let bytes = bytes.and_then(|b| b.checked_mul(count));
        let bytes = bytes.ok_or_else(|| wrong("too large".into()))?;
        let start = data.checked_add(self.offset).and_then(|s| usize::try_from(s).ok());
        let range = start.and_then(|start| Some(start..start.checked_add(bytes)?));
        let total = file.bytes().len();
        match range {
            Some(range) if range.end <= total => {
                Ok(TensorInfo::stored(self.name, dtype, [count, rows, cols], Arc::clone(file), range))
            }
            _ => Err(wrong(format!(
                "its {bytes} bytes at offset {} go past the end of the file ({total} bytes): truncated?",
                data.saturating_add(self.offset)
            ))),
        }
    }
}

#[cfg(test)]
mod tests;
