//! Asking machines whether their workers are gone: quicker than waiting for workers that will never come back.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::cluster::ClusterState;

/// A machine that answers at all answers within this.
const TIMEOUT: Duration = Duration::from_millis(200);

/// The workers of `state` without a session (not in `live`) at whose address nothing listens any more: a process that lives
/// listens until it ends, and a new one takes another id. A machine that does not answer says nothing about its workers.
pub(super) async fn refused(state: &ClusterState, live: &BTreeSet<u64>) -> BTreeSet<u64> {
    let silent = state.workers.iter().filter(|(id, _)| !live.contains(id));
    let probes = silent.map(|(id, worker)| async move {
        let answer = tokio::time::timeout(TIMEOUT, TcpStream::connect(&worker.addr)).await;
        matches!(answer, Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused).then_some(*id)
    });
    futures::future::join_all(probes).await.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::state::Worker;

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
}
