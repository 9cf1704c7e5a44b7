//! What a client may ask for: pure checks, every limit in one place.

mod choices;
mod envelope;
#[cfg(test)]
mod envelope_tests;
mod prompt;
mod room;
mod sampling;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use foggara_proto::sequence::SequenceRequest;

use super::api_error::ApiError;
use super::models::ServedModel;
use crate::traces::Arrival;

pub(super) use envelope::{model_of, rebuild};
pub(super) use prompt::{Prompt, chat_prompt, encode};

const MAX_REQUEST_ID: usize = 128;
const MAX_CACHE_SALT: usize = 256;
const MAX_CACHE_KEY: usize = 256;
/// Either way from 0.
const MAX_PRIORITY: i32 = 1000;
/// A day.
const MAX_DEADLINE_MS: u64 = 86_400_000;

/// What a client asks for, whatever the protocol. `None`, or nothing in a list, is "not said".
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Ask {
    pub(super) request_id: String,
    /// Answers to the one prompt.
    pub(super) n: Option<u32>,
    pub(super) max_tokens: Option<u32>,
    /// In place of `max_tokens` if that is not said, as far as there is room; `None`: all the room there is.
    pub(super) default_max_tokens: Option<u32>,
    pub(super) min_tokens: u32,
    pub(super) temperature: Option<f32>,
    pub(super) top_p: Option<f32>,
    pub(super) top_k: Option<u32>,
    pub(super) min_p: Option<f32>,
    pub(super) repetition_penalty: Option<f32>,
    pub(super) presence_penalty: Option<f32>,
    pub(super) frequency_penalty: Option<f32>,
    pub(super) logit_bias: Vec<(u32, f32)>,
    pub(super) allowed_token_ids: Vec<u32>,
    pub(super) banned_token_ids: Vec<u32>,
    pub(super) bad_words: Vec<String>,
    pub(super) seed: Option<u64>,
    pub(super) stop: Vec<String>,
    pub(super) stop_token_ids: Vec<u32>,
    /// Whether what ended the answer is part of its text.
    pub(super) include_stop: bool,
    pub(super) ignore_eos: bool,
    /// Whether special tokens are written out.
    pub(super) special: bool,
    pub(super) logprobs: Option<u32>,
    pub(super) prompt_logprobs: Option<u32>,
    pub(super) echo: bool,
    pub(super) priority: i32,
    pub(super) cache_salt: Option<String>,
    pub(super) deadline_ms: Option<u64>,
    /// Requests with the same one are best answered by the same group: what clients call `prompt_cache_key`.
    pub(super) session: Option<String>,
}

/// A request that may be run.
pub(super) struct GenerationRequest {
    pub(super) model: Arc<ServedModel>,
    /// Of the first choice.
    pub(super) sequence: SequenceRequest,
    /// Choices: at least 1.
    pub(super) n: usize,
    /// Shown first when the prompt is echoed.
    pub(super) prompt_text: Option<String>,
    /// Alternatives to tell of with each token of an echoed prompt.
    pub(super) echo_logprobs: Option<usize>,
    /// The same, for the prompt by itself.
    pub(super) prompt_logprobs: Option<usize>,
    pub(super) stop: Vec<String>,
    pub(super) include_stop: bool,
    pub(super) special: bool,
    /// Generated tokens of each choice that the client has already; 0 where there is none.
    pub(super) received: Vec<usize>,
    /// When and how it came.
    pub(super) arrival: Arrival,
}

impl GenerationRequest {
    /// It came so: under a name of its client's choice or ours, and as part of a trace, perhaps.
    pub(super) fn came(&mut self, arrival: &Arrival, named: bool) {
        self.arrival = arrival.clone();
        self.sequence.trace = arrival.trace.clone();
        self.sequence.named = named;
    }
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

/// Checks everything and fills in the defaults. `kv_tokens` is what the cache of a group holds, if that is known.
pub(super) fn check(
    model: Arc<ServedModel>,
    kv_tokens: Option<usize>,
    prompt: Prompt,
    ask: Ask,
    add_special: bool,
) -> Result<GenerationRequest, ApiError> {
    sampling::check(&ask, &model)?;
    check_scheduling(&ask)?;
    let n = choices::count(&ask)?;
    let (tokens, text) = prompt::tokenize(&model, prompt, add_special)?;
    let decode = |tokens: &[u32]| model.tokenizer.as_ref().map(|t| t.decode(tokens, !ask.special));
    let decoded = ask.echo.then(|| decode(&tokens).unwrap_or_default());
    let prompt_text = text.filter(|_| ask.echo).or_else(|| decoded.clone());
    let max_tokens = room::max_tokens(&ask, &model, kv_tokens, tokens.len())?;
    let params = sampling::params(&ask, &model, max_tokens)?;
    let echoed = prompt_text.clone().filter(|text| decoded.as_ref() != Some(text));
    let envelope = envelope::write(&ask, &model, &params, n, echoed);
    let prompt_len = tokens.len();
    let alternatives = |count: Option<u32>| count.map(|count| count as usize);
    let sequence = SequenceRequest {
        cache_salt: ask.cache_salt,
        priority: ask.priority,
        deadline_ms: ask.deadline_ms,
        session: ask.session,
        envelope,
        ..SequenceRequest::new(ask.request_id, tokens, prompt_len, params)
    };
    Ok(GenerationRequest {
        model,
        sequence,
        n,
        prompt_text,
        echo_logprobs: alternatives(ask.logprobs.filter(|_| ask.echo)),
        prompt_logprobs: alternatives(ask.prompt_logprobs),
        stop: ask.stop,
        include_stop: ask.include_stop,
        special: ask.special,
        received: Vec::new(),
        arrival: Arrival::default(),
    })
}

fn check_scheduling(ask: &Ask) -> Result<(), ApiError> {
    if !(-MAX_PRIORITY..=MAX_PRIORITY).contains(&ask.priority) {
        let reason = format!("{}, must be within -{MAX_PRIORITY}..={MAX_PRIORITY}", ask.priority);
        return Err(ApiError::invalid("priority", reason));
    }
    if let Some(deadline) = ask.deadline_ms.filter(|ms| !(1..=MAX_DEADLINE_MS).contains(ms)) {
        let reason = format!("{deadline}, must be within 1..={MAX_DEADLINE_MS}");
        return Err(ApiError::invalid("deadline_ms", reason));
    }
    for (field, text, most) in
        [("cache_salt", &ask.cache_salt, MAX_CACHE_SALT), ("prompt_cache_key", &ask.session, MAX_CACHE_KEY)]
    {
        if let Some(bytes) = text.as_ref().map(String::len).filter(|bytes| !(1..=most).contains(bytes)) {
            return Err(ApiError::invalid(field, format!("a text of {bytes} bytes, must be 1 to {most}")));
        }
    }
    Ok(())
}
