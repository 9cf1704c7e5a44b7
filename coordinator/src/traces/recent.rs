//! The last requests, by id.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use super::lock;
use crate::timeline::{Driven, Front, Micros};

/// Requests that are kept; the oldest go first.
pub const KEPT_REQUESTS: usize = 4_096;
/// Front doors' parts of one request: its client may attach again and again.
const MOST_FRONTS: usize = 8;
/// Drivers' parts of one request: of its choices, and of drivers that followed each other.
const MOST_DRIVEN: usize = 32;

/// What is kept of one request.
#[derive(Debug, Clone, Default)]
pub struct Parts {
    /// The latest ones.
    pub fronts: Vec<Front>,
    /// The first ones.
    pub driven: Vec<Driven>,
    /// How many more there were of those.
    pub more_driven: u64,
}

#[derive(Debug, Default)]
struct Entry {
    fronts: Vec<Arc<Mutex<Front>>>,
    driven: Vec<Driven>,
    more_driven: u64,
    came: Micros,
}

/// The bounded memory.
#[derive(Debug, Default)]
pub(super) struct Recent {
    by_id: BTreeMap<String, Entry>,
    /// Oldest first.
    order: VecDeque<String>,
}

impl Recent {
    fn entry(&mut self, request_id: &str, came: Micros) -> &mut Entry {
        if !self.by_id.contains_key(request_id) {
            if self.order.len() >= KEPT_REQUESTS
                && let Some(oldest) = self.order.pop_front()
            {
                self.by_id.remove(&oldest);
            }
            self.order.push_back(request_id.to_owned());
            self.by_id.insert(request_id.to_owned(), Entry { came, ..Entry::default() });
        }
        self.by_id.get_mut(request_id).expect("it has just been looked up or inserted")
    }

    /// A front door's part, which is still being recorded.
    pub(super) fn front(&mut self, front: &Arc<Mutex<Front>>) {
        let (id, came) = {
            let front = lock(front);
            (front.request_id.clone(), front.arrived)
        };
        let entry = self.entry(&id, came);
        if entry.fronts.len() >= MOST_FRONTS {
            entry.fronts.remove(0);
        }
        entry.fronts.push(Arc::clone(front));
    }

    /// A driver's part, which is over.
    pub(super) fn driven(&mut self, driven: Driven) {
        let entry = self.entry(&driven.request_id, driven.began);
        if entry.driven.len() >= MOST_DRIVEN {
            entry.more_driven += 1;
        } else {
            entry.driven.push(driven);
        }
    }

    pub(super) fn latest_front(&self, request_id: &str) -> Option<Arc<Mutex<Front>>> {
        self.by_id.get(request_id)?.fronts.last().cloned()
    }

    pub(super) fn find(&self, request_id: &str) -> Option<Parts> {
        let entry = self.by_id.get(request_id)?;
        Some(Parts {
            fronts: entry.fronts.iter().map(|front| lock(front).clone()).collect(),
            driven: entry.driven.clone(),
            more_driven: entry.more_driven,
        })
    }

    /// The last `limit` requests that came through this front door, the last one first, or those that took longest, that first.
    pub(super) fn list(&self, slowest: bool, limit: usize, now: Micros) -> Vec<Front> {
        let fronts = self.order.iter().rev().filter_map(|id| self.latest_front(id));
        if !slowest {
            return fronts.take(limit).map(|front| lock(&front).clone()).collect();
        }
        let mut durations: Vec<_> =
            fronts.map(|front| (lock(&front).duration_us(now), front.clone())).collect();
        durations.sort_by_key(|(duration, _)| std::cmp::Reverse(*duration));
        durations.into_iter().take(limit).map(|(_, front)| lock(&front).clone()).collect()
    }

    pub(super) fn oldest(&self) -> Option<Micros> {
        self.order.front().and_then(|id| self.by_id.get(id)).map(|entry| entry.came)
    }
}
