//! Clients, the batcher and the engine, and the time that messages take between them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use foggara_proto::sequence::{SequenceEnd, SequenceRequest};
use foggara_proto::step::{SequenceId, StepReport};

use super::engine::{Costs, Engine, Executed};
use crate::batcher::cost::Work;
use crate::batcher::{Batcher, Limits};

/// Where a simulation happens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setup {
    pub(super) costs: Costs,
    pub(super) limits: Limits,
    pub(super) noise: f64,
    pub(super) round_trip_us: u32,
    /// Whether the batcher has driven such an engine before.
    pub(super) warm: bool,
    pub(super) seed: u64,
}

impl Setup {
    pub(super) fn new(costs: Costs, limits: Limits) -> Self {
        Self { costs, limits, noise: 0.03, round_trip_us: 300, warm: false, seed: 1 }
    }
}

/// A request that will come. Sequence ids are places in the list of clients.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) at_us: u64,
    pub(super) request: SequenceRequest,
    /// When its client goes away, if it is still there.
    pub(super) cancel_us: Option<u64>,
}

/// What became of a request.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) entered_us: Option<u64>,
    /// When each token arrived.
    pub(super) tokens_us: Vec<u64>,
    pub(super) end: Option<SequenceEnd>,
    pub(super) expired: bool,
    pub(super) cancelled: bool,
}

pub(super) struct World {
    setup: Setup,
    pub(super) batcher: Batcher,
    pub(super) engine: Engine,
    pub(super) now_us: u64,
    leader_free_us: u64,
    reports: VecDeque<(u64, StepReport)>,
    cancels: BTreeSet<(u64, SequenceId)>,
    clients: Vec<Client>,
    arrived: usize,
    pub(super) seen: Vec<Seen>,
    /// Every step: when it began, and what it was.
    pub(super) steps: Vec<(u64, Executed)>,
}

impl World {
    /// Clients must be in order of arrival. No prompt begins as another does.
    pub(super) fn new(setup: Setup, mut clients: Vec<Client>) -> Self {
        for (client, first) in clients.iter_mut().zip(2..) {
            client.request.tokens[0] = first;
        }
        assert!(clients.is_sorted_by_key(|client| client.at_us));
        let mut batcher = Batcher::new(1, setup.limits);
        batcher.set_round_trip(setup.round_trip_us);
        if setup.warm {
            for i in 0..200 {
                let (rows, start) = (1 + i * 37 % 200, i * 91 % 1_000);
                let mut work = Work::default().with_chunk(start, rows, i % 3 == 0);
                (0..i % 7).for_each(|decode| work.add_decode(decode * 100 + i));
                batcher.cost.observe(work, setup.costs.of(work.rows, work.sampled, work.attended));
            }
        }
        Self {
            setup,
            batcher,
            engine: Engine::new(setup.costs, setup.limits, setup.noise, setup.seed),
            now_us: 0,
            leader_free_us: 0,
            reports: VecDeque::new(),
            cancels: BTreeSet::new(),
            seen: vec![Seen::default(); clients.len()],
            clients,
            arrived: 0,
            steps: Vec::new(),
        }
    }

    /// Runs until everybody has what was asked for.
    pub(super) fn run(&mut self) {
        while self.step() {}
        assert!(self.batcher.is_idle(), "{:?}", self.batcher.occupancy());
        let rest = self.batcher.occupancy();
        assert_eq!((rest.live_blocks, rest.waiting, rest.running), (0, 0, 0));
    }

    /// To the next thing that happens. Returns whether there was one.
    pub(super) fn step(&mut self) -> bool {
        let arrival = self.clients.get(self.arrived).map(|client| client.at_us);
        let report = self.reports.front().map(|(at, _)| *at);
        let cancel = self.cancels.first().map(|(at, _)| *at);
        let deadline = self.batcher.next_deadline().map(|ms| ms * 1_000);
        let Some(now) = [arrival, report, cancel, deadline].into_iter().flatten().min() else { return false };
        assert!(self.steps.len() < 2_000_000, "no progress: {:?}", self.batcher.occupancy());
        self.now_us = self.now_us.max(now);
        self.batcher.advance(self.now_us / 1_000);
        if report == Some(now) {
            self.report();
        } else if cancel == Some(now) {
            self.cancel();
        } else {
            // Those who come together are one batch, as they are for a driver.
            while self.clients.get(self.arrived).is_some_and(|client| client.at_us <= now) {
                self.arrive();
            }
        }
        while let Some(id) = self.batcher.expire() {
            self.seen[usize::try_from(id).expect("small")].expired = true;
        }
        self.plan();
        self.check_blocks();
        true
    }

    fn arrive(&mut self) {
        let client = &self.clients[self.arrived];
        let id = self.arrived as SequenceId;
        self.batcher.submit(id, client.request.clone(), None).expect("there is room in the queue");
        self.cancels.extend(client.cancel_us.map(|at| (at, id)));
        self.arrived += 1;
    }

    fn cancel(&mut self) {
        let Some((_, id)) = self.cancels.pop_first() else { return };
        let seen = &mut self.seen[usize::try_from(id).expect("small")];
        if seen.end.is_none() && !seen.expired {
            seen.cancelled = true;
            self.batcher.cancel(id);
        }
    }

    fn report(&mut self) {
        let Some((_, report)) = self.reports.pop_front() else { return };
        for (id, event) in self.batcher.report(report).expect("reports come in order") {
            let seen = &mut self.seen[usize::try_from(id).expect("small")];
            assert!(seen.end.is_none() && !seen.cancelled, "{id}: news after its end");
            seen.tokens_us.extend(event.tokens.iter().map(|_| self.now_us));
            seen.end = event.end;
        }
    }

    fn plan(&mut self) {
        while let Some(plan) = self.batcher.plan() {
            for join in &plan.joins {
                let seen = &mut self.seen[usize::try_from(join.sequence).expect("small")];
                seen.entered_us.get_or_insert(self.now_us);
            }
            let half = u64::from(self.setup.round_trip_us) / 2;
            let (report, done) = self.engine.execute(&plan);
            let start = self.leader_free_us.max(self.now_us + half);
            self.steps.push((start, done));
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let micros = done.micros as u64;
            self.leader_free_us = start + micros;
            self.reports.push_back((self.leader_free_us + half, report));
        }
    }

    /// Free, held and cached blocks are all there are.
    fn check_blocks(&self) {
        let (now, limits) = (self.batcher.occupancy(), self.setup.limits);
        assert_eq!(now.free_blocks + now.live_blocks + now.cached_blocks, limits.kv_blocks * limits.pools);
        let held = |id| self.batcher.sequences.get(id).map_or(0, |sequence| sequence.blocks.len());
        let held: usize = self.batcher.running.iter().map(held).sum();
        assert_eq!(now.live_blocks as usize, held);
    }

    /// Tokens that tenants were given so far, as they are charged for.
    pub(super) fn charged(&self) -> BTreeMap<&str, u64> {
        let mut charged = BTreeMap::new();
        for (id, (prompt, sampled)) in &self.engine.given {
            let client = &self.clients[usize::try_from(*id).expect("small")];
            let tokens = *prompt as u64 + *sampled as u64 * crate::batcher::queue::DECODED_TOKEN;
            *charged.entry(client.request.tenant.as_str()).or_default() += tokens;
        }
        charged
    }

    /// Requests that wait, of each tenant.
    pub(super) fn waiting(&self, tenant: &str) -> usize {
        let arrived = self.clients.iter().zip(&self.seen).take(self.arrived);
        arrived
            .filter(|(client, seen)| {
                client.request.tenant == tenant
                    && seen.entered_us.is_none()
                    && !seen.expired
                    && !seen.cancelled
            })
            .count()
    }

    /// Whether somebody is still to come.
    pub(super) fn is_expecting(&self) -> bool {
        self.arrived < self.clients.len()
    }

    pub(super) fn client(&self, id: usize) -> &Client {
        &self.clients[id]
    }
}

/// The value that `percent` of `values` do not exceed.
pub(super) fn percentile(mut values: Vec<u64>, percent: usize) -> u64 {
    assert!(!values.is_empty());
    values.sort_unstable();
    values[(values.len() * percent).div_ceil(100).max(1) - 1]
}
