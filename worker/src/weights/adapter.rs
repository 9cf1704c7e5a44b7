//! One rank's part of a low-rank adapter, packed for the CPU's kernels.
//!
//! Cut as the matrices are that it adds to: of a matrix whose rows are split, B is (every rank computes A·x whole); of one whose
//! columns are split, A is, and what the ranks' parts give is summed with everything else. Matrices with one input have their A in
//! one matrix.

use std::ops::Range;

use foggara_kernels::op::low_rank::UpMatrix;
use foggara_kernels::op::panels::WeightMatrix;
use foggara_models::spec::{Attention, Mlp};
use foggara_models::{Adapter, ArchSpec, LayerRole as R, LowRank, RankSlice, adapter_row};

use super::{LoadError, weight_type};

/// An adapter as a rank holds it.
#[derive(Debug)]
pub struct RankAdapter {
    layers: Vec<LayerAdapter>,
}

/// Of one layer of the rank's stage.
#[derive(Debug, Default)]
pub struct LayerAdapter {
    /// To queries, keys and values.
    pub qkv: Deltas,
    /// To attention's output projection.
    pub o: Deltas,
    /// To the MLP.
    pub mlp: MlpAdapter,
    /// To the choice of experts.
    pub router: Deltas,
    /// To the experts that are held here, as many and in the order of their weights; empty if it leaves all of them alone.
    pub experts: Vec<MlpAdapter>,
}

/// What is added in an MLP.
#[derive(Debug, Default)]
pub struct MlpAdapter {
    /// To gate and up projection.
    pub gate_up: Deltas,
    /// To the down projection.
    pub down: Deltas,
}

/// What is added to the products of matrices with one input: nothing, by default.
#[derive(Debug, Default)]
pub struct Deltas(Option<Box<Joined>>);

/// The A of all of them in one matrix, and each one's B.
#[derive(Debug)]
pub struct Joined {
    /// Ranks × local input features.
    pub a: WeightMatrix,
    /// In the order of their ranks in `a`.
    pub parts: Vec<Part>,
}

/// One matrix's part of [`Joined`].
#[derive(Debug)]
pub struct Part {
    /// The first column of the outputs that it adds to.
    pub at: usize,
    /// Local output features × rank.
    pub b: UpMatrix,
    /// Multiplies what is added.
    pub scale: f32,
}

/// Where a matrix is cut for a rank, and where its results go.
struct Cut {
    role: R,
    rows: Range<usize>,
    cols: Range<usize>,
    at: usize,
}

impl Deltas {
    /// What there is to add.
    pub fn joined(&self) -> Option<&Joined> {
        self.0.as_deref()
    }

    fn bytes(&self) -> usize {
        let joined = |joined: &Joined| {
            joined.a.bytes() + joined.parts.iter().map(|part| part.b.bytes()).sum::<usize>()
        };
        self.joined().map_or(0, joined)
    }
}

impl MlpAdapter {
    fn bytes(&self) -> usize {
        self.gate_up.bytes() + self.down.bytes()
    }
}

impl LayerAdapter {
    fn bytes(&self) -> usize {
        let experts: usize = self.experts.iter().map(MlpAdapter::bytes).sum();
        self.qkv.bytes() + self.o.bytes() + self.mlp.bytes() + self.router.bytes() + experts
    }
}

impl RankAdapter {
    /// Reads a rank's part.
    ///
    /// # Errors
    /// If the adapter is not one of such a model, or adapts experts of a rank that is sent rows of others' sequences.
    pub fn load(adapter: &Adapter, spec: &ArchSpec, slice: &RankSlice, dp: usize) -> Result<Self, LoadError> {
        adapter.check(spec)?;
        if dp > 1 && adapter.changes_experts() {
            return Err(LoadError::ExpertsOfOthers);
        }
        let layers =
            slice.layers.clone().map(|l| layer(adapter, spec, slice, l)).collect::<Result<_, _>>()?;
        Ok(Self { layers })
    }

    /// Of the stage's `local`-th layer.
    pub fn layer(&self, local: usize) -> &LayerAdapter {
        &self.layers[local]
    }

    /// Bytes of memory of its matrices.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(LayerAdapter::bytes).sum()
    }
}

fn layer(adapter: &Adapter, spec: &ArchSpec, slice: &RankSlice, l: usize) -> Result<LayerAdapter, LoadError> {
    let Attention::Grouped(a) = spec.attention else {
        unreachable!("adapters of other models have been refused")
    };
    let hidden = 0..spec.hidden;
    let columns = |heads: &Range<usize>| heads.start * a.head_dim..heads.end * a.head_dim;
    let (q, kv) = (columns(&slice.q_heads), columns(&slice.kv_heads));
    let (k_at, v_at) = (q.len(), q.len() + kv.len());
    let cut = |role, rows: &Range<usize>, at| Cut { role, rows: rows.clone(), cols: hidden.clone(), at };
    let joined = |cuts: &[Cut]| join(adapter, spec, l, cuts);
    let mlp = |roles: [R; 3], width: &Range<usize>| -> Result<MlpAdapter, LoadError> {
        let [gate, up, down] = roles;
        Ok(MlpAdapter {
            gate_up: joined(&[cut(gate, width, 0), cut(up, width, width.len())])?,
            down: joined(&[Cut { role: down, rows: hidden.clone(), cols: width.clone(), at: 0 }])?,
        })
    };
    let mut made = LayerAdapter {
        qkv: joined(&[cut(R::Q, &q, 0), cut(R::K, &kv, k_at), cut(R::V, &kv, v_at)])?,
        o: joined(&[Cut { role: R::O, rows: hidden.clone(), cols: q.clone(), at: 0 }])?,
        ..LayerAdapter::default()
    };
    match spec.layers[l].mlp {
        Mlp::Dense { .. } => made.mlp = mlp([R::Gate, R::Up, R::Down], &slice.dense)?,
        Mlp::Experts(experts) => {
            made.router = joined(&[cut(R::Router, &(0..experts.count), 0)])?;
            let of_expert = |e: usize| [R::ExpertGate(e), R::ExpertUp(e), R::ExpertDown(e)];
            let held = || slice.experts[l].iter().map(|e| of_expert(*e as usize));
            if held().flatten().any(|role| adapter.delta(l, role).is_some()) {
                let each = held().map(|roles| mlp(roles, &slice.expert_columns));
                made.experts = each.collect::<Result<_, _>>()?;
            }
        }
    }
    Ok(made)
}

/// What an adapter adds to the products of some matrices with one input.
fn join(adapter: &Adapter, spec: &ArchSpec, l: usize, cuts: &[Cut]) -> Result<Deltas, LoadError> {
    let adapted: Vec<(&Cut, &LowRank)> =
        cuts.iter().filter_map(|cut| Some((cut, adapter.delta(l, cut.role)?))).collect();
    // A rank may hold nothing of a matrix.
    let adapted: Vec<_> =
        adapted.into_iter().filter(|(cut, _)| !cut.rows.is_empty() && !cut.cols.is_empty()).collect();
    let Some((first, _)) = adapted.first() else { return Ok(Deltas::default()) };
    // All of them have one type in what PEFT writes; where not, all are held in the widest there is.
    let ty = adapted[0].1.a.dtype;
    let alike = adapted.iter().all(|(_, delta)| delta.a.dtype == ty);
    let (cols, ranks) = (first.cols.clone(), adapted.iter().map(|(_, delta)| delta.rank()).sum());
    let mut rows: Vec<u8> = Vec::new();
    for (_, delta) in &adapted {
        let slice = delta.a.slice(0..delta.rank(), cols.clone())?;
        match alike {
            true => {
                let mut scratch = Vec::new();
                (0..delta.rank()).for_each(|i| rows.extend_from_slice(slice.row(i, &mut scratch)));
            }
            false => rows.extend(slice.to_f32()?.iter().flat_map(|value| value.to_le_bytes())),
        }
    }
    let ty = if alike { weight_type(ty) } else { foggara_kernels::WeightType::F32 };
    let a = WeightMatrix::pack(ty, ranks, cols.len(), 0, cols.len(), &rows)?;
    let part = |(cut, delta): (&Cut, &LowRank)| -> Result<Part, LoadError> {
        let (whole, rank) = (delta.b.slice(0..delta.b.rows, 0..delta.rank())?, delta.rank());
        let (mut rows, mut scratch) = (Vec::new(), Vec::new());
        for row in cut.rows.clone() {
            rows.extend_from_slice(whole.row(adapter_row(spec, cut.role, row), &mut scratch));
        }
        let b = UpMatrix::pack(weight_type(delta.b.dtype), cut.rows.len(), rank, &rows)?;
        Ok(Part { at: cut.at, b, scale: delta.scale })
    };
    let parts = adapted.iter().map(|(cut, delta)| part((cut, delta))).collect::<Result<_, _>>()?;
    Ok(Deltas(Some(Box::new(Joined { a, parts }))))
}
