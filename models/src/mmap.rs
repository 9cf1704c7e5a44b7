//! Files mapped into memory: the only `unsafe` outside the kernels.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, UncheckedAdvice};

use crate::error::ModelError;

/// What pages are at least; where they are larger, advice reaches a little further than it says.
pub(crate) const PAGE: usize = 4096;

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
        // cannot guard against: a file that is cut short then ends the process. One that another is renamed over stays as it was.
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
    ///
    /// # Errors
    /// If it cannot be read: the disk, or the file is shorter than it was.
    pub(crate) fn populate(&self, range: Range<usize>) -> Result<(), ModelError> {
        match self.map.advise_range(Advice::PopulateRead, range.start, range.len()) {
            Ok(()) => Ok(()),
            // Systems before Linux 5.14 do not know it.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
                for byte in self.map[range].iter().step_by(PAGE) {
                    std::hint::black_box(*byte);
                }
                Ok(())
            }
            Err(error) => Err(ModelError::io(&self.path, error)),
        }
    }

    /// The file is to be mapped by single pages, not by larger ones.
    pub(crate) fn advise_single_pages(&self) {
        drop(self.map.advise(Advice::NoHugePage));
    }

    /// Gives the whole pages of `range` back, so that what was read once does not stay in this process's memory. What shares a
    /// page with something else stays.
    pub(crate) fn advise_dont_need(&self, range: Range<usize>) {
        let (from, to) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
        if from < to {
            // SAFETY: a read-only file mapping: pages given back are read from the file again when touched.
            drop(unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, from, to - from) });
        }
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}
