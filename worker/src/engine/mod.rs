//! Executing step plans: the sequence table and the sampler on the leader, the same steps on every other rank.

mod collect;
mod drafts;
mod follower;
mod leader;
mod lease;
mod sampler;
mod sequences;

use std::time::Duration;

use foggara_kernels::collective::CollectiveError;
use foggara_kernels::cuda::DeviceError;
use foggara_kernels::op::kv_cache::KvType;
use foggara_models::{Checkpoint, DType, KvFormat, TensorRole};

use crate::adapters::Adapters;
use crate::decoder::{BlockTables, Comms, Forward, ForwardError, InputError, OnScores, Segment, StepInput};

pub use collect::{OwnUse, StepTimes, StepWatch, Told};
pub use follower::follow;
pub use leader::{EngineEvent, News, lead};
pub use sequences::{PlanError, SequenceTable};

/// A collective around a step that takes longer than this means that a rank hangs; inside, steps before tell how long they take.
const STEP_DEADLINE: Duration = Duration::from_secs(10);

/// Why an engine ended.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The group's ranks lost each other.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// The device that computes does not.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Ranks do not agree about a step.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The checked step gave nonsense.
    #[error("the check of the group failed: {0}")]
    Check(String),
}

impl From<ForwardError> for EngineError {
    fn from(error: ForwardError) -> Self {
        match error {
            ForwardError::Collective(error) => Self::Collective(error),
            ForwardError::Device(error) => Self::Device(error),
        }
    }
}

/// One rank: decoder, tables and its end of the collectives.
pub struct Engine {
    /// The model.
    pub decoder: Box<dyn Forward>,
    /// Blocks by slot.
    pub tables: BlockTables,
    /// The other ranks.
    pub comms: Comms,
    /// Low-rank adapters beside its weights.
    pub adapters: Adapters,
    /// Positions in a block.
    pub block_size: usize,
    /// Most rows of a step.
    pub max_rows: usize,
    /// What this rank has done since it last told rank 0.
    pub own: OwnUse,
    /// On rank 0: what the ranks have told that no report has named yet.
    pub told: Told,
}

impl Engine {
    /// Makes a step's changes to the tables of this rank. After an error it must not be run.
    fn prepare(&mut self, input: &StepInput) -> Result<(), InputError> {
        self.tables.apply(input)?;
        let vocab = self.decoder.spec().vocab;
        input.check(&self.tables, vocab, self.block_size, self.max_rows)?;
        input.check_adapters(&self.tables, &self.adapters)
    }

    /// Runs a prepared step on this rank.
    fn run(&mut self, input: &StepInput, on_scores: &mut OnScores<'_>) -> Result<StepTimes, EngineError> {
        let mut watch = StepWatch::begin(self.comms.stats().nanos);
        let busy = !input.tokens.is_empty();
        if busy {
            self.comms.begin_step(input);
        }
        self.decoder.forward(input, &self.tables, &mut self.comms, &mut |row, scores| {
            watch.sample(|| on_scores(row, scores));
        })?;
        if busy {
            self.comms.end_step();
        }
        let times = watch.end(self.comms.stats().nanos);
        if busy {
            self.own.step(&times);
        }
        if input.collect {
            self.collect()?;
        }
        Ok(times)
    }

    /// Starts a prepared step without waiting for it: [`Forward::begin`].
    fn begin(&mut self, input: &StepInput, fed: &[Option<usize>]) -> Result<(), EngineError> {
        Ok(self.decoder.begin(input, &self.tables, fed, &mut self.comms)?)
    }

    /// Waits for the first step that was begun, since when `watch` runs.
    fn finish(
        &mut self,
        mut watch: StepWatch,
        on_scores: &mut OnScores<'_>,
    ) -> Result<StepTimes, EngineError> {
        self.decoder.finish(&mut |row, scores| watch.sample(|| on_scores(row, scores)))?;
        let times = watch.end(self.comms.stats().nanos);
        self.own.step(&times);
        Ok(times)
    }

    /// One real step on every rank, collectives included, before the group may call itself ready.
    ///
    /// # Errors
    /// If ranks disagree, or the logits are not finite.
    pub fn check(&mut self) -> Result<(), EngineError> {
        self.comms.set_deadline(Some(STEP_DEADLINE));
        // Everyone is there, in the place it believes.
        let size = self.comms.size();
        let mut ranks = vec![0.0f32; size];
        ranks[self.comms.rank()] = 1.0;
        self.comms.all().all_reduce(&mut ranks)?;
        if ranks.iter().any(|count| *count != 1.0) {
            return Err(EngineError::Check(format!("ranks answered {ranks:?} times")));
        }
        // A first token in each part of the batch.
        let parts = 0..u32::try_from(self.decoder.shape().dp).unwrap_or(1);
        let first = |part: u32| vec![part * u32::try_from(self.decoder.blocks()).unwrap_or(0)];
        let input = StepInput {
            grants: parts.clone().map(|part| (part, first(part))).collect(),
            segments: parts.clone().map(|slot| Segment { slot, start: 0, len: 1, logits_from: 0 }).collect(),
            tokens: parts.clone().map(|_| 0).collect(),
            ..StepInput::default()
        };
        let mut finite = true;
        self.prepare(&input)?;
        // It says nothing about what it wants: it gets all logits.
        self.run(&input, &mut |_, scores| {
            finite &= scores.whole().is_some_and(|logits| logits.iter().all(|logit| logit.is_finite()));
        })?;
        self.tables.apply(&StepInput { drops: parts.collect(), ..StepInput::default() })?;
        if !finite {
            return Err(EngineError::Check(
                "logits of a first token are not finite: corrupt weights?".into(),
            ));
        }
        self.comms.all().barrier()?;
        // That step was nobody's.
        self.decoder.take_expert_counts()?;
        self.own = OwnUse::since(self.decoder.dispatch_stats());
        Ok(())
    }
}

/// The cache's precision for a deployment's `kv_dtype` and a checkpoint.
///
/// # Errors
/// If there is no such precision.
pub fn kv_type(choice: &str, model: &Checkpoint) -> Result<KvType, String> {
    // A checkpoint that cannot say how it is stored is not in f32.
    let stored = model.tensor(TensorRole::Embedding).map_or(DType::F16, |tensor| tensor.dtype);
    Ok(match KvFormat::choose(choice, stored)? {
        KvFormat::F32 => KvType::F32,
        KvFormat::F16 => KvType::F16,
        KvFormat::Q8_0 => KvType::Q8_0,
        KvFormat::F8 => KvType::F8,
    })
}

#[cfg(test)]
mod adoption_tests;
#[cfg(test)]
mod ahead_tests;
#[cfg(test)]
mod best_tests;
#[cfg(test)]
mod cache_tests;
#[cfg(test)]
mod drafts_tests;
#[cfg(test)]
mod hung_tests;
#[cfg(test)]
mod lease_tests;
#[cfg(test)]
mod tests;
