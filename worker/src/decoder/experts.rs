//! A layer's experts: routing, dispatch, computing grouped by expert, combining.
//!
//! Where all ranks of a stage have the same rows, each computes its experts' part of every row and the parts are summed like
//! any other (all-reduce). Where the batch is split, rows travel: each is sent to the ranks that hold an expert it was routed
//! to, once to each, and what they make of it comes back; routing is a function of the row alone, so the receiver repeats it
//! rather than being told. Either way a rank adds up what its experts give a row in the order of their numbers, and parts are
//! summed in rank order: one result, whatever else is in the batch.

use foggara_kernels::ThreadPool;
use foggara_kernels::collective::{Collective, CollectiveError};
use foggara_kernels::op::activations::Activations;
use foggara_kernels::op::rms_norm::add_assign;
use foggara_models::spec::{Experts, Mlp};
use foggara_models::{ArchSpec, SlicePlan};

use super::mlp::MlpRunner;
use super::project::{add_bias, product};
use super::routing::{Route, route};
use crate::weights::ExpertsWeights;

/// Rows and bytes of the exchange between ranks, so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DispatchStats {
    /// Rows sent to other ranks because an expert there was chosen.
    pub routed_rows: u64,
    /// Rows of results sent back to other ranks.
    pub returned_rows: u64,
    /// Bytes sent to other ranks for both.
    pub bytes: u64,
}

/// Runs the experts of every layer.
pub(super) struct ExpertRunner {
    hidden: usize,
    /// For each layer, for each expert, the ranks of the stage that hold it.
    holders: Vec<Vec<std::ops::Range<usize>>>,
    /// Tokens routed to each expert of each layer since they were last taken.
    counts: Vec<Vec<u64>>,
    stats: DispatchStats,
    logits: Vec<f32>,
    /// Rows of one expert, and its results.
    rows: Activations,
    results: Vec<f32>,
    /// Rows that came from other ranks, and what becomes of them.
    arrived: Activations,
    answers: Vec<f32>,
    received: Vec<Vec<f32>>,
    returned: Vec<Vec<f32>>,
}

impl ExpertRunner {
    pub(super) fn new(spec: &ArchSpec, plan: &SlicePlan) -> Self {
        let ranks = |part: &u16| plan.shape.part_ranks(usize::from(*part));
        let count = |mlp: &Mlp| if let Mlp::Experts(e) = mlp { e.count } else { 0 };
        let stage = plan.shape.stage_ranks();
        Self {
            hidden: spec.hidden,
            holders: plan.experts.0.iter().map(|parts| parts.iter().map(ranks).collect()).collect(),
            counts: spec.layers.iter().map(|layer| vec![0; count(&layer.mlp)]).collect(),
            stats: DispatchStats::default(),
            logits: Vec::new(),
            rows: Activations::new(0, spec.hidden),
            results: Vec::new(),
            arrived: Activations::new(0, spec.hidden),
            answers: Vec::new(),
            received: vec![Vec::new(); stage],
            returned: vec![Vec::new(); stage],
        }
    }

    pub(super) fn stats(&self) -> DispatchStats {
        self.stats
    }

    /// Tokens routed to each expert of each layer since the last call.
    pub(super) fn take_counts(&mut self) -> Vec<Vec<u64>> {
        let empty = self.counts.iter().map(|counts| vec![0; counts.len()]).collect();
        std::mem::replace(&mut self.counts, empty)
    }

    fn routes(
        &mut self,
        pool: &ThreadPool,
        e: &Experts,
        w: &ExpertsWeights,
        x: &mut Activations,
    ) -> Vec<Route> {
        self.logits.resize(x.rows() * e.count, 0.0);
        product(pool, &w.router, x, &mut self.logits);
        add_bias(&mut self.logits, &w.router_bias);
        self.logits.chunks_exact(e.count).map(|logits| route(e, logits, &w.correction)).collect()
    }

    fn count(&mut self, layer: usize, routes: &[Route]) {
        let counts = &mut self.counts[layer];
        routes.iter().flatten().for_each(|(expert, _)| counts[*expert as usize] += 1);
    }

    /// Adds to `out` what this rank's experts give the rows of `x`. `counted`: this rank is the one that counts these rows.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn run_local(
        &mut self,
        pool: &ThreadPool,
        mlp: &mut MlpRunner,
        layer: usize,
        e: &Experts,
        w: &ExpertsWeights,
        x: &mut Activations,
        out: &mut [f32],
        counted: bool,
    ) {
        let routes = self.routes(pool, e, w, x);
        if counted {
            self.count(layer, &routes);
        }
        self.compute(pool, mlp, w, x, &routes, out);
    }

    /// Adds to `out`, expert by expert, weight × result for the rows routed to it.
    fn compute(
        &mut self,
        pool: &ThreadPool,
        mlp: &mut MlpRunner,
        w: &ExpertsWeights,
        x: &Activations,
        routes: &[Route],
        out: &mut [f32],
    ) {
        let hidden = self.hidden;
        for (expert, weights) in &w.held {
            let weight = |route: &Route| route.iter().find(|(e, _)| e == expert).map(|(_, weight)| *weight);
            let chosen: Vec<(usize, f32)> =
                routes.iter().enumerate().filter_map(|(row, route)| Some((row, weight(route)?))).collect();
            if chosen.is_empty() {
                continue;
            }
            self.rows.set_rows(chosen.len());
            for ((row, _), to) in chosen.iter().zip(self.rows.f32_rows_mut().chunks_exact_mut(hidden)) {
                to.copy_from_slice(x.row(*row));
            }
            self.results.resize(chosen.len() * hidden, 0.0);
            mlp.run(pool, weights, &mut self.rows, &mut self.results);
            for ((row, weight), result) in chosen.iter().zip(self.results.chunks_exact(hidden)) {
                for (out, result) in out[row * hidden..][..hidden].iter_mut().zip(result) {
                    *out += weight * result;
                }
            }
        }
    }

    /// As [`run_local`](Self::run_local) where the batch is split: adds to `out` what all experts of the stage give the rows
    /// `mine` of `x`. Every rank of the stage must call it, with or without rows.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn run_dispatched(
        &mut self,
        pool: &ThreadPool,
        mlp: &mut MlpRunner,
        layer: usize,
        e: &Experts,
        w: &ExpertsWeights,
        x: &Activations,
        mine: &[usize],
        stage: &mut dyn Collective,
        out: &mut [f32],
    ) -> Result<(), CollectiveError> {
        let (hidden, ranks) = (self.hidden, stage.size());
        self.arrived.set_rows(mine.len());
        for (row, to) in mine.iter().zip(self.arrived.f32_rows_mut().chunks_exact_mut(hidden)) {
            to.copy_from_slice(x.row(*row));
        }
        let mut own = std::mem::replace(&mut self.arrived, Activations::new(0, hidden));
        let routes = self.routes(pool, e, w, &mut own);
        self.count(layer, &routes);
        let goes_to = |route: &Route, rank: usize| {
            route.iter().any(|(expert, _)| self.holders[layer][*expert as usize].contains(&rank))
        };
        // For each rank, which of `mine` go there.
        let sent: Vec<Vec<usize>> =
            (0..ranks).map(|rank| (0..mine.len()).filter(|i| goes_to(&routes[*i], rank)).collect()).collect();
        let parts: Vec<Vec<f32>> =
            sent.iter().map(|rows| rows.iter().flat_map(|row| own.row(*row)).copied().collect()).collect();
        self.arrived = own;
        let before = stage.stats().bytes;
        let views: Vec<&[f32]> = parts.iter().map(Vec::as_slice).collect();
        stage.all_to_all(&views, &mut self.received)?;

        let arrived: usize = self.received.iter().map(|part| part.len() / hidden).sum();
        self.arrived.set_rows(arrived);
        let mut rows = self.arrived.f32_rows_mut();
        for part in &self.received {
            let (to, rest) = rows.split_at_mut(part.len());
            to.copy_from_slice(part);
            rows = rest;
        }
        let mut batch = std::mem::replace(&mut self.arrived, Activations::new(0, hidden));
        let routes = self.routes(pool, e, w, &mut batch);
        let mut answers = std::mem::take(&mut self.answers);
        answers.clear();
        answers.resize(arrived * hidden, 0.0);
        self.compute(pool, mlp, w, &batch, &routes, &mut answers);
        self.arrived = batch;

        let mut rest = &answers[..];
        let views: Vec<&[f32]> = self
            .received
            .iter()
            .map(|part| {
                let (answer, after) = rest.split_at(part.len());
                rest = after;
                answer
            })
            .collect();
        stage.all_to_all(&views, &mut self.returned)?;
        self.answers = answers;
        for (rows, answers) in sent.iter().zip(&self.returned) {
            for (row, answer) in rows.iter().zip(answers.chunks_exact(hidden)) {
                add_assign(&mut out[mine[*row] * hidden..][..hidden], answer);
            }
        }
        let to_others = |parts: &dyn Fn(usize) -> usize| {
            (0..ranks).filter(|rank| *rank != stage.rank()).map(parts).sum::<usize>() as u64
        };
        self.stats.routed_rows += to_others(&|rank| sent[rank].len());
        self.stats.returned_rows += to_others(&|rank| self.received[rank].len() / hidden);
        self.stats.bytes += stage.stats().bytes - before;
        Ok(())
    }
}
