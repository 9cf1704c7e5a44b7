//! What is counted of a request, and what the log says of it.

use std::sync::Arc;
use std::time::Instant;

use super::{Event, FinishReason, Usage};
use crate::front_door::api_error::ApiError;
use crate::metrics::Metrics;
use crate::traces::FrontRecording;

/// What is known of a request from its beginning.
#[derive(Debug, Clone, Copy)]
pub struct Counted<'a> {
    /// What it came through: the API's name in metrics.
    pub api: &'static str,
    /// The deployment.
    pub model: &'a str,
    /// The name of the adapter; `None`: the model alone.
    pub adapter: Option<&'a str>,
    /// The client's name for it.
    pub request_id: &'a str,
    /// Answers asked for.
    pub choices: usize,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
}

/// Counts and times one request, all its choices together; says in the log how it ended, also when its client went away.
pub struct Account {
    metrics: Arc<Metrics>,
    recording: FrontRecording,
    model: String,
    adapter: Option<String>,
    api: &'static str,
    request_id: String,
    started: Instant,
    first: Option<Instant>,
    /// When each choice's last token came.
    last: Vec<Option<Instant>>,
    usage: Usage,
    /// Choices that have not ended.
    open: usize,
    /// `length` if any choice was cut.
    reason: FinishReason,
    done: bool,
}

impl Account {
    /// Begins with a request.
    pub fn new(metrics: Arc<Metrics>, recording: FrontRecording, counted: Counted<'_>) -> Self {
        let Counted { api, model, adapter, request_id, choices, prompt_tokens } = counted;
        metrics.requests_in_progress.with_label_values(&[model]).inc();
        Self {
            metrics,
            recording,
            model: model.to_owned(),
            adapter: adapter.map(str::to_owned),
            api,
            request_id: request_id.to_owned(),
            started: Instant::now(),
            first: None,
            last: vec![None; choices],
            usage: Usage { prompt_tokens, ..Usage::default() },
            open: choices,
            reason: FinishReason::Stop,
            done: false,
        }
    }

    /// Takes in an event before anyone is told of it.
    pub(super) fn event(&mut self, choice: usize, event: &Event) {
        match event {
            Event::Prompt { .. } => {}
            Event::Delta { tokens, .. } => self.tokens(choice, tokens.len()),
            Event::Finished { reason, usage, .. } => {
                self.recording.cached(usage.cached_tokens);
                if *reason == FinishReason::Length {
                    self.reason = FinishReason::Length;
                }
                self.open -= 1;
                if self.open == 0 {
                    self.finish(self.reason.name());
                }
            }
        }
    }

    /// Tokens of a choice have come.
    pub fn tokens(&mut self, choice: usize, count: usize) {
        if count == 0 {
            return;
        }
        self.recording.tokens(count);
        let now = Instant::now();
        let labels = [self.model.as_str()];
        if self.first.is_none() {
            self.first = Some(now);
            let seconds = now.duration_since(self.started).as_secs_f64();
            self.metrics.time_to_first_token.with_label_values(&labels).observe(seconds);
        }
        if let Some(before) = self.last[choice].replace(now) {
            let seconds = now.duration_since(before).as_secs_f64() / count as f64;
            self.metrics.inter_token_latency.with_label_values(&labels).observe(seconds);
        }
        self.usage.completion_tokens += count;
    }

    pub(super) fn failed(&mut self, error: &ApiError) {
        self.finish(error.kind.label());
    }

    /// The request has ended; only the first end counts.
    pub fn finish(&mut self, status: &str) {
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        self.recording.ended(status);
        let labels = [self.model.as_str()];
        let seconds = self.started.elapsed().as_secs_f64();
        self.metrics.requests.with_label_values(&[&self.model, self.api, status]).inc();
        self.metrics.request_duration.with_label_values(&labels).observe(seconds);
        self.metrics.prompt_tokens.with_label_values(&labels).inc_by(self.usage.prompt_tokens as u64);
        self.metrics.generated_tokens.with_label_values(&labels).inc_by(self.usage.completion_tokens as u64);
        if let Some(adapter) = &self.adapter {
            let Usage { prompt_tokens, completion_tokens, .. } = self.usage;
            self.metrics.adapters.finished(&self.model, adapter, prompt_tokens, completion_tokens);
        }
        let tokens = |family: &prometheus::HistogramVec, count: usize| {
            family.with_label_values(&labels).observe(count as f64);
        };
        tokens(&self.metrics.request_prompt_tokens, self.usage.prompt_tokens);
        tokens(&self.metrics.request_generated_tokens, self.usage.completion_tokens);
        let first = self.first.map(|first| first.duration_since(self.started).as_millis());
        tracing::info!(
            request_id = self.request_id,
            trace_id = self.recording.trace_id(),
            model = self.model,
            adapter = self.adapter,
            api = self.api,
            status,
            choices = self.last.len(),
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
