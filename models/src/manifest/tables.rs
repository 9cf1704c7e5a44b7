//! The parts of a model's files that say what it is.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use super::{MAX_PART, Manifest};
use crate::error::ModelError;
use crate::gguf::Gguf;

/// Bytes of a piece of a file on its way to another machine.
const PIECE: u64 = 256 << 10;

/// Bytes before a GGUF file's first tensor.
pub(super) fn gguf_head(path: &Path) -> Result<u64, ModelError> {
    let gguf = Gguf::read(path)?;
    let first = gguf.tensors.values().map(|tensor| tensor.range.start as u64).min();
    match first {
        Some(first) => Ok(first),
        None => Err(ModelError::corrupt(path, "holds no tensors")),
    }
}

/// Bytes before a safetensors file's first tensor: a length, and so many bytes of JSON.
pub(super) fn safetensors_head(path: &Path) -> Result<u64, ModelError> {
    let mut length = [0; 8];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut length));
    read.map_err(|e| ModelError::io(path, e))?;
    Ok(u64::from_le_bytes(length).saturating_add(8))
}

/// The first `bytes` bytes of a file.
pub(super) fn beginning(path: &Path, bytes: u64) -> Result<Vec<u8>, ModelError> {
    if bytes > MAX_PART {
        let reason = format!("{bytes} bytes before its first tensor, at most {MAX_PART}");
        return Err(ModelError::corrupt(path, reason));
    }
    read_part(path, 0, bytes)
}

/// Bytes of a file.
///
/// # Errors
/// If it does not have them.
pub fn read_part(path: &Path, offset: u64, bytes: u64) -> Result<Vec<u8>, ModelError> {
    let mut data = Vec::new();
    let mut read = || {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        file.take(bytes).read_to_end(&mut data)
    };
    let read = read().map_err(|e| ModelError::io(path, e))?;
    if read as u64 != bytes {
        return Err(ModelError::io(path, format!("ends {} bytes early", bytes - read as u64)));
    }
    Ok(data)
}

/// The first `bytes` bytes of a file, in pieces.
///
/// Each piece is read when it is asked for; after an error there are no more.
pub fn read_pieces(
    path: PathBuf,
    bytes: u64,
) -> impl Iterator<Item = Result<Vec<u8>, ModelError>> + Send + 'static {
    let mut at = 0;
    std::iter::from_fn(move || {
        let count = PIECE.min(bytes - at);
        if count == 0 {
            return None;
        }
        let piece = read_part(&path, at, count);
        at = if piece.is_ok() { at + count } else { bytes };
        Some(piece)
    })
}

/// Makes the parts of a model, as they lie in `root`, a checkpoint that can be opened: files with tensors get their full
/// size, but for their beginning of nothing.
///
/// # Errors
/// If a file is not there or cannot be written.
pub fn assemble(manifest: &Manifest, root: &Path) -> Result<(), ModelError> {
    for file in manifest.files().iter().filter(|file| file.head.is_some()) {
        let path = root.join(&file.name);
        let opened = File::options().write(true).open(&path);
        opened.and_then(|opened| opened.set_len(file.bytes)).map_err(|e| ModelError::io(&path, e))?;
    }
    Ok(())
}
