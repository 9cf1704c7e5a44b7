//! Collecting a streamed answer, and checking the order in which it must come.

use foggara_proto::wire::inference::generate_response::Event;
use foggara_proto::wire::inference::{
    Delta, FinishReason, Finished, GenerateResponse, Started, TokenLogprob,
};
use tonic::{Status, Streaming};

/// A whole answer, or what has come of it.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The first message.
    pub started: Started,
    /// All text.
    pub text: String,
    /// All tokens; the prompt's first if it was echoed with log-probabilities.
    pub token_ids: Vec<u32>,
    /// One for each token, if asked for.
    pub logprobs: Vec<TokenLogprob>,
    /// The last message.
    pub finished: Option<Finished>,
}

/// A token with its log-probabilities as bits: equal only if identical.
pub type TokenBits = (u32, Option<u32>, Vec<(u32, u32)>);

impl Answer {
    /// Reads a stream to its end.
    ///
    /// # Errors
    /// What the server says.
    pub async fn collect(mut stream: Streaming<GenerateResponse>) -> Result<Self, Status> {
        let mut answer = Self::default();
        while answer.next(&mut stream).await? {}
        Ok(answer)
    }

    /// Takes in the next message; `false` after the last one.
    ///
    /// # Errors
    /// What the server says.
    pub async fn next(&mut self, stream: &mut Streaming<GenerateResponse>) -> Result<bool, Status> {
        let Some(message) = stream.message().await? else {
            assert!(self.finished.is_some(), "the stream ended without `finished`: {self:?}");
            return Ok(false);
        };
        assert!(self.finished.is_none(), "a message after `finished`: {message:?}");
        match message.event.expect("every message has an event") {
            Event::Started(started) => {
                assert!(
                    self.token_ids.is_empty() && self.started.request_id.is_empty(),
                    "`started` comes once, first"
                );
                self.started = started;
            }
            Event::Delta(Delta { text, token_ids, logprobs, .. }) => {
                assert!(!self.started.request_id.is_empty(), "`started` comes first");
                assert!(
                    logprobs.is_empty() || logprobs.len() == token_ids.len(),
                    "one logprob for each token"
                );
                self.text.push_str(&text);
                self.token_ids.extend(token_ids);
                self.logprobs.extend(logprobs);
            }
            Event::Finished(finished) => self.finished = Some(finished),
        }
        Ok(true)
    }

    /// The last message.
    pub fn end(&self) -> &Finished {
        self.finished.as_ref().expect("the answer has ended")
    }

    /// Whether `max_tokens` ended it.
    pub fn ended_by_length(&self) -> bool {
        self.end().reason() == FinishReason::Length
    }

    /// Everything that must not depend on what else the cluster does, bit for bit.
    pub fn bits(&self) -> (Vec<u32>, Vec<TokenBits>) {
        (self.token_ids.clone(), self.logprobs.iter().map(bits).collect())
    }
}

/// A token's log-probabilities as bits.
pub fn bits(token: &TokenLogprob) -> TokenBits {
    let top = token.top.iter().map(|top| (top.token_id, top.logprob.to_bits())).collect();
    (token.token_id, token.logprob.map(f32::to_bits), top)
}
