//! Who enters next.
//!
//! Three rules, the first that applies:
//! 1. A stream that has begun (it was preempted, or comes from a driver that was lost) goes before whoever has not.
//! 2. Between tenants, the one that has had the fewest tokens for its weight ([`tenants`]).
//! 3. Among the requests of a tenant, by priority and time: a unit of priority is worth [`PRIORITY_MS`] of waiting, so what
//!    came first enters first, and a low priority is a handicap, never a sentence.
//!
//! Priorities order a tenant's own requests. They take nothing from other tenants, whatever a client writes there.
//!
//! Every operation takes logarithmic time in the number of requests waiting.

mod tenants;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use foggara_proto::sequence::SequenceRequest;
use foggara_proto::step::SequenceId;

use tenants::{TenantId, Tenants};

/// Waiting that a unit of priority is worth.
const PRIORITY_MS: i64 = 1_000;
/// Priorities beyond count as this: the most that anybody can be set back is 200 seconds.
const MOST_PRIORITY: i32 = 100;
/// A generated token is worth so many tokens of a prompt: it is computed in a step of its own.
pub(super) const DECODED_TOKEN: u64 = 2;
/// Beyond a full queue, this part of it is kept for tenants of whom nobody waits: a flood of one is not an outage for
/// others.
const RESERVE: usize = 4;

/// A sequence that arrives, as the queue sees it.
#[derive(Debug)]
pub(super) struct Arrival {
    tenant: String,
    weight: u32,
    rank: i64,
    at_ms: u64,
    deadline: Option<u64>,
    /// Clients have tokens of it already: it goes first, and has no deadline.
    begun: bool,
}

impl Arrival {
    /// `request`, arriving at `now_ms`.
    pub(super) fn of(request: &SequenceRequest, now_ms: u64) -> Self {
        let begun = request.tokens.len() > request.prompt_len;
        let priority = i64::from(request.priority.clamp(-MOST_PRIORITY, MOST_PRIORITY));
        let arrived_ms = i64::try_from(now_ms).unwrap_or(i64::MAX);
        let deadline = request.deadline_ms.filter(|_| !begun);
        Self {
            tenant: request.tenant.clone(),
            weight: request.weight,
            rank: arrived_ms.saturating_add(priority * PRIORITY_MS),
            at_ms: now_ms,
            deadline: deadline.map(|after| now_ms.saturating_add(after)),
            begun,
        }
    }
}

/// What the queue notes on a sequence; kept with it for as long as it lives.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ticket {
    tenant: TenantId,
    /// Order among the tenant's own: lower is sooner.
    rank: i64,
    /// Counts arrivals.
    arrival: u64,
    /// When it began to wait.
    since_ms: u64,
    /// When it need not begin any more.
    deadline: Option<u64>,
    /// Its place before everybody else, if it goes first.
    first: Option<i64>,
    /// Whether it had begun before it came here.
    resumed: bool,
    /// Whether its tenant has paid for its prompt.
    charged: bool,
    /// How many had arrived when it sampled its first token.
    streams_since: Option<u64>,
}

impl Ticket {
    /// Whether it had arrived when a stream that has been going `since` began.
    pub(super) fn arrived_before(&self, since: u64) -> bool {
        self.arrival < since
    }

    /// Whether its stream had begun before it came here: it was another driver's, or another group's that was lost.
    pub(super) fn resumed(&self) -> bool {
        self.resumed
    }

    /// How many had arrived when it began to stream; `None` if it has not.
    pub(super) fn streams_since(&self) -> Option<u64> {
        self.streams_since
    }
}

/// The requests that wait for one group.
#[derive(Debug)]
pub(super) struct Queue {
    limit: usize,
    tenants: Tenants,
    /// Those that go before everybody.
    first: BTreeMap<i64, SequenceId>,
    deadlines: BTreeSet<(u64, SequenceId)>,
    /// Who waits, in the order of arrival.
    arrivals: BTreeMap<u64, SequenceId>,
    /// Who waits, in the order in which they began to.
    waiting: BTreeSet<(u64, SequenceId)>,
    arrived: u64,
}

impl Queue {
    /// An empty queue for about `limit` requests.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            tenants: Tenants::default(),
            first: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            arrivals: BTreeMap::new(),
            waiting: BTreeSet::new(),
            arrived: 0,
        }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.arrivals.len()
    }

    /// Whether one more may wait; `slots` of those who do are about to enter.
    pub(super) fn admits(&self, arrival: &Arrival, slots: usize) -> bool {
        let limit = self.limit + slots;
        let newcomer = !self.tenants.is_waiting(&arrival.tenant);
        self.len() < limit || newcomer && self.len() < limit + self.limit / RESERVE
    }

    /// Lets a sequence wait.
    pub(super) fn push(&mut self, id: SequenceId, arrival: &Arrival) -> Ticket {
        let ticket = Ticket {
            tenant: self.tenants.register(&arrival.tenant, arrival.weight),
            rank: arrival.rank,
            arrival: self.arrived,
            since_ms: arrival.at_ms,
            deadline: arrival.deadline,
            first: arrival.begun.then(|| self.first.last_key_value().map_or(0, |(last, _)| last + 1)),
            resumed: arrival.begun,
            charged: false,
            streams_since: None,
        };
        self.arrived += 1;
        self.insert(id, &ticket);
        ticket
    }

    /// Lets a sequence that had entered wait again from `now_ms` on, before everybody else.
    pub(super) fn put_back(&mut self, id: SequenceId, ticket: &mut Ticket, now_ms: u64) {
        ticket.since_ms = now_ms;
        ticket.first = Some(self.first.first_key_value().map_or(0, |(first, _)| first - 1));
        ticket.deadline = None;
        ticket.streams_since = None;
        self.insert(id, ticket);
    }

    fn insert(&mut self, id: SequenceId, ticket: &Ticket) {
        match ticket.first {
            Some(place) => drop(self.first.insert(place, id)),
            None => self.tenants.push(ticket.tenant, (ticket.rank, ticket.arrival), id),
        }
        self.arrivals.insert(ticket.arrival, id);
        self.waiting.insert((ticket.since_ms, id));
        self.deadlines.extend(ticket.deadline.map(|deadline| (deadline, id)));
    }

    /// Who enters next, and who would if that one could not.
    pub(super) fn candidates(&self) -> impl Iterator<Item = SequenceId> {
        self.first.values().copied().chain(self.tenants.candidates())
    }

    /// The sequence has entered with `tokens` to compute.
    pub(super) fn enter(&mut self, id: SequenceId, ticket: &mut Ticket, tokens: usize) {
        self.remove(id, ticket);
        // Starting over is not the tenant's doing.
        if !std::mem::replace(&mut ticket.charged, true) {
            self.tenants.charge(ticket.tenant, tokens as u64);
        }
    }

    /// The sequence waits no more.
    pub(super) fn remove(&mut self, id: SequenceId, ticket: &Ticket) {
        match ticket.first {
            Some(place) => drop(self.first.remove(&place)),
            None => self.tenants.remove(ticket.tenant, (ticket.rank, ticket.arrival)),
        }
        self.arrivals.remove(&ticket.arrival);
        self.waiting.remove(&(ticket.since_ms, id));
        if let Some(deadline) = ticket.deadline {
            self.deadlines.remove(&(deadline, id));
        }
    }

    /// The sequence has sampled a token.
    pub(super) fn sampled(&mut self, ticket: &Ticket) {
        self.tenants.charge(ticket.tenant, DECODED_TOKEN);
    }

    /// The sequence will sample a token in every step from now on.
    pub(super) fn streams(&self, ticket: &mut Ticket) {
        ticket.streams_since = Some(self.arrived);
    }

    /// The first that waits in vain at `now_ms`.
    pub(super) fn expired(&self, now_ms: u64) -> Option<SequenceId> {
        self.deadlines.first().filter(|(deadline, _)| *deadline < now_ms).map(|(_, id)| *id)
    }

    /// When the next deadline passes.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|(deadline, _)| deadline + 1)
    }

    /// When the one that has waited longest began to.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.waiting.first().map(|(since, _)| *since)
    }

    /// Who waits that had arrived when a stream that has been going `since` began.
    pub(super) fn waiting_since(&self, since: u64) -> impl Iterator<Item = SequenceId> {
        self.arrivals.range(..since).map(|(_, id)| *id)
    }
}
