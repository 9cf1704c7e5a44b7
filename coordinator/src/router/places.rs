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
    /// The group of each open request, once it has one.
    requests: HashMap<String, watch::Sender<Option<u64>>>,
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

    /// The place in `groups` for a sequence: that of the first of its choices, or what the policy says. `None` without groups.
    pub fn choose(&self, request: &SequenceRequest, groups: &[GroupView]) -> Option<usize> {
        if groups.is_empty() {
            return None;
        }
        let mut known = self.known();
        let first = request.sibling_of.as_ref().and_then(|first| *known.requests.get(first)?.borrow());
        let beside = first.and_then(|group| groups.iter().position(|view| view.group == group));
        Some(beside.unwrap_or_else(|| known.policy.choose(&request.into(), groups)))
    }

    /// A request is about to be routed; it is known until the result is dropped.
    pub fn open(&self, request: &SequenceRequest) -> Open {
        let id = request.request_id.clone();
        let place = watch::Sender::new(None);
        let at = place.subscribe();
        self.known().requests.insert(id.clone(), place);
        Open { places: self.clone(), id, at, counted: None }
    }

    /// Waits until the first of a request's choices, if it is open here, has a group.
    pub async fn first_placed(&self, request: &SequenceRequest) {
        let Some(first) = &request.sibling_of else { return };
        let waiting = self.known().requests.get(first).map(watch::Sender::subscribe);
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
    /// Tells this request from a later one of the same id.
    at: watch::Receiver<Option<u64>>,
    counted: Option<u64>,
}

impl Open {
    /// A group has taken it.
    pub fn placed(&mut self, request: &SequenceRequest, group: &GroupView) {
        self.left();
        let mut known = self.places.known();
        *known.load.entry(group.group).or_default() += 1;
        self.counted = Some(group.group);
        if let Some(place) =
            known.requests.get(&self.id).filter(|place| place.subscribe().same_channel(&self.at))
        {
            place.send_replace(Some(group.group));
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
        if known.requests.get(&self.id).is_some_and(|place| place.subscribe().same_channel(&self.at)) {
            known.requests.remove(&self.id);
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
        assert_eq!(places.choose(&second, &groups), Some(1));
        assert_eq!(
            places.choose(&named("other", None), &groups),
            Some(0),
            "it was not the policy that chose"
        );
        assert_eq!(places.choose(&second, &groups[2..]), Some(0), "its group cannot be chosen any more");
        drop(open);
        places.first_placed(&second).await;
        assert_eq!(places.choose(&second, &[]), None);
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
        assert_eq!(places.choose(&second, &views(&places)), Some(0));
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
        second.placed(&two, &groups[1]);
        assert_eq!((places.load(1), places.load(2)), (1, 1), "it has moved");
        first.left();
        first.left();
        assert_eq!(places.choose(&one, &views(&places)), Some(0));
        drop((first, second));
        assert_eq!((places.load(1), places.load(2)), (0, 0));
        assert!(places.known().load.is_empty() && places.known().requests.is_empty());
    }

    #[test]
    fn a_request_id_that_is_used_again_is_the_later_ones() {
        let places = Places::new(PolicyKind::LeastLoaded);
        let request = named("a", None);
        let first = places.open(&request);
        let mut second = places.open(&request);
        drop(first);
        second.placed(&request, &views(&places)[2]);
        assert_eq!(places.choose(&named("b", Some("a")), &views(&places)), Some(2));
    }
}
