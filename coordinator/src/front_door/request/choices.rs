//! Several answers to one prompt.

use foggara_proto::sequence::SequenceRequest;

use super::{Ask, GenerationRequest};
use crate::front_door::api_error::ApiError;

/// Most answers to one prompt.
const MAX_CHOICES: u32 = 16;

/// How many answers are asked for.
pub(super) fn count(ask: &Ask) -> Result<usize, ApiError> {
    match ask.n {
        None => Ok(1),
        Some(n) if (1..=MAX_CHOICES).contains(&n) => Ok(n as usize),
        Some(n) => Err(ApiError::invalid("n", format!("{n}, must be 1 to {MAX_CHOICES}"))),
    }
}

impl GenerationRequest {
    /// The sequences of the choices. The first has the request's own id and seed; choice `k` has the id `{id}#{k}` and the
    /// seed plus `k`, so it is what a request with that seed would get. What the prompt's tokens say is told by the first
    /// alone, and only it has the envelope.
    pub(in crate::front_door) fn sequences(&self) -> Vec<SequenceRequest> {
        let choice = |k: usize| {
            let mut sequence = self.sequence.clone();
            if k > 0 {
                sequence.sibling_of = Some(sequence.request_id.clone());
                sequence.request_id = format!("{}#{k}", sequence.request_id);
                sequence.params.seed = sequence.params.seed.wrapping_add(k as u64);
                sequence.params.prompt_logprobs = false;
                sequence.envelope = Vec::new();
            }
            sequence
        };
        (0..self.n).map(choice).collect()
    }

    /// Whether the prompt is told before the answer.
    pub(in crate::front_door) fn tells_prompt(&self) -> bool {
        self.prompt_text.is_some() || self.sequence.params.prompt_logprobs
    }

    /// Generated tokens of a choice that the client has already.
    pub(in crate::front_door) fn received(&self, choice: usize) -> usize {
        self.received.get(choice).copied().unwrap_or(0)
    }
}
