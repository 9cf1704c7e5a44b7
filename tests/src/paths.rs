//! Where the things under test are.

use std::path::{Path, PathBuf};

/// The repository.
pub fn root() -> PathBuf {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_folder.parent().expect("the crate is in the workspace's folder").to_path_buf()
}

/// The program under test: `$FOGGARA_BIN`, or the workspace's release build.
pub fn foggara() -> PathBuf {
    let path =
        std::env::var_os("FOGGARA_BIN").map_or_else(|| root().join("target/release/foggara"), PathBuf::from);
    there(path)
}

/// SmolLM2-135M-Instruct, Q4_1.
pub fn smol_gguf() -> PathBuf {
    there(root().join(".cache/models/smollm2-135m-instruct-q4_1.gguf"))
}

/// The same weights as a Hugging Face checkpoint in bf16.
pub fn smol_bf16() -> PathBuf {
    there(root().join(".cache/models/smollm2-135m"))
}

/// A Mixtral of eight experts made of the same weights, which differ a little.
pub fn smol_mixtral() -> PathBuf {
    there(root().join(".cache/models/smolmix-8x135m"))
}

/// The same with eight experts that are all alike: its text is that of [`smol_bf16`].
pub fn smol_mixtral_same() -> PathBuf {
    there(root().join(".cache/models/smolmix-8x135m-same"))
}

/// A tiny checkpoint without a tokenizer, with reference values beside it.
pub fn golden(name: &str) -> PathBuf {
    there(root().join("tests/golden").join(name))
}

/// Python with the client libraries that `tests/clients` use.
pub fn python() -> PathBuf {
    there(root().join(".cache/python/bin/python"))
}

/// `prometheus` or `promtool`.
pub fn of_prometheus(program: &str) -> PathBuf {
    there(root().join(".cache/prometheus/usr/bin").join(program))
}

/// An SSH server and the library it needs, as they lie in Debian's packages.
pub fn openssh() -> PathBuf {
    there(root().join(".cache/openssh"))
}

/// The folder of the models.
pub fn models() -> PathBuf {
    there(root().join(".cache/models"))
}

fn there(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "{} is missing: `cargo xtask test` makes it", path.display());
    path
}
