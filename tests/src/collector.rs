//! A collector of traces, as OpenTelemetry's protocol has it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// A span, and who sent it.
#[derive(Debug, Clone)]
pub struct Received {
    /// What the sender says of itself.
    pub resource: Vec<KeyValue>,
    /// As sent.
    pub span: Span,
}

impl Received {
    /// The trace's id, hexadecimal.
    pub fn trace_id(&self) -> String {
        hexadecimal(&self.span.trace_id)
    }

    /// The span's id, hexadecimal.
    pub fn span_id(&self) -> String {
        hexadecimal(&self.span.span_id)
    }

    /// Its parent's.
    pub fn parent_id(&self) -> String {
        hexadecimal(&self.span.parent_span_id)
    }

    /// An attribute of the span, as text; empty if it has none of that name.
    pub fn attribute(&self, key: &str) -> String {
        text(&self.span.attributes, key)
    }

    /// The same of its sender.
    pub fn of_resource(&self, key: &str) -> String {
        text(&self.resource, key)
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let value =
        attributes.iter().find(|attribute| attribute.key == key).and_then(|found| found.value.clone());
    match value {
        Some(AnyValue { value: Some(any_value::Value::StringValue(text)) }) => text,
        Some(AnyValue { value: Some(any_value::Value::IntValue(number)) }) => number.to_string(),
        _ => String::new(),
    }
}

/// Keeps every span it is sent.
#[derive(Debug, Clone)]
pub struct Collector {
    addr: SocketAddr,
    spans: Spans,
}

#[derive(Debug, Clone, Default)]
struct Spans(Arc<Mutex<Vec<Received>>>);

impl Spans {
    fn lock(&self) -> MutexGuard<'_, Vec<Received>> {
        self.0.lock().expect("nobody panics with it")
    }
}

impl Collector {
    /// On a free port, for as long as the runtime.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let (addr, spans) = (listener.local_addr().expect("bound"), Spans::default());
        let service = TraceServiceServer::new(spans.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { addr, spans }
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The spans of a trace that have come so far.
    pub fn of(&self, trace_id: &str) -> Vec<Received> {
        self.spans.lock().iter().filter(|received| received.trace_id() == trace_id).cloned().collect()
    }
}

#[tonic::async_trait]
impl TraceService for Spans {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_resource in request.into_inner().resource_spans {
            let resource = of_resource.resource.map(|resource| resource.attributes).unwrap_or_default();
            let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.lock().extend(spans.map(|span| Received { resource: resource.clone(), span }));
        }
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}
