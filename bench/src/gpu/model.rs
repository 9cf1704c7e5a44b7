//! A model of a given shape with random weights, made on the device: speed does not depend on what they are.

use anyhow::{Result, bail};
use foggara_kernels::cuda::op::random::random_matrix;
use foggara_kernels::cuda::{Device, DeviceMatrix, WeightKind};
use foggara_models::spec::{Attention, Mlp};
use foggara_models::{ArchSpec, RankSlice};
use foggara_worker::weights::{
    AttentionWeights, Column, ExpertsWeights, GroupedWeights, LayerWeights, MlpKind, MlpWeights, RankWeights,
};

/// Makes matrices that differ.
struct Maker<'a> {
    device: &'a Device,
    kind: WeightKind,
    seed: u64,
}

impl Maker<'_> {
    /// `kind` is the maker's unless given. Deviations keep the residual stream as large as real ones are.
    fn matrix(&mut self, kind: Option<WeightKind>, rows: usize, cols: usize) -> Result<DeviceMatrix> {
        self.seed += 1;
        let deviation = 1.0 / (cols.max(1) as f32).sqrt();
        Ok(random_matrix(self.device, kind.unwrap_or(self.kind), rows, cols, self.seed, deviation)?)
    }

    fn mlp(&mut self, hidden: usize, width: usize) -> Result<MlpWeights<DeviceMatrix>> {
        Ok(MlpWeights {
            gate_up: vec![Column { at: 0, weights: self.matrix(None, 2 * width, hidden)? }],
            gate_up_bias: Vec::new(),
            down: self.matrix(None, hidden, width)?,
            down_bias: Vec::new(),
        })
    }
}

/// What a rank holds of a model of shape `spec`: matrices of layers in `kind`, the others in bf16.
pub(super) fn random_weights(
    device: &Device,
    spec: &ArchSpec,
    slice: &RankSlice,
    kind: WeightKind,
) -> Result<RankWeights<DeviceMatrix>> {
    let Attention::Grouped(a) = spec.attention else {
        bail!("only shapes with grouped-query attention can be made up");
    };
    if a.qkv_bias || a.o_bias || a.qk_norm || a.sinks || spec.post_norms {
        bail!("only shapes without biases, sinks and norms of heads can be made up");
    }
    let mut maker = Maker { device, kind, seed: 0 };
    let (hidden, bf16) = (spec.hidden, Some(WeightKind::Bf16));
    let ones = || vec![1.0; hidden];
    let mut layers = Vec::new();
    for global in slice.layers.clone() {
        let (q, kv) = (slice.q_heads.len() * a.head_dim, slice.kv_heads.len() * a.head_dim);
        let attention = GroupedWeights {
            qkv: vec![Column { at: 0, weights: maker.matrix(None, q + 2 * kv, hidden)? }],
            qkv_bias: Vec::new(),
            q_norm: Vec::new(),
            k_norm: Vec::new(),
            sinks: Vec::new(),
            o: maker.matrix(None, hidden, q)?,
            o_bias: Vec::new(),
        };
        let mlp = match spec.layers[global].mlp {
            Mlp::Dense { .. } => MlpKind::Dense(maker.mlp(hidden, slice.dense.len())?),
            Mlp::Experts(e) => {
                let held = &slice.experts[global];
                MlpKind::Experts(ExpertsWeights {
                    router: maker.matrix(bf16, e.count, hidden)?,
                    router_bias: Vec::new(),
                    correction: Vec::new(),
                    shared: match e.shared_width {
                        0 => None,
                        _ => Some(maker.mlp(hidden, slice.shared.len())?),
                    },
                    held: held
                        .iter()
                        .map(|number| Ok((*number, maker.mlp(hidden, slice.expert_columns.len())?)))
                        .collect::<Result<_>>()?,
                })
            }
        };
        layers.push(LayerWeights {
            attn_norm: ones(),
            attention: AttentionWeights::Grouped(Box::new(attention)),
            post_attn_norm: Vec::new(),
            mlp_norm: ones(),
            mlp,
            post_mlp_norm: Vec::new(),
        });
    }
    Ok(RankWeights {
        embedding: Some(maker.matrix(bf16, slice.vocab.len(), hidden)?),
        output: match spec.tied_output {
            true => None,
            false => Some(maker.matrix(bf16, slice.vocab.len(), hidden)?),
        },
        final_norm: ones(),
        layers,
        mapped: Vec::new(),
    })
}
