//! Running one request: tokens from the generator become text, stop strings end it, and it is counted.
//!
//! A request has one choice (answer) or several, each a sequence of its own; their events come in one stream.

mod account;
#[cfg(test)]
mod choices_tests;
mod rest;
#[cfg(test)]
mod rest_tests;
mod shape;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use futures::stream::{BoxStream, SelectAll};
use futures::{Stream, StreamExt};

use super::api_error::{ApiError, Kind};
use super::request::GenerationRequest;
use crate::metrics::Metrics;
use crate::router::{Generator, SequenceStream};
use crate::timeline::Front;
use crate::traces::{Arrival, Timelines};
pub use account::{Account, Counted};
use rest::Rest;
use shape::Shape;

/// A token as clients see it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) id: u32,
    pub(super) bytes: Vec<u8>,
    pub(super) logprob: Option<f32>,
    /// Likeliest first.
    pub(super) top: Vec<(u32, Vec<u8>, f32)>,
}

impl Token {
    /// Its text; a token may hold part of a character.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FinishReason {
    Stop,
    Length,
}

impl FinishReason {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// Tokens of a request, or a choice's part of them: the prompt is the first choice's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) prompt_tokens: usize,
    /// Of them, those that were in the prefix cache when the sequence first entered a group.
    pub(super) cached_tokens: usize,
    pub(super) completion_tokens: usize,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.prompt_tokens += other.prompt_tokens;
        self.cached_tokens += other.cached_tokens;
        self.completion_tokens += other.completion_tokens;
    }
}

/// News of a choice.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    /// The prompt. Comes first, if it was asked for.
    Prompt {
        /// Its text, if it is echoed.
        text: String,
        /// Its tokens, if it is echoed with log-probabilities.
        tokens: Vec<Token>,
        /// Its tokens, if their log-probabilities were asked for by themselves.
        scored: Vec<Token>,
    },
    /// Text that is complete, and the tokens that came with it (text may lag behind).
    Delta { text: String, tokens: Vec<Token> },
    /// The last event.
    Finished { reason: FinishReason, stop_string: Option<String>, stop_token: Option<u32>, usage: Usage },
}

/// Events, each with the choice that it is of.
pub(super) type EventStream = BoxStream<'static, Result<(usize, Event), ApiError>>;

/// Runs a request; what its client has received already is left out. The failure of one choice ends all; dropping the stream cancels them.
pub(super) fn run(
    generator: &Arc<dyn Generator>,
    metrics: &Arc<Metrics>,
    timelines: &Timelines,
    api: &'static str,
    request: GenerationRequest,
) -> EventStream {
    let recording = timelines.front(front(timelines, api, &request));
    let counted = Counted {
        api,
        model: &request.model.deployment,
        adapter: request.model.adapter.as_ref().map(|_| request.model.name.as_str()),
        request_id: &request.sequence.request_id,
        choices: request.n,
        prompt_tokens: request.sequence.prompt_len,
    };
    let mut account = Account::new(Arc::clone(metrics), recording.clone(), counted);
    let mut order = Order::new(&request);
    let choice = |(index, sequence)| {
        let events = generator.generate(&request.model.deployment, sequence);
        let rest = Rest::new(Shape::new(&request, index), index, request.received(index));
        choice(events, rest).map(move |event| (index, event)).boxed()
    };
    let mut merged: SelectAll<BoxStream<'static, _>> =
        request.sequences().into_iter().enumerate().map(choice).collect();
    Box::pin(async_stream::stream! {
        while let Some((index, event)) = merged.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    account.failed(&error);
                    yield Err(order.named(index, error));
                    return;
                }
            };
            account.event(index, &event);
            for event in order.push(index, event) {
                let told = recording.told();
                yield Ok(event);
                recording.took(told);
            }
        }
    })
}

/// What the timeline of a request begins with.
fn front(timelines: &Timelines, api: &'static str, request: &GenerationRequest) -> Front {
    let (sequence, checked) = (&request.sequence, timelines.now());
    let Arrival { at, trace, parent_span } = request.arrival.clone();
    Front {
        request_id: sequence.request_id.clone(),
        api,
        model: request.model.name.clone(),
        prompt_tokens: sequence.prompt_len as u64,
        choices: request.n as u64,
        max_tokens: u64::from(sequence.params.max_tokens),
        arrived: if at == 0 { checked } else { at },
        checked,
        trace,
        parent_span,
        ..Front::default()
    }
}

/// The events of one choice. Ends after the first error.
fn choice(
    mut events: SequenceStream,
    mut shape: Rest,
) -> impl Stream<Item = Result<Event, ApiError>> + Send + 'static {
    async_stream::stream! {
        while let Some(event) = events.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    yield Err(ApiError::from(error));
                    return;
                }
            };
            shape.cached(event.cached_tokens);
            if let Some(prompt) = shape.prompt(event.prompt) {
                yield Ok(prompt);
            }
            let (delta, finished) = match shape.tokens(event.tokens, event.end) {
                Ok(told) => told,
                Err(error) => {
                    yield Err(error);
                    return;
                }
            };
            if let Some(delta) = delta {
                yield Ok(delta);
            }
            if let Some(finished) = finished {
                // Whatever ran past a stop string is cancelled by dropping the sequence, and not counted.
                drop(events);
                yield Ok(finished);
                return;
            }
        }
        yield Err(ApiError::new(Kind::Internal, "the sequence ended without saying so"));
    }
}

/// Puts the prompt before every choice's answer, though only the first choice's sequence tells it. Who has received a part of
/// the answer has received the prompt.
struct Order {
    /// Whether each choice's answer begins with the prompt.
    begins: Vec<bool>,
    /// Until the prompt is told: what has come of other choices.
    waiting: Option<VecDeque<(usize, Event)>>,
}

impl Order {
    fn new(request: &GenerationRequest) -> Self {
        let begins: Vec<bool> = (0..request.n).map(|index| request.received(index) == 0).collect();
        let waits = request.n > 1 && request.tells_prompt() && begins.contains(&true);
        Self { begins, waiting: waits.then(VecDeque::new) }
    }

    /// What may be told now.
    fn push(&mut self, index: usize, event: Event) -> VecDeque<(usize, Event)> {
        match self.waiting.take() {
            None if matches!(event, Event::Prompt { .. }) && !self.begins[index] => VecDeque::new(),
            None => VecDeque::from([(index, event)]),
            Some(mut waiting) if !matches!(event, Event::Prompt { .. }) => {
                waiting.push_back((index, event));
                self.waiting = Some(waiting);
                VecDeque::new()
            }
            Some(waiting) => {
                let told = self.begins.iter().enumerate().filter(|(_, begins)| **begins);
                told.map(|(index, _)| (index, event.clone())).chain(waiting).collect()
            }
        }
    }

    /// An error that says whose it is.
    fn named(&self, index: usize, error: ApiError) -> ApiError {
        match self.begins.len() {
            1 => error,
            n => ApiError { message: format!("choice {index} of {n}: {}", error.message), ..error },
        }
    }
}
