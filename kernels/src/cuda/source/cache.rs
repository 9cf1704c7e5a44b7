//! The folder that remembers compiled kernels, so that only the first start of a version compiles.

use std::path::{Path, PathBuf};

/// Where compiled kernels are kept: `$FOGGARA_CACHE/kernels`, or below the user's cache folder.
pub(super) fn folder() -> Option<PathBuf> {
    let of = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = of("FOGGARA_CACHE")
        .or_else(|| of("XDG_CACHE_HOME").map(|cache| cache.join("foggara")))
        .or_else(|| of("HOME").map(|home| home.join(".cache/foggara")))?;
    Some(base.join("kernels"))
}

/// A name for what is made of these texts: FNV-1a of 128 bits. Nobody gains by making two texts collide: who can write into
/// the folder can write machine code at once.
pub(super) fn key(texts: &[&str]) -> String {
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for text in texts {
        // The length first, so that no text can pass for the end of another.
        for byte in (text.len() as u64).to_le_bytes().iter().chain(text.as_bytes()) {
            hash = (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }
    format!("{hash:032x}")
}

/// What was remembered.
pub(super) fn read(file: &Path) -> Option<Vec<u8>> {
    std::fs::read(file).ok().filter(|cubin| cubin.starts_with(b"\x7fELF"))
}

/// Remembers. Written beside and renamed, so that another process never reads half a file.
pub(super) fn write(file: &Path, cubin: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let beside =
        file.with_extension(format!("{}.{:?}.part", std::process::id(), std::thread::current().id()));
    std::fs::write(&beside, cubin)?;
    std::fs::rename(&beside, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_depends_on_everything() {
        let keys = [key(&["a", "b"]), key(&["ab", ""]), key(&["a", "c"]), key(&["a"])];
        for (i, one) in keys.iter().enumerate() {
            assert_eq!(one.len(), 32);
            assert!(keys[i + 1..].iter().all(|other| other != one), "{keys:?}");
        }
    }

    #[test]
    fn what_was_written_is_read_and_half_a_file_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("key/kernel.cubin");
        assert_eq!(read(&file), None);
        write(&file, b"\x7fELF and more").expect("writing");
        assert_eq!(read(&file).as_deref(), Some(&b"\x7fELF and more"[..]));
        write(&file, b"garbage").expect("writing");
        assert_eq!(read(&file), None);
    }
}
