//! How busy the groups are: each coordinator knows of those it drives, and asks the others for theirs.

use std::time::Duration;

use foggara_proto::wire::admin as wire;
use foggara_proto::wire::cluster::DrivenRequest;
use foggara_proto::wire::cluster::peer_client::PeerClient;
use futures::future::join_all;

use crate::front_door::FrontDoor;
use crate::library::channel;
use crate::metrics::Driven;

/// How long another coordinator may take: who looks live would rather see the rest.
const TIMEOUT: Duration = Duration::from_millis(500);

/// The groups driven here.
pub(super) fn here(door: &FrontDoor) -> Vec<wire::GroupStats> {
    let driver = door.cluster.id();
    door.metrics.driven().all().into_iter().map(|driven| stats_of(driver, driven)).collect()
}

/// Those driven anywhere.
pub(super) async fn everywhere(door: &FrontDoor) -> wire::StatsResponse {
    let (state, id) = (door.cluster.state(), door.cluster.id());
    let others = state.members.iter().filter(|(member, _)| **member != id);
    let asked = others.map(|(member, at)| async move { (*member, there(door, &at.addr).await) });
    let (mut groups, mut silent) = (here(door), Vec::new());
    for (member, answer) in join_all(asked).await {
        match answer {
            Some(theirs) => groups.extend(theirs),
            None => silent.push(member),
        }
    }
    // While a lease moves, two may show the same group: the newer counts.
    groups.sort_by_key(|group| (group.group, std::cmp::Reverse(group.driver_epoch)));
    groups.dedup_by_key(|group| group.group);
    wire::StatsResponse { answered_by: id, groups, silent }
}

/// Those driven by the coordinator at `addr`, if it says so in time.
async fn there(door: &FrontDoor, addr: &str) -> Option<Vec<wire::GroupStats>> {
    let mut peer = PeerClient::with_interceptor(channel(&door.dialer, addr).ok()?, door.token.shown());
    let request = DrivenRequest { cluster_id: door.cluster.cluster_id().into() };
    let answer = tokio::time::timeout(TIMEOUT, peer.driven(request)).await;
    Some(answer.ok()?.ok()?.into_inner().groups)
}

fn stats_of(driver: u64, driven: Driven) -> wire::GroupStats {
    let now = driven.occupancy;
    wire::GroupStats {
        group: driven.group,
        deployment: driven.model,
        driver,
        driver_epoch: driven.epoch,
        running: now.running as u64,
        waiting: now.waiting as u64,
        free_blocks: u64::from(now.free_blocks),
        live_blocks: u64::from(now.live_blocks),
        cached_blocks: u64::from(now.cached_blocks),
        preemptions: now.preemptions,
        steps: driven.steps,
        rows: driven.rows,
        generated_tokens: driven.generated,
        ranks: driven.ranks.into_values().map(Into::into).collect(),
    }
}
