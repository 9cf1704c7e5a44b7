//! `POST /tokenize` and `POST /detokenize`, as in vLLM: for clients that cut their prompts themselves.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use serde_json::{Value, json};

use super::body;
use crate::front_door::FrontDoor;
use crate::front_door::api_error::ApiError;

/// Token ids that are turned into text at once.
const MAX_TOKENS: usize = 1 << 20;

/// The token ids of a text.
pub(super) async fn tokenize(
    State(door): State<FrontDoor>,
    headers: HeaderMap,
    incoming: Body,
) -> Result<Json<Value>, ApiError> {
    let mut body = body::read(&headers, incoming).await?;
    let name: String = body.take("model")?.unwrap_or_default();
    let text: Option<String> = body.take("prompt")?;
    let add_special = body.take("add_special_tokens")?.unwrap_or(true);
    let texts: bool = body.take("return_token_strs")?.unwrap_or(false);
    let text = text.ok_or_else(|| ApiError::invalid("prompt", "is missing"))?;
    let model = door.model(&name).await?;
    let context = model.context;
    let tokenizer = model.tokenizer.clone();
    let ids = door.tokenize(model, "prompt", text, add_special).await?;
    let text =
        |id: &u32| tokenizer.as_ref().map(|t| String::from_utf8_lossy(&t.token_bytes(*id)).into_owned());
    let texts = texts.then(|| ids.iter().map(text).collect::<Vec<_>>());
    Ok(Json(json!({"count": ids.len(), "max_model_len": context, "tokens": ids, "token_strs": texts})))
}

/// The text of token ids.
pub(super) async fn detokenize(
    State(door): State<FrontDoor>,
    headers: HeaderMap,
    incoming: Body,
) -> Result<Json<Value>, ApiError> {
    let mut body = body::read(&headers, incoming).await?;
    let name: String = body.take("model")?.unwrap_or_default();
    let ids: Option<Vec<u32>> = body.take("tokens")?;
    let ids = ids.ok_or_else(|| ApiError::invalid("tokens", "is missing"))?;
    if ids.len() > MAX_TOKENS {
        return Err(ApiError::invalid("tokens", format!("{} of them, at most {MAX_TOKENS}", ids.len())));
    }
    let model = door.model(&name).await?;
    if let Some(id) = ids.iter().find(|id| **id as usize >= model.vocab) {
        return Err(ApiError::invalid("tokens", format!("{id}; the vocabulary has {} tokens", model.vocab)));
    }
    let Some(tokenizer) = &model.tokenizer else {
        return Err(ApiError::invalid("tokens", format!("model `{}` has no tokenizer", model.name)));
    };
    Ok(Json(json!({"prompt": tokenizer.decode(&ids, false)})))
}
