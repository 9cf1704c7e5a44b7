//! Which shape: all that are allowed and fit are predicted, and the best is taken.

use std::cmp::Reverse;

use foggara_proto::shape::{MAX_RANKS, Shape};
use foggara_proto::version::in_order;

use super::assign;
use super::cost::{Group, Prediction, Seat};
use super::explain;
use super::facts::{Kind, Links, ModelFacts, Reach, Wish, WorkerFacts};
use super::layout::{RankPart, layout};
use super::memory::{BLOCK_SIZE, RankNeeds, kv_wanted, needs, usable};
use crate::cluster::state::CollectiveKind;

/// Numbers that are tried where none is given: products of small primes, as heads and layers are.
const TRIED: [u32; 12] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64];
/// What more workers must be worth: with this exponent, twice as many must give at least 1.5 times the speed.
const WORTH: f64 = 0.585;
/// Choices of workers that are tried for one shape, by what the least of them has.
const SUBSETS: usize = 4;

/// One rank of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedRank {
    /// Its worker.
    pub worker: u64,
    /// The worker's host.
    pub host: String,
    /// First layer, and the one after the last.
    pub layers: (u32, u32),
    /// What it takes, cache aside.
    pub needs: RankNeeds,
    /// What it takes, cache and all.
    pub bytes: u64,
    /// What it may take.
    pub memory: u64,
}

/// One replica on its workers.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// No number is left open.
    pub shape: Shape,
    /// In rank order.
    pub ranks: Vec<PlannedRank>,
    /// Relative speed of each rank; empty: all the same.
    pub rank_weights: Vec<u32>,
    /// How the ranks reach each other.
    pub collective: CollectiveKind,
    /// Tokens of KV cache of each data-parallel part.
    pub kv_tokens: u64,
    /// How fast it will be.
    pub prediction: Prediction,
    /// Why it is so.
    pub reasons: Vec<String>,
}

/// A plan for one replica on some of `workers`, or what is missing for one. `sharers`: how many replicas are to share them; as
/// long as it fits, this one takes no more than its part.
///
/// GPUs are taken if it fits there, else CPUs, and never both: they round differently, and the slower would hold up the others.
/// Of either, those of the newest version are taken if it fits there, and never two versions.
///
/// # Errors
/// What is missing.
pub fn choose(
    model: &ModelFacts,
    wish: &Wish,
    workers: &[WorkerFacts],
    links: &Links,
    sharers: u32,
) -> Result<Plan, String> {
    wish.shape.check_model(model.layers.len(), model.experts() as usize).map_err(|e| e.to_string())?;
    let mut kinds = Kind::ALL.to_vec();
    kinds.retain(|kind| workers.iter().any(|worker| worker.kind == *kind));
    if kinds.is_empty() {
        kinds.push(Kind::Cpu);
    }
    let mut refusals: Vec<(Kind, String)> = Vec::new();
    for kind in &kinds {
        let mut those: Vec<&WorkerFacts> = workers.iter().filter(|worker| worker.kind == *kind).collect();
        those.sort_by_key(|worker| worker.id);
        match choose_of_versions(model, wish, *kind, &those, links, sharers) {
            Ok(mut plan) => {
                if kinds.len() > 1 {
                    plan.reasons.insert(0, explain::kind(*kind, &refusals));
                }
                return Ok(plan);
            }
            Err(reason) => refusals.push((*kind, reason)),
        }
    }
    Err(explain::refusals(&refusals))
}

/// The same on workers of one kind, in order of id: on those of the newest version where it fits.
fn choose_of_versions(
    model: &ModelFacts,
    wish: &Wish,
    kind: Kind,
    workers: &[&WorkerFacts],
    links: &Links,
    sharers: u32,
) -> Result<Plan, String> {
    let mut versions: Vec<&str> = workers.iter().map(|worker| worker.version.as_str()).collect();
    versions.sort_by_cached_key(|version| Reverse(in_order(version)));
    versions.dedup();
    if versions.len() < 2 {
        return choose_alike(model, wish, kind, workers.to_vec(), links, sharers);
    }
    let mut refusals: Vec<(&str, String)> = Vec::new();
    for version in versions {
        let those = workers.iter().copied().filter(|worker| worker.version == version).collect();
        match choose_alike(model, wish, kind, those, links, sharers) {
            Ok(mut plan) => {
                plan.reasons.insert(0, explain::version(version, &refusals));
                return Ok(plan);
            }
            Err(reason) => refusals.push((version, reason)),
        }
    }
    Err(explain::versions(&refusals))
}

/// The same on workers of one kind and version, in order of id.
fn choose_alike(
    model: &ModelFacts,
    wish: &Wish,
    kind: Kind,
    mut workers: Vec<&WorkerFacts>,
    links: &Links,
    sharers: u32,
) -> Result<Plan, String> {
    let lacking = workers.first().and_then(|worker| explain::lacking(worker, wish));
    workers.retain(|worker| explain::lacking(worker, wish).is_none());
    if let (true, Some(lacking)) = (workers.is_empty(), lacking) {
        return Err(lacking);
    }
    let enough = workers.len() / sharers.max(1) as usize;
    let subsets = subsets(&workers);
    let fixed = wish.shape.is_fixed();
    let most = if fixed { MAX_RANKS } else { u32::try_from(workers.len()).unwrap_or(u32::MAX) };
    let mut shapes = shapes(wish.shape, model, most);
    shapes.retain(|shape| shape.dp == 1 || workers.iter().all(|worker| worker.takes.data_parallel));
    let least = shapes.iter().map(|shape| shape.ranks()).min();
    if least.is_none_or(|least| least as usize > workers.len()) {
        let ranks = least.unwrap_or(wish.shape.ranks());
        let needed = if ranks == 1 { "1 idle worker is".into() } else { format!("{ranks} idle workers are") };
        return Err(format!("{needed} needed, there are {}", workers.len()));
    }
    let try_with = |most: usize| -> Vec<Candidate<'_>> {
        let allowed = shapes.iter().filter(|shape| fixed || shape.ranks() as usize <= most);
        allowed.filter_map(|shape| best_seats(model, wish, *shape, &subsets, links)).collect()
    };
    let mut candidates = try_with(enough.max(1));
    if candidates.is_empty() && enough < workers.len() {
        candidates = try_with(workers.len());
    }
    let Some(best) = candidates.iter().reduce(|best, other| if better(other, best) { other } else { best })
    else {
        return Err(explain::shortage(model, wish, kind, &shapes, &workers));
    };
    let reasons = explain::reasons(model, wish, best, &candidates, workers.len());
    Ok(best.plan(reasons))
}

/// Compares by speed for the workers it takes; where that is the same, fewer ranks, then less of what is hardest to run.
fn better(a: &Candidate<'_>, b: &Candidate<'_>) -> bool {
    let simple = |c: &Candidate<'_>| (c.shape.ranks(), c.shape.pp, c.shape.dp, c.shape.ep);
    match a.worth().total_cmp(&b.worth()) {
        std::cmp::Ordering::Greater => true,
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => simple(a) < simple(b),
    }
}

/// The shapes that `wish` allows on at most `most` ranks. Data parallelism is tried only with experts, which it spares an
/// all-reduce: without, replicas do the same.
pub(super) fn shapes(wish: Shape, model: &ModelFacts, most: u32) -> Vec<Shape> {
    let experts = u32::try_from(model.experts()).unwrap_or(u32::MAX);
    let layers = u32::try_from(model.layers.len()).unwrap_or(u32::MAX);
    let heads = u32::try_from(model.heads).unwrap_or(u32::MAX).max(1);
    let tried = |given: u32, bound: u32| -> Vec<u32> {
        match given {
            0 => TRIED.into_iter().filter(|value| *value <= bound.max(1)).collect(),
            given => vec![given],
        }
    };
    let mut shapes = Vec::new();
    for tp in tried(wish.tp, heads) {
        for dp in tried(wish.dp, if experts > 0 { MAX_RANKS } else { 1 }) {
            for pp in tried(wish.pp, layers) {
                for ep in tried(wish.ep, experts) {
                    let shape = Shape { tp, dp, pp, ep };
                    if shape.ranks() <= most && shape.check().is_ok() {
                        shapes.push(shape);
                    }
                }
            }
        }
    }
    shapes
}

/// Choices of workers of one kind: all, and those that have no less than so much memory, or speed.
fn subsets<'a>(workers: &[&'a WorkerFacts]) -> Vec<Vec<&'a WorkerFacts>> {
    let mut subsets = vec![workers.to_vec()];
    let mut add = |subset: Vec<&'a WorkerFacts>| {
        if !subset.is_empty() && !subsets.contains(&subset) {
            subsets.push(subset);
        }
    };
    let key: [fn(&WorkerFacts) -> u64; 2] =
        [|worker| worker.memory_bytes, |worker| worker.speeds.bytes_per_second];
    for key in key {
        let mut steps: Vec<u64> = workers.iter().map(|worker| key(worker)).collect();
        steps.sort_unstable_by_key(|step| Reverse(*step));
        steps.dedup_by(|next, before| *next as f64 > *before as f64 * 0.9);
        for step in steps.into_iter().take(SUBSETS) {
            // What is about as much as the largest of its step.
            let least = (step as f64 * 0.9) as u64;
            add(workers.iter().copied().filter(|worker| key(worker) >= least).collect());
        }
    }
    subsets
}

/// A shape on workers that can hold it.
pub(super) struct Candidate<'a> {
    pub shape: Shape,
    pub seats: Vec<&'a WorkerFacts>,
    pub weights: Vec<u32>,
    pub parts: Vec<RankPart>,
    pub needs: Vec<RankNeeds>,
    pub kv_tokens: u64,
    pub prediction: Prediction,
    pub collective: CollectiveKind,
}

impl Candidate<'_> {
    /// Speed, weighed against the workers it takes.
    pub(super) fn worth(&self) -> f64 {
        self.prediction.score() / f64::from(self.shape.ranks()).powf(WORTH)
    }

    fn plan(&self, reasons: Vec<String>) -> Plan {
        let word = |layer: usize| u32::try_from(layer).unwrap_or(u32::MAX);
        let ranks = self.seats.iter().zip(&self.parts).zip(&self.needs);
        let ranks = ranks.map(|((worker, part), needs)| PlannedRank {
            worker: worker.id,
            host: worker.host.clone(),
            layers: (word(part.layers.start), word(part.layers.end)),
            needs: *needs,
            bytes: needs.with_kv(self.kv_tokens),
            memory: usable(worker),
        });
        Plan {
            shape: self.shape,
            ranks: ranks.collect(),
            rank_weights: self.weights.clone(),
            collective: self.collective,
            kv_tokens: self.kv_tokens,
            prediction: self.prediction,
            reasons,
        }
    }
}

/// The best of the ways to seat `shape`.
fn best_seats<'a>(
    model: &ModelFacts,
    wish: &Wish,
    shape: Shape,
    subsets: &[Vec<&'a WorkerFacts>],
    links: &Links,
) -> Option<Candidate<'a>> {
    let mut best: Option<Candidate<'a>> = None;
    let mut seen: Vec<Vec<u64>> = Vec::new();
    for workers in subsets {
        let Some(seats) = assign::seats(workers, shape, wish.reach) else { continue };
        let ids: Vec<u64> = seats.iter().map(|worker| worker.id).collect();
        if seen.contains(&ids) {
            continue;
        }
        seen.push(ids);
        let mut weights = vec![assign::weights(&seats), assign::memory_weights(&seats), Vec::new()];
        weights.dedup();
        for weights in weights {
            if let Some(candidate) = evaluate(model, wish, shape, &seats, weights, links)
                && best.as_ref().is_none_or(|best| candidate.worth() > best.worth())
            {
                best = Some(candidate);
            }
        }
    }
    best
}

/// `shape` on these workers, if it fits.
fn evaluate<'a>(
    model: &ModelFacts,
    wish: &Wish,
    shape: Shape,
    seats: &[&'a WorkerFacts],
    weights: Vec<u32>,
    links: &Links,
) -> Option<Candidate<'a>> {
    let parts = layout(model, shape, &weights);
    let needs: Vec<RankNeeds> =
        parts.iter().zip(seats).map(|(part, worker)| needs(model, shape, part, worker.kind)).collect();
    let rooms: Option<Vec<u64>> =
        needs.iter().zip(seats).map(|(needs, worker)| needs.room(usable(worker))).collect();
    let (wanted, least) = kv_wanted(model, wish.kv_tokens, seats.first()?.kind);
    let room = rooms?.into_iter().min()? / u64::from(BLOCK_SIZE) * u64::from(BLOCK_SIZE);
    if room < least {
        return None;
    }
    let most = u64::from(u32::MAX / shape.dp) * u64::from(BLOCK_SIZE);
    let kv_tokens = wanted.min(room).min(most);
    let seated = parts.iter().zip(seats).zip(&needs);
    let seated = seated.map(|((part, worker), needs)| Seat { worker, part, needs: *needs }).collect();
    let prediction = Group { model, shape, links, seats: seated }.predict(kv_tokens, wish.sequence_tokens);
    let one_host = seats.iter().all(|worker| worker.host == seats[0].host);
    let collective = match (shape.ranks(), wish.reach) {
        (1, _) => CollectiveKind::Solo,
        (_, Reach::Tcp) => CollectiveKind::Tcp,
        _ if one_host => CollectiveKind::Shm,
        (_, Reach::SharedMemory) => return None,
        _ => CollectiveKind::Tcp,
    };
    let seats = seats.to_vec();
    Some(Candidate { shape, seats, weights, parts, needs, kv_tokens, prediction, collective })
}

/// Bytes that the smallest of `shapes` takes in all, with the least cache that will do, on ranks of `kind`.
pub(super) fn least_bytes(model: &ModelFacts, wish: &Wish, shapes: &[Shape], kind: Kind) -> u64 {
    let (_, least) = kv_wanted(model, wish.kv_tokens, kind);
    let total = |shape: &Shape| -> u64 {
        let parts = layout(model, *shape, &[]);
        parts.iter().map(|part| needs(model, *shape, part, kind).with_kv(least)).sum()
    };
    shapes.iter().map(total).min().unwrap_or(0)
}
