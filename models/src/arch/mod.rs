//! The architectures, one file each, and the table that lists them.

pub(crate) mod llama;
pub(crate) mod rope;

/// How one architecture is found in each kind of file.
pub(crate) struct Architecture {
    /// Our name for it.
    pub(crate) family: &'static str,
    /// `general.architecture` in GGUF.
    pub(crate) gguf: &'static str,
    /// Class name in config.json's `architectures`.
    pub(crate) hf: &'static str,
}

/// Every architecture this version serves.
pub(crate) const ARCHITECTURES: [Architecture; 1] = [llama::LLAMA];

/// Names for error messages.
pub(crate) fn supported(name: impl Fn(&Architecture) -> &'static str) -> String {
    ARCHITECTURES.iter().map(name).collect::<Vec<_>>().join(", ")
}
