//! The request fields that chat and completions share.

use serde::Deserialize;
use serde_json::Value;

use crate::front_door::api_error::ApiError;
use crate::front_door::request::Ask;

/// One string or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// See <https://platform.openai.com/docs/api-reference>; `top_k`, `stop_token_ids`, `ignore_eos`, `echo`,
/// `return_token_ids` as in vLLM. Fields that change nothing (`user`, `store`, `metadata` …) are ignored.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Fields {
    #[serde(default)]
    pub(super) model: String,
    max_tokens: Option<i64>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    seed: Option<i64>,
    stop: Option<OneOrMany>,
    stop_token_ids: Option<Vec<u32>>,
    ignore_eos: Option<bool>,
    echo: Option<bool>,
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    pub(super) return_token_ids: Option<bool>,
    // Known, and not served yet: refused by name unless they ask for nothing.
    n: Option<Value>,
    best_of: Option<Value>,
    presence_penalty: Option<Value>,
    frequency_penalty: Option<Value>,
    repetition_penalty: Option<Value>,
    min_p: Option<Value>,
    min_tokens: Option<Value>,
    logit_bias: Option<Value>,
    suffix: Option<Value>,
    tools: Option<Value>,
    functions: Option<Value>,
    response_format: Option<Value>,
    structured_outputs: Option<Value>,
    guided_json: Option<Value>,
    guided_regex: Option<Value>,
    guided_choice: Option<Value>,
    guided_grammar: Option<Value>,
}

/// What to add to a stream.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) struct StreamOptions {
    #[serde(default)]
    pub(super) include_usage: bool,
}

impl Fields {
    /// Refuses what would change the answer and is not served.
    fn check_unsupported(&self) -> Result<(), ApiError> {
        let neutral = |value: &Value, number: f64| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Number(n) => n.as_f64() == Some(number),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty() || map.get("type").is_some_and(|ty| ty == "text"),
            Value::String(text) => text.is_empty(),
            Value::Bool(true) => false,
        };
        for (field, value, number) in [
            ("n", &self.n, 1.0),
            ("best_of", &self.best_of, 1.0),
            ("presence_penalty", &self.presence_penalty, 0.0),
            ("frequency_penalty", &self.frequency_penalty, 0.0),
            ("repetition_penalty", &self.repetition_penalty, 1.0),
            ("min_p", &self.min_p, 0.0),
            ("min_tokens", &self.min_tokens, 0.0),
            ("logit_bias", &self.logit_bias, 0.0),
            ("suffix", &self.suffix, 0.0),
            ("tools", &self.tools, 0.0),
            ("functions", &self.functions, 0.0),
            ("response_format", &self.response_format, 0.0),
            ("structured_outputs", &self.structured_outputs, 0.0),
            ("guided_json", &self.guided_json, 0.0),
            ("guided_regex", &self.guided_regex, 0.0),
            ("guided_choice", &self.guided_choice, 0.0),
            ("guided_grammar", &self.guided_grammar, 0.0),
        ] {
            if value.as_ref().is_some_and(|value| !neutral(value, number)) {
                return Err(ApiError::invalid(field, "is not served yet; leave it out"));
            }
        }
        Ok(())
    }

    /// The protocol-independent form.
    pub(super) fn ask(
        &self,
        request_id: String,
        max_tokens: Option<i64>,
        logprobs: Option<i64>,
    ) -> Result<Ask, ApiError> {
        self.check_unsupported()?;
        let max_tokens =
            max_tokens.or(self.max_tokens).map(|count| whole("max_tokens", count)).transpose()?;
        // -1 is how vLLM's clients say "all".
        let top_k = self.top_k.map(|k| if k == -1 { Ok(0) } else { whole("top_k", k) }).transpose()?;
        Ok(Ask {
            request_id,
            max_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k,
            seed: self.seed.map(i64::cast_unsigned),
            stop: match self.stop.clone() {
                None => Vec::new(),
                Some(OneOrMany::One(stop)) => vec![stop],
                Some(OneOrMany::Many(stops)) => stops,
            },
            stop_token_ids: self.stop_token_ids.clone().unwrap_or_default(),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            logprobs: logprobs.map(|count| whole("logprobs", count)).transpose()?,
            echo: self.echo.unwrap_or(false),
        })
    }

    pub(super) fn wants_usage(&self) -> bool {
        self.stream_options.unwrap_or_default().include_usage
    }
}

fn whole(field: &'static str, value: i64) -> Result<u32, ApiError> {
    u32::try_from(value).map_err(|_| {
        ApiError::invalid(field, format!("{value}, must be a whole number from 0 to {}", u32::MAX))
    })
}
