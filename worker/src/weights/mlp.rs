//! The weights of MLPs and of experts.

use std::ops::Range;

use foggara_kernels::op::panels::WeightMatrix;
use foggara_models::spec::{Experts, Routing};
use foggara_models::{LayerRole as R, ModelError, RankSlice};

use super::LoadError;
use super::layer::{Column, column_bytes, side_by_side};
use super::loader::{Loader, Part};
use super::store::{Held, Store};

/// One MLP's local columns.
#[derive(Debug)]
pub struct MlpWeights<M = WeightMatrix> {
    /// Gate and up projections side by side.
    pub gate_up: Vec<Column<M>>,
    /// Added to their output; empty where there are no biases.
    pub gate_up_bias: Vec<f32>,
    /// hidden × local columns.
    pub down: M,
    /// Added to the output, by one rank only; else empty.
    pub down_bias: Vec<f32>,
}

/// One rank's experts of a layer.
#[derive(Debug)]
pub struct ExpertsWeights<M = WeightMatrix> {
    /// experts × hidden, on every rank.
    pub router: M,
    /// Added to its output; empty where there is none.
    pub router_bias: Vec<f32>,
    /// Added to scores for the choice only; empty where there is none.
    pub correction: Vec<f32>,
    /// The expert every token goes to.
    pub shared: Option<MlpWeights<M>>,
    /// The experts held here by their numbers, in order.
    pub held: Vec<(u32, MlpWeights<M>)>,
}

/// Parts to be read of an MLP.
pub(super) struct MlpParts {
    gate_up: [Part; 2],
    down: Part,
}

impl MlpParts {
    fn of<S: Store>(
        loader: &Loader<'_, '_, S>,
        l: usize,
        roles: [R; 3],
        columns: &Range<usize>,
    ) -> Result<Self, ModelError> {
        let [gate, up, down] = roles;
        Ok(Self {
            gate_up: [loader.rows(l, gate, columns.clone())?, loader.rows(l, up, columns.clone())?],
            down: loader.columns(l, down, columns.clone())?,
        })
    }

    pub(super) fn dense<S: Store>(
        loader: &Loader<'_, '_, S>,
        slice: &RankSlice,
        l: usize,
    ) -> Result<Self, ModelError> {
        Self::of(loader, l, [R::Gate, R::Up, R::Down], &slice.dense)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.gate_up.iter().chain([&self.down]).map(|part| part.bytes() as u64).sum()
    }
}

impl<M: Held> MlpWeights<M> {
    pub(super) fn load<S: Store<Matrix = M>>(
        loader: &mut Loader<'_, '_, S>,
        parts: MlpParts,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            gate_up: side_by_side(loader, &parts.gate_up)?,
            gate_up_bias: Vec::new(),
            down: loader.matrix(&[parts.down])?,
            down_bias: Vec::new(),
        })
    }

    /// Bytes of memory of the matrices.
    pub(super) fn bytes(&self) -> usize {
        column_bytes(&self.gate_up) + self.down.bytes()
    }
}

/// Parts to be read of a layer with experts.
pub(super) struct ExpertsParts {
    spec: Experts,
    router: Part,
    shared: Option<MlpParts>,
    held: Vec<(u32, MlpParts)>,
}

impl ExpertsParts {
    pub(super) fn of<S: Store>(
        loader: &Loader<'_, '_, S>,
        slice: &RankSlice,
        l: usize,
        spec: &Experts,
    ) -> Result<Self, ModelError> {
        let shared = [R::SharedGate, R::SharedUp, R::SharedDown];
        let expert = |e: &u32| {
            let i = *e as usize;
            let roles = [R::ExpertGate(i), R::ExpertUp(i), R::ExpertDown(i)];
            Ok((*e, MlpParts::of(loader, l, roles, &slice.expert_columns)?))
        };
        Ok(Self {
            spec: *spec,
            router: loader.whole(l, R::Router)?,
            shared: match spec.shared_width {
                0 => None,
                _ => Some(MlpParts::of(loader, l, shared, &slice.shared)?),
            },
            held: slice.experts[l].iter().map(expert).collect::<Result<_, ModelError>>()?,
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        let mlps = self.held.iter().map(|(_, parts)| parts).chain(&self.shared);
        self.router.bytes() as u64 + mlps.map(MlpParts::bytes).sum::<u64>()
    }
}

impl<M: Held> ExpertsWeights<M> {
    pub(super) fn load<S: Store<Matrix = M>>(
        loader: &mut Loader<'_, '_, S>,
        slice: &RankSlice,
        l: usize,
        parts: ExpertsParts,
    ) -> Result<Self, LoadError> {
        let e = parts.spec;
        let corrected = matches!(e.routing, Routing::GroupedSigmoid { .. });
        let mut held = Vec::new();
        for (number, parts) in parts.held {
            let mut weights = MlpWeights::load(loader, parts)?;
            if e.bias {
                add_biases(loader, slice, l, number as usize, &mut weights)?;
            }
            held.push((number, weights));
        }
        Ok(Self {
            router: loader.matrix(&[parts.router])?,
            router_bias: match e.bias {
                true => loader.vector(l, R::RouterBias, 0..e.count)?,
                false => Vec::new(),
            },
            correction: match corrected {
                true => loader.vector(l, R::RouterCorrection, 0..e.count)?,
                false => Vec::new(),
            },
            shared: parts.shared.map(|shared| MlpWeights::load(loader, shared)).transpose()?,
            held,
        })
    }

    /// Bytes of memory of the matrices.
    pub(super) fn bytes(&self) -> usize {
        let mlps = self.held.iter().map(|(_, weights)| weights).chain(&self.shared);
        self.router.bytes() + mlps.map(MlpWeights::bytes).sum::<usize>()
    }
}

fn add_biases<S: Store>(
    loader: &mut Loader<'_, '_, S>,
    slice: &RankSlice,
    l: usize,
    expert: usize,
    weights: &mut MlpWeights<S::Matrix>,
) -> Result<(), LoadError> {
    let columns = &slice.expert_columns;
    weights.gate_up_bias = loader.vector(l, R::ExpertGateBias(expert), columns.clone())?;
    weights.gate_up_bias.extend(loader.vector(l, R::ExpertUpBias(expert), columns.clone())?);
    // Of the ranks that split an expert, the one with its first column.
    if columns.start == 0 && !columns.is_empty() {
        let hidden = loader.model.spec().hidden;
        weights.down_bias = loader.vector(l, R::ExpertDownBias(expert), 0..hidden)?;
    }
    Ok(())
}
