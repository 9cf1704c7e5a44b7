//! HTTP: OpenAI's API, health, readiness and metrics.

mod answers;
mod body;
mod chat;
mod completions;
mod discovery;
mod fields;
#[cfg(test)]
mod sampling_tests;
mod stream;
#[cfg(test)]
pub(super) mod tests;
mod tokenize;

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, Request, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use foggara_proto::version::Build;
use serde_json::{Value, json};

use super::api_error::{ApiError, Kind};
use super::{FrontDoor, STOPPING, TRACERESPONSE, request};
use crate::traces::Arrival;

/// Name of the header that carries the request id, both ways.
const REQUEST_ID: &str = "x-request-id";

/// Every path.
pub(super) fn router(door: &FrontDoor) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/sd/prometheus", get(discovery::handle))
        .route("/version", get(|| async { Json(version()) }))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/chat/completions", post(chat::handle))
        .route("/v1/completions", post(completions::handle))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .fallback(|| async { ApiError::new(Kind::NotFound, "no such path; GET / lists what there is") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(Kind::MethodNotAllowed, "this path does not take that method")
        })
        .layer(axum::middleware::from_fn_with_state(door.clone(), name_request))
        .with_state(door.clone())
}

/// What this program is.
fn version() -> Value {
    let Build { version, protocols, formats } = Build::own();
    json!({
        "version": version,
        "protocols": {"oldest": protocols.oldest, "newest": protocols.newest},
        "formats": {"oldest": formats.oldest, "newest": formats.newest},
    })
}

async fn index() -> &'static str {
    "Foggara\n\nPOST /v1/chat/completions\nPOST /v1/completions\nPOST /tokenize\nPOST /detokenize\nGET  /v1/models\nGET  /healthz\nGET  /readyz\nGET  /metrics\nGET  /sd/prometheus\n\
     The same port speaks gRPC: foggara.inference.v1, foggara.admin.v1 (reflection is on).\n"
}

/// What a request is called.
#[derive(Debug, Clone)]
struct RequestId {
    id: String,
    /// Whether its client chose it.
    named: bool,
    arrival: Arrival,
}

/// Gives every request an id: the client's, or a new one. The answer repeats it, and says which span the request is.
async fn name_request(State(door): State<FrontDoor>, mut incoming: Request<Body>, next: Next) -> Response {
    let given = incoming
        .headers()
        .get(REQUEST_ID)
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let given = given.unwrap_or_default();
    let id = match request::request_id(&given) {
        Ok(id) => id,
        Err(error) => return error.into_response(),
    };
    let value = HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("invalid"));
    let arrival = door.arrival(|name| incoming.headers().get(name).map(HeaderValue::as_bytes));
    let trace = arrival.trace.as_ref().and_then(|trace| HeaderValue::from_str(&trace.to_string()).ok());
    incoming.extensions_mut().insert(RequestId { id, named: !given.is_empty(), arrival });
    let mut response = next.run(incoming).await;
    response.headers_mut().insert(REQUEST_ID, value);
    if let Some(trace) = trace {
        response.headers_mut().insert(TRACERESPONSE, trace);
    }
    response
}

async fn metrics(State(door): State<FrontDoor>) -> Response {
    door.metrics.raft(&door.cluster.status());
    door.metrics.cluster(&door.cluster.state(), &door.registry.loading());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], door.metrics.render())
        .into_response()
}

impl FrontDoor {
    /// Why this coordinator cannot serve every deployment; nothing if it can.
    pub(super) fn unready(&self) -> Vec<String> {
        let (state, status) = (self.cluster.state(), self.cluster.status());
        let mut reasons = Vec::new();
        if self.is_draining() {
            reasons.push(STOPPING.into());
        }
        if status.leader.is_none() {
            reasons.push("no leader is known".into());
        }
        if self.models.are_starting() {
            reasons.push("it has just started and may not know every model yet".into());
        }
        if !self.cluster.workers_are_known() {
            reasons.push("the leader has not found every worker yet".into());
        }
        if state.deployments.is_empty() {
            reasons.push("nothing is deployed".into());
        }
        for name in state.deployments.keys() {
            let driven = |group: &crate::cluster::state::Group| {
                group.deployment == *name && group.is_ready() && group.driver.is_some()
            };
            if !state.groups.values().any(driven) {
                reasons.push(format!("deployment `{name}` has no ready group"));
            }
            if let Err(error) = self.models.get(name) {
                reasons.push(error.message);
            }
        }
        reasons
    }
}

async fn ready(State(door): State<FrontDoor>) -> Response {
    let reasons = door.unready();
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({"ready": reasons.is_empty(), "reasons": reasons}))).into_response()
}

/// As vLLM says it: an adapter has the name of the model that it adapts, and the path it lies at.
fn described(model: &super::ServedModel) -> Value {
    let mut described = json!({"id": model.name, "object": "model", "created": model.created, "owned_by": "foggara",
        "max_model_len": model.context});
    if let Some(adapter) = &model.adapter {
        described["parent"] = model.deployment.as_str().into();
        described["root"] = adapter.path.as_str().into();
    }
    described
}

async fn models(State(door): State<FrontDoor>) -> Json<Value> {
    let data: Vec<_> = door.models.all().iter().map(|model| described(model)).collect();
    Json(json!({"object": "list", "data": data}))
}

async fn model(State(door): State<FrontDoor>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    Ok(Json(described(&*door.models.get(&name)?)))
}

/// Unix seconds.
fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs()
}
