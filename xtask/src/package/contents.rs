//! What is in a package, and laying it out.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::place;

/// Shells, and what each calls a script of completions.
pub const COMPLETIONS: [(&str, &str); 3] =
    [("bash", "foggara"), ("zsh", "_foggara"), ("fish", "foggara.fish")];

/// Units run this in the repository, and in a tarball.
const LOCAL: &str = "/usr/local/bin/foggara";

/// A folder that is being filled.
pub struct Tree(pub PathBuf);

impl Tree {
    /// Copies a file, so that anyone may read it (and run it, if `program`).
    pub fn file(&self, from: &Path, to: &str, program: bool) -> Result<()> {
        let bytes = std::fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        self.bytes(&bytes, to, program)
    }

    /// The same, of what is at hand.
    pub fn bytes(&self, bytes: &[u8], to: &str, program: bool) -> Result<()> {
        let path = self.0.join(to);
        if let Some(folder) = path.parent() {
            self.folders(folder)?;
        }
        std::fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
        set_mode(&path, if program { 0o755 } else { 0o644 })
    }

    /// Copies every file in a folder.
    pub fn folder(&self, from: &Path, to: &str) -> Result<()> {
        for path in files(from)? {
            let name = path.strip_prefix(from).unwrap_or(&path).display().to_string();
            self.file(&path, &format!("{to}/{name}"), false)?;
        }
        Ok(())
    }

    /// Units that run `program`.
    pub fn units(&self, to: &str, program: &str) -> Result<()> {
        for path in files(&place::root().join("deploy/systemd"))? {
            let text = std::fs::read_to_string(&path)?.replace(LOCAL, program);
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            self.bytes(text.as_bytes(), &format!("{to}/{name}"), false)?;
        }
        Ok(())
    }

    /// Makes folders that anyone may look into, whatever this user's umask.
    fn folders(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        for above in folder.ancestors().take_while(|above| above.starts_with(&self.0)) {
            set_mode(above, 0o755)?;
        }
        Ok(())
    }
}

/// Every file in and below a folder, in order.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    Ok(found)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("setting the mode of {}", path.display()))
}
