//! Text in, tokens out, and back: tokenizer, chat template, incremental detokenizer, stop strings.

mod chat_template;
mod detokenizer;
#[cfg(test)]
pub(crate) mod fixture;
mod gguf_vocabulary;
mod python;
mod stop;
mod tokenizer;

pub use chat_template::{ChatMessage, ChatTemplate};
pub use detokenizer::Detokenizer;
pub use stop::{Matched, StopMatcher};
pub use tokenizer::Tokenizer;

/// Why text could not be turned into tokens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The checkpoint's tokenizer cannot be used.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The checkpoint's chat template is at fault.
    #[error("chat template: {0}")]
    Template(String),
    /// The chat template refuses the messages, in its own words: the client's mistake.
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
}
