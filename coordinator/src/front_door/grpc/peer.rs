//! `foggara.cluster.v1`: what other coordinators call.

use foggara_proto::sequence::SequenceRequest;
use foggara_proto::version::{Build, HEADER};
use foggara_proto::wire::cluster as wire;
use futures::StreamExt;
use futures::stream::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use crate::cluster::ClusterError;
use crate::front_door::FrontDoor;
use crate::front_door::grpc::{stats, timelines};
use crate::router::dispatch::to_status;

/// The service.
pub(super) struct Service {
    pub(super) door: FrontDoor,
}

impl Service {
    fn check_cluster(&self, cluster_id: &str) -> Result<(), Status> {
        if cluster_id == self.door.cluster.cluster_id() {
            return Ok(());
        }
        let ours = self.door.cluster.cluster_id();
        Err(Status::permission_denied(format!("this is cluster `{ours}`, the message is for `{cluster_id}`")))
    }

    /// What a coordinator is that is to keep the replicated state with this one. Its protocol has been looked at.
    fn build_of_caller<T>(&self, request: &Request<T>) -> Result<Build, Status> {
        let said = request.metadata().get(HEADER).and_then(|said| Build::parse(said.to_str().ok()?));
        let build = said.ok_or_else(|| Status::unimplemented("the caller does not say what it is"))?;
        match Build::own().keeps_state_with(&build) {
            Ok(()) => Ok(build),
            Err(error) => {
                tracing::warn!(reason = %error, "a coordinator is refused");
                Err(Status::unimplemented(error.to_string()))
            }
        }
    }
}

#[tonic::async_trait]
impl wire::peer_server::Peer for Service {
    type SubmitStream = BoxStream<'static, Result<wire::SequenceEvent, Status>>;

    async fn raft(
        &self,
        request: Request<Streaming<wire::RaftMessages>>,
    ) -> Result<Response<wire::RaftAck>, Status> {
        let build = self.build_of_caller(&request)?;
        let mut messages = request.into_inner();
        // For as long as the stream lasts.
        let mut connected = None;
        while let Some(batch) = messages.message().await? {
            self.check_cluster(&batch.cluster_id)?;
            connected.get_or_insert_with(|| self.door.cluster.connected(batch.from, build.clone()));
            for message in batch.message {
                match self.door.cluster.step(message) {
                    // Raft sends again what is lost.
                    Ok(()) | Err(ClusterError::Overloaded) => {}
                    Err(error) => return Err(Status::unavailable(error.to_string())),
                }
            }
        }
        Ok(Response::new(wire::RaftAck {}))
    }

    async fn propose(
        &self,
        request: Request<wire::ProposeRequest>,
    ) -> Result<Response<wire::ProposeResponse>, Status> {
        let request = request.into_inner();
        self.check_cluster(&request.cluster_id)?;
        match self.door.cluster.propose_forwarded(request.command).await {
            Ok(outcome) => Ok(Response::new(wire::ProposeResponse { outcome })),
            Err(error @ ClusterError::NotLeader { .. }) => {
                Err(Status::failed_precondition(error.to_string()))
            }
            Err(error @ (ClusterError::Invalid(_) | ClusterError::TooLarge { .. })) => {
                Err(Status::invalid_argument(error.to_string()))
            }
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }

    async fn loading(
        &self,
        request: Request<wire::LoadingRequest>,
    ) -> Result<Response<wire::LoadingResponse>, Status> {
        self.check_cluster(&request.into_inner().cluster_id)?;
        let workers = self.door.registry.loading().into_iter().collect();
        Ok(Response::new(wire::LoadingResponse { workers }))
    }

    async fn driven(
        &self,
        request: Request<wire::DrivenRequest>,
    ) -> Result<Response<wire::DrivenResponse>, Status> {
        self.check_cluster(&request.into_inner().cluster_id)?;
        Ok(Response::new(wire::DrivenResponse { groups: stats::here(&self.door) }))
    }

    async fn timelines(
        &self,
        request: Request<wire::TimelinesRequest>,
    ) -> Result<Response<wire::TimelinesResponse>, Status> {
        let request = request.into_inner();
        self.check_cluster(&request.cluster_id)?;
        Ok(Response::new(timelines::here(&self.door, &request).await))
    }

    async fn cancel(
        &self,
        request: Request<wire::CancelRequest>,
    ) -> Result<Response<wire::CancelResponse>, Status> {
        let request = request.into_inner();
        self.check_cluster(&request.cluster_id)?;
        self.door.drivers.cancel(request.group, &request.request_id, request.listener);
        Ok(Response::new(wire::CancelResponse {}))
    }

    async fn find(
        &self,
        request: Request<wire::FindRequest>,
    ) -> Result<Response<wire::FindResponse>, Status> {
        let request = request.into_inner();
        self.check_cluster(&request.cluster_id)?;
        let found = self.door.drivers.find(&request.request_id);
        Ok(Response::new(wire::FindResponse { found: found.map(Into::into) }))
    }

    async fn locate(
        &self,
        request: Request<wire::LocateRequest>,
    ) -> Result<Response<wire::LocateResponse>, Status> {
        let request = request.into_inner();
        self.check_cluster(&request.cluster_id)?;
        let place = self.door.drivers.locate(&request);
        let place = place.ok_or_else(|| Status::unavailable("not all of these groups are driven here"))?;
        Ok(Response::new(wire::LocateResponse { place }))
    }

    async fn submit(
        &self,
        request: Request<wire::SubmitRequest>,
    ) -> Result<Response<Self::SubmitStream>, Status> {
        let request = request.into_inner();
        let (group, epoch, listener) = (request.group, request.driver_epoch, request.listener);
        let request = SequenceRequest::try_from(request)?;
        let events = self.door.drivers.submit(group, epoch, listener, request);
        let events = events.ok_or_else(|| {
            Status::unavailable(format!("group {group} is not driven here under lease {epoch}"))
        })?;
        Ok(Response::new(
            events.map(|event| event.map(Into::into).map_err(|error| to_status(&error))).boxed(),
        ))
    }
}
