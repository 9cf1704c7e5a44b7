//! `POST /v1/chat/completions`.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};

use super::fields::{Fields, whole as whole_number};
use super::{body, now, request_id, stream};
use crate::front_door::FrontDoor;
use crate::front_door::api_error::ApiError;
use crate::front_door::generation::{self, Event, EventStream, Token, Usage};
use crate::front_door::request::{self, Ask};
use crate::text::ChatMessage;

#[derive(Deserialize)]
struct Message {
    role: String,
    content: Option<Content>,
}

/// A text, or parts of which only texts are understood.
#[derive(Deserialize)]
#[serde(untagged, expecting = "content must be a string or a list of parts")]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

/// Its name in metrics.
const API: &str = "chat";

fn message(message: Message) -> Result<ChatMessage, ApiError> {
    let content = match message.content {
        None => String::new(),
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => {
            let text = |part: Part| match (part.kind.as_str(), part.text) {
                ("text", Some(text)) => Ok(text),
                (kind, _) => Err(ApiError::invalid(
                    "messages",
                    format!("a content part of type `{kind}`; only `text` is served"),
                )),
            };
            parts.into_iter().map(text).collect::<Result<Vec<_>, _>>()?.concat()
        }
    };
    Ok(ChatMessage { role: message.role, content })
}

/// What every chunk says.
struct Reply {
    id: String,
    model: String,
    created: u64,
    token_ids: bool,
    logprobs: bool,
    include_usage: bool,
}

pub(super) async fn handle(
    State(door): State<FrontDoor>,
    headers: HeaderMap,
    incoming: Body,
) -> Result<Response, ApiError> {
    let mut model = String::new();
    let prepared = prepare(&door, &headers, incoming, &mut model).await;
    let (reply, stream, run) = prepared.map_err(|error| door.refused(API, &model, error))?;
    let prompt_ids = run.sequence.tokens.clone();
    let events = generation::run(&door.generator, &door.metrics, API, run);
    if stream {
        return Ok(stream::respond(chunks(reply, prompt_ids, events)).await);
    }
    whole(&reply, &prompt_ids, events).await
}

async fn prepare(
    door: &FrontDoor,
    headers: &HeaderMap,
    incoming: Body,
    name: &mut String,
) -> Result<(Reply, bool, request::GenerationRequest), ApiError> {
    let mut body = body::read(headers, incoming).await?;
    let Fields { model, stream, stream_usage, token_ids, ask } = Fields::take(&mut body)?;
    name.clone_from(&model);
    if ask.echo {
        return Err(ApiError::invalid("echo", "a chat does not repeat its prompt; use /v1/completions"));
    }
    let wanted = body.take("logprobs")?.unwrap_or(false);
    let top = body.take("top_logprobs")?.map(|count| whole_number("top_logprobs", count)).transpose()?;
    let logprobs = match (wanted, top) {
        (true, top) => Some(top.unwrap_or(0)),
        (false, None | Some(0)) => None,
        (false, Some(_)) => return Err(ApiError::invalid("top_logprobs", "needs logprobs to be true")),
    };
    let newer = body.take("max_completion_tokens")?;
    let newer = newer.map(|count| whole_number("max_completion_tokens", count)).transpose()?;
    let id = request_id(headers);
    let messages: Option<Vec<Message>> = body.take("messages")?;
    let messages = messages.ok_or_else(|| ApiError::invalid("messages", "is missing"))?;
    let messages = messages.into_iter().map(message).collect::<Result<Vec<_>, _>>()?;
    let extra = body.take("chat_template_kwargs")?.unwrap_or_default();
    // The template writes what begins a sequence itself.
    let add_special = body.take("add_special_tokens")?.unwrap_or(false);
    let add_generation_prompt = body.take("add_generation_prompt")?.unwrap_or(true);
    let model = door.model(&model).await?;
    let prompt = request::chat_prompt(&model, &messages, add_generation_prompt, &extra)?;
    let ask = Ask { request_id: id.clone(), logprobs, max_tokens: newer.or(ask.max_tokens), ..ask };
    let reply = Reply {
        id: format!("chatcmpl-{id}"),
        model: model.name.clone(),
        created: now(),
        token_ids,
        logprobs: logprobs.is_some(),
        include_usage: stream_usage,
    };
    Ok((reply, stream, door.check(model, prompt, ask, add_special).await?))
}

pub(super) fn usage(usage: Usage) -> Value {
    json!({"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens})
}

fn logprobs(tokens: &[Token]) -> Value {
    let content: Vec<Value> = tokens
        .iter()
        .map(|token| {
            let top = |(_, bytes, logprob): &(u32, Vec<u8>, f32)| {
                json!({"token": String::from_utf8_lossy(bytes), "logprob": logprob, "bytes": bytes})
            };
            json!({"token": token.text(), "logprob": token.logprob, "bytes": token.bytes,
                "top_logprobs": token.top.iter().map(top).collect::<Vec<_>>()})
        })
        .collect();
    json!({"content": content})
}

async fn whole(reply: &Reply, prompt_ids: &[u32], mut events: EventStream) -> Result<Response, ApiError> {
    let (mut text, mut tokens) = (String::new(), Vec::new());
    let mut end = None;
    while let Some(event) = events.next().await {
        match event? {
            Event::Echo { text: more, tokens: new } | Event::Delta { text: more, tokens: new } => {
                text.push_str(&more);
                tokens.extend(new);
            }
            Event::Finished { reason, usage, .. } => end = Some((reason, usage)),
        }
    }
    let Some((reason, used)) = end else {
        return Err(ApiError::new(crate::front_door::api_error::Kind::Internal, "the answer has no end"));
    };
    let mut choice = json!({"index": 0, "message": {"role": "assistant", "content": text},
        "logprobs": if reply.logprobs { logprobs(&tokens) } else { Value::Null }, "finish_reason": reason.name()});
    let mut answer = json!({"id": reply.id, "object": "chat.completion", "created": reply.created, "model": reply.model,
        "usage": usage(used)});
    if reply.token_ids {
        choice["token_ids"] = tokens.iter().map(|token| token.id).collect::<Vec<_>>().into();
        answer["prompt_token_ids"] = prompt_ids.into();
    }
    answer["choices"] = json!([choice]);
    Ok(Json(answer).into_response())
}

fn chunks(
    reply: Reply,
    prompt_ids: Vec<u32>,
    mut events: EventStream,
) -> impl futures::Stream<Item = Result<Value, ApiError>> + Send + 'static {
    async_stream::stream! {
        let chunk = |choices: Value| json!({"id": reply.id, "object": "chat.completion.chunk", "created": reply.created,
            "model": reply.model, "choices": choices});
        let mut first = true;
        while let Some(event) = events.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    yield Err(error);
                    return;
                }
            };
            if std::mem::replace(&mut first, false) {
                let role = json!({"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null});
                let mut opening = chunk(json!([role]));
                if reply.token_ids {
                    opening["prompt_token_ids"] = prompt_ids.clone().into();
                }
                yield Ok(opening);
            }
            match event {
                Event::Echo { text, tokens } | Event::Delta { text, tokens } => {
                    let mut choice = json!({"index": 0, "delta": {"content": text}, "finish_reason": null});
                    if reply.logprobs {
                        choice["logprobs"] = logprobs(&tokens);
                    }
                    if reply.token_ids {
                        choice["token_ids"] = tokens.iter().map(|token| token.id).collect::<Vec<_>>().into();
                    }
                    yield Ok(chunk(json!([choice])));
                }
                Event::Finished { reason, usage: used, .. } => {
                    yield Ok(chunk(json!([{"index": 0, "delta": {}, "finish_reason": reason.name()}])));
                    if reply.include_usage {
                        let mut last = chunk(json!([]));
                        last["usage"] = usage(used);
                        yield Ok(last);
                    }
                }
            }
        }
    }
}
