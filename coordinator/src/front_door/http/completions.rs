//! `POST /v1/completions`.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use futures::stream::BoxStream;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::chat::usage;
use super::fields::Fields;
use super::{body, now, request_id, stream};
use crate::front_door::FrontDoor;
use crate::front_door::api_error::{ApiError, Kind};
use crate::front_door::generation::{self, Event, EventStream, FinishReason, Token, Usage};
use crate::front_door::request::{self, Prompt};

/// OpenAI's default.
const DEFAULT_MAX_TOKENS: i64 = 16;
/// Prompts of one request.
const MAX_PROMPTS: usize = 64;

#[derive(Deserialize)]
struct CompletionBody {
    prompt: Option<Prompts>,
    logprobs: Option<i64>,
    max_tokens: Option<i64>,
    #[serde(flatten)]
    fields: Fields,
}

/// A text, token ids, or a list of either.
#[derive(Deserialize)]
#[serde(untagged)]
enum Prompts {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

impl Prompts {
    fn list(self) -> Result<Vec<Prompt>, ApiError> {
        let list: Vec<Prompt> = match self {
            Self::Text(text) => vec![Prompt::Text(text)],
            Self::Tokens(tokens) => vec![Prompt::Tokens(tokens)],
            Self::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
            Self::TokenLists(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
        };
        if list.is_empty() || list.len() > MAX_PROMPTS {
            return Err(ApiError::invalid(
                "prompt",
                format!("{} of them, must be 1 to {MAX_PROMPTS}", list.len()),
            ));
        }
        Ok(list)
    }
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

/// One prompt being answered.
struct Choice {
    prompt_ids: Vec<u32>,
    events: EventStream,
    /// Characters of the text so far, for `text_offset`.
    offset: usize,
}

pub(super) async fn handle(
    State(door): State<FrontDoor>,
    headers: HeaderMap,
    incoming: Body,
) -> Result<Response, ApiError> {
    let asked: CompletionBody = body(incoming).await?;
    let id = request_id(&headers);
    let model = door.models.get(&asked.fields.model)?;
    let prompts = asked.prompt.ok_or_else(|| ApiError::invalid("prompt", "is missing"))?.list()?;
    let reply = Reply {
        id: format!("cmpl-{id}"),
        model: model.name.clone(),
        created: now(),
        token_ids: asked.fields.return_token_ids.unwrap_or(false),
        logprobs: asked.logprobs.is_some(),
        include_usage: asked.fields.wants_usage(),
    };
    let several = prompts.len() > 1;
    let mut runs = Vec::new();
    for (index, prompt) in prompts.into_iter().enumerate() {
        let id = if several { format!("{id}-{index}") } else { id.clone() };
        let ask =
            asked.fields.ask(id, Some(asked.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS)), asked.logprobs)?;
        runs.push(request::check(model.clone(), prompt, ask, true)?);
    }
    // Nothing starts before everything is known to be valid.
    let choice = |run: request::GenerationRequest| Choice {
        prompt_ids: run.sequence.tokens.clone(),
        events: generation::run(&door.generator, &door.metrics, "completions", run),
        offset: 0,
    };
    let choices: Vec<Choice> = runs.into_iter().map(choice).collect();
    if asked.fields.stream.unwrap_or(false) {
        return Ok(stream::respond(chunks(reply, choices)).await);
    }
    whole(&reply, choices).await
}

fn logprobs(tokens: &[Token], offset: usize) -> Value {
    let mut at = offset;
    let mut offsets = Vec::with_capacity(tokens.len());
    for token in tokens {
        offsets.push(at);
        at += token.text().chars().count();
    }
    let top = |token: &Token| {
        let entry = |(_, bytes, logprob): &(u32, Vec<u8>, f32)| {
            (String::from_utf8_lossy(bytes).into_owned(), json!(logprob))
        };
        match token.logprob {
            None => Value::Null,
            Some(_) => Value::Object(token.top.iter().map(entry).collect::<Map<_, _>>()),
        }
    };
    json!({"tokens": tokens.iter().map(Token::text).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets})
}

async fn one(choice: &mut Choice) -> Result<(String, Vec<Token>, FinishReason, Usage), ApiError> {
    let (mut text, mut tokens) = (String::new(), Vec::new());
    while let Some(event) = choice.events.next().await {
        match event? {
            Event::Delta { text: more, tokens: new } => {
                text.push_str(&more);
                tokens.extend(new);
            }
            Event::Finished { reason, usage, .. } => return Ok((text, tokens, reason, usage)),
        }
    }
    Err(ApiError::new(Kind::Internal, "the answer has no end"))
}

async fn whole(reply: &Reply, mut choices: Vec<Choice>) -> Result<Response, ApiError> {
    let answers = futures::future::try_join_all(choices.iter_mut().map(one)).await?;
    let mut total = Usage { prompt_tokens: 0, completion_tokens: 0 };
    let mut list = Vec::new();
    for (index, ((text, tokens, reason, used), choice)) in answers.into_iter().zip(&choices).enumerate() {
        total.prompt_tokens += used.prompt_tokens;
        total.completion_tokens += used.completion_tokens;
        let mut value = json!({"index": index, "text": text, "finish_reason": reason.name(),
            "logprobs": if reply.logprobs { logprobs(&tokens, 0) } else { Value::Null }});
        if reply.token_ids {
            // Of the answer: an echoed prompt is in `prompt_token_ids`.
            let answer = &tokens[tokens.len() - used.completion_tokens.min(tokens.len())..];
            value["token_ids"] = answer.iter().map(|token| token.id).collect::<Vec<_>>().into();
            value["prompt_token_ids"] = choice.prompt_ids.clone().into();
        }
        list.push(value);
    }
    let answer = json!({"id": reply.id, "object": "text_completion", "created": reply.created, "model": reply.model,
        "choices": list, "usage": usage(total)});
    Ok(Json(answer).into_response())
}

fn chunks(
    reply: Reply,
    choices: Vec<Choice>,
) -> impl futures::Stream<Item = Result<Value, ApiError>> + Send + 'static {
    let tagged = choices.into_iter().enumerate().map(|(index, choice)| {
        let Choice { prompt_ids, events, offset } = choice;
        let state = (index, prompt_ids, offset);
        events.map(move |event| (state.clone(), event)).boxed()
    });
    let mut merged: futures::stream::SelectAll<BoxStream<'static, _>> = futures::stream::select_all(tagged);
    async_stream::stream! {
        let chunk = |choices: Value| json!({"id": reply.id, "object": "text_completion", "created": reply.created,
            "model": reply.model, "choices": choices});
        let mut total = Usage { prompt_tokens: 0, completion_tokens: 0 };
        let mut offsets: std::collections::HashMap<usize, usize> = std::collections::HashMap::new();
        while let Some(((index, prompt_ids, _), event)) = merged.next().await {
            match event {
                Err(error) => {
                    yield Err(error);
                    return;
                }
                Ok(Event::Delta { text, tokens }) => {
                    let first = !offsets.contains_key(&index);
                    let offset = offsets.entry(index).or_default();
                    let mut choice = json!({"index": index, "text": text, "finish_reason": null, "logprobs": null});
                    if reply.logprobs {
                        choice["logprobs"] = logprobs(&tokens, *offset);
                    }
                    *offset += tokens.iter().map(|token| token.text().chars().count()).sum::<usize>();
                    if reply.token_ids {
                        choice["token_ids"] = tokens.iter().map(|token| token.id).collect::<Vec<_>>().into();
                        if first {
                            choice["prompt_token_ids"] = prompt_ids.into();
                        }
                    }
                    yield Ok(chunk(json!([choice])));
                }
                Ok(Event::Finished { reason, usage: used, .. }) => {
                    total.prompt_tokens += used.prompt_tokens;
                    total.completion_tokens += used.completion_tokens;
                    yield Ok(chunk(json!([{"index": index, "text": "", "finish_reason": reason.name(), "logprobs": null}])));
                }
            }
        }
        if reply.include_usage {
            let mut last = chunk(json!([]));
            last["usage"] = usage(total);
            yield Ok(last);
        }
    }
}
