//! The worker's own service: a driver's connection turned into engine events, and reports turned into messages.

mod files;

use std::pin::Pin;
use std::time::Instant;

use foggara_proto::step::{Attached, StepPlan};
use foggara_proto::wire::worker as wire;
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use crate::engine::{EngineEvent, News};
use crate::group::{AttachError, GroupHost};

pub(crate) use files::FilesService;

/// Largest message of a driver, and to one: joins carry whole prompts, and so does what is held for the next driver.
pub(crate) const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// `foggara.worker.v1.Rank`.
pub(crate) struct RankService {
    pub(crate) host: GroupHost,
}

#[tonic::async_trait]
impl wire::rank_server::Rank for RankService {
    type DriveStream = Pin<Box<dyn Stream<Item = Result<wire::LeaderMessage, Status>> + Send>>;

    async fn drive(
        &self,
        request: Request<Streaming<wire::DriverMessage>>,
    ) -> Result<Response<Self::DriveStream>, Status> {
        use wire::driver_message::Message as In;
        let mut plans = request.into_inner();
        let first = plans.message().await?.and_then(|message| message.message);
        let Some(In::Attach(attach)) = first else {
            return Err(Status::invalid_argument("the first message must be `attach`"));
        };
        let (events, limits) = self.host.attach(&attach).map_err(|error| match error {
            AttachError::NotHere { .. } => Status::not_found(error.to_string()),
            AttachError::NotLeader { .. } | AttachError::OldDriver { .. } => {
                Status::failed_precondition(error.to_string())
            }
        })?;
        let (news, mut received) = mpsc::unbounded_channel::<News>();
        let gone = || Status::unavailable("the group has ended");
        let driver_epoch = attach.driver_epoch;
        let attached = EngineEvent::Attach { driver_epoch, fresh: attach.fresh, news };
        events.send(attached).map_err(|_| gone())?;
        tracing::info!(group = attach.group, driver_epoch, "driver attached");
        let out = async_stream::stream! {
            loop {
                tokio::select! {
                    // News first: tokens should not wait behind plans.
                    biased;
                    news = received.recv() => match news {
                        Some(News::Held(sequences)) => {
                            let attached = Attached { limits, sequences };
                            yield Ok(message(wire::leader_message::Message::Attached(attached.into())));
                        }
                        Some(News::Report(report)) => {
                            yield Ok(message(wire::leader_message::Message::Report(report.into())));
                        }
                        None => {
                            yield Err(Status::aborted("another driver has taken over, or the group has ended"));
                            return;
                        }
                    },
                    plan = plans.next() => match plan {
                        Some(Ok(wire::DriverMessage { message: Some(In::Plan(plan)) })) => {
                            match StepPlan::try_from(plan) {
                                Ok(plan) => {
                                    if events.send(EngineEvent::Plan { plan, came: Instant::now() }).is_err() {
                                        yield Err(gone());
                                        return;
                                    }
                                }
                                Err(error) => {
                                    yield Err(error.into());
                                    return;
                                }
                            }
                        }
                        Some(Ok(_)) => {
                            yield Err(Status::invalid_argument("only plans may follow `attach`"));
                            return;
                        }
                        // The driver is gone; its sequences stay until the next one attaches.
                        Some(Err(_)) | None => return,
                    },
                }
            }
        };
        Ok(Response::new(out.boxed()))
    }
}

fn message(message: wire::leader_message::Message) -> wire::LeaderMessage {
    wire::LeaderMessage { message: Some(message) }
}

#[cfg(test)]
mod tests;
