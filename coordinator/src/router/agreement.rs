//! Which group has a request that its client has named, and may have sent before, when there are several.
//!
//! The drivers of all groups are asked. One of the groups, the same for every front door, is the request's home: with its
//! driver, a front door that found nobody who has the request claims it for the group that it is about to hand it to. So
//! two front doors that are sent one request at the same time agree, too.

use std::collections::BTreeMap;
use std::time::Duration;

use foggara_proto::wire::cluster as wire;
use foggara_proto::wire::cluster::locate_response::Place;
use foggara_proto::wire::cluster::peer_client::PeerClient;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::dispatch::{Dispatcher, Target};
use super::rendezvous;

/// How long a driver may take to answer.
const TIMEOUT: Duration = Duration::from_millis(500);
/// How long it is tried: until then, a driver that is lost has been replaced. Later, a request that has been sent before may be
/// computed once more.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// What the drivers say together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Agreement {
    /// To this group it goes.
    Group(u64),
    /// Somebody has not answered, who may have it. The claim, if there is one.
    Open(Option<u64>),
}

/// Adds up what was answered; `None`: nothing was.
fn agreement(answers: impl IntoIterator<Item = Option<Option<Place>>>) -> Agreement {
    let (mut claimed, mut all) = (None, true);
    for answer in answers {
        match answer {
            Some(Some(Place::Has(group))) => return Agreement::Group(group),
            Some(Some(Place::Claimed(group))) => claimed = Some(group),
            Some(None) => {}
            None => all = false,
        }
    }
    match claimed {
        Some(group) if all => Agreement::Group(group),
        _ => Agreement::Open(claimed),
    }
}

/// Whom to ask what: one question for each coordinator that drives some of `groups`.
fn questions(
    cluster_id: &str,
    request_id: &str,
    groups: &[Target],
    wanted: u64,
) -> BTreeMap<u64, wire::LocateRequest> {
    let home = rendezvous::home(request_id, groups.iter().map(|target| target.group));
    let mut questions: BTreeMap<u64, wire::LocateRequest> = BTreeMap::new();
    for target in groups {
        let question = questions.entry(target.coordinator).or_default();
        (question.cluster_id, question.request_id) = (cluster_id.into(), request_id.into());
        question.leases.push(wire::DriverLease { group: target.group, driver_epoch: target.driver_epoch });
        if home == Some(target.group) {
            question.claim = Some(wanted);
            question.groups = groups.iter().map(|target| target.group).collect();
        }
    }
    questions
}

impl Dispatcher {
    /// Which of `groups`, all that there are, a request is to go to: `wanted` if nobody has it, or says otherwise.
    pub(super) async fn agree(&self, request_id: &str, groups: &[Target], wanted: u64) -> Agreement {
        let questions = questions(self.cluster.cluster_id(), request_id, groups, wanted);
        let asked: FuturesUnordered<_> =
            questions.into_iter().map(|(coordinator, question)| self.ask(coordinator, question)).collect();
        agreement(asked.collect::<Vec<_>>().await)
    }

    /// What `coordinator` says, if it does.
    async fn ask(&self, coordinator: u64, question: wire::LocateRequest) -> Option<Option<Place>> {
        if coordinator == self.cluster.id() {
            return self.drivers.locate(&question);
        }
        let channel = self.transport.channel(coordinator)?;
        let mut client = PeerClient::with_interceptor(channel, self.token.shown());
        let answer = tokio::time::timeout(TIMEOUT, client.locate(question)).await;
        Some(answer.ok()?.ok()?.into_inner().place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(group: u64, coordinator: u64) -> Target {
        Target { group, coordinator, driver_epoch: group * 10 }
    }

    #[test]
    fn whoever_has_it_is_believed_and_a_claim_only_when_all_have_answered() {
        let (has, claimed) = (Some(Some(Place::Has(1))), Some(Some(Place::Claimed(2))));
        let (nothing, silent) = (Some(None), None);
        for (answers, expected) in [
            (vec![nothing, claimed], Agreement::Group(2)),
            (vec![claimed, has], Agreement::Group(1)),
            (vec![silent, has], Agreement::Group(1)),
            (vec![silent, claimed], Agreement::Open(Some(2))),
            (vec![nothing, silent], Agreement::Open(None)),
            (vec![nothing, nothing], Agreement::Open(None)),
        ] {
            assert_eq!(agreement(answers.clone()), expected, "{answers:?}");
        }
    }

    #[test]
    fn each_driver_is_asked_once_and_one_of_them_keeps_the_claim() {
        let groups = [target(4, 1), target(5, 2), target(6, 1)];
        let mut homes = std::collections::BTreeSet::new();
        for request in 0..50 {
            let questions = questions("c", &format!("r{request}"), &groups, 5);
            let leases = |coordinator: u64| -> Vec<(u64, u64)> {
                questions[&coordinator].leases.iter().map(|l| (l.group, l.driver_epoch)).collect()
            };
            assert_eq!((leases(1), leases(2)), (vec![(4, 40), (6, 60)], vec![(5, 50)]));
            let claims: Vec<u64> =
                questions.iter().filter(|(_, q)| q.claim == Some(5)).map(|(id, _)| *id).collect();
            assert_eq!(claims.len(), 1);
            assert_eq!(questions[&claims[0]].groups, [4, 5, 6]);
            homes.extend(claims);
        }
        assert_eq!(homes.len(), 2, "requests have different homes");
    }
}
