//! Asking machines whether their processes are gone: quicker than waiting for what will never come back. A process that lives
//! listens until it ends; a machine that does not answer says nothing about its processes.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::cluster::ClusterState;

/// A machine that answers at all answers within this.
const TIMEOUT: Duration = Duration::from_millis(200);

/// The workers of `state` without a session (not in `live`) at whose address nothing listens any more. (A new process takes
/// another id.)
pub(super) async fn refused(state: &ClusterState, live: &BTreeSet<u64>) -> BTreeSet<u64> {
    let silent = state.workers.iter().filter(|(id, _)| !live.contains(id));
    closed(silent.map(|(id, worker)| (*id, worker.addr.as_str()))).await
}

/// The coordinators among `silent` that hold leases and at whose address nothing listens.
pub(super) async fn drivers_gone(state: &ClusterState, silent: &BTreeSet<u64>) -> BTreeSet<u64> {
    let leases = state.groups.values().filter_map(|group| group.driver);
    let drivers: BTreeSet<u64> =
        leases.map(|lease| lease.coordinator).filter(|id| silent.contains(id)).collect();
    let members = drivers.iter().filter_map(|id| Some((*id, state.members.get(id)?.addr.as_str())));
    closed(members).await
}

/// Those whose address refuses connections.
async fn closed<'a>(addresses: impl Iterator<Item = (u64, &'a str)>) -> BTreeSet<u64> {
    let probes = addresses.map(|(id, addr)| async move {
        let answer = tokio::time::timeout(TIMEOUT, TcpStream::connect(addr)).await;
        matches!(answer, Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused).then_some(id)
    });
    futures::future::join_all(probes).await.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::state::{CollectiveKind, DriverLease, Group, Member, Worker};
    use foggara_proto::shape::Shape;

    fn worker(addr: &str) -> Worker {
        Worker {
            addr: addr.into(),
            collective_addr: String::new(),
            host: String::new(),
            pid: 0,
            incarnation: addr.into(),
            capabilities: Default::default(),
            group: None,
        }
    }

    #[tokio::test]
    async fn only_silent_workers_whose_port_is_closed_are_gone() {
        let listening = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let open = listening.local_addr().expect("bound").to_string();
        let closed = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            listener.local_addr().expect("bound").to_string()
        };
        let mut state = ClusterState::default();
        state.workers.insert(1, worker(&open));
        state.workers.insert(2, worker(&closed));
        state.workers.insert(3, worker(&closed));
        state.workers.insert(4, worker("no-such-host.invalid:1"));
        assert_eq!(refused(&state, &BTreeSet::from([3])).await, BTreeSet::from([2]));
    }

    #[tokio::test]
    async fn only_silent_drivers_whose_port_is_closed_are_gone() {
        let listening = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let open = listening.local_addr().expect("bound").to_string();
        let mut state = ClusterState::default();
        // Port 1 (tcpmux) is nobody's.
        for (id, addr) in [(1, "127.0.0.1:1"), (2, open.as_str()), (3, "127.0.0.1:1"), (4, "127.0.0.1:1")] {
            let member = Member { addr: addr.into(), http_addr: "h".into(), pid: 1, draining: false };
            state.members.insert(id, member);
        }
        for coordinator in [1, 2, 4] {
            let group = Group {
                deployment: "m".into(),
                epoch: 1,
                shape: Shape::SOLO,
                ranks: vec![],
                rank_weights: vec![],
                experts: vec![],
                ready: BTreeSet::new(),
                collective: CollectiveKind::Solo,
                kv_blocks: 1,
                block_size: 1,
                key: [0; 16],
                driver: Some(DriverLease { coordinator, epoch: 1 }),
            };
            state.groups.insert(coordinator, group);
        }
        assert_eq!(drivers_gone(&state, &BTreeSet::from([1, 2, 3])).await, BTreeSet::from([1]));
    }
}
