//! The request fields that chat and completions share.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::body::Object;
use crate::front_door::api_error::ApiError;
use crate::front_door::request::Ask;

/// One string or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "must be a string or a list of strings")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// What to add to a stream.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// See <https://platform.openai.com/docs/api-reference>; what OpenAI does not have is as in vLLM.
pub(super) struct Fields {
    pub(super) model: String,
    pub(super) stream: bool,
    /// Whether a stream ends with the usage.
    pub(super) stream_usage: bool,
    pub(super) token_ids: bool,
    /// Without `request_id` and `logprobs`, which the two kinds of request give in their own ways.
    pub(super) ask: Ask,
}

/// Fields that would change the answer and are not served yet, and the number that asks for nothing.
const NOT_SERVED: &[(&str, f64)] = &[
    ("length_penalty", 1.0),
    ("suffix", 0.0),
    ("tools", 0.0),
    ("functions", 0.0),
    ("response_format", 0.0),
    ("structured_outputs", 0.0),
    ("guided_json", 0.0),
    ("guided_regex", 0.0),
    ("guided_choice", 0.0),
    ("guided_grammar", 0.0),
    ("use_beam_search", 0.0),
    ("continue_final_message", 0.0),
    ("truncate_prompt_tokens", f64::NAN),
];

impl Fields {
    /// Takes the shared fields. Fields that change nothing (`user`, `store`, `metadata` …) are ignored.
    pub(super) fn take(body: &mut Object) -> Result<Self, ApiError> {
        check_served(body)?;
        let options: StreamOptions = body.take("stream_options")?.unwrap_or_default();
        let fields = Self {
            model: body.take("model")?.unwrap_or_default(),
            stream: body.take("stream")?.unwrap_or(false),
            stream_usage: options.include_usage.unwrap_or(false),
            token_ids: body.take("return_token_ids")?.unwrap_or(false),
            ask: ask(body)?,
        };
        let best_of = count(body, "best_of")?;
        if best_of.is_some_and(|best_of| best_of != fields.ask.n.unwrap_or(1)) {
            return Err(ApiError::invalid("best_of", "is only served where it equals n; leave it out"));
        }
        if fields.stream && fields.ask.prompt_logprobs.is_some() {
            return Err(ApiError::invalid("prompt_logprobs", "are not streamed; set stream to false"));
        }
        Ok(fields)
    }
}

fn ask(body: &mut Object) -> Result<Ask, ApiError> {
    // -1 is how vLLM's clients say "all".
    let top_k = match body.take::<i64>("top_k")? {
        Some(-1) => Some(0),
        other => other.map(|k| whole("top_k", k)).transpose()?,
    };
    let older = count(body, "max_tokens")?;
    Ok(Ask {
        n: count(body, "n")?,
        max_tokens: count(body, "max_completion_tokens")?.or(older),
        min_tokens: count(body, "min_tokens")?.unwrap_or(0),
        temperature: body.take("temperature")?,
        top_p: body.take("top_p")?,
        top_k,
        min_p: body.take("min_p")?,
        repetition_penalty: body.take("repetition_penalty")?,
        presence_penalty: body.take("presence_penalty")?,
        frequency_penalty: body.take("frequency_penalty")?,
        logit_bias: logit_bias(body)?,
        allowed_token_ids: body.take("allowed_token_ids")?.unwrap_or_default(),
        banned_token_ids: body.take("banned_token_ids")?.unwrap_or_default(),
        bad_words: one_or_many(body, "bad_words")?,
        seed: seed(body)?,
        stop: one_or_many(body, "stop")?,
        stop_token_ids: body.take("stop_token_ids")?.unwrap_or_default(),
        include_stop: body.take("include_stop_str_in_output")?.unwrap_or(false),
        ignore_eos: body.take("ignore_eos")?.unwrap_or(false),
        special: !body.take("skip_special_tokens")?.unwrap_or(true),
        prompt_logprobs: count(body, "prompt_logprobs")?,
        echo: body.take("echo")?.unwrap_or(false),
        priority: body.take("priority")?.unwrap_or(0),
        cache_salt: body.take("cache_salt")?,
        deadline_ms: body.take("deadline_ms")?,
        session: body.take("prompt_cache_key")?,
        ..Ask::default()
    })
}

fn one_or_many(body: &mut Object, field: &'static str) -> Result<Vec<String>, ApiError> {
    Ok(match body.take(field)? {
        None => Vec::new(),
        Some(OneOrMany::One(text)) => vec![text],
        Some(OneOrMany::Many(texts)) => texts,
    })
}

/// An object from token ids, which JSON writes as texts, to numbers.
fn logit_bias(body: &mut Object) -> Result<Vec<(u32, f32)>, ApiError> {
    let entry = |(id, bias): (String, f32)| {
        let wrong =
            |_: std::num::ParseIntError| ApiError::invalid("logit_bias", format!("`{id}` is not a token id"));
        Ok::<(u32, f32), ApiError>((id.parse().map_err(wrong)?, bias))
    };
    let map: BTreeMap<String, f32> = body.take("logit_bias")?.unwrap_or_default();
    let mut biases: Vec<(u32, f32)> = map.into_iter().map(entry).collect::<Result<_, _>>()?;
    biases.sort_unstable_by_key(|(id, _)| *id);
    match biases.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(ApiError::invalid("logit_bias", format!("names token {} twice", pair[0].0))),
        None => Ok(biases),
    }
}

/// Seeds are 64 bits, written with a sign or without.
fn seed(body: &mut Object) -> Result<Option<u64>, ApiError> {
    match body.take::<Value>("seed")? {
        None => Ok(None),
        Some(value) => match value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned)) {
            Some(seed) => Ok(Some(seed)),
            None => Err(ApiError::invalid("seed", format!("{value}, must be a whole number of 64 bits"))),
        },
    }
}

/// Refuses what would change the answer and is not served.
fn check_served(body: &Object) -> Result<(), ApiError> {
    for (field, number) in NOT_SERVED {
        let neutral = match body.get(field) {
            None | Some(Value::Null | Value::Bool(false)) => true,
            Some(Value::Number(n)) => n.as_f64() == Some(*number),
            Some(Value::Array(list)) => list.is_empty(),
            Some(Value::Object(map)) => map.is_empty() || map.get("type").is_some_and(|ty| ty == "text"),
            Some(Value::String(text)) => text.is_empty(),
            Some(Value::Bool(true)) => false,
        };
        if !neutral {
            return Err(ApiError::invalid(field, "is not served yet; leave it out"));
        }
    }
    Ok(())
}

/// A count, if it is given.
pub(super) fn count(body: &mut Object, field: &'static str) -> Result<Option<u32>, ApiError> {
    body.take(field)?.map(|count| whole(field, count)).transpose()
}

/// A count that JSON gave as any number.
fn whole(field: &'static str, value: i64) -> Result<u32, ApiError> {
    let wrong =
        |_| ApiError::invalid(field, format!("{value}, must be a whole number from 0 to {}", u32::MAX));
    u32::try_from(value).map_err(wrong)
}
