//! Sending spans to an OTLP collector, over gRPC. Whoever has spans only puts them into a bounded queue: a collector that is slow
//! or away costs spans, never a request.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use foggara_proto::trace::TraceContext;
use foggara_proto::version::Build;
use opentelemetry::trace::{SpanKind, TraceContextExt};
use opentelemetry::{Context, KeyValue, TraceId};
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchSpanProcessor, Config, SamplingDecision, ShouldSample, SpanData, SpanExporter, SpanProcessor,
};

use super::spans;

/// How long the last spans may take to be sent when the coordinator stops.
const FLUSH: Duration = Duration::from_secs(2);

/// Why traces cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExporterError {
    /// The endpoint is none.
    #[error(
        "`{endpoint}` is no collector's address: {reason}; it is written like http://collector:4317 (OTLP over gRPC, without TLS)"
    )]
    Endpoint {
        /// As given.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Sends spans.
pub struct Exporter {
    processor: BatchSpanProcessor,
    sampler: Box<dyn ShouldSample>,
}

impl Exporter {
    /// To the collector at `endpoint` (`http://host:port`), as coordinator `id`. What is sampled, and how spans are batched, the SDK
    /// reads from its own variables of the environment. Needs a runtime around it.
    ///
    /// # Errors
    /// If the endpoint makes no sense.
    pub fn new(endpoint: &str, id: u64) -> Result<Self, ExporterError> {
        let wrong = |reason: String| ExporterError::Endpoint { endpoint: endpoint.to_owned(), reason };
        if !endpoint.starts_with("http://") {
            return Err(wrong("it does not begin with http://".into()));
        }
        let otlp = OtlpExporter::builder().with_tonic().with_endpoint(endpoint).build();
        let otlp = otlp.map_err(|e| wrong(e.to_string()))?;
        let told = Told { inner: otlp, endpoint: endpoint.to_owned(), failing: AtomicBool::new(false) };
        let mut processor = BatchSpanProcessor::builder(told).build();
        processor.set_resource(&resource(id));
        Ok(Self { processor, sampler: Config::default().sampler })
    }

    /// Whether a trace is recorded, given what its client says.
    pub(super) fn samples(&self, trace_id: u128, parent: Option<&TraceContext>) -> bool {
        let parent = parent
            .map(|parent| Context::new().with_remote_span_context(spans::context(parent, parent.span_id)));
        let trace_id = TraceId::from(trace_id);
        let result = self.sampler.should_sample(parent.as_ref(), trace_id, "", &SpanKind::Server, &[], &[]);
        result.decision == SamplingDecision::RecordAndSample
    }

    /// Puts spans into the queue, if there is room.
    pub(super) fn send(&self, spans: Vec<SpanData>) {
        spans.into_iter().for_each(|span| self.processor.on_end(span));
    }

    pub(super) fn shutdown(&self) {
        self.processor.shutdown_with_timeout(FLUSH).ok();
    }
}

/// Who sends: the environment (`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`) has the last word.
fn resource(id: u64) -> Resource {
    let from_environment = Resource::builder().build();
    let named = from_environment
        .get(&opentelemetry::Key::from_static_str("service.name"))
        .filter(|name| !name.as_str().starts_with("unknown_service"));
    let builder = Resource::builder().with_attributes([
        KeyValue::new("service.instance.id", format!("coordinator-{id}")),
        KeyValue::new("service.version", Build::own().version),
    ]);
    match named {
        Some(_) => builder.build(),
        None => builder.with_service_name("foggara").build(),
    }
}

/// An exporter that says in the log when it begins to fail, and when it works again; not each time.
struct Told<E> {
    inner: E,
    endpoint: String,
    failing: AtomicBool,
}

impl<E> fmt::Debug for Told<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Told").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl<E: SpanExporter> SpanExporter for Told<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let outcome = self.inner.export(batch).await;
        let was_failing = self.failing.swap(outcome.is_err(), Ordering::Relaxed);
        match &outcome {
            Err(error) if !was_failing => tracing::warn!(
                endpoint = self.endpoint,
                %error,
                "traces are not delivered; those that nobody takes are lost, requests go on"
            ),
            Ok(()) if was_failing => {
                tracing::info!(endpoint = self.endpoint, "traces are delivered again");
            }
            _ => {}
        }
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
