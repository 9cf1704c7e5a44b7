//! A checkpoint's tokenizer as data; the coordinator makes it work.

use std::path::PathBuf;

/// Where the tokenizer comes from.
#[derive(Debug, Clone)]
pub enum TokenizerSource {
    /// A Hugging Face `tokenizer.json`.
    HfJson(PathBuf),
    /// The vocabulary in a GGUF file.
    Gguf(GgufVocabulary),
}

/// What a GGUF file says about its tokenizer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufVocabulary {
    /// `tokenizer.ggml.model`: "gpt2" (byte-level BPE) or "llama" (SentencePiece).
    pub model: String,
    /// `tokenizer.ggml.pre`: how byte-level BPE splits text first. Empty if absent.
    pub pre: String,
    /// Token texts by id.
    pub tokens: Vec<String>,
    /// SentencePiece scores by id; empty if absent.
    pub scores: Vec<f32>,
    /// 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte; empty if absent.
    pub token_types: Vec<i32>,
    /// BPE merges, best first: two texts with a space between.
    pub merges: Vec<String>,
    /// Put a space before the text (SentencePiece).
    pub add_space_prefix: Option<bool>,
    /// Token for unknown pieces.
    pub unknown: Option<u32>,
}

/// The tokens with a meaning of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a sequence.
    pub bos: Option<u32>,
    /// Each of these ends an answer.
    pub eos: Vec<u32>,
    /// Fills batches in training; never sampled on purpose.
    pub pad: Option<u32>,
    /// Text prompts begin with `bos`; `None`: as the tokenizer's own post-processing says.
    pub add_bos: Option<bool>,
    /// Text of `bos`, for chat templates.
    pub bos_text: Option<String>,
    /// Text of the first `eos`, for chat templates.
    pub eos_text: Option<String>,
}
