//! The weights of attention, in both its forms.

use std::ops::Range;

use foggara_kernels::WeightType;
use foggara_kernels::op::panels::WeightMatrix;
use foggara_models::spec::{Attention, Latent};
use foggara_models::{DType, LayerRole as R, ModelError, RankSlice, TensorRole};

use super::layer::{Column, column_bytes, side_by_side};
use super::loader::{Loader, Part};
use super::store::{Held, Store};
use super::{LoadError, weight_type};

/// Attention's weights.
#[derive(Debug)]
pub enum AttentionWeights<M = WeightMatrix> {
    /// Of grouped-query attention.
    Grouped(Box<GroupedWeights<M>>),
    /// Of latent attention.
    Latent(Box<LatentWeights<M>>),
}

/// Grouped-query attention.
#[derive(Debug)]
pub struct GroupedWeights<M = WeightMatrix> {
    /// Query, key and value projections side by side: one matrix where they are stored in one type.
    pub qkv: Vec<Column<M>>,
    /// Added to the output of `qkv`; empty where the model has no biases.
    pub qkv_bias: Vec<f32>,
    /// Of the norm of each query head; empty where there is none.
    pub q_norm: Vec<f32>,
    /// Of the norm of each key head.
    pub k_norm: Vec<f32>,
    /// A logit without a value for each local query head; empty where there are none.
    pub sinks: Vec<f32>,
    /// hidden × local query columns.
    pub o: M,
    /// Added to the attention's output, by one rank only (the sum over ranks must have it once); else empty.
    pub o_bias: Vec<f32>,
}

/// Latent attention, its up projections taken apart by head so that queries meet the cached vectors themselves.
#[derive(Debug)]
pub struct LatentWeights<M = WeightMatrix> {
    /// q_rank × hidden, where queries go through a short vector.
    pub q_down: Option<M>,
    /// Added to its output; empty where there is nothing to add.
    pub q_down_bias: Vec<f32>,
    /// Of its norm; empty without.
    pub q_norm: Vec<f32>,
    /// local heads · (nope + rope) × q_rank (or hidden).
    pub q_up: M,
    /// kv_rank + rope × hidden.
    pub kv_down: M,
    /// Added to its output; empty where there is nothing to add.
    pub kv_down_bias: Vec<f32>,
    /// Of the norm of its first kv_rank elements.
    pub kv_norm: Vec<f32>,
    /// For each local head, kv_rank × nope: the key projection, transposed.
    pub key_up: Vec<M>,
    /// For each local head, value × kv_rank.
    pub value_up: Vec<M>,
    /// hidden × local heads · value.
    pub o: M,
    /// Added to the attention's output, by one rank only; else empty.
    pub o_bias: Vec<f32>,
}

/// Parts to be read.
pub(super) enum AttentionParts {
    Grouped { qkv: [Part; 3], o: Part },
    Latent { q_down: Option<Part>, q_up: Part, kv_down: Part, up: UpParts, o: Part },
}

/// The up projections of latent attention.
pub(super) enum UpParts {
    /// Of all local heads in one.
    Joined(Part),
    /// Of keys, transposed, and of values; for each local head.
    Split(Vec<(Part, Part)>),
}

/// Columns of all heads in `heads`.
fn columns(heads: &Range<usize>, width: usize) -> Range<usize> {
    heads.start * width..heads.end * width
}

impl AttentionParts {
    pub(super) fn of<S: Store>(
        loader: &Loader<'_, '_, S>,
        slice: &RankSlice,
        l: usize,
    ) -> Result<Self, ModelError> {
        let spec = loader.model.spec();
        let o = loader.columns(l, R::O, columns(&slice.q_heads, spec.out_dim()))?;
        Ok(match spec.attention {
            Attention::Grouped(a) => {
                let (q, kv) = (columns(&slice.q_heads, a.head_dim), columns(&slice.kv_heads, a.head_dim));
                let qkv =
                    [loader.rows(l, R::Q, q)?, loader.rows(l, R::K, kv.clone())?, loader.rows(l, R::V, kv)?];
                Self::Grouped { qkv, o }
            }
            Attention::Latent(a) => Self::Latent {
                q_down: a.q_rank.map(|_| loader.whole(l, R::QDown)).transpose()?,
                q_up: loader.rows(l, R::QUp, columns(&slice.q_heads, a.nope_dim + a.rope_dim))?,
                kv_down: loader.whole(l, R::KvDown)?,
                up: UpParts::of(loader, slice, l, a)?,
                o,
            },
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        let bytes: usize = match self {
            Self::Grouped { qkv, o } => qkv.iter().chain([o]).map(Part::bytes).sum(),
            Self::Latent { q_down, q_up, kv_down, up, o } => {
                q_down.iter().chain([q_up, kv_down, o]).map(Part::bytes).sum::<usize>() + up.bytes()
            }
        };
        bytes as u64
    }
}

impl UpParts {
    fn of<S: Store>(
        loader: &Loader<'_, '_, S>,
        slice: &RankSlice,
        l: usize,
        a: Latent,
    ) -> Result<Self, ModelError> {
        if !a.split_up {
            let rows = columns(&slice.q_heads, a.nope_dim + a.value_dim);
            return Ok(Self::Joined(loader.rows(l, R::KvUp, rows)?));
        }
        let head = |h: usize| Ok((loader.whole(l, R::KeyUp(h))?, loader.whole(l, R::ValueUp(h))?));
        slice.q_heads.clone().map(head).collect::<Result<_, _>>().map(Self::Split)
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Joined(part) => part.bytes(),
            Self::Split(heads) => heads.iter().map(|(key, value)| key.bytes() + value.bytes()).sum(),
        }
    }
}

impl<M: Held> AttentionWeights<M> {
    pub(super) fn load<S: Store<Matrix = M>>(
        loader: &mut Loader<'_, '_, S>,
        slice: &RankSlice,
        l: usize,
        parts: AttentionParts,
    ) -> Result<Self, LoadError> {
        match (parts, loader.model.spec().attention) {
            (AttentionParts::Grouped { qkv, o }, _) => {
                Ok(Self::Grouped(Box::new(GroupedWeights::load(loader, slice, l, &qkv, o)?)))
            }
            (AttentionParts::Latent { q_down, q_up, kv_down, up, o }, Attention::Latent(a)) => {
                let (key_up, value_up) = by_head(loader, &up, a)?;
                let hidden = loader.model.spec().hidden;
                let bias = |loader: &mut Loader<'_, '_, S>, role: R, len: usize| match a.bias && len > 0 {
                    true => loader.vector(l, role, 0..len),
                    false => Ok(Vec::new()),
                };
                Ok(Self::Latent(Box::new(LatentWeights {
                    q_down_bias: bias(loader, R::QDownBias, a.q_rank.unwrap_or(0))?,
                    kv_down_bias: bias(loader, R::KvDownBias, a.kv_rank + a.rope_dim)?,
                    o_bias: bias(loader, R::OBias, if slice.q_heads.contains(&0) { hidden } else { 0 })?,
                    q_norm: match q_down {
                        Some(_) => loader.norm(TensorRole::Layer(l, R::QDownNorm))?,
                        None => Vec::new(),
                    },
                    q_down: q_down.map(|part| loader.matrix(&[part])).transpose()?,
                    q_up: loader.matrix(&[q_up])?,
                    kv_down: loader.matrix(&[kv_down])?,
                    kv_norm: loader.norm(TensorRole::Layer(l, R::KvDownNorm))?,
                    key_up,
                    value_up,
                    o: loader.matrix(&[o])?,
                })))
            }
            (AttentionParts::Latent { .. }, Attention::Grouped(_)) => {
                unreachable!("parts are those of the architecture")
            }
        }
    }

    /// Bytes of memory of the matrices.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Grouped(w) => column_bytes(&w.qkv) + w.o.bytes(),
            Self::Latent(w) => {
                let up = w.key_up.iter().chain(&w.value_up).chain(&w.q_down);
                up.chain([&w.q_up, &w.kv_down, &w.o]).map(Held::bytes).sum()
            }
        }
    }
}

impl<M: Held> GroupedWeights<M> {
    fn load<S: Store<Matrix = M>>(
        loader: &mut Loader<'_, '_, S>,
        slice: &RankSlice,
        l: usize,
        qkv: &[Part; 3],
        o: Part,
    ) -> Result<Self, LoadError> {
        let spec = loader.model.spec().clone();
        let Attention::Grouped(a) = spec.attention else {
            unreachable!("grouped weights of grouped attention")
        };
        let mut qkv_bias = Vec::new();
        if a.qkv_bias {
            qkv_bias.extend(loader.vector(l, R::QBias, columns(&slice.q_heads, a.head_dim))?);
            qkv_bias.extend(loader.vector(l, R::KBias, columns(&slice.kv_heads, a.head_dim))?);
            qkv_bias.extend(loader.vector(l, R::VBias, columns(&slice.kv_heads, a.head_dim))?);
        }
        let (mut q_norm, mut k_norm) = (Vec::new(), Vec::new());
        if a.qk_norm {
            q_norm = loader.norm(TensorRole::Layer(l, R::QNorm))?;
            k_norm = loader.norm(TensorRole::Layer(l, R::KNorm))?;
        }
        Ok(Self {
            qkv: side_by_side(loader, qkv)?,
            qkv_bias,
            q_norm,
            k_norm,
            sinks: match a.sinks {
                true => loader.vector(l, R::Sinks, slice.q_heads.clone())?,
                false => Vec::new(),
            },
            o: loader.matrix(&[o])?,
            // Only the rank with the first head adds it.
            o_bias: match a.o_bias && slice.q_heads.contains(&0) {
                true => loader.vector(l, R::OBias, 0..spec.hidden)?,
                false => Vec::new(),
            },
        })
    }
}

/// Keys' matrices and values', a head each.
type ByHead<M> = (Vec<M>, Vec<M>);

/// The key and value projections of each head, those of keys transposed.
fn by_head<S: Store>(
    loader: &mut Loader<'_, '_, S>,
    up: &UpParts,
    a: Latent,
) -> Result<ByHead<S::Matrix>, LoadError> {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    match up {
        UpParts::Joined(part) => {
            let all = loader.values(part)?;
            for head in all.chunks_exact((a.nope_dim + a.value_dim) * a.kv_rank) {
                let (key, value) = head.split_at(a.nope_dim * a.kv_rank);
                let column = |j: usize| (0..a.nope_dim).map(move |i| key[i * a.kv_rank + j]);
                let transposed: Vec<f32> = (0..a.kv_rank).flat_map(column).collect();
                keys.push(loader.made(held(part), a.kv_rank, a.nope_dim, &transposed)?);
                values.push(loader.made(held(part), a.value_dim, a.kv_rank, value)?);
            }
        }
        UpParts::Split(heads) => {
            for (key, value) in heads {
                let all = loader.values(key)?;
                keys.push(loader.made(held(key), a.kv_rank, a.nope_dim, &all)?);
                let all = loader.values(value)?;
                values.push(loader.made(held(value), a.value_dim, a.kv_rank, &all)?);
            }
        }
    }
    Ok((keys, values))
}

/// Half precision loses nothing of a quantized tensor that counts, and takes half the memory.
fn held(part: &Part) -> WeightType {
    match part.stored() {
        DType::F32 | DType::F16 | DType::BF16 => weight_type(part.stored()),
        _ => WeightType::F16,
    }
}
