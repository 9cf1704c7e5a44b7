//! The forward pass: one decoder for every architecture an `ArchSpec` can describe, at any shape of group.
//!
//! Every rank runs it on the same [`StepInput`]. Attention and MLPs are split over the ranks of a tensor-parallel part, and
//! what each computes of the residual stream is summed after each of the two; parts of the batch go to different such parts,
//! layers to different stages, experts to different ranks of a stage. Each rank of the last stage scores its part of the
//! vocabulary for its part of the batch.

mod adapted;
mod attention;
mod buffers;
mod comms;
mod device;
mod experts;
mod input;
mod mlp;
mod patience;
mod project;
#[cfg(test)]
mod rounding;
mod routing;
mod score;

use std::collections::BTreeMap;
use std::ops::Range;

use foggara_kernels::collective::CollectiveError;
use foggara_kernels::cuda::DeviceError;
use foggara_kernels::op::kv_cache::{KvCache, KvSizes, KvType, Values};
use foggara_kernels::op::rms_norm::{add_assign, rms_norm};
use foggara_kernels::op::rope::{RopeAngles, RopeStyle, RopeTable};
use foggara_kernels::{KernelError, ThreadPool};
use foggara_models::spec::{Attention, Mlp};
use foggara_models::{ArchSpec, RankSlice, Shape, SlicePlan};

use crate::adapters::Adapters;
use crate::weights::{MlpKind, RankWeights};

use adapted::{Adapted, AdaptedRows, AdapterRunner, in_layer};
use attention::{Attender, Context, Row};
use buffers::Buffers;
pub use comms::{Comms, Part, Parts};
pub use device::DeviceDecoder;
pub use experts::{DispatchStats, ExpertCounts};
use experts::{ExpertLayer, ExpertRunner};
pub use input::{BlockTables, InputError, MOST_BEST, Segment, StepInput, Want};
use mlp::{Adapting, MlpRunner};
use project::takes_codes;
use score::Scorer;
pub use score::{OnScores, Scores};

/// Why a step was not done. The group is unusable then.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The ranks lost each other.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// One rank of the forward pass, wherever it computes.
pub trait Forward: Send {
    /// The architecture.
    fn spec(&self) -> &ArchSpec;

    /// The group's shape.
    fn shape(&self) -> Shape;

    /// Blocks in the cache of each part of the batch.
    fn blocks(&self) -> usize;

    /// Rows and bytes sent between ranks for experts, so far.
    fn dispatch_stats(&self) -> DispatchStats;

    /// Tokens routed to each expert of each layer since the last call, as far as it is for this rank to count them: those of
    /// all ranks add up to every token once.
    ///
    /// # Errors
    /// If the device fails.
    fn take_expert_counts(&mut self) -> Result<Vec<Vec<u64>>, DeviceError>;

    /// Runs one step. On rank 0, `on_scores(i, scores)` is called for each row that wants logits (the `i`th of those), a
    /// sequence's in order, with all of them or the best, as it wants.
    ///
    /// # Errors
    /// If the collectives or the device fail; the group is unusable then.
    ///
    /// # Panics
    /// If `input` does not fit `tables` or the vocabulary: [`StepInput::check`] says so beforehand.
    fn forward(
        &mut self,
        input: &StepInput,
        tables: &BlockTables,
        comms: &mut Comms,
        on_scores: &mut OnScores<'_>,
    ) -> Result<(), ForwardError>;

    /// Whether a step like this can be [begun](Self::begin) and another after it, before it is [finished](Self::finish).
    fn can_begin(&self, _input: &StepInput, _comms: &Comms) -> bool {
        false
    }

    /// Starts a step and does not wait for it. Where `fed` names a row of the step that was begun before, the token of that row of this
    /// one is what was found there, and what `input` says is of no account. Rows are counted among those that want logits: all of
    /// them, in both steps.
    ///
    /// # Errors
    /// If the device fails; the group is unusable then.
    ///
    /// # Panics
    /// If the step cannot be begun ([`can_begin`](Self::can_begin)), if two already are, or if rows are fed and none is.
    fn begin(
        &mut self,
        _input: &StepInput,
        _tables: &BlockTables,
        _fed: &[Option<usize>],
        _comms: &mut Comms,
    ) -> Result<(), ForwardError> {
        unreachable!("steps that cannot be begun are run by `forward`")
    }

    /// Whether the step that was begun first is done, so that [`finish`](Self::finish) would not wait.
    ///
    /// # Errors
    /// If the device failed meanwhile.
    fn is_done(&self) -> Result<bool, ForwardError> {
        Ok(true)
    }

    /// Waits for the step that was begun first, and calls `on_scores` as [`forward`](Self::forward) does.
    ///
    /// # Errors
    /// If the device failed meanwhile; the group is unusable then.
    ///
    /// # Panics
    /// If none was begun.
    fn finish(&mut self, _on_scores: &mut OnScores<'_>) -> Result<(), ForwardError> {
        unreachable!("no step was begun")
    }
}

/// One rank of the decoder on the CPU.
pub struct Decoder {
    spec: ArchSpec,
    shape: Shape,
    slice: RankSlice,
    scorer: Scorer,
    weights: RankWeights,
    ropes: Vec<RopeTable>,
    cache: KvCache,
    pool: ThreadPool,
    buffers: Buffers,
    attender: Attender,
    mlp: MlpRunner,
    experts: ExpertRunner,
    adapters: Adapters,
    adapter: AdapterRunner,
    angles: Vec<RopeAngles>,
}

/// How a decoder keeps its keys and values.
#[derive(Debug, Clone, Copy)]
pub struct CacheConfig {
    /// Blocks in the pool.
    pub blocks: usize,
    /// Positions in a block.
    pub block_size: usize,
    /// Precision.
    pub ty: KvType,
}

impl CacheConfig {
    /// Of one rank's cache.
    fn sizes(&self, spec: &ArchSpec, slice: &RankSlice) -> KvSizes {
        let values = match spec.attention {
            Attention::Grouped(_) => Values::Own(spec.value_dim()),
            // The key begins with what values are made from.
            Attention::Latent(_) => Values::InKey(spec.value_dim()),
        };
        KvSizes {
            layers: slice.layers.len(),
            blocks: self.blocks,
            block_size: self.block_size,
            kv_heads: slice.kv_heads.len(),
            key_dim: spec.key_dim(),
            values,
        }
    }

    /// Bytes that the cache of one rank can come to; `None` if there is no such number.
    pub fn bytes(&self, spec: &ArchSpec, slice: &RankSlice) -> Option<usize> {
        self.sizes(spec, slice).bytes(self.ty)
    }
}

impl Decoder {
    /// A decoder of rank `rank` of `plan` with an empty cache, and the adapters that come beside its weights.
    ///
    /// # Errors
    /// If the cache cannot be made.
    pub fn new(
        spec: &ArchSpec,
        plan: &SlicePlan,
        rank: usize,
        weights: RankWeights,
        cache: CacheConfig,
        adapters: Adapters,
        pool: ThreadPool,
    ) -> Result<Self, KernelError> {
        let slice = plan.ranks[rank].clone();
        let table = |rope: &foggara_models::RopeSpec| {
            let style = match rope.style {
                foggara_models::RopeStyle::Interleaved => RopeStyle::Interleaved,
                foggara_models::RopeStyle::Half => RopeStyle::Half,
            };
            RopeTable::new(rope.inv_freq.clone(), style, rope.scale)
        };
        let cache = KvCache::new(cache.sizes(spec, &slice), cache.ty)?;
        Ok(Self {
            spec: spec.clone(),
            shape: plan.shape,
            scorer: Scorer::new(spec, plan),
            weights,
            ropes: spec.ropes.iter().map(table).collect(),
            cache,
            pool,
            buffers: Buffers::new(spec, &slice),
            attender: Attender::new(spec, &slice),
            mlp: MlpRunner::new(spec.activation),
            experts: ExpertRunner::new(spec, plan),
            adapters,
            adapter: AdapterRunner::default(),
            angles: vec![RopeAngles::default(); spec.ropes.len()],
            slice,
        })
    }
}

impl Forward for Decoder {
    fn spec(&self) -> &ArchSpec {
        &self.spec
    }

    fn shape(&self) -> Shape {
        self.shape
    }

    fn blocks(&self) -> usize {
        self.cache.blocks()
    }

    fn dispatch_stats(&self) -> DispatchStats {
        self.experts.stats()
    }

    fn take_expert_counts(&mut self) -> Result<Vec<Vec<u64>>, DeviceError> {
        Ok(self.experts.take_counts())
    }

    fn forward(
        &mut self,
        input: &StepInput,
        tables: &BlockTables,
        comms: &mut Comms,
        on_scores: &mut OnScores<'_>,
    ) -> Result<(), ForwardError> {
        self.copy_blocks(input, tables);
        if input.tokens.is_empty() {
            return Ok(());
        }
        let (tokens, rows) = self.own_rows(input, tables);
        let adapted = self.adapted(input, tables);
        let positions: Vec<u32> = rows.iter().map(|row| row.position as u32).collect();
        for (rope, angles) in self.ropes.iter().zip(&mut self.angles) {
            rope.angles(&positions, angles);
        }
        self.buffers.set_rows(rows.len());
        // Ranks that split tensors have the same rows; without any there is nothing to sum.
        let busy = !rows.is_empty();
        if self.slice.place.stage == 0 {
            if busy {
                self.embed(&tokens);
                comms.tp().all_reduce(&mut self.buffers.x)?;
            }
        } else if busy {
            comms.receive(&mut self.buffers.x)?;
        }
        for local in 0..self.slice.layers.len() {
            if busy {
                self.attend(local, &rows, &adapted);
                comms.tp().all_reduce(&mut self.buffers.partial)?;
                self.add(local, |layer| &layer.post_attn_norm);
            }
            self.feed_forward(local, &rows, &adapted, comms)?;
            if busy {
                comms.tp().all_reduce(&mut self.buffers.partial)?;
                self.add(local, |layer| &layer.post_mlp_norm);
            }
        }
        self.buffers.add_pending();
        if busy {
            comms.send(&mut self.buffers.x)?;
        }
        Ok(self.score(input, tables, comms, on_scores)?)
    }
}

impl Decoder {
    /// Copies the blocks of this rank's part of the batch that the step says.
    fn copy_blocks(&mut self, input: &StepInput, tables: &BlockTables) {
        for copy in &input.copies {
            let ((pool, from), (_, to)) = (tables.place(copy.from), tables.place(copy.to));
            if pool == self.slice.place.dp {
                self.cache.copy_block(from, to);
            }
        }
    }

    /// The rows of this rank's part of the batch, with their tokens.
    fn own_rows<'a>(&self, input: &'a StepInput, tables: &'a BlockTables) -> (Vec<u32>, Vec<Row<'a>>) {
        let (mut tokens, mut rows, mut first) = (Vec::new(), Vec::new(), 0);
        for segment in &input.segments {
            let all = first..first + segment.len as usize;
            first = all.end;
            if tables.pool(segment.slot) == self.slice.place.dp {
                let blocks = tables.blocks(segment.slot);
                tokens.extend_from_slice(&input.tokens[all]);
                rows.extend(segment.positions().map(|position| Row { blocks, position }));
            }
        }
        (tokens, rows)
    }

    /// Which of these rows are adapted, adapter by adapter.
    ///
    /// # Panics
    /// If an adapter is not here.
    fn adapted(&self, input: &StepInput, tables: &BlockTables) -> Vec<AdaptedRows> {
        let (mut adapted, mut first) = (BTreeMap::<u64, Vec<usize>>::new(), 0);
        let own = |segment: &&Segment| tables.pool(segment.slot) == self.slice.place.dp;
        for segment in input.segments.iter().filter(own) {
            let rows = first..first + segment.len as usize;
            first = rows.end;
            if let Some(number) = tables.adapter(segment.slot) {
                adapted.entry(number).or_default().extend(rows);
            }
        }
        let with_rows = |(number, rows)| {
            let adapter = self.adapters.get(number).expect("the step has been checked");
            AdaptedRows { adapter, rows }
        };
        adapted.into_iter().map(with_rows).collect()
    }

    /// x = rows of the embedding; zeros for tokens of other ranks.
    fn embed(&mut self, tokens: &[u32]) {
        let vocab = &self.slice.vocab;
        let Some(embedding) = &self.weights.embedding else { return };
        for (token, x) in tokens.iter().zip(self.buffers.x.chunks_exact_mut(self.spec.hidden)) {
            match (*token as usize).checked_sub(vocab.start).filter(|row| *row < vocab.len()) {
                Some(row) => embedding.dequantize_row(row, x),
                None => x.fill(0.0),
            }
        }
        if self.spec.embedding_scale != 1.0 {
            self.buffers.x.iter_mut().for_each(|x| *x *= self.spec.embedding_scale);
        }
    }

    /// partial = this rank's heads' part of the attention's output.
    fn attend(&mut self, local: usize, rows: &[Row<'_>], adapted: &Adapted) {
        let (w, b) = (&self.weights.layers[local], &mut self.buffers);
        let layer = &self.spec.layers[self.slice.layers.start + local];
        b.norm(&self.pool, &w.attn_norm, self.spec.norm_eps, attention::takes_codes(&w.attention));
        let mut context = Context {
            pool: &self.pool,
            cache: &mut self.cache,
            layer: local,
            rope: &self.ropes[layer.rope],
            angles: &self.angles[layer.rope],
            window: layer.window,
            rows,
            adapted: &in_layer(adapted, local),
            adapter: &mut self.adapter,
        };
        let attended = &mut b.attended;
        self.attender.run(&self.spec, &w.attention, &mut b.normed, attended, &mut b.partial, &mut context);
    }

    /// x += partial, normed before where the model says so; where not, together with the norm that is next.
    fn add(&mut self, local: usize, norm: impl Fn(&crate::weights::LayerWeights) -> &Vec<f32>) {
        let b = &mut self.buffers;
        let norm = norm(&self.weights.layers[local]);
        if norm.is_empty() {
            b.pending = true;
            return;
        }
        let rows = b.normed.rows();
        rms_norm(&self.pool, &b.partial, rows, norm, self.spec.norm_eps, b.normed.f32_rows_mut());
        add_assign(&mut b.x, b.normed.f32_rows());
    }

    /// partial = this rank's part of what the MLP or the experts add.
    fn feed_forward(
        &mut self,
        local: usize,
        rows: &[Row<'_>],
        adapted: &Adapted,
        comms: &mut Comms,
    ) -> Result<(), CollectiveError> {
        let (w, b) = (&self.weights.layers[local], &mut self.buffers);
        let global = self.slice.layers.start + local;
        if !rows.is_empty() {
            let coded = matches!(&w.mlp, MlpKind::Dense(dense) if takes_codes(&dense.gate_up));
            b.norm(&self.pool, &w.mlp_norm, self.spec.norm_eps, coded);
        }
        let adapted = in_layer(adapted, local);
        let (experts, spec) = match (&w.mlp, &self.spec.layers[global].mlp) {
            (MlpKind::Experts(experts), Mlp::Experts(spec)) => (experts, spec),
            (MlpKind::Dense(dense), _) if !rows.is_empty() => {
                let adapted: Vec<_> = adapted.iter().map(|(layer, rows)| (&layer.mlp, *rows)).collect();
                let mut adapting = Adapting { runner: &mut self.adapter, adapted: &adapted };
                self.mlp.run(&self.pool, dense, &mut b.normed, &mut b.partial, &mut adapting);
                return Ok(());
            }
            _ => return Ok(()),
        };
        match &experts.shared {
            Some(shared) if !rows.is_empty() => {
                let mut nothing = Adapting { runner: &mut self.adapter, adapted: &[] };
                self.mlp.run(&self.pool, shared, &mut b.normed, &mut b.partial, &mut nothing);
            }
            _ => b.partial.fill(0.0),
        }
        let place = self.slice.place;
        let mut layer = ExpertLayer {
            pool: &self.pool,
            mlp: &mut self.mlp,
            number: global,
            spec,
            weights: experts,
            adapted: &adapted,
            adapter: &mut self.adapter,
        };
        if self.shape.dp == 1 {
            self.experts.run_local(&mut layer, &mut b.normed, &mut b.partial, place.tp == 0);
            return Ok(());
        }
        // Of ranks with the same rows each dispatches some, chosen by position: by nothing that depends on the batch.
        let mine: Vec<usize> =
            (0..rows.len()).filter(|row| rows[*row].position % self.shape.tp == place.tp).collect();
        self.experts.run_dispatched(&mut layer, &b.normed, &mine, comms.stage(), &mut b.partial)
    }
}

/// Rows of a segment as a range of absolute positions.
fn span(start: u32, len: u32) -> Range<usize> {
    start as usize..start as usize + len as usize
}

#[cfg(test)]
mod adapted_tests;
#[cfg(test)]
mod gguf_tests;
#[cfg(test)]
mod tests;
