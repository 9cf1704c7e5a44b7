//! Requests that this coordinator's drivers have done with, kept for a while: ended ones, so that a request id sent twice is
//! one request, and ones whose group was lost while nobody may have listened, so that they can still be found.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use foggara_proto::sequence::{FoundRequest, SequenceEvent, SequenceRequest};

use super::answer::Answer;

/// How long they are kept.
pub(super) const KEPT: Duration = Duration::from_secs(60);
/// About the memory that they take together, at most; the oldest go first.
const MOST_BYTES: usize = 32 << 20;

#[derive(Debug)]
struct Entry {
    model: String,
    /// The group that answered it; `None`: it is lost.
    group: Option<u64>,
    answer: Answer,
    bytes: usize,
    /// Counts entries: tells it from a later one of the same id.
    number: u64,
}

#[derive(Debug, Default)]
struct Inner {
    by_id: HashMap<String, Entry>,
    /// Oldest first.
    order: VecDeque<(Instant, u64, String)>,
    bytes: usize,
    number: u64,
}

/// The kept requests.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<Inner>);

impl Kept {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Keeps what has come of a request of `model`. `group`: where it ended; `None` if it did not.
    pub(super) fn keep(&self, model: &str, group: Option<u64>, answer: Answer, now: Instant) {
        let mut inner = self.lock();
        let id = answer.request().request_id.clone();
        inner.remove(&id);
        inner.number += 1;
        let (number, bytes) = (inner.number, answer.bytes() + 2 * id.len());
        inner.bytes += bytes;
        inner.order.push_back((now, number, id.clone()));
        inner.by_id.insert(id, Entry { model: model.to_owned(), group, answer, bytes, number });
        inner.forget(now);
    }

    /// Keeps the choices of these requests, called by their first ones, as if they had ended `now`.
    pub(super) fn renew(&self, requests: &BTreeSet<String>, now: Instant) {
        let mut inner = self.lock();
        let is_of = |(id, entry): &(&String, &Entry)| {
            requests.contains(entry.answer.request().sibling_of.as_ref().unwrap_or(id))
        };
        let ids: Vec<String> = inner.by_id.iter().filter(is_of).map(|(id, _)| id.clone()).collect();
        ids.iter().for_each(|id| inner.renew(id, now));
    }

    /// Where a request of `model` ended, if it did.
    pub(super) fn group(&self, model: &str, request_id: &str) -> Option<u64> {
        let inner = self.lock();
        let entry = inner.by_id.get(request_id).filter(|entry| entry.model == model)?;
        entry.group.filter(|_| entry.answer.end().is_some())
    }

    /// Forgets what is too old.
    pub(super) fn forget(&self, now: Instant) {
        self.lock().forget(now);
    }

    /// The whole answer beyond what `request` has, if it is that of an ended request. What is kept under the id of another
    /// request is forgotten.
    pub(super) fn answer(&self, model: &str, request: &SequenceRequest) -> Option<SequenceEvent> {
        let mut inner = self.lock();
        let entry = inner.by_id.get(&request.request_id)?;
        let same = entry.model == model && entry.answer.end().is_some() && entry.answer.is_of(request);
        let event = entry.answer.beyond(request).filter(|_| same);
        if event.is_none() {
            inner.remove(&request.request_id);
        }
        event
    }

    /// What is known of a request.
    pub(super) fn find(&self, request_id: &str) -> Option<FoundRequest> {
        let inner = self.lock();
        let entry = inner.by_id.get(request_id)?;
        let request = entry.answer.request();
        Some(FoundRequest {
            model: entry.model.clone(),
            group: entry.group,
            prompt: request.tokens.clone(),
            envelope: request.envelope.clone(),
        })
    }
}

impl Inner {
    fn renew(&mut self, id: &str, now: Instant) {
        let Some(entry) = self.by_id.get_mut(id) else { return };
        self.number += 1;
        entry.number = self.number;
        self.order.push_back((now, self.number, id.to_owned()));
    }

    fn remove(&mut self, id: &str) {
        if let Some(entry) = self.by_id.remove(id) {
            self.bytes -= entry.bytes;
        }
    }

    fn forget(&mut self, now: Instant) {
        while let Some((since, number, id)) = self.order.front() {
            let current = self.by_id.get(id).is_some_and(|entry| entry.number == *number);
            if current && now.saturating_duration_since(*since) <= KEPT && self.bytes <= MOST_BYTES {
                return;
            }
            let Some((_, _, id)) = self.order.pop_front() else { return };
            if current {
                self.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use foggara_proto::sequence::{SequenceEnd, SequenceParams, TokenOutput};

    use super::*;

    fn request(id: &str, prompt: &[u32]) -> SequenceRequest {
        SequenceRequest::new(id, prompt.to_vec(), prompt.len(), SequenceParams::default())
    }

    fn ended(id: &str, prompt: &[u32]) -> Answer {
        let mut answer = Answer::new(request(id, prompt));
        let token = TokenOutput { token: 7, logprob: None, top: vec![] };
        let end = Some(SequenceEnd::Length);
        answer.take(&SequenceEvent { tokens: vec![token], end, ..SequenceEvent::default() });
        answer
    }

    #[test]
    fn the_same_request_gets_the_same_answer_for_a_while() {
        let (kept, now) = (Kept::default(), Instant::now());
        kept.keep("m", Some(4), ended("a", &[1, 2]), now);
        let event = kept.answer("m", &request("a", &[1, 2])).expect("kept");
        assert_eq!((event.tokens[0].token, event.end), (7, Some(SequenceEnd::Length)));
        assert_eq!(kept.find("a").map(|found| (found.group, found.prompt)), Some((Some(4), vec![1, 2])));
        kept.forget(now + KEPT);
        assert!(kept.find("a").is_some());
        kept.forget(now + KEPT + Duration::from_millis(1));
        assert!(kept.find("a").is_none() && kept.answer("m", &request("a", &[1, 2])).is_none());
        let inner = kept.lock();
        assert_eq!((inner.bytes, inner.order.len()), (0, 0));
    }

    #[test]
    fn the_choices_of_a_request_are_kept_for_as_long_as_the_last() {
        let (kept, now) = (Kept::default(), Instant::now());
        kept.keep("m", Some(4), ended("a", &[1, 2]), now);
        kept.keep("m", Some(4), ended("b", &[1, 2]), now);
        let choice = SequenceRequest { sibling_of: Some("a".into()), ..request("a#1", &[1, 2]) };
        kept.keep("m", Some(4), Answer::new(choice), now);
        kept.renew(&["a".to_owned(), "nobody".to_owned()].into(), now + KEPT);
        kept.forget(now + KEPT + KEPT);
        let known = |id: &str| kept.find(id).is_some();
        assert_eq!(
            (known("a"), known("a#1"), known("b")),
            (true, true, false),
            "a#2 was still being answered"
        );
        kept.forget(now + KEPT + KEPT + Duration::from_millis(1));
        assert!(!known("a") && !known("a#1") && kept.lock().order.is_empty());
    }

    #[test]
    fn only_what_has_ended_has_ended_somewhere() {
        let (kept, now) = (Kept::default(), Instant::now());
        kept.keep("m", Some(4), ended("a", &[1, 2]), now);
        kept.keep("m", None, Answer::new(request("b", &[1, 2])), now);
        assert_eq!(kept.group("m", "a"), Some(4));
        assert_eq!((kept.group("n", "a"), kept.group("m", "b"), kept.group("m", "c")), (None, None, None));
    }

    #[test]
    fn another_request_of_the_same_id_is_a_new_one() {
        let (kept, now) = (Kept::default(), Instant::now());
        for other in [("m", request("a", &[1, 3])), ("n", request("a", &[1, 2]))] {
            kept.keep("m", Some(4), ended("a", &[1, 2]), now);
            assert_eq!(kept.answer(other.0, &other.1), None);
            assert!(kept.find("a").is_none(), "the later one counts");
        }
    }

    #[test]
    fn what_did_not_end_is_found_but_not_an_answer() {
        let (kept, now) = (Kept::default(), Instant::now());
        kept.keep("m", None, Answer::new(request("a", &[1, 2])), now);
        assert_eq!(kept.find("a").map(|found| found.group), Some(None));
        assert_eq!(kept.answer("m", &request("a", &[1, 2])), None);
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_go_first() {
        let (kept, now) = (Kept::default(), Instant::now());
        let prompt = vec![1; 1 << 20];
        for id in 0..20 {
            kept.keep("m", Some(1), ended(&id.to_string(), &prompt), now);
            kept.keep("m", Some(1), ended("again", &[1]), now);
        }
        let inner = kept.lock();
        assert!(
            inner.bytes <= MOST_BYTES && inner.by_id.len() == 8,
            "{} in {}",
            inner.by_id.len(),
            inner.bytes
        );
        assert!(inner.by_id.contains_key("19") && inner.by_id.contains_key("again"));
        assert!(inner.order.len() < 40, "what was replaced goes too");
    }
}
