//! Whole answers, and the JSON that chats and completions share.

use futures::StreamExt;
use serde_json::{Map, Value, json};

use crate::front_door::ServedModel;
use crate::front_door::api_error::{ApiError, Kind};
use crate::front_door::generation::{Event, EventStream, FinishReason, Token, Usage};

/// A whole answer.
pub(super) struct Answer {
    pub(super) text: String,
    /// Of an echoed prompt whose log-probabilities were asked for.
    pub(super) echoed: Vec<Token>,
    /// Of the prompt, if its log-probabilities were asked for by themselves.
    pub(super) scored: Vec<Token>,
    pub(super) tokens: Vec<Token>,
    pub(super) end: End,
}

/// How an answer ended.
#[derive(Clone)]
pub(super) struct End {
    pub(super) reason: FinishReason,
    stop_string: Option<String>,
    stop_token: Option<u32>,
    pub(super) usage: Usage,
}

impl End {
    pub(super) fn new(
        reason: FinishReason,
        stop_string: Option<String>,
        stop_token: Option<u32>,
        usage: Usage,
    ) -> Self {
        Self { reason, stop_string, stop_token, usage }
    }

    /// As vLLM's `stop_reason`: the stop string or the client's own stop token; null for the model's end tokens.
    pub(super) fn stop_reason(&self, model: &ServedModel) -> Value {
        match (&self.stop_string, self.stop_token) {
            (Some(text), _) => json!(text),
            (None, Some(id)) if !model.eos.contains(&id) => json!(id),
            (None, _) => Value::Null,
        }
    }
}

/// An answer while it comes.
#[derive(Clone, Default)]
struct Begun {
    text: String,
    echoed: Vec<Token>,
    scored: Vec<Token>,
    tokens: Vec<Token>,
    end: Option<End>,
}

impl Begun {
    fn add(&mut self, event: Event) {
        match event {
            Event::Prompt { text, tokens, scored } => {
                self.text.push_str(&text);
                (self.echoed, self.scored) = (tokens, scored);
            }
            Event::Delta { text, tokens } => {
                self.text.push_str(&text);
                self.tokens.extend(tokens);
            }
            Event::Finished { reason, stop_string, stop_token, usage } => {
                self.end = Some(End::new(reason, stop_string, stop_token, usage));
            }
        }
    }

    fn whole(self) -> Result<Answer, ApiError> {
        let Self { text, echoed, scored, tokens, end } = self;
        let end = end.ok_or_else(|| ApiError::new(Kind::Internal, "the answer has no end"))?;
        Ok(Answer { text, echoed, scored, tokens, end })
    }
}

/// Waits for all answers of a request, `n` of them.
pub(super) async fn collect(mut events: EventStream, n: usize) -> Result<Vec<Answer>, ApiError> {
    let mut begun = vec![Begun::default(); n];
    while let Some(event) = events.next().await {
        let (index, event) = event?;
        begun[index].add(event);
    }
    begun.into_iter().map(Begun::whole).collect()
}

/// The usage of all answers together.
pub(super) fn total(answers: &[Answer]) -> Usage {
    let mut total = Usage::default();
    answers.iter().for_each(|answer| total += answer.end.usage);
    total
}

pub(super) fn usage(usage: Usage) -> Value {
    json!({"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens}})
}

/// As vLLM's `prompt_logprobs`: null for the first token, then for each the likeliest and the token itself, by id.
pub(super) fn prompt_logprobs(tokens: &[Token]) -> Value {
    let entry = |bytes: &[u8], logprob: f32, rank: Option<usize>| json!({"logprob": logprob, "rank": rank, "decoded_token": String::from_utf8_lossy(bytes)});
    let token = |token: &Token| {
        let Some(logprob) = token.logprob else { return Value::Null };
        let mut map = Map::new();
        for (place, (id, bytes, logprob)) in token.top.iter().enumerate() {
            map.insert(id.to_string(), entry(bytes, *logprob, Some(place + 1)));
        }
        // How many are likelier is only known of those that are listed.
        map.entry(token.id.to_string()).or_insert_with(|| entry(&token.bytes, logprob, None));
        Value::Object(map)
    };
    tokens.iter().map(token).collect()
}
