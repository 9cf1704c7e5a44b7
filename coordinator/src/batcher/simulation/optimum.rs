//! Throughput against the best there is: every schedule of a few requests, by brute force. The search may let them in in
//! any order, and knows how long their answers will be; the batcher lets them in as they came, and does not.

use std::collections::BTreeMap;

use super::engine::Costs;
use super::world::{Setup, World};
use super::{LARGE, LIMITS, MEDIUM, SMALL, workload};
use crate::batcher::Limits;

/// Rows by which schedules differ.
const UNIT: usize = 64;
const STEP_ROWS: usize = 256;

/// Prompt units left and tokens left of each request.
type State = Vec<(usize, usize)>;

/// The shortest time from any state of some requests to their end: every order and every chunk size is tried.
struct Search<'a> {
    costs: Costs,
    requests: &'a [(usize, usize)],
    known: BTreeMap<State, f64>,
}

impl Search<'_> {
    fn best(&mut self, state: &State) -> f64 {
        if state.iter().all(|(units, _)| *units == 0) {
            return self.decode(state);
        }
        if let Some(best) = self.known.get(state) {
            return *best;
        }
        let mut choices = vec![Vec::new()];
        for (units, _) in state {
            let chunks = 0..=*units;
            choices = choices
                .iter()
                .flat_map(|c: &Vec<usize>| chunks.clone().map(|n| [c.as_slice(), &[n]].concat()))
                .collect();
        }
        let best =
            choices.into_iter().filter_map(|chunks| self.after(state, &chunks)).fold(f64::INFINITY, f64::min);
        self.known.insert(state.clone(), best);
        best
    }

    /// The time to the end once nothing is left to choose.
    fn decode(&self, state: &State) -> f64 {
        let most = state.iter().map(|(_, tokens)| *tokens).max().unwrap_or(0);
        let step = |done: usize| {
            let left = state.iter().zip(self.requests).filter(|((_, tokens), _)| *tokens > done);
            let contexts: Vec<usize> =
                left.map(|((_, tokens), r)| r.0 * UNIT + r.1 - (tokens - done)).collect();
            self.costs.of(contexts.len(), contexts.len(), contexts.iter().sum())
        };
        (0..most).map(step).sum()
    }

    /// The time of a step with these chunks, in which all who can decode, and of all that follows.
    fn after(&mut self, state: &State, chunks: &[usize]) -> Option<f64> {
        let (mut rows, mut sampled, mut attended) = (0, 0, 0);
        let mut next = state.clone();
        for (((units, tokens), chunk), request) in next.iter_mut().zip(chunks).zip(self.requests) {
            let chunk_rows = chunk * UNIT;
            if *units > 0 {
                let start = (request.0 - *units) * UNIT;
                rows += chunk_rows;
                attended += chunk_rows * start + chunk_rows * (chunk_rows + 1) / 2;
                *units -= chunk;
                if *units > 0 || *chunk == 0 {
                    continue;
                }
            } else if *tokens > 0 {
                rows += 1;
                attended += request.0 * UNIT + request.1 - *tokens;
            } else {
                continue;
            }
            sampled += 1;
            *tokens -= 1;
        }
        if rows == 0 || rows > STEP_ROWS {
            return None;
        }
        Some(self.costs.of(rows, sampled, attended) + self.best(&next))
    }
}

/// Microseconds that the batcher takes for requests that come together, and the least possible.
fn compare(costs: Costs, requests: &[(usize, usize)]) -> (f64, f64) {
    let mut search = Search { costs, requests, known: BTreeMap::new() };
    let best = search.best(&requests.to_vec());
    let limits = Limits { step_rows: u32::try_from(STEP_ROWS).expect("small"), ..LIMITS };
    let setup = Setup { noise: 0.0, round_trip_us: 0, warm: true, ..Setup::new(costs, limits) };
    let client = |(units, answer): &(usize, usize)| {
        workload::client(0, workload::request("", units * UNIT, *answer, *answer))
    };
    let mut world = World::new(setup, requests.iter().map(client).collect());
    world.run();
    (world.steps.iter().map(|(_, step)| step.micros).sum(), best)
}

#[test]
fn throughput_is_within_five_percent_of_the_best_schedule() {
    let cases: [&[(usize, usize)]; 9] = [
        &[(4, 40), (4, 40), (4, 40)],
        &[(8, 32), (8, 32)],
        &[(2, 60), (8, 20), (4, 40)],
        &[(10, 10), (1, 60), (1, 60)],
        &[(6, 24), (6, 24), (6, 24)],
        &[(1, 30), (1, 30), (1, 30), (1, 30)],
        &[(5, 48), (4, 48), (3, 48)],
        &[(1, 80), (12, 40)],
        &[(12, 80), (1, 40)],
    ];
    for costs in [SMALL, MEDIUM, LARGE] {
        for requests in cases {
            let (took, best) = compare(costs, requests);
            assert!(best <= took * 1.0001, "the search must find what the batcher found");
            assert!(took <= best * 1.05, "{costs:?}, {requests:?}: {took:.0} us, {best:.0} at best");
        }
    }
}
