//! The weights of one layer, as a rank holds them.

use foggara_kernels::op::panels::WeightMatrix;
use foggara_models::spec::Mlp;
use foggara_models::{LayerRole, ModelError, RankSlice, TensorRole};

use super::LoadError;
use super::attention::{AttentionParts, AttentionWeights};
use super::loader::{Loader, Part};
use super::mlp::{ExpertsParts, ExpertsWeights, MlpParts, MlpWeights};
use super::store::{Held, Store};

/// A matrix whose results go to consecutive columns of a wider output.
#[derive(Debug)]
pub struct Column<M = WeightMatrix> {
    /// First output column.
    pub at: usize,
    /// The weights.
    pub weights: M,
}

/// What follows attention.
#[derive(Debug)]
pub enum MlpKind<M = WeightMatrix> {
    /// One MLP.
    Dense(MlpWeights<M>),
    /// A mixture.
    Experts(ExpertsWeights<M>),
}

/// One rank's part of one layer.
#[derive(Debug)]
pub struct LayerWeights<M = WeightMatrix> {
    /// Of the norm before attention.
    pub attn_norm: Vec<f32>,
    /// Attention.
    pub attention: AttentionWeights<M>,
    /// Of the norm of what attention adds; empty where there is none.
    pub post_attn_norm: Vec<f32>,
    /// Of the norm before the MLP.
    pub mlp_norm: Vec<f32>,
    /// The MLP.
    pub mlp: MlpKind<M>,
    /// Of the norm of what the MLP adds; empty where there is none.
    pub post_mlp_norm: Vec<f32>,
}

/// The parts of a layer's matrices.
struct LayerParts {
    attention: AttentionParts,
    mlp: MlpKindParts,
}

/// Those of what follows attention.
enum MlpKindParts {
    Dense(Box<MlpParts>),
    Experts(Box<ExpertsParts>),
}

impl LayerParts {
    fn of<S: Store>(loader: &Loader<'_, '_, S>, slice: &RankSlice, layer: usize) -> Result<Self, ModelError> {
        Ok(Self {
            attention: AttentionParts::of(loader, slice, layer)?,
            mlp: match loader.model.spec().layers[layer].mlp {
                Mlp::Dense { .. } => MlpKindParts::Dense(Box::new(MlpParts::dense(loader, slice, layer)?)),
                Mlp::Experts(experts) => {
                    MlpKindParts::Experts(Box::new(ExpertsParts::of(loader, slice, layer, &experts)?))
                }
            },
        })
    }

    fn bytes(&self) -> u64 {
        let mlp = match &self.mlp {
            MlpKindParts::Dense(mlp) => mlp.bytes(),
            MlpKindParts::Experts(experts) => experts.bytes(),
        };
        self.attention.bytes() + mlp
    }
}

impl<M: Held> LayerWeights<M> {
    /// Bytes of matrices that a rank reads of a layer.
    pub(super) fn bytes_read<S: Store>(
        loader: &Loader<'_, '_, S>,
        slice: &RankSlice,
        layer: usize,
    ) -> Result<u64, ModelError> {
        Ok(LayerParts::of(loader, slice, layer)?.bytes())
    }

    pub(super) fn load<S: Store<Matrix = M>>(
        loader: &mut Loader<'_, '_, S>,
        slice: &RankSlice,
        layer: usize,
    ) -> Result<Self, LoadError> {
        let post_norms = loader.model.spec().post_norms;
        let role = |role| TensorRole::Layer(layer, role);
        let post = |loader: &mut Loader<'_, '_, S>, norm| match post_norms {
            true => loader.norm(role(norm)),
            false => Ok(Vec::new()),
        };
        let (post_attn_norm, post_mlp_norm) =
            (post(loader, LayerRole::PostAttnNorm)?, post(loader, LayerRole::PostMlpNorm)?);
        let attn_norm = loader.norm(role(LayerRole::AttnNorm))?;
        let mlp_norm = loader.norm(role(LayerRole::MlpNorm))?;
        let parts = LayerParts::of(loader, slice, layer)?;
        let attention = AttentionWeights::load(loader, slice, layer, parts.attention)?;
        let mlp = match parts.mlp {
            MlpKindParts::Dense(mlp) => MlpKind::Dense(MlpWeights::load(loader, *mlp)?),
            MlpKindParts::Experts(experts) => {
                MlpKind::Experts(ExpertsWeights::load(loader, slice, layer, *experts)?)
            }
        };
        Ok(Self { attn_norm, attention, post_attn_norm, mlp_norm, mlp, post_mlp_norm })
    }

    /// Bytes of memory of the matrices.
    pub fn bytes(&self) -> usize {
        let mlp = match &self.mlp {
            MlpKind::Dense(mlp) => mlp.bytes(),
            MlpKind::Experts(experts) => experts.bytes(),
        };
        self.attention.bytes() + mlp
    }
}

/// Merges neighbours of one type into one matrix.
pub(super) fn side_by_side<S: Store>(
    loader: &mut Loader<'_, '_, S>,
    parts: &[Part],
) -> Result<Vec<Column<S::Matrix>>, LoadError> {
    let mut columns = Vec::new();
    let mut at = 0;
    for run in parts.chunk_by(Part::is_like) {
        let weights = loader.matrix(run)?;
        let rows = weights.rows();
        columns.push(Column { at, weights });
        at += rows;
    }
    Ok(columns)
}

/// Bytes of memory of columns.
pub(super) fn column_bytes<M: Held>(columns: &[Column<M>]) -> usize {
    columns.iter().map(|column| column.weights.bytes()).sum()
}
