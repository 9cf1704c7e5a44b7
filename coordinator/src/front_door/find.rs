//! Finding out who has a request, by its id: this coordinator's drivers, or another coordinator's.

use std::time::{Duration, Instant};

use foggara_proto::sequence::FoundRequest;
use foggara_proto::wire::cluster::FindRequest;
use foggara_proto::wire::cluster::peer_client::PeerClient;
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};

use super::FrontDoor;
use super::api_error::{ApiError, Kind};
use crate::cluster::transport::MAX_MESSAGE_BYTES;
use crate::library::channel;

/// Between two looks when the state has not changed.
const RETRY: Duration = Duration::from_millis(250);
/// How long another coordinator may take to answer.
const PEER_TIMEOUT: Duration = Duration::from_secs(1);

impl FrontDoor {
    /// What the drivers of the cluster know of a request. `None` when nobody has known it for as long as `patience`.
    pub(super) async fn find(
        &self,
        request_id: &str,
        patience: Duration,
    ) -> Result<Option<FoundRequest>, ApiError> {
        let mut watch = self.cluster.watch();
        let since = Instant::now();
        loop {
            self.takes_requests()?;
            watch.borrow_and_update();
            if let Some(found) = self.find_now(request_id).await {
                return Ok(Some(found));
            }
            if since.elapsed() >= patience {
                return Ok(None);
            }
            if watch.has_changed().is_err() {
                return Err(ApiError::new(Kind::Unavailable, "the control plane has stopped"));
            }
            // Whoever drives its group next shows in the state, and knows it a little later.
            tokio::time::timeout(RETRY, watch.changed()).await.ok();
        }
    }

    async fn find_now(&self, request_id: &str) -> Option<FoundRequest> {
        let (state, id) = (self.cluster.state(), self.cluster.id());
        let own = self.drivers.find(request_id);
        let others = state.members.iter().filter(|(member, _)| **member != id);
        let asked: FuturesUnordered<_> =
            others.map(|(_, member)| self.find_there(&member.addr, request_id)).collect();
        best(futures::stream::iter([own]).chain(asked)).await
    }

    /// What the coordinator at `addr` knows, if it says so in time.
    async fn find_there(&self, addr: &str, request_id: &str) -> Option<FoundRequest> {
        let mut peer = PeerClient::with_interceptor(channel(&self.dialer, addr).ok()?, self.token.shown())
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let cluster_id = self.cluster.cluster_id().into();
        let request = FindRequest { cluster_id, request_id: request_id.into() };
        let answer = tokio::time::timeout(PEER_TIMEOUT, peer.find(request)).await;
        Some(answer.ok()?.ok()?.into_inner().found?.into())
    }
}

/// The first answer of somebody who has the request in a group; or of somebody who remembers it, if nobody has.
async fn best(answers: impl Stream<Item = Option<FoundRequest>>) -> Option<FoundRequest> {
    let mut answers = std::pin::pin!(answers);
    let mut remembered = None;
    while let Some(answer) = answers.next().await {
        match answer {
            // A choice of a request other than its first one has none: it cannot be gone on with by itself.
            Some(found) if found.envelope.is_empty() => {}
            Some(found) if found.group.is_some() => return Some(found),
            found => remembered = remembered.or(found),
        }
    }
    remembered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(model: &str, group: Option<u64>, envelope: &[u8]) -> Option<FoundRequest> {
        Some(FoundRequest { model: model.into(), group, prompt: vec![1], envelope: envelope.into() })
    }

    #[tokio::test]
    async fn whoever_has_it_in_a_group_is_preferred_and_nobody_else_waited_for() {
        let (has, remembers) = (found("has", Some(3), &[1]), found("remembers", None, &[1]));
        let choice = found("choice", Some(3), &[]);
        for (answers, expected) in [
            (vec![], None),
            (vec![None, None], None),
            (vec![remembers.clone(), None, has.clone()], has.clone()),
            (vec![None, remembers.clone()], remembers.clone()),
            (vec![choice.clone(), remembers.clone()], remembers.clone()),
            (vec![choice], None),
        ] {
            assert_eq!(best(futures::stream::iter(answers.clone())).await, expected, "{answers:?}");
        }
        let silent = futures::stream::iter([remembers, has.clone()]).chain(futures::stream::pending());
        assert_eq!(best(silent).await, has);
    }
}
