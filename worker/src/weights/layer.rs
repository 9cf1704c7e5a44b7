//! The weights of one layer, as a rank holds them.

use std::ops::Range;

use foggara_kernels::op::panels::WeightMatrix;
use foggara_models::{Checkpoint, ModelError, RankSlice, TensorRole, TensorSlice};

use super::{LoadError, Loader};

/// A matrix whose results go to consecutive columns of a wider output.
#[derive(Debug)]
pub struct Column {
    /// First output column.
    pub at: usize,
    /// The weights.
    pub weights: WeightMatrix,
}

/// One rank's part of one layer.
#[derive(Debug)]
pub struct LayerWeights {
    /// Of the norm before attention.
    pub attn_norm: Vec<f32>,
    /// Query, key and value projections side by side: one matrix where they are stored in one type.
    pub qkv: Vec<Column>,
    /// Added to the output of `qkv`; empty where the model has no biases.
    pub qkv_bias: Vec<f32>,
    /// hidden × local query columns.
    pub o: WeightMatrix,
    /// Added to the attention's output, by one rank only (the sum over ranks must have it once); else empty.
    pub o_bias: Vec<f32>,
    /// Of the norm before the MLP.
    pub mlp_norm: Vec<f32>,
    /// Gate and up projections side by side.
    pub gate_up: Vec<Column>,
    /// hidden × local MLP columns.
    pub down: WeightMatrix,
}

/// Columns of all heads in `heads`.
fn columns(heads: &Range<usize>, head_dim: usize) -> Range<usize> {
    heads.start * head_dim..heads.end * head_dim
}

/// Bytes a rank reads of a layer.
pub(super) fn bytes(model: &Checkpoint, slice: &RankSlice) -> Result<u64, ModelError> {
    let parts = Parts::of(model, slice, 0)?;
    let matrices = parts.qkv.iter().chain(&parts.gate_up).chain([&parts.o, &parts.down]);
    Ok(matrices.map(|part| part.bytes() as u64).sum())
}

/// The slices of a layer's matrices.
struct Parts {
    qkv: [TensorSlice; 3],
    o: TensorSlice,
    gate_up: [TensorSlice; 2],
    down: TensorSlice,
}

impl Parts {
    fn of(model: &Checkpoint, slice: &RankSlice, layer: usize) -> Result<Self, ModelError> {
        let spec = model.spec();
        let hidden = 0..spec.hidden;
        let (q, kv) = (columns(&slice.q_heads, spec.head_dim), columns(&slice.kv_heads, spec.head_dim));
        let rows = |role, rows: &Range<usize>| model.slice(role, rows.clone(), hidden.clone());
        let cols = |role, cols: &Range<usize>| model.slice(role, hidden.clone(), cols.clone());
        Ok(Self {
            qkv: [
                rows(TensorRole::Q(layer), &q)?,
                rows(TensorRole::K(layer), &kv)?,
                rows(TensorRole::V(layer), &kv)?,
            ],
            o: cols(TensorRole::O(layer), &q)?,
            gate_up: [rows(TensorRole::Gate(layer), &slice.ffn)?, rows(TensorRole::Up(layer), &slice.ffn)?],
            down: cols(TensorRole::Down(layer), &slice.ffn)?,
        })
    }
}

impl LayerWeights {
    pub(super) fn load(
        loader: &mut Loader<'_, '_>,
        slice: &RankSlice,
        layer: usize,
    ) -> Result<Self, LoadError> {
        let spec = loader.model.spec();
        let parts = Parts::of(loader.model, slice, layer)?;
        let (hidden, dim) = (0..spec.hidden, spec.head_dim);
        let mut qkv_bias = Vec::new();
        let mut o_bias = Vec::new();
        if spec.attention_bias {
            qkv_bias.extend(loader.vector(TensorRole::QBias(layer), columns(&slice.q_heads, dim))?);
            qkv_bias.extend(loader.vector(TensorRole::KBias(layer), columns(&slice.kv_heads, dim))?);
            qkv_bias.extend(loader.vector(TensorRole::VBias(layer), columns(&slice.kv_heads, dim))?);
            // Only Llama's own class has a bias here, and only the rank with the first head adds it.
            if slice.q_heads.contains(&0) && loader.model.tensor(TensorRole::OBias(layer)).is_ok() {
                o_bias = loader.vector(TensorRole::OBias(layer), hidden.clone())?;
            }
        }
        Ok(Self {
            attn_norm: loader.vector(TensorRole::AttnNorm(layer), hidden.clone())?,
            qkv: side_by_side(loader, &parts.qkv)?,
            qkv_bias,
            o: loader.matrix(&[parts.o])?,
            o_bias,
            mlp_norm: loader.vector(TensorRole::MlpNorm(layer), hidden)?,
            gate_up: side_by_side(loader, &parts.gate_up)?,
            down: loader.matrix(&[parts.down])?,
        })
    }

    /// Bytes of memory of the matrices.
    pub fn bytes(&self) -> usize {
        let columns =
            self.qkv.iter().chain(&self.gate_up).map(|column| column.weights.bytes()).sum::<usize>();
        columns + self.o.bytes() + self.down.bytes()
    }
}

/// Merges neighbours of one type into one matrix.
fn side_by_side(loader: &mut Loader<'_, '_>, parts: &[TensorSlice]) -> Result<Vec<Column>, LoadError> {
    let mut columns = Vec::new();
    let mut at = 0;
    for run in parts.chunk_by(|a, b| a.dtype == b.dtype) {
        let weights = loader.matrix(run)?;
        let rows = weights.rows();
        columns.push(Column { at, weights });
        at += rows;
    }
    Ok(columns)
}
