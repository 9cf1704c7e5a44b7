//! A rank's weights as the device's ops take them: vectors uploaded, experts of a layer in tables.

use foggara_kernels::cuda::{Buffer, Device, DeviceError, DeviceMatrix, MatrixTable};

use super::inputs::Kinds;
use crate::weights::{
    AttentionWeights, Column, ExpertsWeights, LayerWeights, MlpKind, MlpWeights, RankWeights,
};

/// A vector that may be absent.
pub(super) type Maybe = Option<Buffer<f32>>;

/// One rank's weights on its device.
pub(super) struct DeviceWeights {
    pub(super) embedding: Option<DeviceMatrix>,
    pub(super) output: Option<DeviceMatrix>,
    pub(super) final_norm: Buffer<f32>,
    pub(super) layers: Vec<DeviceLayer>,
}

/// One layer.
pub(super) struct DeviceLayer {
    pub(super) attn_norm: Buffer<f32>,
    pub(super) attention: DeviceAttention,
    /// Of what attention's input goes to.
    pub(super) attention_kinds: Kinds,
    pub(super) post_attn_norm: Maybe,
    pub(super) mlp_norm: Buffer<f32>,
    pub(super) mlp: DeviceMlpKind,
    /// Of what the MLP's input goes to.
    pub(super) mlp_kinds: Kinds,
    pub(super) post_mlp_norm: Maybe,
}

/// Attention in both its forms.
pub(super) enum DeviceAttention {
    Grouped(Box<DeviceGrouped>),
    Latent(Box<DeviceLatent>),
}

/// See [`GroupedWeights`](crate::weights::GroupedWeights).
pub(super) struct DeviceGrouped {
    pub(super) qkv: Vec<Column<DeviceMatrix>>,
    pub(super) qkv_bias: Maybe,
    pub(super) q_norm: Maybe,
    pub(super) k_norm: Maybe,
    pub(super) sinks: Maybe,
    pub(super) o: DeviceMatrix,
    pub(super) o_bias: Maybe,
}

/// See [`LatentWeights`](crate::weights::LatentWeights).
pub(super) struct DeviceLatent {
    pub(super) q_down: Option<DeviceMatrix>,
    pub(super) q_down_bias: Maybe,
    pub(super) q_norm: Maybe,
    pub(super) q_up: DeviceMatrix,
    pub(super) kv_down: DeviceMatrix,
    pub(super) kv_down_bias: Maybe,
    pub(super) kv_norm: Buffer<f32>,
    /// One matrix for each head; absent on a rank without heads.
    pub(super) key_up: Option<MatrixTable>,
    pub(super) value_up: Option<MatrixTable>,
    pub(super) o: DeviceMatrix,
    pub(super) o_bias: Maybe,
}

/// What follows attention.
pub(super) enum DeviceMlpKind {
    Dense(DeviceMlp),
    Experts(Box<DeviceExperts>),
}

/// One MLP.
pub(super) struct DeviceMlp {
    pub(super) width: usize,
    pub(super) gate_up: Vec<Column<DeviceMatrix>>,
    pub(super) gate_up_bias: Maybe,
    pub(super) down: DeviceMatrix,
    pub(super) down_bias: Maybe,
}

/// A layer's experts that are held here.
pub(super) struct DeviceExperts {
    pub(super) router: DeviceMatrix,
    pub(super) router_bias: Maybe,
    pub(super) correction: Maybe,
    pub(super) shared: Option<DeviceMlp>,
    /// For each expert of the layer its place among those held, or `u32::MAX`.
    pub(super) local: Buffer<u32>,
    /// Absent where none is held, or none has columns here.
    pub(super) held: Option<HeldExperts>,
}

/// The matrices of the experts of a layer, each kind in one table.
pub(super) struct HeldExperts {
    pub(super) count: usize,
    pub(super) width: usize,
    /// First output column, and the matrices.
    pub(super) gate_up: Vec<(usize, MatrixTable)>,
    /// Experts × 2 · width.
    pub(super) gate_up_bias: Maybe,
    pub(super) down: MatrixTable,
    /// Experts × hidden.
    pub(super) down_bias: Maybe,
}

fn maybe(device: &Device, values: &[f32]) -> Result<Maybe, DeviceError> {
    if values.is_empty() { Ok(None) } else { device.upload(values).map(Some) }
}

impl DeviceWeights {
    pub(super) fn new(device: &Device, w: RankWeights<DeviceMatrix>) -> Result<Self, DeviceError> {
        Ok(Self {
            embedding: w.embedding,
            output: w.output,
            final_norm: device.upload(&w.final_norm)?,
            layers: w
                .layers
                .into_iter()
                .map(|layer| DeviceLayer::new(device, layer))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl DeviceLayer {
    fn new(device: &Device, w: LayerWeights<DeviceMatrix>) -> Result<Self, DeviceError> {
        Ok(Self {
            attn_norm: device.upload(&w.attn_norm)?,
            attention_kinds: attention_kinds(&w.attention),
            attention: DeviceAttention::new(device, w.attention)?,
            post_attn_norm: maybe(device, &w.post_attn_norm)?,
            mlp_norm: device.upload(&w.mlp_norm)?,
            mlp_kinds: mlp_kinds(&w.mlp),
            mlp: match w.mlp {
                MlpKind::Dense(mlp) => DeviceMlpKind::Dense(DeviceMlp::new(device, mlp)?),
                MlpKind::Experts(w) => DeviceMlpKind::Experts(Box::new(DeviceExperts::new(device, w)?)),
            },
            post_mlp_norm: maybe(device, &w.post_mlp_norm)?,
        })
    }
}

fn attention_kinds(w: &AttentionWeights<DeviceMatrix>) -> Kinds {
    match w {
        AttentionWeights::Grouped(w) => Kinds::of(w.qkv.iter().map(|column| column.weights.kind())),
        AttentionWeights::Latent(w) => {
            let queries = w.q_down.as_ref().unwrap_or(&w.q_up);
            Kinds::of([queries.kind(), w.kv_down.kind()])
        }
    }
}

fn mlp_kinds(w: &MlpKind<DeviceMatrix>) -> Kinds {
    let of = |mlp: &MlpWeights<DeviceMatrix>| -> Vec<_> {
        mlp.gate_up.iter().map(|column| column.weights.kind()).collect()
    };
    match w {
        MlpKind::Dense(mlp) => Kinds::of(of(mlp)),
        MlpKind::Experts(w) => {
            let mlps = w.shared.iter().chain(w.held.iter().map(|(_, mlp)| mlp));
            Kinds::of(mlps.flat_map(of).chain([w.router.kind()]))
        }
    }
}

impl DeviceAttention {
    fn new(device: &Device, w: AttentionWeights<DeviceMatrix>) -> Result<Self, DeviceError> {
        let table = |heads: Vec<DeviceMatrix>| match heads.is_empty() {
            true => Ok(None),
            false => MatrixTable::new(heads).map(Some),
        };
        Ok(match w {
            AttentionWeights::Grouped(w) => Self::Grouped(Box::new(DeviceGrouped {
                qkv: w.qkv,
                qkv_bias: maybe(device, &w.qkv_bias)?,
                q_norm: maybe(device, &w.q_norm)?,
                k_norm: maybe(device, &w.k_norm)?,
                sinks: maybe(device, &w.sinks)?,
                o: w.o,
                o_bias: maybe(device, &w.o_bias)?,
            })),
            AttentionWeights::Latent(w) => Self::Latent(Box::new(DeviceLatent {
                q_down: w.q_down,
                q_down_bias: maybe(device, &w.q_down_bias)?,
                q_norm: maybe(device, &w.q_norm)?,
                q_up: w.q_up,
                kv_down: w.kv_down,
                kv_down_bias: maybe(device, &w.kv_down_bias)?,
                kv_norm: device.upload(&w.kv_norm)?,
                key_up: table(w.key_up)?,
                value_up: table(w.value_up)?,
                o: w.o,
                o_bias: maybe(device, &w.o_bias)?,
            })),
        })
    }
}

impl DeviceMlp {
    fn new(device: &Device, w: MlpWeights<DeviceMatrix>) -> Result<Self, DeviceError> {
        Ok(Self {
            width: w.down.cols(),
            gate_up: w.gate_up,
            gate_up_bias: maybe(device, &w.gate_up_bias)?,
            down: w.down,
            down_bias: maybe(device, &w.down_bias)?,
        })
    }
}

impl DeviceExperts {
    fn new(device: &Device, w: ExpertsWeights<DeviceMatrix>) -> Result<Self, DeviceError> {
        let mut local = vec![u32::MAX; w.router.rows()];
        for (place, (number, _)) in w.held.iter().enumerate() {
            local[*number as usize] = place as u32;
        }
        let held: Vec<_> = w.held.into_iter().map(|(_, expert)| expert).collect();
        Ok(Self {
            router: w.router,
            router_bias: maybe(device, &w.router_bias)?,
            correction: maybe(device, &w.correction)?,
            shared: w.shared.map(|shared| DeviceMlp::new(device, shared)).transpose()?,
            local: device.upload(&local)?,
            held: HeldExperts::new(device, held)?,
        })
    }
}

impl HeldExperts {
    fn new(device: &Device, experts: Vec<MlpWeights<DeviceMatrix>>) -> Result<Option<Self>, DeviceError> {
        let Some(first) = experts.first().filter(|first| first.down.cols() > 0) else { return Ok(None) };
        let (count, width) = (experts.len(), first.down.cols());
        let places: Vec<usize> = first.gate_up.iter().map(|column| column.at).collect();
        let (mut gate_up_bias, mut down_bias) = (Vec::new(), Vec::new());
        let mut columns: Vec<Vec<DeviceMatrix>> = places.iter().map(|_| Vec::new()).collect();
        let mut down = Vec::new();
        for expert in experts {
            gate_up_bias.extend_from_slice(&expert.gate_up_bias);
            down_bias.extend_from_slice(&expert.down_bias);
            for (column, of_all) in expert.gate_up.into_iter().zip(&mut columns) {
                of_all.push(column.weights);
            }
            down.push(expert.down);
        }
        let table = MatrixTable::new;
        Ok(Some(Self {
            count,
            width,
            gate_up: places
                .into_iter()
                .zip(columns)
                .map(|(at, matrices)| Ok((at, table(matrices)?)))
                .collect::<Result<_, DeviceError>>()?,
            gate_up_bias: maybe(device, &gate_up_bias)?,
            down: table(down)?,
            down_bias: maybe(device, &down_bias)?,
        }))
    }
}
