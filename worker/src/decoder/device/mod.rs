//! The forward pass on a device: the numbers of [`Decoder`](super::Decoder), as launches on one stream.
//!
//! Nothing is allocated in a step: buffers are made once, as large as the largest step. Nothing is waited for until logits are
//! needed, and of these only what is wanted comes to the host: all of a row, its best few, or a token. Where a rank is alone with its
//! layers, a step that decodes is recorded the second time its sizes come and replayed from then on (`graphs`). Sums over ranks go
//! through the host's collectives, or NCCL.

mod ahead;
mod attention;
mod buffers;
mod experts;
mod graphs;
mod inputs;
mod score;
mod sum;
mod weights;

use std::collections::VecDeque;

use foggara_kernels::collective::{AbortHandle, CollectiveError};
use foggara_kernels::cuda::op::attention::HeadMap;
use foggara_kernels::cuda::op::elementwise::embed;
use foggara_kernels::cuda::op::kv_cache::{DeviceKv, KvKind};
use foggara_kernels::cuda::op::residual::{Norm, add_and_norm, combine_add_and_norm};
use foggara_kernels::cuda::op::rope::{DeviceAngles, DeviceRope};
use foggara_kernels::cuda::op::step_rows::{Run, StepRows};
use foggara_kernels::cuda::{ActType, Buffer, Device, DeviceError, DeviceMatrix, WeightKind, bytes_of};
use foggara_kernels::op::gated::GatedActivation;
use foggara_kernels::op::kv_cache::KvType;
use foggara_kernels::op::rope::RopeStyle;
use foggara_models::spec::Mlp;
use foggara_models::{ArchSpec, RankSlice, Shape, SlicePlan};

use super::mlp::gated_activation;
use super::score::{Scorer, Wanted};
use super::{
    BlockTables, CacheConfig, Comms, DispatchStats, Forward, ForwardError, OnScores, Segment, StepInput,
};
use crate::weights::RankWeights;

use ahead::Begun;
use buffers::Buffers;
use experts::Pending;
use graphs::{Graphs, Recorded, can_be_recorded};
use score::{Sought, score_all, score_wanted, tell};
use sum::Sums;
use weights::{DeviceMlpKind, DeviceWeights};

/// One rank of the forward pass on a device.
pub struct DeviceDecoder {
    device: Device,
    spec: ArchSpec,
    shape: Shape,
    slice: RankSlice,
    scorer: Scorer,
    weights: DeviceWeights,
    activation: GatedActivation,
    ropes: Vec<DeviceRope>,
    /// Of each rotation, those of the step's rows.
    angles: Vec<DeviceAngles>,
    heads: HeadMap,
    cache: DeviceKv,
    /// Those of a step that is not recorded.
    rows: Option<StepRows>,
    buffers: Buffers,
    graphs: Graphs,
    sums: Sums,
    max_rows: usize,
    /// Steps that were begun and not finished, in order.
    begun: VecDeque<Begun>,
}

/// The type that products take their inputs in: checkpoints stored in f32 are computed in it.
fn act_type(weights: &RankWeights<DeviceMatrix>) -> ActType {
    let ends = weights.embedding.iter().chain(&weights.output).map(DeviceMatrix::kind);
    let firsts = weights.layers.iter().map(|layer| match &layer.attention {
        crate::weights::AttentionWeights::Grouped(w) => w.o.kind(),
        crate::weights::AttentionWeights::Latent(w) => w.o.kind(),
    });
    match ends.chain(firsts).all(|kind| kind == WeightKind::F32) {
        true => ActType::F32,
        false => ActType::Bf16,
    }
}

impl DeviceDecoder {
    /// Rank `rank` of `plan` on `device`, with an empty cache, for steps of at most `max_rows` rows.
    ///
    /// # Errors
    /// If the device has not the memory, or the plan or cache is one that is not computed on devices: said by name.
    pub fn new(
        device: &Device,
        spec: &ArchSpec,
        plan: &SlicePlan,
        rank: usize,
        weights: RankWeights<DeviceMatrix>,
        cache: CacheConfig,
        max_rows: usize,
    ) -> Result<Self, DeviceError> {
        let slice = plan.ranks[rank].clone();
        let refused = |what: &str| DeviceError {
            device: device.name(),
            call: "decoder",
            shape: plan.shape.to_string(),
            reason: what.to_owned(),
            lost: false,
        };
        if plan.shape.dp > 1 {
            return Err(refused(
                "data-parallel attention (dp) is not computed on devices yet: use tp and ep",
            ));
        }
        let kind = match cache.ty {
            KvType::F32 => KvKind::F32,
            KvType::F16 => KvKind::F16,
            KvType::F8 => KvKind::F8,
            KvType::Q8_0 => {
                return Err(refused("a q8_0 KV cache is not kept on devices yet: use fp8 or f16"));
            }
        };
        let acts = act_type(&weights);
        let block_size = cache.block_size;
        let cache = DeviceKv::new(device, cache.sizes(spec, &slice), kind)?;
        let group = spec.heads_per_kv();
        let local = |head: usize| (head / group - slice.kv_heads.start) as u32;
        let kv_head_of: Vec<u32> = slice.q_heads.clone().map(local).collect();
        let rope = |rope: &foggara_models::RopeSpec| {
            let style = match rope.style {
                foggara_models::RopeStyle::Interleaved => RopeStyle::Interleaved,
                foggara_models::RopeStyle::Half => RopeStyle::Half,
            };
            DeviceRope::new(device, &rope.inv_freq, style, rope.scale)
        };
        let ropes: Vec<DeviceRope> = spec.ropes.iter().map(rope).collect::<Result<_, _>>()?;
        let angles = ropes.iter().map(|rope| DeviceAngles::new(device, rope, max_rows));
        Ok(Self {
            device: device.clone(),
            spec: spec.clone(),
            shape: plan.shape,
            scorer: Scorer::new(spec, plan),
            buffers: Buffers::new(device, spec, &slice, &weights, acts, max_rows)?,
            weights: DeviceWeights::new(device, weights)?,
            activation: gated_activation(spec.activation),
            angles: angles.collect::<Result<_, _>>()?,
            ropes,
            heads: HeadMap::new(device, &kv_head_of)?,
            cache,
            rows: Some(StepRows::new(device)?),
            graphs: Graphs::new(device, max_rows, spec.context, block_size)?,
            sums: Sums::default(),
            max_rows,
            begun: VecDeque::new(),
            slice,
        })
    }

    /// Bytes of device memory that [`new`](Self::new) takes beside the weights and the cache, to within some kilobytes; the
    /// recordings of steps that come later are not among them.
    ///
    /// # Errors
    /// None are known: no device is asked.
    pub fn working_bytes(
        spec: &ArchSpec,
        slice: &RankSlice,
        weights: &RankWeights<DeviceMatrix>,
        block_size: usize,
        max_rows: usize,
    ) -> Result<u64, DeviceError> {
        bytes_of(|device| {
            let buffers = Buffers::new(device, spec, slice, weights, act_type(weights), max_rows)?;
            Ok((buffers, Graphs::new(device, max_rows, spec.context, block_size)?))
        })
    }

    /// All layers of this rank's stage over the rows that were uploaded.
    fn run_layers(&mut self, step: &StepRows, comms: &mut Comms) -> Result<(), ForwardError> {
        let rows = step.rows();
        for (rope, angles) in self.ropes.iter().zip(&mut self.angles) {
            angles.set(rope, step)?;
        }
        if self.slice.place.stage == 0 {
            self.embed(rows)?;
            self.sums.over_ranks(&mut self.buffers.x, rows * self.spec.hidden, comms)?;
        } else {
            self.sums.receive(&mut self.buffers.x, rows * self.spec.hidden, comms)?;
        }
        let alone = comms.tp().size() == 1;
        let mut pending = Pending::Nothing;
        for local in 0..self.slice.layers.len() {
            self.norm_before_attention(pending, local, rows)?;
            self.attend(local, step)?;
            self.sums.over_ranks(&mut self.buffers.partial, rows * self.spec.hidden, comms)?;
            let routed = self.norm_before_mlp(local, rows)?;
            pending = self.feed_forward(local, rows, routed, alone)?;
            self.sums.over_ranks(&mut self.buffers.partial, rows * self.spec.hidden, comms)?;
        }
        self.add_last(pending, rows)?;
        self.sums.send(&mut self.buffers.x, rows * self.spec.hidden, comms)
    }

    /// x = rows of the embedding; zeros for tokens of other ranks.
    fn embed(&mut self, rows: usize) -> Result<(), DeviceError> {
        let Some(embedding) = &self.weights.embedding else { return Ok(()) };
        let b = &mut self.buffers;
        let out = b.x.view_mut().slice(0..rows * self.spec.hidden);
        let first = self.slice.vocab.start as u32;
        embed(out, b.tokens.view().slice(0..rows), embedding, first, self.spec.embedding_scale)
    }

    /// normed = the norm of x, after what the layer before has left to be added.
    fn norm_before_attention(
        &mut self,
        pending: Pending,
        local: usize,
        rows: usize,
    ) -> Result<(), DeviceError> {
        self.add_after_mlp(pending, local.checked_sub(1), Some(local), rows)
    }

    /// x += what the MLP or the experts of layer `before` have left to be added; normed = its norm before the attention of layer
    /// `after`, if there is one.
    fn add_after_mlp(
        &mut self,
        pending: Pending,
        before: Option<usize>,
        after: Option<usize>,
        rows: usize,
    ) -> Result<(), DeviceError> {
        let (hidden, eps) = (self.spec.hidden, self.spec.norm_eps);
        let layers = &self.weights.layers;
        let b = &mut self.buffers;
        let out = after.map(|layer| b.normed.normed(layers[layer].attention_kinds, rows, hidden));
        let out = out.unwrap_or_default();
        let x = b.x.view_mut().slice(0..rows * hidden);
        let post_norm = before.and_then(|layer| layers[layer].post_mlp_norm.as_ref()).map(Buffer::view);
        let Some(layer) = after.or(before) else { return Ok(()) };
        let weight = layers[layer].attn_norm.view();
        let added = match pending {
            Pending::Nothing => None,
            Pending::Partial => Some(b.partial.view().slice(0..rows * hidden)),
            Pending::Experts(layer, onto) => {
                let held = match &layers[layer].mlp {
                    DeviceMlpKind::Experts(w) => w.held.as_ref(),
                    DeviceMlpKind::Dense(_) => None,
                };
                let Some(held) = held else { unreachable!("its experts have run") };
                let results = experts::results(&b.results, b.moe.as_ref(), held, hidden);
                let partial = b.partial.view_mut().slice(0..rows * hidden);
                let norm = Norm { out, x, added: None, post_norm, weight, rows, width: hidden, eps };
                return combine_add_and_norm(&results, onto, partial, norm);
            }
        };
        add_and_norm(out, x, added, post_norm, weight, rows, hidden, eps)
    }

    /// normed = the norm of x, after what attention has left to be added. True: the experts that rows go to were chosen, too.
    fn norm_before_mlp(&mut self, local: usize, rows: usize) -> Result<bool, DeviceError> {
        let hidden = self.spec.hidden;
        let global = self.slice.layers.start + local;
        let (layer, b) = (&self.weights.layers[local], &mut self.buffers);
        let norm = Norm {
            out: b.normed.normed(layer.mlp_kinds, rows, hidden),
            x: b.x.view_mut().slice(0..rows * hidden),
            added: Some(b.partial.view().slice(0..rows * hidden)),
            post_norm: layer.post_attn_norm.as_ref().map(Buffer::view),
            weight: layer.mlp_norm.view(),
            rows,
            width: hidden,
            eps: self.spec.norm_eps,
        };
        if let (DeviceMlpKind::Experts(w), Mlp::Experts(e)) = (&layer.mlp, &self.spec.layers[global].mlp) {
            let place = experts::Place { layer: global, counted: self.slice.place.tp == 0, hidden, rows };
            if experts::route_normed(&mut b.moe, &mut b.counts, &norm, w, e, place)? {
                return Ok(true);
            }
        }
        let Norm { out, x, added, post_norm, weight, eps, .. } = norm;
        add_and_norm(out, x, added, post_norm, weight, rows, hidden, eps)?;
        Ok(false)
    }

    /// x += what the last layer has left to be added.
    fn add_last(&mut self, pending: Pending, rows: usize) -> Result<(), DeviceError> {
        self.add_after_mlp(pending, self.weights.layers.len().checked_sub(1), None, rows)
    }

    /// What the MLP or the experts add: partial = this rank's part of it; or, where no other rank has one, what is left of it.
    /// `routed`: experts were chosen already.
    fn feed_forward(
        &mut self,
        local: usize,
        rows: usize,
        routed: bool,
        alone: bool,
    ) -> Result<Pending, DeviceError> {
        let global = self.slice.layers.start + local;
        let hidden = self.spec.hidden;
        match (&self.weights.layers[local].mlp, &self.spec.layers[global].mlp) {
            (DeviceMlpKind::Dense(mlp), _) => {
                experts::run_mlp(&mut self.buffers, mlp, self.activation, hidden, rows)?;
            }
            (DeviceMlpKind::Experts(w), Mlp::Experts(e)) => {
                let counted = self.slice.place.tp == 0;
                let place = experts::Place { layer: global, counted, hidden, rows };
                if !routed {
                    experts::route(&mut self.buffers, w, e, place)?;
                }
                let left = experts::run(&mut self.buffers, w, self.activation, place)?;
                match (left, &w.held) {
                    (Some(onto), _) if alone => return Ok(Pending::Experts(local, onto)),
                    (Some(onto), Some(held)) => {
                        experts::add_up(&mut self.buffers, held, onto, hidden, rows)?;
                    }
                    _ => (),
                }
            }
            _ => unreachable!("weights are loaded as the architecture says"),
        }
        Ok(Pending::Partial)
    }

    /// A segment's rows, with the blocks they see.
    fn run_of<'a>(&self, segment: &Segment, tables: &'a BlockTables) -> Option<Run<'a>> {
        let (position, rows) = (segment.start as usize, segment.len as usize);
        let seen = (position + rows).div_ceil(self.cache.sizes().block_size);
        (rows > 0).then(|| Run { blocks: &tables.blocks(segment.slot)[..seen], position, rows })
    }

    /// A step for which only the device is needed, logits of all rows: recorded when it has been run before, then replayed.
    fn run_recorded(
        &mut self,
        recorded: &mut Recorded,
        step: (&StepInput, &BlockTables),
        comms: &mut Comms,
        on_scores: &mut OnScores<'_>,
    ) -> Result<(), ForwardError> {
        self.buffers.set_tokens(&step.0.tokens, recorded.rows.rows())?;
        self.launch_recorded(recorded, step.0, comms)?;
        let (scored, sought, b) = (recorded.rows.rows(), recorded.sought(), &self.buffers);
        let own = |wanted: &[Wanted], message: &mut Vec<f32>| -> Result<(), ForwardError> {
            // All rows want logits: those of a tile follow each other.
            let first = wanted.first().map_or(0, |wanted| wanted.row);
            Ok(tell(b, wanted, first..first + wanted.len(), scored, sought, message)?)
        };
        self.scorer.score(step, comms, own, on_scores)?;
        Ok(self.sums.health()?)
    }

    /// Starts it, its tokens being where they are to be.
    fn launch_recorded(
        &mut self,
        recorded: &mut Recorded,
        input: &StepInput,
        comms: &mut Comms,
    ) -> Result<(), ForwardError> {
        if recorded.sought().draws() {
            self.set_draws(input, recorded.rows.rows())?;
        }
        if recorded.recording.is_none() && recorded.warm {
            let device = self.device.clone();
            let (rows, sought) = (&recorded.rows, recorded.sought());
            recorded.recording = Some(device.record(|| self.run_all(rows, sought, comms))?);
        }
        match &recorded.recording {
            Some(recording) => recording.replay()?,
            None => self.run_all(&recorded.rows, recorded.sought(), comms)?,
        }
        recorded.warm = true;
        Ok(())
    }

    /// How rows are drawn from that are one of each segment, and then so many that do not exist that there are `rows`.
    fn set_draws(&mut self, input: &StepInput, rows: usize) -> Result<(), DeviceError> {
        let draw =
            |(i, segment): (usize, &Segment)| self.scorer.get(input.want(i)).draw(segment.positions().end);
        let draws: Vec<_> = input.segments.iter().enumerate().map(draw).collect();
        let missing = rows - draws.len();
        self.buffers.set_draws(draws.into_iter().chain(std::iter::repeat_n(None, missing)))
    }

    /// Connects this rank's device with those of the ranks that split tensors with it, if that can be. Every rank calls it.
    ///
    /// # Errors
    /// If the host's collectives fail.
    pub fn connect(&mut self, comms: &mut Comms) -> Result<Option<AbortHandle>, CollectiveError> {
        self.sums.connect(&self.device, self.max_rows * self.spec.hidden, comms)
    }

    /// All layers and the logits of all rows, and what is sought in them.
    fn run_all(&mut self, rows: &StepRows, sought: Sought, comms: &mut Comms) -> Result<(), ForwardError> {
        self.run_layers(rows, comms)?;
        Ok(score_all(&mut self.buffers, &self.weights, &self.spec, rows.rows(), sought)?)
    }

    /// Copies the blocks that the step says.
    fn copy_blocks(&mut self, input: &StepInput, tables: &BlockTables) -> Result<(), DeviceError> {
        for copy in &input.copies {
            let ((_, from), (_, to)) = (tables.place(copy.from), tables.place(copy.to));
            self.cache.copy_block(from, to)?;
        }
        Ok(())
    }
}

impl Forward for DeviceDecoder {
    fn spec(&self) -> &ArchSpec {
        &self.spec
    }

    fn shape(&self) -> Shape {
        self.shape
    }

    fn blocks(&self) -> usize {
        self.cache.sizes().blocks
    }

    fn dispatch_stats(&self) -> DispatchStats {
        DispatchStats::default()
    }

    fn take_expert_counts(&mut self) -> Result<Vec<Vec<u64>>, DeviceError> {
        self.buffers.take_counts()
    }

    fn forward(
        &mut self,
        input: &StepInput,
        tables: &BlockTables,
        comms: &mut Comms,
        on_scores: &mut OnScores<'_>,
    ) -> Result<(), ForwardError> {
        self.copy_blocks(input, tables)?;
        if input.tokens.is_empty() {
            return Ok(());
        }
        assert!(input.tokens.len() <= self.max_rows, "a step of at most {} rows", self.max_rows);
        let runs: Vec<Run<'_>> = input.segments.iter().filter_map(|s| self.run_of(s, tables)).collect();
        let whole = self.device.driver().can_capture() && self.sums.are_on_device(comms);
        if whole && can_be_recorded(input) {
            let wants = (0..input.segments.len()).map(|segment| self.scorer.get(input.want(segment)));
            if let Some(mut recorded) = self.graphs.take(&runs, Sought::by(wants))? {
                let done = self.run_recorded(&mut recorded, (input, tables), comms, on_scores);
                self.graphs.put(recorded);
                return done;
            }
        }
        self.buffers.set_tokens(&input.tokens, input.tokens.len())?;
        let Some(mut rows) = self.rows.take() else { unreachable!("put back after every step") };
        let done = rows.set(&runs).map_err(ForwardError::from).and_then(|()| self.run_layers(&rows, comms));
        self.rows = Some(rows);
        done?;
        let (b, weights, spec) = (&mut self.buffers, &self.weights, &self.spec);
        let own = |wanted: &[Wanted], message: &mut Vec<f32>| -> Result<(), ForwardError> {
            Ok(score_wanted(b, weights, spec, wanted, message)?)
        };
        self.scorer.score((input, tables), comms, own, on_scores)
    }

    fn can_begin(&self, input: &StepInput, comms: &Comms) -> bool {
        self.can_be_begun(input, comms)
    }

    fn begin(
        &mut self,
        input: &StepInput,
        tables: &BlockTables,
        fed: &[Option<usize>],
        comms: &mut Comms,
    ) -> Result<(), ForwardError> {
        self.begin_step(input, tables, fed, comms)
    }

    fn is_done(&self) -> Result<bool, ForwardError> {
        self.first_is_done()
    }

    fn finish(&mut self, on_scores: &mut OnScores<'_>) -> Result<(), ForwardError> {
        self.finish_first(on_scores)
    }
}

#[cfg(test)]
mod ahead_tests;
#[cfg(test)]
mod blocks_tests;
#[cfg(test)]
mod invariance_tests;
#[cfg(test)]
mod kv_tests;
#[cfg(test)]
mod launches_tests;
#[cfg(test)]
mod tests;
