//! The gRPC services of a coordinator, on one router.

mod adapters;
mod admin;
mod attach;
mod files;
mod inference;
mod peer;
mod plan;
mod stats;
#[cfg(test)]
mod tests;
mod timelines;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Response};
use foggara_proto::version::Build;
use foggara_proto::wire;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;

use super::{FrontDoor, MAX_BODY_BYTES};
use crate::cluster::transport::MAX_MESSAGE_BYTES;
use crate::control::RegistryService;

/// Every service; those between processes of the cluster ask for its token.
pub(super) fn router(door: &FrontDoor) -> Router {
    use wire::admin::admin_server::AdminServer;
    use wire::cluster::peer_server::PeerServer;
    use wire::files::files_server::FilesServer;
    use wire::inference::inference_server::InferenceServer;
    use wire::worker::registry_server::RegistryServer;
    let descriptors = wire::CLIENT_FACING_DESCRIPTORS;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(descriptors)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let (reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(report_health(door.clone(), reporter));
    let inference = inference::Service { door: door.clone() };
    let inference = InferenceServer::new(inference).max_decoding_message_size(MAX_BODY_BYTES);
    let admin =
        AdminServer::new(admin::Service { door: door.clone() }).max_decoding_message_size(MAX_BODY_BYTES);
    let peer = PeerServer::new(peer::Service { door: door.clone() })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let files = FilesServer::new(files::Service { door: door.clone() });
    let registry = RegistryService {
        cluster: door.cluster.clone(),
        registry: door.registry.clone(),
        build: Build::own(),
    };
    let mut routes = Routes::new(inference)
        .add_service(health)
        .add_service(InterceptedService::new(admin, door.token.required()))
        .add_service(InterceptedService::new(peer, door.token.required_of_peers()))
        .add_service(InterceptedService::new(files, door.token.required_of_peers()))
        .add_service(InterceptedService::new(RegistryServer::new(registry), door.token.required()));
    if let (Ok(v1), Ok(v1alpha)) = (reflection().build_v1(), reflection().build_v1alpha()) {
        routes = routes.add_service(v1).add_service(v1alpha);
    }
    routes.into_axum_router().layer(axum::middleware::map_response(blame_the_client))
}

/// A message that cannot be decoded is the client's mistake, and one that is too large exceeds a limit; the library calls
/// the one an internal error and the other out of range.
async fn blame_the_client(mut response: Response<Body>) -> Response<Body> {
    const REFUSALS: [(&str, &str, &str); 2] =
        [("13", "failed to decode Protobuf", "3"), ("11", "message length too large", "8")];
    let header = |name: &str| {
        let value = response.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
        value.unwrap_or_default().replace("%20", " ")
    };
    let (status, message) = (header("grpc-status"), header("grpc-message"));
    let refusal = REFUSALS.iter().find(|(theirs, text, _)| status == *theirs && message.contains(text));
    if let Some((_, _, ours)) = refusal {
        response.headers_mut().insert("grpc-status", HeaderValue::from_static(ours));
    }
    response
}

/// Keeps the health service in step with readiness.
async fn report_health(door: FrontDoor, reporter: tonic_health::server::HealthReporter) {
    use tonic_health::ServingStatus;
    use wire::inference::inference_server::InferenceServer;
    let (mut state, mut status) = (door.cluster.watch(), door.cluster.watch_status());
    // A model may be the last to be opened: after its group is ready.
    let mut opened = door.models.opened();
    loop {
        let serving = match door.unready().is_empty() {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        let name = <InferenceServer<inference::Service> as tonic::server::NamedService>::NAME;
        reporter.set_service_status("", serving).await;
        reporter.set_service_status(name, serving).await;
        let changed = tokio::select! {
            changed = state.changed() => changed,
            changed = status.changed() => changed,
            changed = opened.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}
