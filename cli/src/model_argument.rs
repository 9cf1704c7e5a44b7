//! `[NAME=]PATH`: a model as people name it on a command line.

use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A model file or folder and the name to serve it under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModelArgument {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

impl FromStr for ModelArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A path may hold `=` too, but hardly before its first `/`.
        let (name, path) = match text.split_once('=') {
            Some((name, path)) if !name.contains('/') => (Some(name.to_owned()), path),
            _ => (None, text),
        };
        if path.is_empty() {
            return Err("the path is empty".into());
        }
        let path = PathBuf::from(path);
        let name = name.unwrap_or_else(|| name_of(&path));
        if name.is_empty() || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(format!("`{name}` cannot be a model's name; write NAME={}", path.display()));
        }
        Ok(Self { name, path })
    }
}

/// A folder's name, or a file's without `.gguf`, in lower case.
fn name_of(path: &Path) -> String {
    let last = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    last.strip_suffix(".gguf").unwrap_or(&last).to_owned()
}

impl ModelArgument {
    /// The path as other processes on this machine, or with the same disks, see it.
    ///
    /// # Errors
    /// If nothing is there.
    pub(crate) fn absolute(&self) -> anyhow::Result<String> {
        let path = self.path.canonicalize();
        let path =
            path.map_err(|e| anyhow::anyhow!("model `{}`: {e}{}", self.path.display(), self.hint()))?;
        path.into_os_string()
            .into_string()
            .map_err(|path| anyhow::anyhow!("model `{}`: the path is not UTF-8", path.display()))
    }
}

impl ModelArgument {
    /// What may be meant by a path at which nothing lies.
    pub(crate) fn hint(&self) -> &'static str {
        let looks_like_hub = self.path.components().count() == 2 && self.path.is_relative();
        match looks_like_hub && !self.path.exists() {
            true => {
                "; models are files here (a GGUF file or a Hugging Face folder), not hub names: download it first"
            }
            false => "",
        }
    }

    /// The path as the cluster is told it: in full if something lies there on this machine, else as it is; then it is for
    /// the nodes to find.
    ///
    /// # Errors
    /// If it is not UTF-8.
    pub(crate) fn for_cluster(&self) -> anyhow::Result<String> {
        let path = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        path.into_os_string()
            .into_string()
            .map_err(|path| anyhow::anyhow!("model `{}`: the path is not UTF-8", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_path_or_before_the_equals_sign() {
        for (text, name, path) in [
            ("m/SmolLM2-Q4_1.gguf", "smollm2-q4_1", "m/SmolLM2-Q4_1.gguf"),
            ("/models/Mixtral-8x7B/", "mixtral-8x7b", "/models/Mixtral-8x7B/"),
            ("chat=/m/a.gguf", "chat", "/m/a.gguf"),
            ("/m/a=b.gguf", "a=b", "/m/a=b.gguf"),
        ] {
            let expected = ModelArgument { name: name.into(), path: path.into() };
            assert_eq!(text.parse::<ModelArgument>(), Ok(expected), "{text}");
        }
        for bad in ["", "a=", "=x", "a b=x"] {
            assert!(bad.parse::<ModelArgument>().is_err(), "{bad}");
        }
    }
}
