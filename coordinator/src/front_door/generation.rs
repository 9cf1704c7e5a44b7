//! Running one request: tokens from the generator become text, stop strings end it, and it is counted.

use std::sync::Arc;
use std::time::Instant;

use foggara_proto::sequence::{SequenceEnd, TokenOutput};
use futures::StreamExt;
use futures::stream::BoxStream;

use super::api_error::ApiError;
use super::models::ServedModel;
use super::request::GenerationRequest;
use crate::metrics::Metrics;
use crate::router::Generator;
use crate::text::{Detokenizer, StopMatcher};

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

/// Tokens of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) prompt_tokens: usize,
    pub(super) completion_tokens: usize,
}

/// News of a request.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    /// The prompt; its tokens if their log-probabilities were asked for. Comes first.
    Echo { text: String, tokens: Vec<Token> },
    /// Text that is complete, and the tokens that came with it (text may lag behind).
    Delta { text: String, tokens: Vec<Token> },
    /// The last event.
    Finished { reason: FinishReason, stop_string: Option<String>, stop_token: Option<u32>, usage: Usage },
}

pub(super) type EventStream = BoxStream<'static, Result<Event, ApiError>>;

/// Runs a request. Dropping the stream cancels it.
pub(super) fn run(
    generator: &Arc<dyn Generator>,
    metrics: &Arc<Metrics>,
    api: &'static str,
    request: GenerationRequest,
) -> EventStream {
    let model = Arc::clone(&request.model);
    let mut account = Account::new(Arc::clone(metrics), api, &request);
    let mut shape = Shape::new(&request);
    let mut events = generator.generate(&model.name, request.sequence);
    Box::pin(async_stream::stream! {
        while let Some(event) = events.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    let error = ApiError::from(error);
                    account.finish(error.kind.label());
                    yield Err(error);
                    return;
                }
            };
            account.tokens(event.tokens.len());
            if let Some(echo) = shape.prompt(event.prompt) {
                yield Ok(echo);
            }
            let (delta, finished) = shape.tokens(event.tokens, event.end);
            if let Some(delta) = delta {
                yield Ok(delta);
            }
            if let Some((reason, stop_string, stop_token)) = finished {
                // Whatever ran past a stop string is cancelled by dropping the sequence, and not counted.
                drop(events);
                account.usage.completion_tokens = shape.shown;
                account.finish(reason.name());
                yield Ok(Event::Finished { reason, stop_string, stop_token, usage: account.usage });
                return;
            }
        }
        account.finish("internal");
        yield Err(ApiError::new(super::api_error::Kind::Internal, "the sequence ended without saying so"));
    })
}

/// Turns outputs into deltas.
struct Shape {
    model: Arc<ServedModel>,
    detokenizer: Option<Detokenizer>,
    stops: StopMatcher,
    stop_ids: Vec<u32>,
    /// Text of the prompt, until it has been echoed.
    echo: Option<String>,
    /// Whether the echo waits for log-probabilities, and what has come of them.
    wants_prompt: bool,
    prompt_len: usize,
    prompt: Vec<Token>,
    /// Tokens generated and not past a stop string.
    shown: usize,
}

type Finish = (FinishReason, Option<String>, Option<u32>);

impl Shape {
    fn new(request: &GenerationRequest) -> Self {
        Self {
            model: Arc::clone(&request.model),
            detokenizer: request.model.tokenizer.clone().map(Detokenizer::new),
            stops: StopMatcher::new(&request.stop),
            stop_ids: request.sequence.params.stop_token_ids.clone(),
            echo: request.prompt_text.clone(),
            wants_prompt: request.sequence.params.prompt_logprobs,
            prompt_len: request.sequence.prompt_len,
            prompt: Vec::new(),
            shown: 0,
        }
    }

    fn bytes(&self, id: u32) -> Vec<u8> {
        self.model.tokenizer.as_ref().map(|tokenizer| tokenizer.token_bytes(id)).unwrap_or_default()
    }

    fn token(&self, output: TokenOutput) -> Token {
        let top = output.top.into_iter().map(|(id, logprob)| (id, self.bytes(id), logprob)).collect();
        Token { id: output.token, bytes: self.bytes(output.token), logprob: output.logprob, top }
    }

    /// Collects the prompt's tokens; the echo comes when all are there.
    fn prompt(&mut self, outputs: Vec<TokenOutput>) -> Option<Event> {
        let tokens: Vec<Token> = outputs.into_iter().map(|output| self.token(output)).collect();
        self.prompt.extend(tokens);
        if self.wants_prompt && self.prompt.len() < self.prompt_len {
            return None;
        }
        let text = self.echo.take()?;
        Some(Event::Echo { text, tokens: std::mem::take(&mut self.prompt) })
    }

    /// Text and tokens of a step, and the end if it has come.
    fn tokens(
        &mut self,
        outputs: Vec<TokenOutput>,
        end: Option<SequenceEnd>,
    ) -> (Option<Event>, Option<Finish>) {
        let count = outputs.len();
        let (mut text, mut tokens, mut finish) = (String::new(), Vec::new(), None);
        for (i, output) in outputs.into_iter().enumerate() {
            let id = output.token;
            tokens.push(self.token(output));
            self.shown += 1;
            let ends = end == Some(SequenceEnd::StopToken) && i + 1 == count && self.stop_ids.contains(&id);
            if ends {
                // A stop token ends the text and is no part of it.
                finish = Some((FinishReason::Stop, None, Some(id)));
                break;
            }
            let piece = self.detokenizer.as_mut().map(|detokenizer| detokenizer.push(id)).unwrap_or_default();
            let matched = self.stops.push(&piece);
            text.push_str(&matched.text);
            if let Some(stop) = matched.stop {
                finish = Some((FinishReason::Stop, Some(stop), None));
                break;
            }
        }
        if finish.is_none() {
            finish = end.map(|end| match end {
                SequenceEnd::StopToken => (FinishReason::Stop, None, None),
                SequenceEnd::Length => (FinishReason::Length, None, None),
            });
        }
        if finish.as_ref().is_some_and(|(_, stop, _)| stop.is_none()) {
            // What was held back turned out to be text.
            let rest = self.detokenizer.as_mut().map(Detokenizer::finish).unwrap_or_default();
            let matched = self.stops.push(&rest);
            text.push_str(&matched.text);
            if let Some(stop) = matched.stop {
                finish = Some((FinishReason::Stop, Some(stop), None));
            } else {
                text.push_str(&self.stops.finish());
            }
        }
        let delta = (!text.is_empty() || !tokens.is_empty()).then_some(Event::Delta { text, tokens });
        (delta, finish)
    }
}

/// Counts and times one request; says in the log how it ended, also when its client went away.
struct Account {
    metrics: Arc<Metrics>,
    model: String,
    api: &'static str,
    request_id: String,
    started: Instant,
    first: Option<Instant>,
    last: Option<Instant>,
    usage: Usage,
    done: bool,
}

impl Account {
    fn new(metrics: Arc<Metrics>, api: &'static str, request: &GenerationRequest) -> Self {
        let model = request.model.name.clone();
        metrics.requests_in_progress.with_label_values(&[&model]).inc();
        Self {
            metrics,
            model,
            api,
            request_id: request.sequence.request_id.clone(),
            started: Instant::now(),
            first: None,
            last: None,
            usage: Usage { prompt_tokens: request.sequence.prompt_len, completion_tokens: 0 },
            done: false,
        }
    }

    fn tokens(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        let now = Instant::now();
        let labels = [self.model.as_str()];
        match self.last.replace(now) {
            None => {
                self.first = Some(now);
                let seconds = now.duration_since(self.started).as_secs_f64();
                self.metrics.time_to_first_token.with_label_values(&labels).observe(seconds);
            }
            Some(before) => {
                let seconds = now.duration_since(before).as_secs_f64() / count as f64;
                self.metrics.inter_token_latency.with_label_values(&labels).observe(seconds);
            }
        }
        self.usage.completion_tokens += count;
    }

    fn finish(&mut self, status: &str) {
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        let labels = [self.model.as_str()];
        let seconds = self.started.elapsed().as_secs_f64();
        self.metrics.requests.with_label_values(&[&self.model, self.api, status]).inc();
        self.metrics.request_duration.with_label_values(&labels).observe(seconds);
        self.metrics.prompt_tokens.with_label_values(&labels).inc_by(self.usage.prompt_tokens as u64);
        self.metrics.generated_tokens.with_label_values(&labels).inc_by(self.usage.completion_tokens as u64);
        let first = self.first.map(|first| first.duration_since(self.started).as_millis());
        tracing::info!(
            request_id = self.request_id,
            model = self.model,
            api = self.api,
            status,
            prompt_tokens = self.usage.prompt_tokens,
            completion_tokens = self.usage.completion_tokens,
            first_token_ms = first,
            duration_ms = self.started.elapsed().as_millis(),
            "request finished"
        );
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.finish("cancelled");
        self.metrics.requests_in_progress.with_label_values(&[&self.model]).dec();
    }
}

#[cfg(test)]
#[path = "generation_tests.rs"]
mod tests;
