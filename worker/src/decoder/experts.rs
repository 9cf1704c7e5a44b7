//! A layer's experts: routing, dispatch, computing grouped by expert, combining.
//!
//! Where all ranks of a stage have the same rows, each computes its experts' part of every row and the parts are summed like
//! any other (all-reduce). Where the batch is split, rows travel: each is sent to the ranks that hold an expert it was routed
//! to, once to each, and what they make of it comes back; routing is a function of the row alone, so the receiver repeats it
//! rather than being told. Either way a rank adds up what its experts give a row in the order of their numbers, and parts are
//! summed in rank order: one result, whatever else is in the batch.

mod counts;
mod dispatch;

use foggara_kernels::ThreadPool;
use foggara_kernels::op::activations::Activations;
use foggara_models::spec::{Experts, Mlp};
use foggara_models::{ArchSpec, SlicePlan};

pub use counts::ExpertCounts;
pub use dispatch::DispatchStats;
use dispatch::Exchange;

use super::adapted::{AdapterRunner, InLayer};
use super::mlp::{Adapting, MlpRunner};
use super::project::{add_bias, product};
use super::routing::{Route, route};
use crate::weights::{ExpertsWeights, MlpAdapter};

/// One layer's experts, and what runs them.
pub(super) struct ExpertLayer<'a> {
    pub(super) pool: &'a ThreadPool,
    pub(super) mlp: &'a mut MlpRunner,
    /// Among the layers of the model.
    pub(super) number: usize,
    pub(super) spec: &'a Experts,
    pub(super) weights: &'a ExpertsWeights,
    /// Of the rows that are here at first; of ones that come from other ranks none is adapted.
    pub(super) adapted: &'a InLayer<'a>,
    pub(super) adapter: &'a mut AdapterRunner,
}

/// Runs the experts of every layer.
pub(super) struct ExpertRunner {
    hidden: usize,
    /// For each layer, for each expert, the ranks of the stage that hold it.
    holders: Vec<Vec<std::ops::Range<usize>>>,
    counts: ExpertCounts,
    logits: Vec<f32>,
    /// Rows of one expert, and its results.
    rows: Activations,
    results: Vec<f32>,
    exchange: Exchange,
}

impl ExpertRunner {
    pub(super) fn new(spec: &ArchSpec, plan: &SlicePlan) -> Self {
        let ranks = |part: &u16| plan.shape.part_ranks(usize::from(*part));
        let count = |mlp: &Mlp| if let Mlp::Experts(e) = mlp { e.count } else { 0 };
        Self {
            hidden: spec.hidden,
            holders: plan.experts.0.iter().map(|parts| parts.iter().map(ranks).collect()).collect(),
            counts: ExpertCounts::new(spec.layers.iter().map(|layer| count(&layer.mlp))),
            logits: Vec::new(),
            rows: Activations::new(0, spec.hidden),
            results: Vec::new(),
            exchange: Exchange::new(spec.hidden, plan.shape.stage_ranks()),
        }
    }

    /// Tokens routed to each expert of each layer since the last call.
    pub(super) fn take_counts(&mut self) -> Vec<Vec<u64>> {
        self.counts.take()
    }

    fn routes(
        &mut self,
        layer: &mut ExpertLayer<'_>,
        x: &mut Activations,
        adapted: &InLayer<'_>,
    ) -> Vec<Route> {
        let (e, w) = (layer.spec, layer.weights);
        self.logits.resize(x.rows() * e.count, 0.0);
        product(layer.pool, &w.router, x, &mut self.logits);
        add_bias(&mut self.logits, &w.router_bias);
        for (adapter, rows) in adapted {
            layer.adapter.add(layer.pool, &adapter.router, rows, x, &mut self.logits, e.count);
        }
        self.logits.chunks_exact(e.count).map(|logits| route(e, logits, &w.correction)).collect()
    }

    /// Adds to `out` what this rank's experts give the rows of `x`. `counted`: this rank is the one that counts these rows.
    pub(super) fn run_local(
        &mut self,
        layer: &mut ExpertLayer<'_>,
        x: &mut Activations,
        out: &mut [f32],
        counted: bool,
    ) {
        let adapted = layer.adapted;
        let routes = self.routes(layer, x, adapted);
        if counted {
            self.counts.count(layer.number, &routes);
        }
        self.compute(layer, x, &routes, out, adapted);
    }

    /// Adds to `out`, expert by expert, weight × result for the rows routed to it.
    fn compute(
        &mut self,
        layer: &mut ExpertLayer<'_>,
        x: &Activations,
        routes: &[Route],
        out: &mut [f32],
        adapted: &InLayer<'_>,
    ) {
        let hidden = self.hidden;
        for (place, (expert, weights)) in layer.weights.held.iter().enumerate() {
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
            let adapted = of_expert(adapted, place, &chosen);
            let adapted: Vec<_> = adapted.iter().map(|(adapter, rows)| (*adapter, &rows[..])).collect();
            let mut adapting = Adapting { runner: layer.adapter, adapted: &adapted };
            layer.mlp.run(layer.pool, weights, &mut self.rows, &mut self.results, &mut adapting);
            for ((row, weight), result) in chosen.iter().zip(self.results.chunks_exact(hidden)) {
                for (out, result) in out[row * hidden..][..hidden].iter_mut().zip(result) {
                    *out += weight * result;
                }
            }
        }
    }
}

/// What adapters add to the `place`-th expert that is held here, and to which of the rows that are routed to it.
fn of_expert<'a>(
    adapted: &InLayer<'a>,
    place: usize,
    chosen: &[(usize, f32)],
) -> Vec<(&'a MlpAdapter, Vec<usize>)> {
    let rows_of = |rows: &[usize]| {
        let is_adapted = |(_, (row, _)): &(usize, &(usize, f32))| rows.binary_search(row).is_ok();
        chosen.iter().enumerate().filter(is_adapted).map(|(i, _)| i).collect::<Vec<_>>()
    };
    adapted.iter().filter_map(|(layer, rows)| Some((layer.experts.get(place)?, rows_of(rows)))).collect()
}
