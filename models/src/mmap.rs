//! Files mapped into memory: the only `unsafe` outside the kernels.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, UncheckedAdvice};

use crate::error::ModelError;

/// A file's bytes.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    /// Maps the whole of `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        // Looked at before it is opened: opening a pipe waits for its writer.
        let metadata = std::fs::metadata(path).map_err(|e| ModelError::io(path, e))?;
        if !metadata.is_file() {
            return Err(ModelError::io(path, "not a file"));
        }
        let file = File::open(path).map_err(|e| ModelError::io(path, e))?;
        // SAFETY: the mapping is read-only and private. Changing a model file while it is being served is a mistake this
        // cannot guard against: a file that is cut short then ends the process.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| ModelError::io(path, e))?;
        Ok(Self { path: path.into(), map })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Tells the system that `range` will be read soon.
    pub(crate) fn advise_will_need(&self, range: Range<usize>) {
        // Advice only: what the system makes of it changes no result.
        drop(self.map.advise_range(Advice::WillNeed, range.start, range.len()));
    }

    /// Makes `range` readable at once: one call in place of a page fault every few pages. Reads what is not in memory yet.
    pub(crate) fn populate(&self, range: Range<usize>) {
        // Older systems do not know it, and go on with page faults.
        drop(self.map.advise_range(Advice::PopulateRead, range.start, range.len()));
    }

    /// Gives the pages of `range` back, so that what was read once does not stay in this process's memory.
    pub(crate) fn advise_dont_need(&self, range: Range<usize>) {
        // SAFETY: a read-only file mapping: pages given back are read from the file again when touched.
        drop(unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) });
    }
}
