//! Llama 1 to 3.x, and every model of its shape (SmolLM2 among them).

use super::Architecture;

pub(crate) const LLAMA: Architecture =
    Architecture { family: "llama", gguf: "llama", hf: "LlamaForCausalLM" };
