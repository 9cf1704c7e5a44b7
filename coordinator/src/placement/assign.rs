//! Which workers sit where: ranks that talk most sit on one host, quick workers first.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use foggara_proto::shape::Shape;

use super::facts::{Reach, WorkerFacts};

/// Speeds, and sizes, that differ by less than this are the same: what is measured is never quite equal.
const SAME_SPEED: f64 = 0.1;
/// A weight's unit: the fastest rank has this.
const FASTEST: f64 = 100.0;

/// The workers of each rank, or `None` if there are too few.
///
/// A replica sits on one host where one has enough workers, the smallest that does; else each stage does; else hosts are
/// taken whole, the largest first.
pub(super) fn seats<'a>(
    workers: &[&'a WorkerFacts],
    shape: Shape,
    reach: Reach,
) -> Option<Vec<&'a WorkerFacts>> {
    let (ranks, stage_ranks) = (shape.ranks() as usize, shape.stage_ranks() as usize);
    let mut hosts = by_host(workers);
    if let Some(seats) = take_fitting(&mut hosts, ranks) {
        return Some(seats);
    }
    if reach == Reach::SharedMemory {
        return None;
    }
    let mut whole = hosts.clone();
    let stages: Option<Vec<_>> = (0..shape.pp).map(|_| take_fitting(&mut whole, stage_ranks)).collect();
    if let Some(stages) = stages {
        return Some(stages.concat());
    }
    let mut order: Vec<&Vec<&WorkerFacts>> = hosts.values().collect();
    order.sort_by_key(|workers| Reverse(workers.len()));
    let seats: Vec<&WorkerFacts> = order.into_iter().flatten().copied().take(ranks).collect();
    (seats.len() == ranks).then_some(seats)
}

type Hosts<'a> = BTreeMap<&'a str, Vec<&'a WorkerFacts>>;

/// The workers of each host, quickest first; of those, who has more memory (who shares a GPU has less of it).
fn by_host<'a>(workers: &[&'a WorkerFacts]) -> Hosts<'a> {
    let mut hosts: Hosts<'a> = BTreeMap::new();
    for worker in workers {
        hosts.entry(&worker.host).or_default().push(worker);
    }
    for workers in hosts.values_mut() {
        let size = |worker: &WorkerFacts| class(worker.memory_bytes);
        workers.sort_by_key(|w| (Reverse(speed_class(w)), Reverse(size(w)), w.id));
    }
    hosts
}

fn speed_class(worker: &WorkerFacts) -> u32 {
    class(worker.speeds.bytes_per_second)
}

/// A number in steps of some 10 %, so that what is about as much is in order of id.
fn class(value: u64) -> u32 {
    ((value.max(1) as f64).ln() / SAME_SPEED.ln_1p()).round() as u32
}

/// Takes `count` workers of the smallest host that has as many.
fn take_fitting<'a>(hosts: &mut Hosts<'a>, count: usize) -> Option<Vec<&'a WorkerFacts>> {
    let fitting = hosts.values_mut().filter(|workers| workers.len() >= count);
    // The quickest of the smallest; by name after that.
    let best = fitting.min_by_key(|workers| (workers.len(), Reverse(speed_class(workers[0]))))?;
    let rest = best.split_off(count);
    Some(std::mem::replace(best, rest))
}

/// Relative speeds of the ranks on these workers; empty when they are about the same.
pub(super) fn weights(seats: &[&WorkerFacts]) -> Vec<u32> {
    proportional(seats, |worker| worker.speeds.bytes_per_second)
}

/// Relative memory of the ranks on these workers; empty when it is about the same.
pub(super) fn memory_weights(seats: &[&WorkerFacts]) -> Vec<u32> {
    proportional(seats, |worker| worker.memory_bytes)
}

fn proportional(seats: &[&WorkerFacts], of: impl Fn(&WorkerFacts) -> u64) -> Vec<u32> {
    let values: Vec<f64> = seats.iter().map(|worker| of(worker).max(1) as f64).collect();
    let most = values.iter().copied().fold(1.0, f64::max);
    let least = values.iter().copied().fold(most, f64::min);
    if most <= least * (1.0 + SAME_SPEED) {
        return Vec::new();
    }
    values.into_iter().map(|value| ((value / most * FASTEST).round() as u32).max(1)).collect()
}
