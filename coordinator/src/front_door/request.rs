//! What a client may ask for: pure checks, every limit in one place.

use std::sync::Arc;

use foggara_proto::sequence::{SequenceParams, SequenceRequest};

use super::api_error::{ApiError, Kind};
use super::models::ServedModel;
use crate::text::{ChatMessage, Tokenizer};

const MAX_TEMPERATURE: f32 = 100.0;
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 256;
const MAX_STOP_TOKENS: usize = 64;
/// Most alternatives of a token.
pub(super) const MAX_LOGPROBS: u32 = 20;
const MAX_REQUEST_ID: usize = 128;
const MAX_PROMPT_BYTES: usize = 4 << 20;
const MAX_MESSAGES: usize = 4096;
/// Bytes of a text that is only turned into tokens: it need not fit the context, and may take hundreds of bytes of memory for
/// each of its own.
const MAX_TOKENIZED_BYTES: usize = 1 << 20;

/// A prompt as clients give it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl Prompt {
    /// Bytes that would have to be turned into tokens.
    pub(super) fn text_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Tokens(_) => 0,
        }
    }
}

/// What a client asks for, whatever the protocol. `None` is "not said".
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Ask {
    pub(super) request_id: String,
    pub(super) max_tokens: Option<u32>,
    /// In place of `max_tokens` if that is not said, as far as there is room; `None`: all the room there is.
    pub(super) default_max_tokens: Option<u32>,
    pub(super) temperature: Option<f32>,
    pub(super) top_p: Option<f32>,
    pub(super) top_k: Option<u32>,
    pub(super) seed: Option<u64>,
    pub(super) stop: Vec<String>,
    pub(super) stop_token_ids: Vec<u32>,
    pub(super) ignore_eos: bool,
    pub(super) logprobs: Option<u32>,
    pub(super) echo: bool,
}

/// A request that may be run.
pub(super) struct GenerationRequest {
    pub(super) model: Arc<ServedModel>,
    pub(super) sequence: SequenceRequest,
    /// Shown first when the prompt is echoed.
    pub(super) prompt_text: Option<String>,
    pub(super) stop: Vec<String>,
}

/// A client's request id, or a new one.
pub(super) fn request_id(given: &str) -> Result<String, ApiError> {
    if given.is_empty() {
        return Ok(uuid::Uuid::new_v4().to_string());
    }
    if given.len() > MAX_REQUEST_ID || !given.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ApiError::invalid(
            "request_id",
            format!("must be 1 to {MAX_REQUEST_ID} visible ASCII characters"),
        ));
    }
    Ok(given.to_owned())
}

/// Renders a chat with the model's template.
pub(super) fn chat_prompt(
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

/// Checks everything and fills in the defaults. `kv_tokens` is what the cache of a group holds, if that is known.
pub(super) fn check(
    model: Arc<ServedModel>,
    kv_tokens: Option<usize>,
    prompt: Prompt,
    ask: Ask,
    add_special: bool,
) -> Result<GenerationRequest, ApiError> {
    check_sampling(&ask, &model)?;
    let (tokens, text) = tokenize(&model, prompt, add_special)?;
    let prompt_text = match (ask.echo, text) {
        (false, _) => None,
        (true, Some(text)) => Some(text),
        (true, None) => Some(model.tokenizer.as_ref().map(|t| t.decode(&tokens, true)).unwrap_or_default()),
    };
    let max_tokens = max_tokens(&ask, &model, kv_tokens, tokens.len())?;
    let mut stop_token_ids = ask.stop_token_ids;
    if !ask.ignore_eos {
        stop_token_ids.extend(&model.eos);
    }
    let params = SequenceParams {
        max_tokens,
        temperature: ask.temperature.unwrap_or(1.0),
        top_p: ask.top_p.unwrap_or(1.0),
        top_k: ask.top_k.unwrap_or(0),
        seed: ask.seed.unwrap_or_else(|| seed_of(&ask.request_id)),
        stop_token_ids,
        logprobs: ask.logprobs,
        prompt_logprobs: ask.echo && ask.logprobs.is_some(),
    };
    let prompt_len = tokens.len();
    let sequence = SequenceRequest::new(ask.request_id, tokens, prompt_len, params);
    Ok(GenerationRequest { model, sequence, prompt_text, stop: ask.stop })
}

fn check_sampling(ask: &Ask, model: &ServedModel) -> Result<(), ApiError> {
    if let Some(t) = ask.temperature
        && !(0.0..=MAX_TEMPERATURE).contains(&t)
    {
        return Err(ApiError::invalid("temperature", format!("{t}, must be within 0..={MAX_TEMPERATURE}")));
    }
    if let Some(p) = ask.top_p
        && !(p > 0.0 && p <= 1.0)
    {
        return Err(ApiError::invalid("top_p", format!("{p}, must be above 0 and at most 1")));
    }
    if let Some(count) = ask.logprobs.filter(|count| *count > MAX_LOGPROBS) {
        return Err(ApiError::invalid("logprobs", format!("{count}, at most {MAX_LOGPROBS}")));
    }
    if ask.stop.len() > MAX_STOPS {
        return Err(ApiError::invalid("stop", format!("{} strings, at most {MAX_STOPS}", ask.stop.len())));
    }
    if let Some(stop) = ask.stop.iter().find(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
        return Err(ApiError::invalid(
            "stop",
            format!("a string of {} bytes, must be 1 to {MAX_STOP_BYTES}", stop.len()),
        ));
    }
    if !ask.stop.is_empty() && model.tokenizer.is_none() {
        return Err(ApiError::invalid(
            "stop",
            format!("model `{}` has no tokenizer; use stop_token_ids", model.name),
        ));
    }
    if ask.stop_token_ids.len() > MAX_STOP_TOKENS {
        let count = ask.stop_token_ids.len();
        return Err(ApiError::invalid("stop_token_ids", format!("{count} ids, at most {MAX_STOP_TOKENS}")));
    }
    if let Some(id) = ask.stop_token_ids.iter().find(|id| **id as usize >= model.vocab) {
        return Err(ApiError::invalid(
            "stop_token_ids",
            format!("{id}, the vocabulary has {} tokens", model.vocab),
        ));
    }
    Ok(())
}

/// The tokenizer, for a text in `field`.
fn tokenizer<'a>(model: &'a ServedModel, field: &'static str) -> Result<&'a Tokenizer, ApiError> {
    let none =
        || ApiError::invalid(field, format!("model `{}` has no tokenizer; send token ids", model.name));
    model.tokenizer.as_ref().ok_or_else(none)
}

/// Token ids of a text by itself.
pub(super) fn encode(
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

fn tokenize(
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

fn max_tokens(
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

/// The seed of a request that names none: FNV-1a of its id, so that a replay samples the same tokens.
fn seed_of(request_id: &str) -> u64 {
    request_id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Arc<ServedModel> {
        Arc::new(ServedModel {
            name: "m".into(),
            created: 0,
            context: 100,
            vocab: 50,
            tokenizer: None,
            template: None,
            eos: vec![2],
        })
    }

    fn field(prompt: Vec<u32>, ask: Ask) -> Option<&'static str> {
        check(model(), None, Prompt::Tokens(prompt), ask, true).err().map(|error| {
            assert_eq!(error.kind, Kind::Invalid, "{error:?}");
            error.field.expect("names the field")
        })
    }

    #[test]
    fn every_limit_names_its_field() {
        let ask = Ask::default;
        for (prompt, ask, expected) in [
            (vec![1], ask(), None),
            (vec![], ask(), Some("prompt")),
            (vec![1, 50], ask(), Some("prompt")),
            (vec![1; 100], ask(), Some("prompt")),
            (vec![1; 101], Ask { echo: true, max_tokens: Some(0), ..ask() }, Some("prompt")),
            (vec![1; 100], Ask { echo: true, max_tokens: Some(0), ..ask() }, None),
            (vec![1; 90], Ask { max_tokens: Some(10), ..ask() }, None),
            (vec![1; 90], Ask { max_tokens: Some(11), ..ask() }, Some("max_tokens")),
            (vec![1], Ask { max_tokens: Some(u32::MAX), ..ask() }, Some("max_tokens")),
            (vec![1], Ask { max_tokens: Some(0), ..ask() }, Some("max_tokens")),
            (vec![1], Ask { temperature: Some(-0.1), ..ask() }, Some("temperature")),
            (vec![1], Ask { temperature: Some(f32::NAN), ..ask() }, Some("temperature")),
            (vec![1], Ask { temperature: Some(f32::INFINITY), ..ask() }, Some("temperature")),
            (vec![1], Ask { top_p: Some(0.0), ..ask() }, Some("top_p")),
            (vec![1], Ask { top_p: Some(1.01), ..ask() }, Some("top_p")),
            (vec![1], Ask { top_p: Some(f32::NAN), ..ask() }, Some("top_p")),
            (vec![1], Ask { logprobs: Some(21), ..ask() }, Some("logprobs")),
            (vec![1], Ask { stop: vec!["x".into(); 17], ..ask() }, Some("stop")),
            (vec![1], Ask { stop: vec![String::new()], ..ask() }, Some("stop")),
            (vec![1], Ask { stop_token_ids: vec![50], ..ask() }, Some("stop_token_ids")),
            (vec![1], Ask { stop_token_ids: vec![1; 65], ..ask() }, Some("stop_token_ids")),
        ] {
            assert_eq!(field(prompt, ask.clone()), expected, "{ask:?}");
        }
    }

    #[test]
    fn defaults_are_filled_in() {
        let run = check(
            model(),
            None,
            Prompt::Tokens(vec![1; 30]),
            Ask { request_id: "r".into(), ..Ask::default() },
            true,
        );
        let params = run.map_err(|e| e.message).expect("valid").sequence.params;
        assert_eq!((params.max_tokens, params.temperature, params.top_p, params.top_k), (70, 1.0, 1.0, 0));
        assert_eq!((params.stop_token_ids, params.seed), (vec![2], seed_of("r")));
        let ask = Ask { ignore_eos: true, seed: Some(4), ..Ask::default() };
        let run =
            check(model(), None, Prompt::Tokens(vec![1]), ask, true).map_err(|e| e.message).expect("valid");
        assert_eq!((run.sequence.params.stop_token_ids, run.sequence.params.seed), (vec![], 4));
    }

    #[test]
    fn the_cache_bounds_what_the_context_does_not() {
        let asked = |prompt: usize, kv, max_tokens, default_max_tokens| {
            let ask = Ask { max_tokens, default_max_tokens, ..Ask::default() };
            let run = check(model(), kv, Prompt::Tokens(vec![1; prompt]), ask, true);
            run.map(|run| run.sequence.params.max_tokens).map_err(|e| e.message)
        };
        for (prompt, kv, max, default, expected) in [
            (30, None, None, None, Ok(70)),
            (30, Some(64), None, None, Ok(35)),
            (30, Some(64), Some(35), None, Ok(35)),
            (64, Some(64), None, None, Ok(1)),
            (30, Some(1000), None, None, Ok(70)),
            (30, None, None, Some(16), Ok(16)),
            (90, None, None, Some(16), Ok(10)),
            (60, Some(64), None, Some(16), Ok(5)),
            (
                30,
                Some(64),
                Some(36),
                None,
                Err("max_tokens: 36, but the prompt's 30 tokens leave 35 in the KV cache of 64"),
            ),
            (
                90,
                Some(900),
                Some(11),
                Some(16),
                Err("max_tokens: 11, but the prompt's 90 tokens leave 10 in the context of 100"),
            ),
            (65, Some(64), None, None, Err("prompt: 65 tokens do not fit the KV cache, which holds 64")),
        ] {
            let expected = expected.map_err(str::to_owned);
            assert_eq!(asked(prompt, kv, max, default), expected, "{prompt} {kv:?} {max:?} {default:?}");
        }
    }

    #[test]
    fn request_ids_are_visible_ascii_or_made_up() {
        assert_eq!(request_id("abc-1").map_err(|e| e.message), Ok("abc-1".into()));
        for bad in ["a b", "é", &"x".repeat(129)] {
            assert_eq!(request_id(bad).err().and_then(|e| e.field), Some("request_id"));
        }
        assert_ne!(request_id("").map_err(|e| e.message), request_id("").map_err(|e| e.message));
    }
}
