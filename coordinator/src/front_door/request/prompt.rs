//! From what a client writes to the tokens of a prompt.

use crate::front_door::api_error::{ApiError, Kind};
use crate::front_door::models::ServedModel;
use crate::text::{ChatMessage, Tokenizer};

const MAX_PROMPT_BYTES: usize = 4 << 20;
const MAX_MESSAGES: usize = 4096;
/// Bytes of a text that is only turned into tokens: it need not fit the context, and may take hundreds of bytes of memory for
/// each of its own.
const MAX_TOKENIZED_BYTES: usize = 1 << 20;

/// A prompt as clients give it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::front_door) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl Prompt {
    /// Bytes that would have to be turned into tokens.
    pub(in crate::front_door) fn text_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Tokens(_) => 0,
        }
    }
}

/// Renders a chat with the model's template.
pub(in crate::front_door) fn chat_prompt(
    model: &ServedModel,
    messages: &[ChatMessage],
    add_generation_prompt: bool,
    extra: &serde_json::Map<String, serde_json::Value>,
) -> Result<Prompt, ApiError> {
    if messages.is_empty() || messages.len() > MAX_MESSAGES {
        return Err(ApiError::invalid(
            "messages",
            format!("{} of them, must be 1 to {MAX_MESSAGES}", messages.len()),
        ));
    }
    let Some(template) = &model.template else {
        let reason = format!("model `{}` has no chat template; send a prompt to /v1/completions", model.name);
        return Err(ApiError::invalid("messages", reason));
    };
    let text = template.render(messages, add_generation_prompt, extra);
    text.map(Prompt::Text).map_err(|e| ApiError::invalid("messages", e))
}

/// The tokenizer, for a text in `field`.
pub(super) fn tokenizer<'a>(model: &'a ServedModel, field: &'static str) -> Result<&'a Tokenizer, ApiError> {
    let none =
        || ApiError::invalid(field, format!("model `{}` has no tokenizer; send token ids", model.name));
    model.tokenizer.as_ref().ok_or_else(none)
}

/// Token ids of a text by itself.
pub(in crate::front_door) fn encode(
    model: &ServedModel,
    field: &'static str,
    text: &str,
    add_special: bool,
) -> Result<Vec<u32>, ApiError> {
    let tokenizer = tokenizer(model, field)?;
    if text.len() > MAX_TOKENIZED_BYTES {
        let reason = format!("{} bytes, at most {MAX_TOKENIZED_BYTES}", text.len());
        return Err(ApiError::invalid(field, reason));
    }
    tokenizer.encode(text, add_special).map_err(|e| ApiError::new(Kind::Internal, e.to_string()))
}

/// The tokens of a prompt, and its text if it was given as one.
pub(super) fn tokenize(
    model: &ServedModel,
    prompt: Prompt,
    add_special: bool,
) -> Result<(Vec<u32>, Option<String>), ApiError> {
    let (tokens, text) = match prompt {
        Prompt::Tokens(tokens) => {
            if let Some((at, id)) = tokens.iter().enumerate().find(|(_, id)| **id as usize >= model.vocab) {
                let reason =
                    format!("token id {id} at place {at}; the vocabulary has {} tokens", model.vocab);
                return Err(ApiError::invalid("prompt", reason));
            }
            (tokens, None)
        }
        Prompt::Text(text) => {
            if text.len() > MAX_PROMPT_BYTES {
                return Err(ApiError::invalid(
                    "prompt",
                    format!("{} bytes, at most {MAX_PROMPT_BYTES}", text.len()),
                ));
            }
            let tokenizer = tokenizer(model, "prompt")?;
            let fewest = tokenizer.fewest_tokens(text.len());
            if fewest > model.context {
                let reason = format!("at least {fewest} tokens do not fit the context of {}", model.context);
                return Err(ApiError::invalid("prompt", reason));
            }
            let tokens = tokenizer.encode(&text, add_special);
            (tokens.map_err(|e| ApiError::new(Kind::Internal, e.to_string()))?, Some(text))
        }
    };
    if tokens.is_empty() {
        return Err(ApiError::invalid("prompt", "is empty; at least one token is needed"));
    }
    Ok((tokens, text))
}
