use std::collections::BTreeMap;

use super::*;
use crate::batcher::tests::Lcg;

/// A queue and the tickets of those that wait in it.
struct Line {
    queue: Queue,
    tickets: BTreeMap<SequenceId, Ticket>,
}

impl Line {
    fn new() -> Self {
        Self { queue: Queue::new(100), tickets: BTreeMap::new() }
    }

    fn request(tenant: &str, weight: u32, priority: i32) -> SequenceRequest {
        let params = crate::batcher::tests::params(8);
        let request = SequenceRequest::new("r", vec![1; 4], 4, params);
        SequenceRequest { tenant: tenant.into(), weight, priority, ..request }
    }

    fn push(&mut self, id: SequenceId, request: &SequenceRequest, now_ms: u64) {
        let ticket = self.queue.push(id, &Arrival::of(request, now_ms));
        self.tickets.insert(id, ticket);
    }

    /// Lets the next one in, with `tokens` to compute.
    fn enter(&mut self, tokens: usize) -> SequenceId {
        let id = self.queue.candidates().next().expect("somebody waits");
        self.queue.enter(id, self.tickets.get_mut(&id).expect("waits"), tokens);
        id
    }

    /// Lets everybody in, with `tokens` each.
    fn drain(&mut self, tokens: usize) -> Vec<SequenceId> {
        std::iter::from_fn(|| (self.queue.len() > 0).then(|| self.enter(tokens))).collect()
    }
}

#[test]
fn those_of_one_tenant_enter_as_they_came() {
    let mut line = Line::new();
    for id in [5, 3, 9, 1] {
        line.push(id, &Line::request("a", 1, 0), 7);
    }
    assert_eq!(line.drain(10), [5, 3, 9, 1]);
}

#[test]
fn a_unit_of_priority_is_worth_a_second() {
    let mut line = Line::new();
    line.push(1, &Line::request("a", 1, 2), 0);
    line.push(2, &Line::request("a", 1, 0), 1_999);
    line.push(3, &Line::request("a", 1, 0), 2_001);
    line.push(4, &Line::request("a", 1, -1), 2_500);
    assert_eq!(line.drain(10), [4, 2, 1, 3]);
}

#[test]
fn nobody_is_set_back_by_more_than_the_most() {
    let mut line = Line::new();
    line.push(1, &Line::request("a", 1, i32::MAX), 0);
    line.push(2, &Line::request("a", 1, i32::MIN), 200_001);
    assert_eq!(line.drain(10), [1, 2]);
}

#[test]
fn tenants_take_turns_by_tokens() {
    let mut line = Line::new();
    for id in 0..6 {
        line.push(id, &Line::request("a", 1, 0), id);
    }
    for id in 6..12 {
        line.push(id, &Line::request("b", 2, 0), id);
    }
    let entered = line.drain(10);
    let of_b = |count: usize| entered[..count].iter().filter(|id| **id >= 6).count();
    assert_eq!((of_b(3), of_b(6), of_b(9)), (2, 4, 6), "{entered:?}");
}

#[test]
fn a_priority_takes_nothing_from_another_tenant() {
    let mut line = Line::new();
    for id in 0..4 {
        line.push(id, &Line::request("pushy", 1, -100), 0);
        line.push(10 + id, &Line::request("b", 1, 100), 0);
    }
    let entered = line.drain(10);
    assert_eq!(entered[..4].iter().filter(|id| **id < 10).count(), 2, "{entered:?}");
}

#[test]
fn generated_tokens_count() {
    let mut line = Line::new();
    for id in 0..3 {
        line.push(id, &Line::request("a", 1, 0), 0);
        line.push(10 + id, &Line::request("b", 1, 0), 0);
    }
    assert_eq!((line.enter(10), line.enter(10)), (0, 10));
    let ticket = line.tickets[&0];
    (0..10).for_each(|_| line.queue.sampled(&ticket));
    assert_eq!((line.enter(10), line.enter(10), line.enter(10)), (11, 12, 1));
}

#[test]
fn whoever_was_idle_starts_where_the_others_are() {
    let mut line = Line::new();
    for id in 0..40 {
        line.push(id, &Line::request("a", 1, 0), 0);
    }
    for _ in 0..20 {
        line.enter(100);
    }
    for id in 100..110 {
        line.push(id, &Line::request("late", 1, 0), 0);
    }
    let next: Vec<_> = (0..10).map(|_| line.enter(100)).collect();
    let late = next.iter().filter(|id| **id >= 100).count();
    assert_eq!(late, 5, "{next:?}");
}

#[test]
fn leaving_and_coming_back_clears_no_account() {
    let mut line = Line::new();
    for id in 0..5 {
        line.push(100 + id, &Line::request("b", 1, 0), 0);
    }
    line.push(1, &Line::request("a", 1, 0), 0);
    line.enter(10);
    assert_eq!(line.enter(1_000), 1, "all that `a` has waiting");
    line.push(2, &Line::request("a", 1, 0), 5);
    assert_eq!(line.drain(10), [101, 102, 103, 104, 2]);
}

#[test]
fn streams_that_have_begun_go_first_and_starting_over_is_free() {
    let mut line = Line::new();
    for id in [1, 2] {
        line.push(id, &Line::request("a", 1, 0), 0);
    }
    line.push(3, &Line::request("b", 1, 0), 0);
    let mut resumed = Line::request("c", 1, 50);
    resumed.tokens.push(7);
    line.push(4, &resumed, 9);
    assert_eq!((line.enter(10), line.enter(10)), (4, 1));
    for id in [1, 4] {
        line.queue.put_back(id, line.tickets.get_mut(&id).expect("known"), 0);
    }
    assert_eq!((line.enter(900), line.enter(900)), (4, 1), "the last put back is the first");
    assert_eq!((line.enter(10), line.enter(10)), (3, 2));
}

#[test]
fn deadlines_pass() {
    let mut line = Line::new();
    let limited = |deadline| SequenceRequest { deadline_ms: Some(deadline), ..Line::request("a", 1, 0) };
    line.push(1, &limited(50), 100);
    line.push(2, &limited(20), 100);
    line.push(3, &limited(u64::MAX), 100);
    assert_eq!((line.queue.expired(120), line.queue.next_deadline()), (None, Some(121)));
    assert_eq!(line.queue.expired(121), Some(2));
    let ticket = line.tickets[&2];
    line.queue.remove(2, &ticket);
    assert_eq!(line.queue.expired(150), None);
    assert_eq!(line.enter(10), 1, "just in time");
    assert_eq!(line.queue.expired(u64::MAX - 1), None);
    assert_eq!(line.queue.len(), 1);
}

#[test]
fn a_flood_leaves_room_for_others() {
    let mut line = Line::new();
    let arrival = |tenant: &str| Arrival::of(&Line::request(tenant, 1, 0), 0);
    for id in 0..103 {
        assert!(line.queue.admits(&arrival("a"), 3), "{id}: a hundred wait, three enter");
        line.push(id, &Line::request("a", 1, 0), 0);
    }
    assert!(!line.queue.admits(&arrival("a"), 3));
    for id in 0..25 {
        let name = format!("tenant {id}");
        assert!(line.queue.admits(&arrival(&name), 3));
        line.push(200 + id, &Line::request(&name, 1, 0), 0);
        assert!(!line.queue.admits(&arrival(&name), 3), "one each");
    }
    assert!(!line.queue.admits(&arrival("another"), 3), "that has an end too");
}

#[test]
fn many_names_are_forgotten_but_not_those_that_wait() {
    let mut line = Line::new();
    line.push(0, &Line::request("waits", 1, 0), 0);
    for id in 1..5_000 {
        line.push(id, &Line::request(&format!("{id}"), 1, 0), 0);
        let ticket = line.tickets[&id];
        line.queue.remove(id, &ticket);
    }
    assert_eq!(line.drain(10), [0]);
    assert!(line.queue.tenants.remembered() < 1_100);
}

#[test]
fn whatever_happens_everybody_who_waits_is_in_line_once() {
    for seed in 0..20 {
        let (mut line, mut random) = (Line::new(), Lcg(seed));
        let mut waiting: Vec<SequenceId> = Vec::new();
        let mut running: Vec<SequenceId> = Vec::new();
        for id in 0..600 {
            match random.below(5) {
                0 | 1 => {
                    let tenant = ["a", "b", "c"][random.below(3) as usize];
                    let priority = random.below(5) as i32 - 2;
                    let mut request = Line::request(tenant, 1 + random.below(3) as u32, priority);
                    request.deadline_ms = (random.below(3) == 0).then_some(50);
                    request.tokens.extend((random.below(6) == 0).then_some(1));
                    line.push(id, &request, id);
                    waiting.push(id);
                }
                2 if !waiting.is_empty() => {
                    let id = line.enter(random.below(100) as usize);
                    waiting.retain(|other| *other != id);
                    running.push(id);
                }
                3 if !running.is_empty() => {
                    let id = running.remove(random.below(running.len() as u64) as usize);
                    line.queue.put_back(id, line.tickets.get_mut(&id).expect("known"), 0);
                    waiting.push(id);
                }
                _ if !waiting.is_empty() => {
                    let id = waiting.remove(random.below(waiting.len() as u64) as usize);
                    let ticket = line.tickets[&id];
                    line.queue.remove(id, &ticket);
                }
                _ => {}
            }
            let mut in_line: Vec<_> = line.queue.candidates().collect();
            in_line.sort_unstable();
            waiting.sort_unstable();
            assert_eq!(in_line, waiting);
            assert_eq!(line.queue.len(), waiting.len());
        }
    }
}

#[test]
fn whoever_has_waited_longest_is_known_whatever_order_they_enter_in() {
    let mut line = Line::new();
    assert_eq!(line.queue.oldest(), None);
    line.push(1, &Line::request("a", 1, 100), 10);
    line.push(2, &Line::request("a", 1, 0), 20);
    line.push(3, &Line::request("a", 1, -100), 30);
    assert_eq!(line.enter(10), 3);
    assert_eq!(line.queue.oldest(), Some(10), "set back by its priority");
    // It has to make room, and waits from then on.
    line.queue.put_back(3, line.tickets.get_mut(&3).expect("had entered"), 40);
    let oldest = std::iter::from_fn(|| (line.queue.len() > 0).then(|| (line.enter(1), line.queue.oldest())));
    assert_eq!(oldest.collect::<Vec<_>>(), [(3, Some(10)), (2, Some(10)), (1, None)]);
}
