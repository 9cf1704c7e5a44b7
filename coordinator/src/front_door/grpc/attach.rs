//! Going on with a request that another coordinator took.

use std::time::Duration;

use foggara_proto::wire::inference as wire;

use crate::front_door::FrontDoor;
use crate::front_door::api_error::{ApiError, Kind};
use crate::front_door::request::{self, GenerationRequest};
use crate::router::GenerateError;

/// An attachment that is not to be, and the model it would have been to, once that was known.
pub(super) struct Refused {
    pub(super) model: String,
    pub(super) error: ApiError,
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        Self { model: String::new(), error }
    }
}

/// How long nobody may know a request before there is none: its driver may just be changing.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// The request that is being answered under that id, without what its client has.
pub(super) async fn request(
    door: &FrontDoor,
    asked: wire::AttachRequest,
    patience: Duration,
) -> Result<GenerationRequest, Refused> {
    let wire::AttachRequest { request_id, tokens_received } = asked;
    if request_id.is_empty() {
        return Err(ApiError::invalid("request_id", "is missing").into());
    }
    let request_id = request::request_id(&request_id)?;
    let Some(found) = door.find(&request_id, patience).await? else {
        let reason = format!(
            "nobody has request `{request_id}` any more; send it again with the same request_id: it brings the same tokens"
        );
        let error = ApiError { field: Some("request_id"), ..ApiError::new(Kind::NotFound, reason) };
        return Err(error.into());
    };
    let name = request::model_of(&found);
    let rebuilt = async {
        let model = door.model(&name).await?;
        if model.deployment != found.model {
            // Something else is called so by now.
            return Err(GenerateError::UnknownModel(name.clone()).into());
        }
        let mut request = request::rebuild(model, found)?;
        request.received = received(&tokens_received, &request)?;
        Ok(request)
    };
    rebuilt.await.map_err(|error| Refused { model: name, error })
}

/// How many tokens of each choice the client has.
fn received(tokens: &[u32], request: &GenerationRequest) -> Result<Vec<usize>, ApiError> {
    if tokens.len() > request.n {
        let reason = format!("{} numbers, but the request has {} answers", tokens.len(), request.n);
        return Err(ApiError::invalid("tokens_received", reason));
    }
    let most = request.sequence.params.max_tokens;
    if let Some((index, count)) = tokens.iter().enumerate().find(|(_, count)| **count > most) {
        let reason = format!("{count} of answer {index}, which has {most} tokens at most");
        return Err(ApiError::invalid("tokens_received", reason));
    }
    Ok(tokens.iter().map(|count| *count as usize).collect())
}
