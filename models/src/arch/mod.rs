//! The architectures, one file each, and the table that lists them.
//!
//! An architecture says how its configuration becomes an [`ArchSpec`], and where its tensors lie; what it does not say is as
//! Llama has it.

mod deepseek;
mod gemma2;
mod gemma3;
mod gpt_oss;
mod llama;
mod mistral;
mod mixtral;
pub(crate) mod names;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
pub(crate) mod rope;

use crate::error::ModelError;
use crate::gguf::Header;
use crate::hf::Config;
use crate::roles::{LayerRole, Place};
use crate::spec::ArchSpec;

/// Where a layer's tensor lies, by its name within the layer; `None`: where Llama has it.
pub(crate) type Layout = fn(&ArchSpec, LayerRole) -> Option<Place>;

/// How one architecture is found and read in each kind of file.
#[derive(Debug)]
pub(crate) struct Architecture {
    /// Class name in config.json's `architectures`.
    pub(crate) hf: &'static str,
    /// Fields of config.json that it reads beside the common ones.
    pub(crate) hf_fields: &'static [&'static str],
    /// What its class takes fields for that config.json leaves out, as JSON; a field that is `null` is not left out.
    pub(crate) hf_defaults: &'static [(&'static str, &'static str)],
    /// From config.json.
    pub(crate) hf_spec: fn(&Config<'_>) -> Result<ArchSpec, ModelError>,
    /// In safetensors.
    pub(crate) hf_layout: Layout,
    /// In GGUF, if it exists there under a name of its own.
    pub(crate) gguf: Option<GgufArchitecture>,
}

/// An architecture in GGUF.
#[derive(Debug)]
pub(crate) struct GgufArchitecture {
    /// `general.architecture`.
    pub(crate) name: &'static str,
    /// Metadata under that name that it reads beside the common entries.
    pub(crate) fields: &'static [&'static str],
    /// From metadata and tensors.
    pub(crate) spec: fn(&Header<'_>) -> Result<ArchSpec, ModelError>,
    /// Its tensors.
    pub(crate) layout: Layout,
}

/// Everything lies where Llama has it.
pub(crate) fn as_llama(_: &ArchSpec, _: LayerRole) -> Option<Place> {
    None
}

/// Every architecture this version serves.
static ARCHITECTURES: [Architecture; 11] = [
    llama::LLAMA,
    mistral::MISTRAL,
    mixtral::MIXTRAL,
    qwen2::QWEN2,
    qwen3::QWEN3,
    qwen3_moe::QWEN3_MOE,
    deepseek::DEEPSEEK_V3,
    gpt_oss::GPT_OSS,
    gemma2::GEMMA2,
    gemma3::GEMMA3,
    phi3::PHI3,
];

/// By the class name in config.json.
pub(crate) fn by_class(class: &str) -> Option<&'static Architecture> {
    ARCHITECTURES.iter().find(|a| a.hf == class)
}

/// By GGUF's name.
pub(crate) fn by_gguf_name(name: &str) -> Option<&'static GgufArchitecture> {
    ARCHITECTURES.iter().filter_map(|a| a.gguf.as_ref()).find(|gguf| gguf.name == name)
}

/// Class names for error messages.
pub(crate) fn classes() -> String {
    ARCHITECTURES.iter().map(|a| a.hf).collect::<Vec<_>>().join(", ")
}

/// GGUF's names for error messages.
pub(crate) fn gguf_names() -> String {
    ARCHITECTURES.iter().filter_map(|a| Some(a.gguf.as_ref()?.name)).collect::<Vec<_>>().join(", ")
}
