//! Coordinators that are connected to this one, and what they are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use foggara_proto::version::Build;

#[derive(Debug, Default)]
struct Inner {
    /// By id: the number of the connection, and what came through it.
    connected: BTreeMap<u64, (u64, Build)>,
    next: u64,
}

/// Who is connected.
#[derive(Debug, Clone, Default)]
pub struct Peers(Arc<Mutex<Inner>>);

impl Peers {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Coordinator `id` has connected, and is `build`: until what is returned is dropped.
    pub fn connected(&self, id: u64, build: Build) -> Connected {
        let mut inner = self.lock();
        inner.next += 1;
        let number = inner.next;
        inner.connected.insert(id, (number, build));
        Connected { peers: self.clone(), id, number }
    }

    /// What coordinator `id` is, while it is connected.
    pub fn build(&self, id: u64) -> Option<Build> {
        self.lock().connected.get(&id).map(|(_, build)| build.clone())
    }
}

/// A connection that lasts.
#[derive(Debug)]
pub struct Connected {
    peers: Peers,
    id: u64,
    number: u64,
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut inner = self.peers.lock();
        // It may have connected anew before this one was found to have ended.
        if inner.connected.get(&self.id).is_some_and(|(number, _)| *number == self.number) {
            inner.connected.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_connection_counts_for_as_long_as_it_lasts() {
        let (peers, old) = (Peers::default(), Build::own());
        let new = Build { version: "9.9.9".into(), ..old.clone() };
        assert_eq!(peers.build(2), None);
        let first = peers.connected(2, old.clone());
        assert_eq!(peers.build(2), Some(old));
        let second = peers.connected(2, new.clone());
        drop(first);
        assert_eq!((peers.build(2), peers.build(3)), (Some(new), None));
        drop(second);
        assert_eq!(peers.build(2), None);
    }
}
