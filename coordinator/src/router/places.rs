//! Where the sequences of this front door are: what routing decides by, and what it has decided.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use foggara_proto::sequence::SequenceRequest;
use tokio::sync::watch;

use super::policy::{Asked, GroupView, Policy, PolicyKind};

/// How long a choice waits for the first of its request to be placed. That takes milliseconds, or there is no group at all.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);

/// What this front door knows of its sequences and of the groups' caches.
#[derive(Debug, Clone)]
pub struct Places(Arc<Mutex<Known>>);

#[derive(Debug)]
struct Known {
    policy: Box<dyn Policy>,
    /// Sequences, by group.
    load: HashMap<u64, usize>,
    /// Open requests by their id.
    requests: HashMap<String, Opened>,
}

/// A group for a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Its place among the groups.
    pub place: usize,
    /// Whether the sequence, or its like, is there already.
    pub known: bool,
}

/// Requests that are open under one id: the same one, sent again while it is being answered.
#[derive(Debug, Default)]
struct Opened {
    count: usize,
    /// The group of the last that was placed.
    place: watch::Sender<Option<u64>>,
}

impl Places {
    /// Nothing anywhere, and how to choose.
    pub fn new(kind: PolicyKind) -> Self {
        let (load, requests) = Default::default();
        Self(Arc::new(Mutex::new(Known { policy: kind.build(), load, requests })))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Sequences of this front door in `group`.
    pub fn load(&self, group: u64) -> usize {
        self.known().load.get(&group).copied().unwrap_or(0)
    }

    /// The place in `groups` for a sequence. If it `stays`: where it is said to be, or beside the first of its choices, or where
    /// the same request is already. Else what the policy says. `None` without groups.
    pub fn choose(&self, request: &SequenceRequest, groups: &[GroupView], stays: bool) -> Option<Choice> {
        if groups.is_empty() {
            return None;
        }
        let mut known = self.known();
        let place = |id: &str, others: usize| {
            let opened = known.requests.get(id).filter(|opened| opened.count > others)?;
            *opened.place.borrow()
        };
        let beside = || request.sibling_of.as_ref().and_then(|first| place(first, 0));
        let group = request.at.or_else(beside).or_else(|| place(&request.request_id, 1)).filter(|_| stays);
        let found = group.and_then(|group| groups.iter().position(|view| view.group == group));
        let place = found.unwrap_or_else(|| known.policy.choose(&request.into(), groups));
        Some(Choice { place, known: found.is_some() })
    }

    /// A request is about to be routed; it is known until the result is dropped.
    pub fn open(&self, request: &SequenceRequest) -> Open {
        let id = request.request_id.clone();
        self.known().requests.entry(id.clone()).or_default().count += 1;
        Open { places: self.clone(), id, counted: None }
    }

    /// Waits until the first of a request's choices, if it is open here, has a group.
    pub async fn first_placed(&self, request: &SequenceRequest) {
        let Some(first) = &request.sibling_of else { return };
        let waiting = self.known().requests.get(first).map(|opened| opened.place.subscribe());
        let Some(mut place) = waiting else { return };
        // Placed, gone, or late: whatever it is, this one goes on.
        tokio::time::timeout(FIRST_PATIENCE, place.wait_for(Option::is_some)).await.ok();
    }
}

/// An open request.
#[derive(Debug)]
pub struct Open {
    places: Places,
    id: String,
    counted: Option<u64>,
}

impl Open {
    /// It is about to be handed to a group: counted there, so that those who are routed meanwhile do not all go there.
    pub fn leans(&mut self, group: u64) {
        self.left();
        *self.places.known().load.entry(group).or_default() += 1;
        self.counted = Some(group);
    }

    /// A group has taken it.
    pub fn placed(&mut self, request: &SequenceRequest, group: &GroupView) {
        self.leans(group.group);
        let mut known = self.places.known();
        if let Some(opened) = known.requests.get(&self.id) {
            opened.place.send_replace(Some(group.group));
        }
        known.policy.placed(&request.into(), group);
    }

    /// It has ended there: all of its tokens are in the cache.
    pub fn ended(&mut self, request: &SequenceRequest, group: &GroupView) {
        self.places.known().policy.placed(&Asked::from(request), group);
    }

    /// Its group has it no more.
    pub fn left(&mut self) {
        let Some(group) = self.counted.take() else { return };
        let mut known = self.places.known();
        if let Some(count) = known.load.get_mut(&group) {
            *count -= 1;
            if *count == 0 {
                known.load.remove(&group);
            }
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.left();
        let mut known = self.places.known();
        if let Some(opened) = known.requests.get_mut(&self.id) {
            opened.count -= 1;
            if opened.count == 0 {
                known.requests.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batcher::tests::request;

    fn named(id: &str, sibling_of: Option<&str>) -> SequenceRequest {
        let sibling_of = sibling_of.map(str::to_owned);
        SequenceRequest { request_id: id.into(), sibling_of, ..request(&[1, 2, 3], 4) }
    }

    fn choose(
        places: &Places,
        request: &SequenceRequest,
        groups: &[GroupView],
        stays: bool,
    ) -> Option<usize> {
        places.choose(request, groups, stays).map(|choice| choice.place)
    }

    fn views(places: &Places) -> Vec<GroupView> {
        let view =
            |group| GroupView { group, driver_epoch: 1, load: places.load(group), blocks: 9, block_size: 2 };
        (1..4).map(view).collect()
    }

    #[tokio::test]
    async fn choices_go_where_their_first_is_and_wait_for_it() {
        let places = Places::new(PolicyKind::RoundRobin);
        let (first, second) = (named("r", None), named("r-1", Some("r")));
        let mut open = places.open(&first);
        let mut waiting = std::pin::pin!(places.first_placed(&second));
        assert!(futures::poll!(waiting.as_mut()).is_pending(), "the first has no group yet");
        let groups = views(&places);
        open.placed(&first, &groups[1]);
        waiting.await;
        assert_eq!(choose(&places, &second, &groups, true), Some(1));
        assert_eq!(
            choose(&places, &named("other", None), &groups, true),
            Some(0),
            "it was not the policy that chose"
        );
        assert_eq!(
            choose(&places, &second, &groups[2..], true),
            Some(0),
            "its group cannot be chosen any more"
        );
        drop(open);
        places.first_placed(&second).await;
        assert_eq!(choose(&places, &second, &[], true), None);
    }

    #[tokio::test]
    async fn a_first_that_goes_without_a_group_holds_nobody_up() {
        let places = Places::new(PolicyKind::LeastLoaded);
        let open = places.open(&named("r", None));
        let second = named("r-1", Some("r"));
        let mut waiting = std::pin::pin!(places.first_placed(&second));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        drop(open);
        waiting.await;
        assert_eq!(choose(&places, &second, &views(&places), true), Some(0));
    }

    #[test]
    fn sequences_are_counted_where_they_are() {
        let places = Places::new(PolicyKind::LeastLoaded);
        let (one, two) = (named("a", None), named("b", None));
        let (mut first, mut second) = (places.open(&one), places.open(&two));
        let groups = views(&places);
        first.placed(&one, &groups[0]);
        second.placed(&two, &groups[0]);
        assert_eq!((places.load(1), places.load(2)), (2, 0));
        second.leans(groups[1].group);
        assert_eq!((places.load(1), places.load(2)), (1, 1), "it is about to move");
        second.placed(&two, &groups[1]);
        assert_eq!((places.load(1), places.load(2)), (1, 1), "it has moved");
        first.left();
        first.left();
        assert_eq!(choose(&places, &one, &views(&places), true), Some(0));
        drop((first, second));
        assert_eq!((places.load(1), places.load(2)), (0, 0));
        assert!(places.known().load.is_empty() && places.known().requests.is_empty());
    }

    #[test]
    fn a_request_that_is_sent_twice_is_served_in_one_place() {
        let places = Places::new(PolicyKind::RoundRobin);
        let (request, sibling) = (named("a", None), named("b", Some("a")));
        let (mut first, mut second) = (places.open(&request), places.open(&request));
        let groups = views(&places);
        first.placed(&request, &groups[2]);
        assert_eq!(places.choose(&request, &groups, true), Some(Choice { place: 2, known: true }));
        assert_eq!(choose(&places, &request, &groups, false), Some(0), "unless that takes too long");
        second.placed(&request, &groups[2]);
        drop(first);
        assert_eq!(choose(&places, &sibling, &groups, true), Some(2), "the second is still open");
        let alone = places.choose(&request, &groups, true);
        assert_eq!(alone, Some(Choice { place: 1, known: false }), "as the policy says");
        drop(second);
        assert_eq!(choose(&places, &sibling, &groups, true), Some(2), "as the policy says");
        assert!(places.known().load.is_empty() && places.known().requests.is_empty());
    }

    #[test]
    fn a_sequence_goes_where_it_is_said_to_be_while_that_can_be_chosen() {
        let places = Places::new(PolicyKind::RoundRobin);
        let groups = views(&places);
        let mut open = places.open(&named("r", None));
        open.placed(&named("r", None), &groups[0]);
        for sibling_of in [None, Some("r")] {
            let there = SequenceRequest { at: Some(3), ..named("x", sibling_of) };
            assert_eq!(choose(&places, &there, &groups, true), Some(2));
        }
        let there = SequenceRequest { at: Some(3), ..named("x", None) };
        assert_eq!(choose(&places, &there, &groups[..2], true), Some(0), "as the policy says");
        assert_eq!(choose(&places, &there, &groups, false), Some(1), "as the policy says");
    }
}
