//! The front door: gRPC and OpenAI-style HTTP on the same ports.

mod api_error;
mod generation;
mod grpc;
mod http;
mod models;
mod request;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use foggara_proto::auth::ClusterToken;
use tower::ServiceExt;

use crate::cluster::ClusterHandle;
use crate::control::Registry;
use crate::driver::Drivers;
use crate::metrics::Metrics;
use crate::router::Generator;

pub use models::{ServedModel, ServedModels};

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
    /// Drivers of this coordinator, for other coordinators' sequences.
    pub drivers: Drivers,
    /// Sessions of workers.
    pub registry: Registry,
    /// Asked of operators, workers and coordinators.
    pub token: ClusterToken,
}

impl FrontDoor {
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
