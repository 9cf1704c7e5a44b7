//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answers::{self, Answer, End, prompt_logprobs, usage};
use super::fields::{Fields, count};
use super::{RequestId, body, now, stream};
use crate::front_door::api_error::ApiError;
use crate::front_door::generation::{Event, EventStream, Token, Usage};
use crate::front_door::request::{self, Ask, GenerationRequest};
use crate::front_door::{FrontDoor, ServedModel};
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
    model: Arc<ServedModel>,
    created: u64,
    prompt_ids: Vec<u32>,
    n: usize,
    token_ids: bool,
    logprobs: bool,
    prompt_logprobs: bool,
    include_usage: bool,
}

pub(super) async fn handle(
    State(door): State<FrontDoor>,
    Extension(id): Extension<RequestId>,
    headers: HeaderMap,
    incoming: Body,
) -> Result<Response, ApiError> {
    let mut model = String::new();
    let prepared = prepare(&door, id, &headers, incoming, &mut model).await;
    let (reply, stream, run) = prepared.map_err(|error| door.refused(API, &model, error))?;
    let events = door.run(API, run);
    if stream {
        return Ok(stream::respond(chunks(reply, events)).await);
    }
    whole(&reply, events).await
}

async fn prepare(
    door: &FrontDoor,
    RequestId { id, named, arrival }: RequestId,
    headers: &HeaderMap,
    incoming: Body,
    name: &mut String,
) -> Result<(Reply, bool, GenerationRequest), ApiError> {
    let mut body = body::read(headers, incoming).await?;
    let Fields { model, stream, stream_usage, token_ids, ask } = Fields::take(&mut body)?;
    name.clone_from(&model);
    if ask.echo {
        return Err(ApiError::invalid("echo", "a chat does not repeat its prompt; use /v1/completions"));
    }
    let wanted = body.take("logprobs")?.unwrap_or(false);
    let logprobs = match (wanted, count(&mut body, "top_logprobs")?) {
        (true, top) => Some(top.unwrap_or(0)),
        (false, None | Some(0)) => None,
        (false, Some(_)) => return Err(ApiError::invalid("top_logprobs", "needs logprobs to be true")),
    };
    let messages: Option<Vec<Message>> = body.take("messages")?;
    let messages = messages.ok_or_else(|| ApiError::invalid("messages", "is missing"))?;
    let messages = messages.into_iter().map(message).collect::<Result<Vec<_>, _>>()?;
    let extra = body.take("chat_template_kwargs")?.unwrap_or_default();
    // The template writes what begins a sequence itself.
    let add_special = body.take("add_special_tokens")?.unwrap_or(false);
    let add_generation_prompt = body.take("add_generation_prompt")?.unwrap_or(true);
    let model = door.model(&model).await?;
    let prompt = request::chat_prompt(&model, &messages, add_generation_prompt, &extra)?;
    let ask = Ask { request_id: id.clone(), logprobs, ..ask };
    let prompt_logprobs = ask.prompt_logprobs.is_some();
    let mut run = door.check(model.clone(), prompt, ask, add_special).await?;
    run.came(&arrival, named);
    let reply = Reply {
        id: format!("chatcmpl-{id}"),
        model,
        created: now(),
        prompt_ids: run.sequence.tokens.clone(),
        n: run.n,
        token_ids,
        logprobs: logprobs.is_some(),
        prompt_logprobs,
        include_usage: stream_usage,
    };
    Ok((reply, stream, run))
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

async fn whole(reply: &Reply, events: EventStream) -> Result<Response, ApiError> {
    let answers = answers::collect(events, reply.n).await?;
    let choice = |(index, answer): (usize, &Answer)| {
        let mut choice = json!({"index": index, "message": {"role": "assistant", "content": answer.text},
            "logprobs": if reply.logprobs { logprobs(&answer.tokens) } else { Value::Null },
            "finish_reason": answer.end.reason.name(), "stop_reason": answer.end.stop_reason(&reply.model)});
        if reply.token_ids {
            choice["token_ids"] = answer.tokens.iter().map(|token| token.id).collect::<Vec<_>>().into();
        }
        choice
    };
    let choices: Vec<Value> = answers.iter().enumerate().map(choice).collect();
    let mut whole = json!({"id": reply.id, "object": "chat.completion", "created": reply.created,
        "model": reply.model.name, "usage": usage(answers::total(&answers)), "choices": choices});
    if reply.token_ids {
        whole["prompt_token_ids"] = reply.prompt_ids.clone().into();
    }
    if let Some(first) = answers.first().filter(|_| reply.prompt_logprobs) {
        whole["prompt_logprobs"] = prompt_logprobs(&first.scored);
    }
    Ok(Json(whole).into_response())
}

fn chunks(
    reply: Reply,
    mut events: EventStream,
) -> impl futures::Stream<Item = Result<Value, ApiError>> + Send + 'static {
    async_stream::stream! {
        let (mut opened, mut total) = (false, Usage::default());
        while let Some(event) = events.next().await {
            let (index, event) = match event {
                Ok(event) => event,
                Err(error) => {
                    yield Err(error);
                    return;
                }
            };
            if !std::mem::replace(&mut opened, true) {
                for index in 0..reply.n {
                    yield Ok(reply.opening(index));
                }
            }
            match event {
                // A chat is not echoed.
                Event::Prompt { .. } => {}
                Event::Delta { text, tokens } => yield Ok(reply.delta(index, &text, &tokens)),
                Event::Finished { reason, stop_string, stop_token, usage } => {
                    total += usage;
                    let end = End::new(reason, stop_string, stop_token, usage);
                    let last = json!({"index": index, "delta": {}, "finish_reason": reason.name(),
                        "stop_reason": end.stop_reason(&reply.model)});
                    yield Ok(reply.chunk(&json!([last])));
                }
            }
        }
        if reply.include_usage {
            let mut last = reply.chunk(&json!([]));
            last["usage"] = usage(total);
            yield Ok(last);
        }
    }
}

impl Reply {
    fn chunk(&self, choices: &Value) -> Value {
        json!({"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model.name,
            "choices": choices})
    }

    /// What a choice's stream begins with.
    fn opening(&self, index: usize) -> Value {
        let role =
            json!({"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": null});
        let mut chunk = self.chunk(&json!([role]));
        if self.token_ids {
            chunk["prompt_token_ids"] = self.prompt_ids.clone().into();
        }
        chunk
    }

    fn delta(&self, index: usize, text: &str, tokens: &[Token]) -> Value {
        let mut choice = json!({"index": index, "delta": {"content": text}, "finish_reason": null});
        if self.logprobs {
            choice["logprobs"] = logprobs(tokens);
        }
        if self.token_ids {
            choice["token_ids"] = tokens.iter().map(|token| token.id).collect::<Vec<_>>().into();
        }
        self.chunk(&json!([choice]))
    }
}
