//! A request as its front door sees it.

use foggara_proto::trace::TraceContext;

use super::{Bounded, Micros};

/// A sequence of the request was handed to a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// When.
    pub at: Micros,
    /// To which group.
    pub group: u64,
    /// Driven by which coordinator.
    pub coordinator: u64,
    /// Under which lease.
    pub driver_epoch: u64,
    /// Of several choices which, from 0.
    pub choice: u64,
}

/// The front door's part of a timeline.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Front {
    /// The client's name for it.
    pub request_id: String,
    /// What it came through: the API's name in metrics.
    pub api: &'static str,
    /// The deployment.
    pub model: String,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Answers asked for.
    pub choices: u64,
    /// Tokens of each answer at most.
    pub max_tokens: u64,
    /// When its first byte was there.
    pub arrived: Micros,
    /// When it had been read, checked and tokenized.
    pub checked: Micros,
    /// Where its sequences went.
    pub placements: Bounded<Placement>,
    /// When the first token of any answer was there.
    pub first_token: Option<Micros>,
    /// And the last.
    pub last_token: Option<Micros>,
    /// Of all answers.
    pub completion_tokens: u64,
    /// Of the prompt, found in the cache.
    pub cached_tokens: u64,
    /// How long the client took no more, in microseconds.
    pub client_us: u64,
    /// The longest such time.
    pub client_longest_us: u64,
    /// When it ended, and how: its status in metrics.
    pub end: Option<(Micros, String)>,
    /// The span of this request.
    pub trace: Option<TraceContext>,
    /// The client's span that it belongs to; 0: none.
    pub parent_span: u64,
}

impl Front {
    /// Tokens have come.
    pub fn tokens(&mut self, now: Micros, count: usize) {
        if count > 0 {
            self.first_token.get_or_insert(now);
            self.last_token = Some(now);
            self.completion_tokens += count as u64;
        }
    }

    /// A sequence is handed to a driver.
    pub fn placed(&mut self, placement: Placement) {
        self.placements.push(placement);
    }

    /// The client took no more for so long.
    pub fn client(&mut self, micros: u64) {
        self.client_us += micros;
        self.client_longest_us = self.client_longest_us.max(micros);
    }

    /// How long it has taken so far, in microseconds.
    pub fn duration_us(&self, now: Micros) -> u64 {
        self.end.as_ref().map_or(now, |(at, _)| *at).saturating_sub(self.arrived)
    }
}
