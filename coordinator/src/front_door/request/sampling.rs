//! How tokens are chosen: the limits of each parameter, and the defaults.

use std::ops::RangeInclusive;

use foggara_proto::sequence::SequenceParams;

use super::{Ask, prompt};
use crate::front_door::api_error::{ApiError, Kind};
use crate::front_door::models::ServedModel;

const TEMPERATURE: RangeInclusive<f32> = 0.0..=100.0;
const MIN_P: RangeInclusive<f32> = 0.0..=1.0;
const REPETITION_PENALTY: RangeInclusive<f32> = 0.01..=100.0;
/// Of presence and frequency.
const PENALTY: RangeInclusive<f32> = -2.0..=2.0;
const BIAS: RangeInclusive<f32> = -100.0..=100.0;
const MAX_BIASES: usize = 1024;
const MAX_ALLOWED: usize = 16_384;
const MAX_BANNED: usize = 1024;
const MAX_BAD_WORDS: usize = 64;
const MAX_STOPS: usize = 16;
/// Of a stop string, or a bad word.
const MAX_TEXT_BYTES: usize = 256;
const MAX_STOP_TOKENS: usize = 64;
/// Most alternatives of a token.
const MAX_LOGPROBS: u32 = 20;

/// Checks every limit that does not depend on the prompt.
pub(super) fn check(ask: &Ask, model: &ServedModel) -> Result<(), ApiError> {
    within("temperature", ask.temperature, &TEMPERATURE)?;
    if let Some(p) = ask.top_p
        && !(p > 0.0 && p <= 1.0)
    {
        return Err(ApiError::invalid("top_p", format!("{p}, must be above 0 and at most 1")));
    }
    within("min_p", ask.min_p, &MIN_P)?;
    within("repetition_penalty", ask.repetition_penalty, &REPETITION_PENALTY)?;
    within("presence_penalty", ask.presence_penalty, &PENALTY)?;
    within("frequency_penalty", ask.frequency_penalty, &PENALTY)?;
    for (token, bias) in &ask.logit_bias {
        if !BIAS.contains(bias) {
            let reason = format!("{bias} for token {token}, must be within {}", range(&BIAS));
            return Err(ApiError::invalid("logit_bias", reason));
        }
    }
    for (field, count) in [("logprobs", ask.logprobs), ("prompt_logprobs", ask.prompt_logprobs)] {
        if let Some(count) = count.filter(|count| *count > MAX_LOGPROBS) {
            return Err(ApiError::invalid(field, format!("{count}, at most {MAX_LOGPROBS}")));
        }
    }
    let biased: Vec<u32> = ask.logit_bias.iter().map(|(token, _)| *token).collect();
    ids("logit_bias", &biased, MAX_BIASES, model)?;
    ids("allowed_token_ids", &ask.allowed_token_ids, MAX_ALLOWED, model)?;
    ids("banned_token_ids", &ask.banned_token_ids, MAX_BANNED, model)?;
    ids("stop_token_ids", &ask.stop_token_ids, MAX_STOP_TOKENS, model)?;
    texts("stop", &ask.stop, MAX_STOPS, "stop_token_ids", model)?;
    texts("bad_words", &ask.bad_words, MAX_BAD_WORDS, "banned_token_ids", model)
}

fn range(range: &RangeInclusive<f32>) -> String {
    format!("{}..={}", range.start(), range.end())
}

/// Not a number is in no range.
fn within(field: &'static str, value: Option<f32>, limits: &RangeInclusive<f32>) -> Result<(), ApiError> {
    match value {
        Some(value) if !limits.contains(&value) => {
            Err(ApiError::invalid(field, format!("{value}, must be within {}", range(limits))))
        }
        _ => Ok(()),
    }
}

fn ids(field: &'static str, ids: &[u32], most: usize, model: &ServedModel) -> Result<(), ApiError> {
    if ids.len() > most {
        return Err(ApiError::invalid(field, format!("{} ids, at most {most}", ids.len())));
    }
    match ids.iter().find(|id| **id as usize >= model.vocab) {
        Some(id) => Err(ApiError::invalid(field, format!("{id}, the vocabulary has {} tokens", model.vocab))),
        None => Ok(()),
    }
}

fn texts(
    field: &'static str,
    texts: &[String],
    most: usize,
    instead: &str,
    model: &ServedModel,
) -> Result<(), ApiError> {
    if texts.len() > most {
        return Err(ApiError::invalid(field, format!("{} strings, at most {most}", texts.len())));
    }
    if let Some(text) = texts.iter().find(|text| text.is_empty() || text.len() > MAX_TEXT_BYTES) {
        let reason = format!("a string of {} bytes, must be 1 to {MAX_TEXT_BYTES}", text.len());
        return Err(ApiError::invalid(field, reason));
    }
    if !texts.is_empty() && model.tokenizer.is_none() {
        let reason = format!("model `{}` has no tokenizer; use {instead}", model.name);
        return Err(ApiError::invalid(field, reason));
    }
    Ok(())
}

/// The parameters of what was checked, with the defaults filled in.
pub(super) fn params(ask: &Ask, model: &ServedModel, max_tokens: u32) -> Result<SequenceParams, ApiError> {
    if ask.min_tokens > max_tokens {
        let reason = format!("{}, must be at most max_tokens, which is {max_tokens}", ask.min_tokens);
        return Err(ApiError::invalid("min_tokens", reason));
    }
    let (mut stop_token_ids, mut held_token_ids) = (ask.stop_token_ids.clone(), Vec::new());
    if !ask.ignore_eos {
        stop_token_ids.extend(&model.eos);
    } else if ask.min_tokens > 0 {
        // As in vLLM: even where it ends nothing, it is not what is meant by so many tokens.
        held_token_ids.clone_from(&model.eos);
    }
    let mut bad_words: Vec<Vec<u32>> = ask.banned_token_ids.iter().map(|id| vec![*id]).collect();
    for word in &ask.bad_words {
        bad_words.extend(spellings(model, word)?);
    }
    let params = SequenceParams {
        max_tokens,
        temperature: ask.temperature.unwrap_or(1.0),
        top_p: ask.top_p.unwrap_or(1.0),
        top_k: ask.top_k.unwrap_or(0),
        seed: ask.seed.unwrap_or_else(|| seed_of(&ask.request_id)),
        stop_token_ids,
        logprobs: ask.logprobs,
        prompt_logprobs: (ask.echo && ask.logprobs.is_some()) || ask.prompt_logprobs.is_some(),
        prompt_top_logprobs: ask.logprobs.filter(|_| ask.echo).max(ask.prompt_logprobs).unwrap_or(0),
        min_p: ask.min_p.unwrap_or(0.0),
        repetition_penalty: ask.repetition_penalty.unwrap_or(1.0),
        presence_penalty: ask.presence_penalty.unwrap_or(0.0),
        frequency_penalty: ask.frequency_penalty.unwrap_or(0.0),
        logit_bias: ask.logit_bias.clone(),
        allowed_token_ids: ask.allowed_token_ids.clone(),
        bad_words,
        min_tokens: ask.min_tokens,
        held_token_ids,
        adapter: model.adapter.as_ref().map(|adapter| adapter.id),
    };
    leaves_something(&params)?;
    Ok(params)
}

/// The tokens of a word at the beginning of a text, and after a space if that is another token.
fn spellings(model: &ServedModel, word: &str) -> Result<Vec<Vec<u32>>, ApiError> {
    let tokenizer = prompt::tokenizer(model, "bad_words")?;
    let word = word.trim_start();
    if word.is_empty() {
        return Err(ApiError::invalid(
            "bad_words",
            "a string of spaces alone; ban their tokens with banned_token_ids",
        ));
    }
    let mut spellings: Vec<Vec<u32>> = Vec::new();
    for text in [word.to_owned(), format!(" {word}")] {
        let tokens = tokenizer.encode(&text, false);
        let tokens = tokens.map_err(|e| ApiError::new(Kind::Internal, e.to_string()))?;
        // A space that is a token of its own leaves the word as it was.
        let another =
            spellings.iter().all(|first| first.first() != tokens.first() && first.len() == tokens.len());
        if !tokens.is_empty() && another {
            spellings.push(tokens);
        }
    }
    Ok(spellings)
}

/// Of the allowed tokens some must not be banned, at every length of the answer.
fn leaves_something(params: &SequenceParams) -> Result<(), ApiError> {
    let banned = |id: &u32| {
        let ends = params.stop_token_ids.contains(id) || params.held_token_ids.contains(id);
        (params.min_tokens > 0 && ends) || params.bad_words.iter().any(|word| word[..] == [*id])
    };
    if !params.allowed_token_ids.is_empty() && params.allowed_token_ids.iter().all(banned) {
        let reason = "all of them are banned, or end the answer before it has min_tokens";
        return Err(ApiError::invalid("allowed_token_ids", reason));
    }
    Ok(())
}

/// The seed of a request that names none: FNV-1a of its id, so that a replay samples the same tokens.
pub(super) fn seed_of(request_id: &str) -> u64 {
    request_id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
