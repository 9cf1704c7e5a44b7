//! The part of a choice that its client does not have yet.

use foggara_proto::sequence::{SequenceEnd, TokenOutput};

use super::shape::Shape;
use super::{Event, Usage};
use crate::front_door::api_error::ApiError;

/// Leaves out the first tokens of a choice, and the text that came with them. That is the same text however the tokens
/// came, and whoever told it: it depends on these tokens alone.
pub(super) struct Rest {
    shape: Shape,
    index: usize,
    received: usize,
    /// Of those received, how many are still to come.
    skip: usize,
}

impl Rest {
    /// What lies beyond the first `received` tokens of choice `index`.
    pub(super) fn new(shape: Shape, index: usize, received: usize) -> Self {
        Self { shape, index, received, skip: received }
    }

    /// See [`Shape::cached`].
    pub(super) fn cached(&mut self, told: Option<u32>) {
        self.shape.cached(told);
    }

    /// See [`Shape::prompt`].
    pub(super) fn prompt(&mut self, outputs: Vec<TokenOutput>) -> Option<Event> {
        self.shape.prompt(outputs)
    }

    /// As [`Shape::tokens`]; fails when the answer ends before the client's part of it does.
    pub(super) fn tokens(
        &mut self,
        mut outputs: Vec<TokenOutput>,
        end: Option<SequenceEnd>,
    ) -> Result<(Option<Event>, Option<Event>), ApiError> {
        let new = outputs.split_off(self.skip.min(outputs.len()));
        if outputs.is_empty() {
            let (delta, finished) = self.shape.tokens(new, end);
            return Ok((delta, self.checked(finished)?));
        }
        self.skip -= outputs.len();
        // The end comes with the last token.
        let (_, finished) = self.shape.tokens(outputs, end.filter(|_| new.is_empty()));
        if finished.is_some() || new.is_empty() {
            return Ok((None, self.checked(finished)?));
        }
        Ok(self.shape.tokens(new, end))
    }

    fn checked(&self, finished: Option<Event>) -> Result<Option<Event>, ApiError> {
        match &finished {
            Some(Event::Finished { usage: Usage { completion_tokens, .. }, .. })
                if *completion_tokens < self.received =>
            {
                let (received, index) = (self.received, self.index);
                let reason =
                    format!("{received} of answer {index}, which has ended after {completion_tokens}");
                Err(ApiError::invalid("tokens_received", reason))
            }
            _ => Ok(finished),
        }
    }
}
