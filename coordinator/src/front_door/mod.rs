//! The front door: gRPC and OpenAI-style HTTP on the same ports.

mod api_error;
mod find;
#[cfg(test)]
mod fixture;
mod gathered;
mod generation;
mod grpc;
mod http;
mod models;
mod request;
mod serve;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use foggara_proto::auth::ClusterToken;
use foggara_tls::Dialer;
use tokio::sync::Semaphore;
use tower::ServiceExt;

use crate::cluster::ClusterHandle;
use crate::control::Registry;
use crate::driver::Drivers;
use crate::library::Library;
use crate::metrics::{Metrics, UNKNOWN_MODEL};
use crate::router::Generator;
use crate::traces::Arrival;

use api_error::{ApiError, Kind};
use generation::EventStream;
pub use generation::{Account, Counted};
use models::NOT_YET_RETRY;
pub use models::{ServedModel, ServedModels};
use request::{Ask, GenerationRequest, Prompt};
pub use serve::serve;

/// Largest request body, HTTP or gRPC.
pub const MAX_BODY_BYTES: usize = 8 << 20;

/// Everything handlers need.
#[derive(Clone)]
pub struct FrontDoor {
    /// The replicated state.
    pub cluster: ClusterHandle,
    /// Turns sequences into tokens.
    pub generator: Arc<dyn Generator>,
    /// What Prometheus reads.
    pub metrics: Arc<Metrics>,
    /// Tokenizers and templates of the deployments.
    pub models: ServedModels,
    /// Where the deployments' models are.
    pub library: Library,
    /// Drivers of this coordinator, for other coordinators' sequences.
    pub drivers: Drivers,
    /// Sessions of workers.
    pub registry: Registry,
    /// Asked of operators, workers and coordinators.
    pub token: ClusterToken,
    /// How other coordinators are called.
    pub dialer: Dialer,
    /// Set when this coordinator is about to stop: what runs goes on, nothing new begins.
    pub draining: Arc<AtomicBool>,
    /// Long prompts that may be tokenized at once.
    pub tokenizing: Arc<Semaphore>,
}

/// Long prompts tokenized at once.
pub const TOKENIZING: usize = 2;
/// Bytes of a prompt that is tokenized at once, which takes a millisecond or two.
const SHORT_PROMPT: usize = 8 << 10;

/// Names of headers, and of gRPC metadata: the trace that a request belongs to, and the span that it was given in it.
const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
const TRACERESPONSE: &str = "traceresponse";
/// What clients are told then.
const STOPPING: &str = "this coordinator is stopping; ask another one";
/// How long a request waits for a model that has just been deployed to be opened here.
const OPENING: Duration = Duration::from_secs(10);

impl FrontDoor {
    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Refuses requests when this coordinator is about to stop.
    fn takes_requests(&self) -> Result<(), ApiError> {
        match self.is_draining() {
            true => Err(ApiError { retry_after: Some(1), ..ApiError::new(Kind::Unavailable, STOPPING) }),
            false => Ok(()),
        }
    }

    /// The model a request names, if requests are taken.
    async fn model(&self, name: &str) -> Result<Arc<ServedModel>, ApiError> {
        self.takes_requests()?;
        let mut opened = self.models.opened();
        let deployed = || {
            let state = self.cluster.state();
            match name {
                "" => !state.deployments.is_empty(),
                name => state.deployments.contains_key(name) || state.adapters.contains_key(name),
            }
        };
        let found = async {
            loop {
                opened.borrow_and_update();
                // Before what is found: if it is there by then, the next turn finds it.
                let looked_for = self.models.is_looked_for(name);
                match self.models.get(name) {
                    Err(error) if looked_for || (error.kind == Kind::NoSuchModel && deployed()) => {
                        if opened.changed().await.is_err() {
                            return Err(error);
                        }
                    }
                    outcome => return outcome,
                }
            }
        };
        let late = |_| {
            let text = format!("model `{name}` is still being opened here");
            Err(ApiError { retry_after: Some(NOT_YET_RETRY), ..ApiError::new(Kind::Unavailable, text) })
        };
        tokio::time::timeout(OPENING, found).await.unwrap_or_else(late)
    }

    /// Checks a request against its model.
    async fn check(
        &self,
        model: Arc<ServedModel>,
        prompt: Prompt,
        ask: Ask,
        add_special: bool,
    ) -> Result<GenerationRequest, ApiError> {
        let kv_tokens = self.kv_tokens(&model.deployment);
        let bytes = prompt.text_bytes();
        self.tokenizing(bytes, move || request::check(model, kv_tokens, prompt, ask, add_special)).await
    }

    /// Token ids of a text by itself.
    async fn tokenize(
        &self,
        model: Arc<ServedModel>,
        field: &'static str,
        text: String,
        add_special: bool,
    ) -> Result<Vec<u32>, ApiError> {
        self.tokenizing(text.len(), move || request::encode(&model, field, &text, add_special)).await
    }

    /// Does what turns so many bytes of text into tokens.
    async fn tokenizing<T: Send + 'static>(
        &self,
        text_bytes: usize,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        if text_bytes <= SHORT_PROMPT {
            return work();
        }
        // Not beside everyone's tokens, and few at once: it may take hundreds of bytes of memory for each of text.
        let _place = self.tokenizing.acquire().await;
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|e| Err(ApiError::new(Kind::Internal, format!("tokenizing: {e}"))))
    }

    /// Tokens that the KV cache of every group of a deployment holds, once there are groups.
    fn kv_tokens(&self, deployment: &str) -> Option<usize> {
        let state = self.cluster.state();
        let groups = state.groups.values().filter(|group| group.deployment == deployment);
        groups.map(|group| group.kv_blocks as usize * group.block_size as usize).min()
    }

    /// A request arrives now; `header` finds what it says of a trace.
    fn arrival<'a>(&self, header: impl Fn(&str) -> Option<&'a [u8]>) -> Arrival {
        let text = |name| String::from_utf8_lossy(header(name).unwrap_or_default());
        self.drivers.timelines().arrival(&text(TRACEPARENT), &text(TRACESTATE))
    }

    /// Runs a request that came through `api`.
    fn run(&self, api: &'static str, run: GenerationRequest) -> EventStream {
        generation::run(&self.generator, &self.metrics, self.drivers.timelines(), api, run)
    }

    /// Counts a request that never began.
    fn refused(&self, api: &str, model: &str, error: ApiError) -> ApiError {
        let known = self.models.get(model).map(|model| model.deployment.clone());
        let label = known.as_deref().unwrap_or(UNKNOWN_MODEL);
        self.metrics.requests.with_label_values(&[label, api, error.kind.label()]).inc();
        tracing::info!(model, api, status = error.kind.label(), reason = error.message, "request refused");
        error
    }

    /// One router for both protocols: calls whose content type is gRPC's go to the services, all else to HTTP.
    pub fn router(&self) -> Router {
        let (grpc, http) = (grpc::router(self), http::router(self));
        Router::new().fallback(move |request: axum::http::Request<Body>| {
            let (grpc, http) = (grpc.clone(), http.clone());
            async move {
                let content = request.headers().get("content-type").map(|value| value.as_bytes());
                let router = match content.is_some_and(|content| content.starts_with(b"application/grpc")) {
                    true => grpc,
                    false => http,
                };
                match router.oneshot(request).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                }
            }
        })
    }
}
