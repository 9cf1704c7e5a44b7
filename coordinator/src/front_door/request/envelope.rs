//! A request in the form of the wire: as gRPC clients write it, and as a driver keeps it for a front door that goes on with
//! it when the one that took it has died.

use std::sync::Arc;

use foggara_proto::sequence::{FoundRequest, SequenceParams};
use foggara_proto::wire::inference as wire;
use foggara_proto::wire::inference::generate_request::Prompt as WirePrompt;

use super::{Ask, GenerationRequest, Prompt, check};
use crate::front_door::api_error::{ApiError, Kind};
use crate::front_door::models::ServedModel;

impl From<wire::GenerateRequest> for Ask {
    /// All but model and prompt.
    fn from(r: wire::GenerateRequest) -> Self {
        let (s, o) = (r.sampling.unwrap_or_default(), r.output.unwrap_or_default());
        let mut logit_bias: Vec<(u32, f32)> = s.logit_bias.into_iter().collect();
        logit_bias.sort_unstable_by_key(|(id, _)| *id);
        Self {
            request_id: r.request_id,
            n: s.n,
            max_tokens: s.max_tokens,
            default_max_tokens: None,
            min_tokens: s.min_tokens,
            temperature: s.temperature,
            top_p: s.top_p,
            top_k: s.top_k,
            min_p: s.min_p,
            repetition_penalty: s.repetition_penalty,
            presence_penalty: s.presence_penalty,
            frequency_penalty: s.frequency_penalty,
            logit_bias,
            allowed_token_ids: s.allowed_token_ids,
            banned_token_ids: s.banned_token_ids,
            bad_words: s.bad_words,
            seed: s.seed,
            stop: s.stop,
            stop_token_ids: s.stop_token_ids,
            include_stop: s.include_stop_str_in_output,
            ignore_eos: s.ignore_eos,
            special: o.special_tokens,
            logprobs: o.logprobs,
            prompt_logprobs: o.prompt_logprobs,
            echo: o.echo,
            priority: r.priority,
            cache_salt: r.cache_salt,
            deadline_ms: r.deadline_ms,
            session: r.prompt_cache_key,
        }
    }
}

impl From<wire::ChatRequest> for Ask {
    /// All but model and messages.
    fn from(r: wire::ChatRequest) -> Self {
        Self::from(wire::GenerateRequest {
            sampling: r.sampling,
            output: r.output,
            request_id: r.request_id,
            priority: r.priority,
            cache_salt: r.cache_salt,
            deadline_ms: r.deadline_ms,
            prompt_cache_key: r.prompt_cache_key,
            ..Default::default()
        })
    }
}

/// The envelope of a checked request: what was asked for, with every default filled in, since another front door may have
/// others. Of the prompt it holds only what its tokens do not tell: the text that is echoed, if it is not theirs.
pub(super) fn write(
    ask: &Ask,
    model: &ServedModel,
    params: &SequenceParams,
    n: usize,
    echoed: Option<String>,
) -> Vec<u8> {
    // Naming every field, so that a new one is not forgotten.
    let Ask {
        request_id,
        n: _,
        max_tokens: _,
        default_max_tokens: _,
        min_tokens,
        temperature: _,
        top_p: _,
        top_k: _,
        min_p: _,
        repetition_penalty: _,
        presence_penalty: _,
        frequency_penalty: _,
        logit_bias,
        allowed_token_ids,
        banned_token_ids,
        bad_words,
        seed: _,
        stop,
        stop_token_ids,
        include_stop,
        ignore_eos,
        special,
        logprobs,
        prompt_logprobs,
        echo,
        priority,
        cache_salt,
        deadline_ms,
        session,
    } = ask;
    let sampling = wire::SamplingParams {
        max_tokens: Some(params.max_tokens),
        temperature: Some(params.temperature),
        top_p: Some(params.top_p),
        top_k: Some(params.top_k),
        seed: Some(params.seed),
        stop: stop.clone(),
        stop_token_ids: stop_token_ids.clone(),
        ignore_eos: *ignore_eos,
        min_p: Some(params.min_p),
        repetition_penalty: Some(params.repetition_penalty),
        presence_penalty: Some(params.presence_penalty),
        frequency_penalty: Some(params.frequency_penalty),
        logit_bias: logit_bias.iter().copied().collect(),
        allowed_token_ids: allowed_token_ids.clone(),
        banned_token_ids: banned_token_ids.clone(),
        bad_words: bad_words.clone(),
        min_tokens: *min_tokens,
        include_stop_str_in_output: *include_stop,
        n: u32::try_from(n).ok(),
    };
    let output = wire::OutputOptions {
        logprobs: *logprobs,
        echo: *echo,
        prompt_logprobs: *prompt_logprobs,
        special_tokens: *special,
    };
    let request = wire::GenerateRequest {
        model: model.name.clone(),
        prompt: echoed.map(WirePrompt::Text),
        sampling: Some(sampling),
        output: Some(output),
        request_id: request_id.clone(),
        priority: *priority,
        cache_salt: cache_salt.clone(),
        deadline_ms: *deadline_ms,
        prompt_cache_key: session.clone(),
    };
    request.to_envelope()
}

/// What the client of a request called its model: the deployment that drives it, or an adapter of it.
pub(in crate::front_door) fn model_of(found: &FoundRequest) -> String {
    let asked = wire::GenerateRequest::from_envelope(&found.envelope).map(|request| request.model);
    asked.ok().filter(|model| !model.is_empty()).unwrap_or_else(|| found.model.clone())
}

/// The request that a driver has been found to know: its sequences and its events are those of the first one. It is routed to
/// the group that has it.
pub(in crate::front_door) fn rebuild(
    model: Arc<ServedModel>,
    found: FoundRequest,
) -> Result<GenerationRequest, ApiError> {
    let FoundRequest { model: _, group, prompt, envelope } = found;
    let wire = wire::GenerateRequest::from_envelope(&envelope).map_err(|error| {
        ApiError::new(Kind::Internal, format!("what is kept of the request cannot be read: {error}"))
    })?;
    let echoed = match &wire.prompt {
        Some(WirePrompt::Text(text)) => Some(text.clone()),
        _ => None,
    };
    // What it may take of the cache was checked by the front door that took it.
    let mut request = check(model, None, Prompt::Tokens(prompt), Ask::from(wire), false)?;
    request.prompt_text = echoed.or(request.prompt_text);
    // Its client knows its name.
    (request.sequence.envelope, request.sequence.at, request.sequence.named) = (envelope, group, true);
    Ok(request)
}
