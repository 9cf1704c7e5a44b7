//! `POST /v1/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures::StreamExt;
use futures::stream::{BoxStream, SelectAll};
use serde_json::{Map, Value, json};

use super::answers::{self, Answer, End, prompt_logprobs, usage};
use super::fields::{Fields, count};
use super::{RequestId, body, now, stream};
use crate::front_door::api_error::ApiError;
use crate::front_door::generation::{Event, EventStream, Token, Usage};
use crate::front_door::request::{Ask, GenerationRequest, Prompt};
use crate::front_door::{FrontDoor, ServedModel};

/// OpenAI's default.
const DEFAULT_MAX_TOKENS: u32 = 16;
/// Its name in metrics.
const API: &str = "completions";
/// Prompts of one request.
const MAX_PROMPTS: usize = 64;
/// Answers of one request, to all its prompts together.
const MAX_ANSWERS: usize = 128;

/// The prompts of a request: a text, token ids, or a list of either.
fn prompts(value: Option<Value>) -> Result<Vec<Prompt>, ApiError> {
    let wrong = || ApiError::invalid("prompt", "must be a text, a list of token ids, or a list of either");
    let list = match value {
        None => return Err(ApiError::invalid("prompt", "is missing")),
        Some(Value::String(text)) => vec![Prompt::Text(text)],
        Some(Value::Array(items)) if items.first().is_some_and(Value::is_number) => vec![tokens(items)?],
        Some(Value::Array(items)) => {
            let prompt = |item: Value| match item {
                Value::String(text) => Ok(Prompt::Text(text)),
                Value::Array(ids) => tokens(ids),
                _ => Err(wrong()),
            };
            items.into_iter().map(prompt).collect::<Result<_, _>>()?
        }
        Some(_) => return Err(wrong()),
    };
    if list.is_empty() || list.len() > MAX_PROMPTS {
        return Err(ApiError::invalid(
            "prompt",
            format!("{} of them, must be 1 to {MAX_PROMPTS}", list.len()),
        ));
    }
    Ok(list)
}

fn tokens(ids: Vec<Value>) -> Result<Prompt, ApiError> {
    let id = |value: Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| ApiError::invalid("prompt", format!("{value} is not a token id")))
    };
    ids.into_iter().map(id).collect::<Result<_, _>>().map(Prompt::Tokens)
}

/// What every chunk says.
struct Reply {
    id: String,
    model: Arc<ServedModel>,
    created: u64,
    token_ids: bool,
    logprobs: bool,
    prompt_logprobs: bool,
    /// Tokens are named `token_id:…` in log-probabilities: no two look the same then.
    named_by_id: bool,
    include_usage: bool,
}

/// A prompt being answered.
struct Asked {
    prompt_ids: Vec<u32>,
    /// Answers to it; they have neighbouring places in the reply.
    n: usize,
    events: EventStream,
}

pub(super) async fn handle(
    State(door): State<FrontDoor>,
    Extension(id): Extension<RequestId>,
    headers: HeaderMap,
    incoming: Body,
) -> Result<Response, ApiError> {
    let mut model = String::new();
    let prepared = prepare(&door, id, &headers, incoming, &mut model).await;
    let (reply, stream, runs) = prepared.map_err(|error| door.refused(API, &model, error))?;
    let ask = |run: GenerationRequest| Asked {
        prompt_ids: run.sequence.tokens.clone(),
        n: run.n,
        events: door.run(API, run),
    };
    let asked: Vec<Asked> = runs.into_iter().map(ask).collect();
    if stream {
        return Ok(stream::respond(chunks(reply, asked)).await);
    }
    whole(&reply, asked).await
}

/// Nothing starts before everything is known to be valid.
async fn prepare(
    door: &FrontDoor,
    RequestId { id, named, arrival }: RequestId,
    headers: &HeaderMap,
    incoming: Body,
    name: &mut String,
) -> Result<(Reply, bool, Vec<GenerationRequest>), ApiError> {
    let mut body = body::read(headers, incoming).await?;
    let Fields { model, stream, stream_usage, token_ids, ask } = Fields::take(&mut body)?;
    name.clone_from(&model);
    let logprobs = count(&mut body, "logprobs")?;
    let named_by_id = body.take("return_tokens_as_token_ids")?.unwrap_or(false);
    let add_special = body.take("add_special_tokens")?.unwrap_or(true);
    let model = door.model(&model).await?;
    let prompts = prompts(body.take("prompt")?)?;
    let (several, n) = (prompts.len(), ask.n.unwrap_or(1) as usize);
    if several > 1 && several.saturating_mul(n) > MAX_ANSWERS {
        let reason =
            format!("{n} answers to each of {several} prompts, at most {MAX_ANSWERS} answers in all");
        return Err(ApiError::invalid("n", reason));
    }
    let mut runs = Vec::new();
    for (index, prompt) in prompts.into_iter().enumerate() {
        let request_id = if several > 1 { format!("{id}-{index}") } else { id.clone() };
        let default_max_tokens = Some(DEFAULT_MAX_TOKENS);
        let ask = Ask { request_id, logprobs, default_max_tokens, ..ask.clone() };
        let mut run = door.check(model.clone(), prompt, ask, add_special).await?;
        // Each prompt is a request of its own in the same trace.
        let arrival = if index > 0 { arrival.another() } else { arrival.clone() };
        run.came(&arrival, named);
        runs.push(run);
    }
    let reply = Reply {
        id: format!("cmpl-{id}"),
        model,
        created: now(),
        token_ids,
        logprobs: logprobs.is_some(),
        prompt_logprobs: ask.prompt_logprobs.is_some(),
        named_by_id,
        include_usage: stream_usage,
    };
    Ok((reply, stream, runs))
}

/// The log-probabilities of tokens whose text begins `offset` characters after the choice's.
fn logprobs(tokens: &[Token], offset: usize, named_by_id: bool) -> Value {
    let mut at = offset;
    let mut offsets = Vec::with_capacity(tokens.len());
    for token in tokens {
        offsets.push(at);
        at += token.text().chars().count();
    }
    let name = |id: u32, bytes: &[u8]| match named_by_id {
        true => format!("token_id:{id}"),
        false => String::from_utf8_lossy(bytes).into_owned(),
    };
    let top = |token: &Token| {
        let Some(logprob) = token.logprob else { return Value::Null };
        let mut map = Map::new();
        // Likeliest first: of tokens that read the same (parts of characters do) the likeliest is shown. The token itself
        // is always among them.
        for (id, bytes, logprob) in &token.top {
            map.entry(name(*id, bytes)).or_insert_with(|| json!(logprob));
        }
        map.entry(name(token.id, &token.bytes)).or_insert_with(|| json!(logprob));
        Value::Object(map)
    };
    json!({"tokens": tokens.iter().map(|token| name(token.id, &token.bytes)).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets})
}

async fn whole(reply: &Reply, asked: Vec<Asked>) -> Result<Response, ApiError> {
    let (prompts, answers): (Vec<_>, Vec<_>) = asked
        .into_iter()
        .map(|Asked { prompt_ids, n, events }| (prompt_ids, answers::collect(events, n)))
        .unzip();
    let answers = futures::future::try_join_all(answers).await?;
    let (mut total, mut list) = (Usage::default(), Vec::new());
    for (prompt_ids, answers) in prompts.iter().zip(answers) {
        total += answers::total(&answers);
        for answer in answers {
            list.push(reply.answer(list.len(), prompt_ids, answer));
        }
    }
    let answer = json!({"id": reply.id, "object": "text_completion", "created": reply.created, "model": reply.model.name,
        "choices": list, "usage": usage(total)});
    Ok(Json(answer).into_response())
}

fn chunks(
    reply: Reply,
    asked: Vec<Asked>,
) -> impl futures::Stream<Item = Result<Value, ApiError>> + Send + 'static {
    let mut places: Vec<Place> = Vec::new();
    let mut merged: SelectAll<BoxStream<'static, _>> = SelectAll::new();
    for Asked { prompt_ids, n, events } in asked {
        let first = places.len();
        places.extend((0..n).map(|_| Place::new(prompt_ids.clone())));
        merged.push(events.map(move |event| event.map(|(index, event)| (first + index, event))).boxed());
    }
    async_stream::stream! {
        let mut total = Usage::default();
        while let Some(event) = merged.next().await {
            let (index, event) = match event {
                Ok(event) => event,
                Err(error) => {
                    yield Err(error);
                    return;
                }
            };
            let (text, tokens, ids) = match event {
                Event::Prompt { text, tokens, .. } => (text, tokens, Vec::new()),
                Event::Delta { text, tokens } => {
                    let ids = tokens.iter().map(|token| token.id).collect();
                    (text, tokens, ids)
                }
                Event::Finished { reason, stop_string, stop_token, usage: used } => {
                    total += used;
                    let end = End::new(reason, stop_string, stop_token, used);
                    let last = json!({"index": index, "text": "", "finish_reason": reason.name(), "logprobs": null,
                        "stop_reason": end.stop_reason(&reply.model)});
                    yield Ok(reply.chunk(&json!([last])));
                    continue;
                }
            };
            yield Ok(reply.chunk(&json!([places[index].choice(&reply, index, &text, &tokens, ids)])));
        }
        if reply.include_usage {
            let mut last = reply.chunk(&json!([]));
            last["usage"] = usage(total);
            yield Ok(last);
        }
    }
}

/// How far the stream of one choice is.
struct Place {
    /// Until they have been told.
    prompt_ids: Option<Vec<u32>>,
    /// Characters of the text so far, for `text_offset`.
    offset: usize,
}

impl Place {
    fn new(prompt_ids: Vec<u32>) -> Self {
        Self { prompt_ids: Some(prompt_ids), offset: 0 }
    }

    fn choice(&mut self, reply: &Reply, index: usize, text: &str, tokens: &[Token], ids: Vec<u32>) -> Value {
        let mut choice = json!({"index": index, "text": text, "finish_reason": null, "logprobs": null});
        if reply.logprobs {
            choice["logprobs"] = logprobs(tokens, self.offset, reply.named_by_id);
            self.offset += tokens.iter().map(|token| token.text().chars().count()).sum::<usize>();
        }
        if reply.token_ids {
            choice["token_ids"] = ids.into();
            if let Some(prompt_ids) = self.prompt_ids.take() {
                choice["prompt_token_ids"] = prompt_ids.into();
            }
        }
        choice
    }
}

impl Reply {
    /// A choice of a whole answer.
    fn answer(&self, index: usize, prompt_ids: &[u32], answer: Answer) -> Value {
        let ids: Vec<u32> = answer.tokens.iter().map(|token| token.id).collect();
        let shown = [answer.echoed, answer.tokens].concat();
        let logprobs = if self.logprobs { logprobs(&shown, 0, self.named_by_id) } else { Value::Null };
        let mut value = json!({"index": index, "text": answer.text, "finish_reason": answer.end.reason.name(),
            "logprobs": logprobs, "stop_reason": answer.end.stop_reason(&self.model)});
        if self.prompt_logprobs {
            value["prompt_logprobs"] = prompt_logprobs(&answer.scored);
        }
        if self.token_ids {
            value["token_ids"] = ids.into();
            value["prompt_token_ids"] = prompt_ids.into();
        }
        value
    }

    fn chunk(&self, choices: &Value) -> Value {
        json!({"id": self.id, "object": "text_completion", "created": self.created, "model": self.model.name,
            "choices": choices})
    }
}
