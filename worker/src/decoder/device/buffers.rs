//! A device decoder's working memory: made once, for the largest step.

use foggara_kernels::cuda::op::attention::AttentionScratch;
use foggara_kernels::cuda::op::draw::DrawBuffers;
use foggara_kernels::cuda::op::elementwise::feed;
use foggara_kernels::cuda::op::moe::MoeBuffers;
use foggara_kernels::cuda::op::sample::SampleBuffers;
use foggara_kernels::cuda::{ActType, Acts, Buffer, Device, DeviceError, DeviceMatrix, WeightKind};
use foggara_kernels::op::draw::Draw;
use foggara_models::spec::{Attention, Mlp};
use foggara_models::{ArchSpec, RankSlice};

use super::inputs::Inputs;
use crate::decoder::MOST_BEST;
use crate::decoder::score::TILE_ROWS;
use crate::weights::{AttentionWeights, MlpKind, MlpWeights, RankWeights};

/// Bytes of attention's scratch, unless rows of [`LEAST_SCRATCH`] take more. A row takes 128 · heads · (value width + 2) of them
/// where contexts are of 8,192 positions and more: 532 KB with 32 heads of 128, so that 256 rows take 136 MB; with the 128 heads and
/// 512 elements of DeepSeek-V3 on one rank 8.4 MB, so that 32 rows take 269 MB, and 256 are eight rounds.
const SCRATCH_BYTES: usize = 256 << 20;
/// Rows that attention does in one round in any case.
const LEAST_SCRATCH: usize = 32;

/// Rows of a step that are decoded as one recording, and whose logits there is room for: of a vocabulary of 128,256 those are
/// 131 MB for 256 rows, what the best are found with 37 MB, and what tokens are drawn with 3 MB.
pub(super) fn decode_rows(max_rows: usize) -> usize {
    TILE_ROWS.min(max_rows)
}

/// Rows that there is scratch of attention for, of `rows` at most.
fn scratch_rows(rows: usize, row_bytes: usize) -> usize {
    let fit = SCRATCH_BYTES.checked_div(row_bytes).unwrap_or(rows);
    fit.max(LEAST_SCRATCH).min(rows)
}

/// What every step writes besides the cache: for each, the elements of a row.
pub(super) struct Buffers {
    pub(super) tokens: Buffer<u32>,
    /// The residual stream.
    pub(super) x: Buffer<f32>,
    /// What this rank adds to it; after the sum over ranks, what all do.
    pub(super) partial: Buffer<f32>,
    pub(super) normed: Inputs,
    /// Queries, keys and values side by side; of latent attention the short vector and the shared key.
    pub(super) qkv: Buffer<f32>,
    /// Queries as they meet keys.
    pub(super) q: Buffer<f32>,
    /// What the output projection of attention takes.
    pub(super) attended: Inputs,
    pub(super) latent: LatentBuffers,
    pub(super) scratch: AttentionScratch,
    /// Of an MLP's rows, or of pairs of a row and an expert.
    pub(super) gate_up: Buffer<f32>,
    pub(super) gated: Inputs,
    /// What experts make of their rows.
    pub(super) results: Buffer<f32>,
    pub(super) router_logits: Buffer<f32>,
    /// Absent without experts.
    pub(super) moe: Option<MoeBuffers>,
    /// Rows that it was last told there are.
    live: usize,
    /// Pairs that were routed to each expert of each layer with experts.
    pub(super) counts: Vec<Option<Buffer<u64>>>,
    /// Rows that want logits: which, and their residual stream, normed.
    pub(super) wanted: Buffer<u32>,
    pub(super) last_x: Buffer<f32>,
    pub(super) last: Acts,
    pub(super) scores: Buffer<f32>,
    /// For the best of them; absent where this rank has no part of the vocabulary.
    pub(super) sampling: Option<SampleBuffers>,
    /// For drawing from them; absent where this rank does not have all of the vocabulary.
    pub(super) drawing: Option<DrawBuffers>,
}

/// Working memory of latent attention; empty without.
pub(super) struct LatentBuffers {
    pub(super) short: Inputs,
    /// Heads · (nope + rope).
    pub(super) queries: Buffer<f32>,
    /// The part of queries that is not rotated, as products take it.
    pub(super) unrotated: Acts,
    /// What each head attended to.
    pub(super) attended: Acts,
    /// Values made of it.
    pub(super) values: Buffer<f32>,
}

/// Elements of the widest row of each kind.
struct Widths {
    qkv: usize,
    q: usize,
    queries: usize,
    short: usize,
    latent_attended: usize,
    latent_values: usize,
    /// Rows of an MLP's inner width that a row of a step becomes, and that width: of each kind of MLP.
    inner: Vec<(usize, usize)>,
    results: usize,
    experts: usize,
    top_k: usize,
    held: usize,
}

impl Widths {
    fn of(spec: &ArchSpec, slice: &RankSlice, weights: &RankWeights<DeviceMatrix>) -> Self {
        let (heads, kv_heads) = (slice.q_heads.len(), slice.kv_heads.len());
        let mut widths = match spec.attention {
            Attention::Grouped(a) => {
                Self { qkv: (heads + 2 * kv_heads) * a.head_dim, q: heads * a.head_dim, ..Self::none() }
            }
            Attention::Latent(a) => Self {
                qkv: a.q_rank.unwrap_or(0).max(a.kv_rank + a.rope_dim),
                q: heads * (a.kv_rank + a.rope_dim),
                queries: heads * (a.nope_dim + a.rope_dim),
                short: a.q_rank.unwrap_or(0),
                latent_attended: heads * a.kv_rank,
                latent_values: heads * a.value_dim,
                ..Self::none()
            },
        };
        for (layer, global) in weights.layers.iter().zip(slice.layers.clone()) {
            let width = |mlp: &MlpWeights<DeviceMatrix>| mlp.down.cols();
            match (&layer.mlp, &spec.layers[global].mlp) {
                (MlpKind::Dense(mlp), _) => widths.inner.push((1, width(mlp))),
                (MlpKind::Experts(w), Mlp::Experts(e)) => {
                    // Every row may be in so many pairs of this rank.
                    let pairs = e.top_k.min(w.held.len());
                    widths.inner.extend(w.held.first().map(|(_, mlp)| (pairs, width(mlp))));
                    widths.inner.extend(w.shared.as_ref().map(|mlp| (1, width(mlp))));
                    widths.results = widths.results.max(pairs * spec.hidden);
                    widths.experts = widths.experts.max(e.count);
                    widths.top_k = widths.top_k.max(e.top_k);
                    widths.held = widths.held.max(w.held.len());
                }
                _ => unreachable!("weights are loaded as the architecture says"),
            }
        }
        widths
    }

    fn none() -> Self {
        Self {
            qkv: 0,
            q: 0,
            queries: 0,
            short: 0,
            latent_attended: 0,
            latent_values: 0,
            inner: Vec::new(),
            results: 0,
            experts: 0,
            top_k: 0,
            held: 0,
        }
    }
}

/// Whether matrices in E4M3 take their inputs in it, too: where the device of the weights multiplies both as they are. (Memory is
/// counted on a device that does nothing.)
fn device_multiplies_f8(weights: &RankWeights<DeviceMatrix>) -> bool {
    weights.layers.iter().any(|layer| {
        let o = match &layer.attention {
            AttentionWeights::Grouped(w) => &w.o,
            AttentionWeights::Latent(w) => &w.o,
        };
        o.kind() == WeightKind::F8 && o.device().multiplies_f8()
    })
}

impl Buffers {
    pub(super) fn new(
        device: &Device,
        spec: &ArchSpec,
        slice: &RankSlice,
        weights: &RankWeights<DeviceMatrix>,
        acts: ActType,
        max_rows: usize,
    ) -> Result<Self, DeviceError> {
        let (w, hidden) = (Widths::of(spec, slice, weights), spec.hidden);
        let floats = |width: usize| device.alloc::<f32>(max_rows * width);
        let plain = |width: usize| Acts::alloc(device, acts, max_rows * width);
        let with_codes = device_multiplies_f8(weights);
        let taken = |width: usize| Inputs::new(device, acts, with_codes, &[(max_rows, width)]);
        let inner: Vec<_> = w.inner.iter().map(|(times, width)| (max_rows * times, *width)).collect();
        let most_inner = inner.iter().map(|(rows, width)| rows * width).max().unwrap_or(0);
        let heads = slice.q_heads.len();
        let scored = decode_rows(max_rows);
        let of_row = AttentionScratch::row_bytes(heads, spec.value_dim(), spec.context);
        let alone = scratch_rows(scored, of_row);
        let counts = |layer: usize| match &spec.layers[layer].mlp {
            Mlp::Experts(e) => device.zeros(e.count).map(Some),
            Mlp::Dense { .. } => Ok(None),
        };
        Ok(Self {
            tokens: device.zeros(max_rows)?,
            x: floats(hidden)?,
            partial: floats(hidden)?,
            normed: taken(hidden)?,
            qkv: floats(w.qkv)?,
            q: floats(w.q)?,
            attended: taken(heads * spec.out_dim())?,
            latent: LatentBuffers {
                short: taken(w.short)?,
                queries: floats(w.queries)?,
                unrotated: plain(w.queries)?,
                attended: plain(w.latent_attended)?,
                values: floats(w.latent_values)?,
            },
            scratch: AttentionScratch::new(device, alone, heads, spec.value_dim(), spec.context)?,
            gate_up: device.alloc(2 * most_inner)?,
            gated: Inputs::new(device, acts, with_codes, &inner)?,
            results: floats(w.results)?,
            router_logits: floats(w.experts)?,
            moe: match w.experts {
                0 => None,
                _ => Some(MoeBuffers::new(device, max_rows, w.top_k, w.experts, w.held)?),
            },
            live: usize::MAX,
            counts: (0..spec.layers.len()).map(counts).collect::<Result<_, _>>()?,
            wanted: device.zeros(scored)?,
            last_x: device.alloc(scored * hidden)?,
            last: Acts::alloc(device, acts, scored * hidden)?,
            scores: device.alloc(scored * slice.vocab.len())?,
            sampling: match slice.vocab.len() {
                0 => None,
                part => Some(SampleBuffers::new(device, scored, part, part.min(MOST_BEST))?),
            },
            drawing: match slice.vocab.len() == spec.vocab {
                true => Some(DrawBuffers::new(device, scored, spec.vocab)?),
                false => None,
            },
        })
    }

    /// These tokens from here on, and after them so many that are no one's that there are `rows`: they go to no expert.
    pub(super) fn set_tokens(&mut self, tokens: &[u32], rows: usize) -> Result<(), DeviceError> {
        let mut all = tokens.to_vec();
        all.resize(rows, 0);
        self.tokens.view_mut().slice(0..rows).upload(&all)?;
        match &mut self.moe {
            Some(moe) if self.live != tokens.len() => {
                moe.live.view_mut().upload(&[tokens.len() as u32])?;
                self.live = tokens.len();
            }
            _ => (),
        }
        Ok(())
    }

    /// Of the first `rows` tokens, those that stand for what the step before found become that.
    pub(super) fn feed(&mut self, rows: usize) -> Result<(), DeviceError> {
        let Some(sampling) = &self.sampling else { return Ok(()) };
        let rooms = decode_rows(self.tokens.len());
        let greatest = sampling.greatest(rooms).slice(0..rooms);
        let drawn = self.drawing.as_ref().map_or(greatest.slice(0..0), |drawing| drawing.tokens(rooms));
        feed(self.tokens.view_mut().slice(0..rows), greatest, drawn)
    }

    /// Rows that are scored next are drawn so, or not at all.
    pub(super) fn set_draws(&mut self, draws: impl Iterator<Item = Option<Draw>>) -> Result<(), DeviceError> {
        self.drawing.as_mut().map_or(Ok(()), |drawing| drawing.set(draws))
    }

    /// What was counted since the last call.
    pub(super) fn take_counts(&mut self) -> Result<Vec<Vec<u64>>, DeviceError> {
        let take = |counts: &mut Option<Buffer<u64>>| {
            let Some(counts) = counts else { return Ok(Vec::new()) };
            let taken = counts.download()?;
            counts.view_mut().fill(0)?;
            Ok(taken)
        };
        self.counts.iter_mut().map(take).collect()
    }
}
