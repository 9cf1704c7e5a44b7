//! The request fields that chat and completions share.

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

/// See <https://platform.openai.com/docs/api-reference>; `top_k`, `stop_token_ids`, `ignore_eos`, `echo` and
/// `return_token_ids` as in vLLM.
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
    ("n", 1.0),
    ("best_of", 1.0),
    ("presence_penalty", 0.0),
    ("frequency_penalty", 0.0),
    ("repetition_penalty", 1.0),
    ("length_penalty", 1.0),
    ("min_p", 0.0),
    ("min_tokens", 0.0),
    ("logit_bias", 0.0),
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
    ("include_stop_str_in_output", 0.0),
    ("continue_final_message", 0.0),
    ("allowed_token_ids", f64::NAN),
    ("bad_words", 0.0),
    ("prompt_logprobs", f64::NAN),
    ("truncate_prompt_tokens", f64::NAN),
];

impl Fields {
    /// Takes the shared fields. Fields that change nothing (`user`, `store`, `metadata` …) are ignored.
    pub(super) fn take(body: &mut Object) -> Result<Self, ApiError> {
        check_served(body)?;
        let stop = match body.take("stop")? {
            None => Vec::new(),
            Some(OneOrMany::One(stop)) => vec![stop],
            Some(OneOrMany::Many(stops)) => stops,
        };
        // -1 is how vLLM's clients say "all".
        let top_k = match body.take::<i64>("top_k")? {
            Some(-1) => Some(0),
            other => other.map(|k| whole("top_k", k)).transpose()?,
        };
        let options: StreamOptions = body.take("stream_options")?.unwrap_or_default();
        Ok(Self {
            model: body.take("model")?.unwrap_or_default(),
            stream: body.take("stream")?.unwrap_or(false),
            stream_usage: options.include_usage.unwrap_or(false),
            token_ids: body.take("return_token_ids")?.unwrap_or(false),
            ask: Ask {
                max_tokens: body.take("max_tokens")?.map(|count| whole("max_tokens", count)).transpose()?,
                temperature: body.take("temperature")?,
                top_p: body.take("top_p")?,
                top_k,
                seed: seed(body)?,
                stop,
                stop_token_ids: body.take("stop_token_ids")?.unwrap_or_default(),
                ignore_eos: body.take("ignore_eos")?.unwrap_or(false),
                echo: body.take("echo")?.unwrap_or(false),
                ..Ask::default()
            },
        })
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

/// A count that JSON gave as any number.
pub(super) fn whole(field: &'static str, value: i64) -> Result<u32, ApiError> {
    let wrong =
        |_| ApiError::invalid(field, format!("{value}, must be a whole number from 0 to {}", u32::MAX));
    u32::try_from(value).map_err(wrong)
}
