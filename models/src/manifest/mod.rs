//! What a model's files are, by name, size and hash: how machines that share no disk agree that they hold the same model.
//!
//! A manifest is a small text, kept by the cluster. Each node finds the files in folders of its own ([`ModelFolders`]) and
//! checks them ([`Hashes`]); who needs only a model's tables can do with the [`parts`](Manifest::parts) that hold them.

mod folders;
mod hash;
mod make;
mod tables;

use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};

pub use folders::{Depth, ModelFolders};
pub use hash::{Hash, Hashes, Progress};
pub use make::Described;
pub use tables::{assemble, read_part, read_pieces};

/// Most files of a model.
pub const MAX_FILES: usize = 4096;
/// Bytes of a manifest's text.
pub const MAX_TEXT: usize = 256 << 10;
/// Bytes of a file, or of a file's beginning, that every coordinator must hold.
pub const MAX_PART: u64 = 64 << 20;
/// Bytes of all of them.
pub const MAX_PARTS: u64 = 512 << 20;
/// Characters of a file's name.
const MAX_NAME: usize = 255;
/// The first line.
const TITLE: &str = "foggara-manifest 1 blake3";

/// The files of a model, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    files: Vec<ManifestFile>,
}

/// A file of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFile {
    /// Relative to the model's folder, `/` between.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Of all its bytes.
    pub hash: Hash,
    /// Of a file with tensors: its beginning, which says what they are.
    pub head: Option<Head>,
}

/// The beginning of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its size.
    pub bytes: u64,
    /// Of these bytes.
    pub hash: Hash,
}

/// Bytes that are needed to know a model's tables, tokenizer and template: a small file, or the beginning of a large one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The file.
    pub file: String,
    /// From its beginning.
    pub bytes: u64,
    /// Of these bytes.
    pub hash: Hash,
}

impl Manifest {
    /// Checks and sorts the files.
    fn new(mut files: Vec<ManifestFile>) -> Result<Self, String> {
        if files.is_empty() || files.len() > MAX_FILES {
            return Err(format!("{} files, must be 1 to {MAX_FILES}", files.len()));
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(two) = files.windows(2).find(|two| two[0].name == two[1].name) {
            return Err(format!("file `{}` is there twice", two[0].name));
        }
        for file in &files {
            file.check().map_err(|reason| format!("file `{}`: {reason}", file.name))?;
        }
        let manifest = Self { files };
        let parts = manifest.parts().iter().map(|part| part.bytes).sum::<u64>();
        if parts > MAX_PARTS {
            return Err(format!("{parts} bytes belong to every coordinator, at most {MAX_PARTS}"));
        }
        let bytes = manifest.to_text().len();
        if bytes > MAX_TEXT {
            return Err(format!("a manifest of {bytes} bytes, at most {MAX_TEXT}"));
        }
        Ok(manifest)
    }

    /// By name, in order.
    pub fn files(&self) -> &[ManifestFile] {
        &self.files
    }

    /// The file of that name.
    pub fn file(&self, name: &str) -> Option<&ManifestFile> {
        self.files.iter().find(|file| file.name == name)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// The hash of the whole model: of its manifest's text.
    pub fn hash(&self) -> Hash {
        Hash::of(self.to_text().as_bytes())
    }

    /// What must be known of the model where it is not computed.
    pub fn parts(&self) -> Vec<Part> {
        self.files.iter().map(ManifestFile::part).collect()
    }

    /// A line for each file: hash, size, hash and size of the head (or `-`), name.
    pub fn to_text(&self) -> String {
        let mut text = format!("{TITLE}\n");
        for file in &self.files {
            let ManifestFile { name, bytes, hash, head } = file;
            // Writing to a string does not fail.
            match head {
                Some(head) => writeln!(text, "{hash} {bytes} {} {} {name}", head.hash, head.bytes).ok(),
                None => writeln!(text, "{hash} {bytes} - - {name}").ok(),
            };
        }
        text
    }

    /// Reads what [`to_text`](Self::to_text) wrote.
    ///
    /// # Errors
    /// Names the line that makes no sense.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_TEXT {
            return Err(format!("a manifest of {} bytes, at most {MAX_TEXT}", text.len()));
        }
        let mut lines = text.lines();
        if lines.next() != Some(TITLE) {
            return Err(format!("not a manifest: it must begin with `{TITLE}`"));
        }
        let file = |line: &str| ManifestFile::parse(line).ok_or_else(|| format!("line `{line}`"));
        Self::new(lines.map(file).collect::<Result<_, _>>()?)
    }

    /// Whether it is of an adapter rather than of a model.
    pub fn is_adapter(&self) -> bool {
        self.file(crate::adapter::ADAPTER_CONFIG).is_some()
    }

    /// The GGUF file, if the model is one.
    fn gguf(&self) -> Option<&ManifestFile> {
        self.files.first().filter(|file| self.files.len() == 1 && file.name.ends_with(".gguf"))
    }

    /// The folder of what was opened.
    pub fn root<'a>(&self, opened: &'a Path) -> &'a Path {
        match self.gguf() {
            Some(_) => opened.parent().unwrap_or(opened),
            None => opened,
        }
    }

    /// What to open, if the files lie in `root`.
    pub fn open_path(&self, root: &Path) -> PathBuf {
        self.gguf().map_or_else(|| root.to_owned(), |file| root.join(&file.name))
    }
}

impl ManifestFile {
    fn check(&self) -> Result<(), String> {
        let relative = Path::new(&self.name).components().all(|part| matches!(part, Component::Normal(_)));
        if self.name.is_empty() || !relative || self.name.len() > MAX_NAME {
            return Err(format!("a name must be a relative path of 1 to {MAX_NAME} characters"));
        }
        if self.name.chars().any(char::is_control) {
            return Err("a name without control characters is needed".into());
        }
        let part = self.part();
        if part.bytes > MAX_PART {
            return Err(format!(
                "{} bytes of it belong to every coordinator, at most {MAX_PART}",
                part.bytes
            ));
        }
        if part.bytes > self.bytes {
            return Err(format!("its head has {} bytes, the file {}", part.bytes, self.bytes));
        }
        Ok(())
    }

    fn part(&self) -> Part {
        let (bytes, hash) = self.head.map_or((self.bytes, self.hash), |head| (head.bytes, head.hash));
        Part { file: self.name.clone(), bytes, hash }
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(5, ' ');
        let (hash, bytes) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let head = match (words.next()?, words.next()?) {
            ("-", "-") => None,
            (hash, bytes) => Some(Head { bytes: bytes.parse().ok()?, hash: hash.parse().ok()? }),
        };
        Some(Self { name: words.next()?.to_owned(), bytes, hash, head })
    }
}

#[cfg(test)]
mod tests;
