//! Adapters: which of them a worker is told to load beside its rank's weights, and what it says of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use foggara_proto::wire::worker as wire;

use super::{Registry, Session, UNFIT, message};
use crate::cluster::state::Group;
use crate::cluster::{ClusterState, Command};

/// The adapters that a session was told to load for its group, by number.
#[derive(Debug, Default)]
pub(super) struct Adapters(BTreeMap<u64, Told>);

/// What has come of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// It is being loaded, or is there.
    Once,
    /// It could not be loaded at that time.
    Failed(Instant),
}

impl Adapters {
    /// Which of the adapters that are wanted the worker is to be told of: those it does not know, and those that it could not load
    /// a while ago. They count as told.
    fn due(&mut self, wanted: &BTreeSet<u64>, now: Instant) -> Vec<u64> {
        let waits = |told: &Told| match told {
            Told::Once => true,
            Told::Failed(since) => now.saturating_duration_since(*since) < UNFIT,
        };
        self.0.retain(|id, told| wanted.contains(id) && waits(told));
        let due: Vec<u64> = wanted.iter().copied().filter(|id| !self.0.contains_key(id)).collect();
        self.0.extend(due.iter().map(|id| (*id, Told::Once)));
        due
    }

    fn failed(&mut self, id: u64, now: Instant) {
        self.0.insert(id, Told::Failed(now));
    }
}

impl Session {
    /// Tells the worker which adapters to load for its group, where it has not been told. It loads them after its weights.
    pub(super) fn tell_adapters(&mut self, state: &ClusterState, group: Option<(u64, &Group)>) {
        let Some((id, group)) = group else { return };
        let wanted: BTreeSet<u64> =
            state.adapters_of(&group.deployment).map(|(_, adapter)| adapter.id).collect();
        for due in self.adapters.due(&wanted, Instant::now()) {
            let Some((_, adapter)) = state.adapter(due) else { continue };
            let load = wire::LoadAdapter {
                group: id,
                epoch: group.epoch,
                adapter: due,
                path: adapter.path.clone(),
                manifest: adapter.manifest.clone(),
            };
            self.messages.send(message(wire::registry_message::Message::LoadAdapter(load))).ok();
        }
    }
}

impl Registry {
    /// A worker says what has become of an adapter: what is to be written down of it, if that is not known yet.
    pub(super) fn adapter_loaded(
        &self,
        state: &ClusterState,
        worker: u64,
        loaded: wire::AdapterLoaded,
    ) -> Option<Command> {
        let wire::AdapterLoaded { group, epoch, rank, adapter, failed } = loaded;
        let failed = Some(failed).filter(|reason| !reason.is_empty());
        if let Some(reason) = &failed {
            tracing::error!(worker, group, rank, adapter, reason, "an adapter cannot be loaded");
            if let Some(session) = self.lock().sessions.get_mut(&worker)
                && session.told == Some((group, epoch))
            {
                session.adapters.failed(adapter, Instant::now());
            }
        }
        let known = state.adapters_loaded.get(&group).and_then(|loaded| loaded.get(&adapter));
        let known = known.is_some_and(|load| match &failed {
            None => load.ready.contains(&rank),
            Some(reason) => load.failed.get(&rank) == Some(reason),
        });
        (!known).then_some(Command::AdapterLoaded { group, epoch, rank, adapter, failed })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn due(told: &mut Adapters, wanted: &[u64], now: Instant) -> Vec<u64> {
        told.due(&wanted.iter().copied().collect(), now)
    }

    #[test]
    fn each_is_told_once_and_again_a_while_after_it_failed() {
        let (mut told, now) = (Adapters::default(), Instant::now());
        assert_eq!(due(&mut told, &[], now), [0; 0]);
        assert_eq!(due(&mut told, &[4, 6], now), [4, 6]);
        assert_eq!(due(&mut told, &[4, 6, 7], now), [7]);
        told.failed(6, now);
        assert_eq!(due(&mut told, &[4, 6, 7], now + UNFIT - Duration::from_millis(1)), [0; 0]);
        assert_eq!(due(&mut told, &[4, 6, 7], now + UNFIT), [6]);
        assert_eq!(due(&mut told, &[4, 6, 7], now + UNFIT * 2), [0; 0], "it may be loading");
        told.failed(7, now);
        assert_eq!(due(&mut told, &[4], now + UNFIT * 2), [0; 0], "7 is not wanted any more");
    }
}
