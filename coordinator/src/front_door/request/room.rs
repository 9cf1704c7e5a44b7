//! How long an answer may be.

use super::Ask;
use crate::front_door::api_error::ApiError;
use crate::front_door::models::ServedModel;

/// Tokens to generate at most: what was asked for, or what context and cache leave.
pub(super) fn max_tokens(
    ask: &Ask,
    model: &ServedModel,
    kv_tokens: Option<usize>,
    prompt: usize,
) -> Result<u32, ApiError> {
    let context = model.context;
    let in_context = context.saturating_sub(prompt);
    let only_prompt = ask.echo && ask.max_tokens == Some(0);
    if prompt > context || (in_context == 0 && !only_prompt) {
        let reason = format!("{prompt} tokens leave no room in the context of {context}");
        return Err(ApiError::invalid("prompt", reason));
    }
    let cache = kv_tokens.unwrap_or(usize::MAX);
    if prompt > cache {
        let reason = format!("{prompt} tokens do not fit the KV cache, which holds {cache}");
        return Err(ApiError::invalid("prompt", reason));
    }
    // The last token sampled is never fed back, so it needs no place in the cache.
    let in_cache = (cache - prompt).saturating_add(1);
    let room = in_context.min(in_cache);
    let whole_room = u32::try_from(room).unwrap_or(u32::MAX);
    match ask.max_tokens {
        None => Ok(ask.default_max_tokens.map_or(whole_room, |count| count.min(whole_room))),
        Some(0) if !ask.echo => {
            Err(ApiError::invalid("max_tokens", "0, must be at least 1 (or 0 together with echo)"))
        }
        Some(count) if count as usize > room => {
            let of = match in_cache < in_context {
                true => format!("KV cache of {cache}"),
                false => format!("context of {context}"),
            };
            let reason = format!("{count}, but the prompt's {prompt} tokens leave {room} in the {of}");
            Err(ApiError::invalid("max_tokens", reason))
        }
        Some(count) => Ok(count),
    }
}
