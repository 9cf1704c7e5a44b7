//! Hashing files, and remembering their hashes: a hundred gigabytes are not read again at each start.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use crate::error::ModelError;

/// Bytes that are hashed at once, and of memory for it.
const CHUNK: usize = 4 << 20;
/// Hashes remembered.
const MAX_REMEMBERED: usize = 65_536;
/// A file that changed this lately may change again without its time showing it.
const SETTLED: Duration = Duration::from_secs(2);
const FILE_NAME: &str = "hashes.txt";

/// A BLAKE3 hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash([u8; 32]);

impl Hash {
    /// Of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Hash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a hash");
        if text.len() != 64 || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

/// Called with the file, its bytes read so far, and its bytes; false stops.
pub type Progress<'a> = dyn FnMut(&Path, u64, u64) -> bool + 'a;

/// What tells that a file is the one whose hash is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    device: u64,
    inode: u64,
    bytes: u64,
    modified_ns: i128,
}

impl Key {
    fn of(metadata: &Metadata) -> Self {
        let modified_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Self { device: metadata.dev(), inode: metadata.ino(), bytes: metadata.len(), modified_ns }
    }

    fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = i128::try_from(now.as_nanos()).unwrap_or(i128::MAX);
        now - self.modified_ns > SETTLED.as_nanos() as i128
    }
}

/// The hashes of files, remembered in a folder that several processes may share.
#[derive(Debug, Default)]
pub struct Hashes {
    folder: Option<PathBuf>,
    known: Mutex<BTreeMap<Key, Hash>>,
}

impl Hashes {
    /// Remembers in `folder`; without one, for as long as the process lives.
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self { folder, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<Key, Hash>> {
        self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The hash of a file; read only if it is not known.
    ///
    /// # Errors
    /// If it cannot be read, changes meanwhile, or `progress` says to stop.
    pub fn of(&self, path: &Path, progress: &mut Progress<'_>) -> Result<Hash, ModelError> {
        let key = key(path)?;
        if let Some(hash) = self.known().get(&key) {
            return Ok(*hash);
        }
        // Other processes of this machine want the same files: one reads, the others take its word.
        let _lock = self.lock();
        self.recall();
        if let Some(hash) = self.known().get(&key) {
            return Ok(*hash);
        }
        let hash = read(path, key.bytes, progress)?;
        if self::key(path)? != key {
            return Err(ModelError::io(path, "it changed while it was read"));
        }
        if key.is_settled() {
            self.known().insert(key, hash);
            self.remember();
        }
        Ok(hash)
    }

    /// Held while one process reads. What cannot be locked costs only time.
    fn lock(&self) -> Option<File> {
        let folder = self.folder.as_ref()?;
        std::fs::create_dir_all(folder).ok()?;
        let file = File::create(folder.join("hashes.lock")).ok()?;
        file.lock().ok()?;
        Some(file)
    }

    /// Takes in what others have found.
    fn recall(&self) {
        let Some(folder) = &self.folder else { return };
        let Ok(text) = std::fs::read_to_string(folder.join(FILE_NAME)) else { return };
        self.known().extend(text.lines().filter_map(parse));
    }

    /// Writes everything known down. Best effort: what is not written is read again.
    fn remember(&self) {
        let Some(folder) = &self.folder else { return };
        let mut known = self.known();
        while known.len() > MAX_REMEMBERED {
            known.pop_first();
        }
        let line = |(key, hash): (&Key, &Hash)| {
            format!("{hash} {} {} {} {}\n", key.bytes, key.modified_ns, key.device, key.inode)
        };
        let text: String = known.iter().map(line).collect();
        drop(known);
        let new = folder.join(format!("{FILE_NAME}.{}", std::process::id()));
        if std::fs::write(&new, text).is_ok() {
            std::fs::rename(&new, folder.join(FILE_NAME)).ok();
        }
    }
}

fn parse(line: &str) -> Option<(Key, Hash)> {
    let mut words = line.split(' ');
    let hash = words.next()?.parse().ok()?;
    let mut number = || words.next()?.parse::<i128>().ok();
    let (bytes, modified_ns, device, inode) = (number()?, number()?, number()?, number()?);
    let whole = |number: i128| u64::try_from(number).ok();
    Some((Key { device: whole(device)?, inode: whole(inode)?, bytes: whole(bytes)?, modified_ns }, hash))
}

fn key(path: &Path) -> Result<Key, ModelError> {
    let metadata = std::fs::metadata(path).map_err(|e| ModelError::io(path, e))?;
    if !metadata.is_file() {
        return Err(ModelError::io(path, "not a file"));
    }
    Ok(Key::of(&metadata))
}

fn read(path: &Path, bytes: u64, progress: &mut Progress<'_>) -> Result<Hash, ModelError> {
    let io = |e: std::io::Error| ModelError::io(path, e);
    let mut file = File::open(path).map_err(io)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; CHUNK.min(usize::try_from(bytes).unwrap_or(CHUNK)).max(1)];
    let mut done = 0;
    loop {
        let read = file.read(&mut buffer).map_err(io)?;
        if read == 0 {
            return Ok(Hash(*hasher.finalize().as_bytes()));
        }
        hasher.update_rayon(&buffer[..read]);
        done += read as u64;
        if !progress(path, done, bytes) {
            return Err(ModelError::io(path, "checking it was cancelled"));
        }
    }
}
