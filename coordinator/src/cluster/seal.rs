//! How many commits the store has made, beside the store.
//!
//! A database that finds its newest commit damaged goes back to the one before: right after a torn write, whose writer was
//! never told that it was done; wrong after a flipped bit, for what it forgets was promised. This number, written after
//! every commit, tells the two apart. It is not synced: after a power cut it may be old, never too new.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::codec;

/// The file with the number.
pub(super) struct Seal(File);

impl Seal {
    /// Opens or makes the file; the number in it, if there is a valid one.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Option<u64>)> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let bytes = std::fs::read(path)?;
        let number =
            codec::open(&bytes).ok().and_then(|body| Some(u64::from_le_bytes(body.try_into().ok()?)));
        Ok((Self(file), number))
    }

    /// Writes the number.
    pub(super) fn set(&self, number: u64) -> io::Result<()> {
        self.0.write_all_at(&codec::seal(&number.to_le_bytes()), 0)
    }
}
