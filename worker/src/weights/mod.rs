//! Reading a rank's slice of a checkpoint, and repacking it for the kernels where they cannot use it as it lies.

mod adapter;
mod attention;
mod held;
mod layer;
mod loader;
mod mapped;
mod mlp;
mod on_device;
mod store;

use foggara_kernels::cuda::DeviceError;
use foggara_kernels::op::panels::WeightMatrix;
use foggara_kernels::{KernelError, ThreadPool, WeightType};
use foggara_models::{Checkpoint, DType, ModelError, Quantize, SlicePlan, TensorRole};

pub use adapter::{Deltas, LayerAdapter, MlpAdapter, RankAdapter};
pub use attention::{AttentionWeights, GroupedWeights, LatentWeights};
pub use layer::{Column, LayerWeights, MlpKind};
use loader::Loader;
pub use mapped::Mapped;
pub use mlp::{ExpertsWeights, MlpWeights};
#[cfg(test)]
pub(crate) use on_device::AS_FLOATS;
pub use on_device::OnDevice;
pub use store::{Held, Hold, OnCpu, Residence, Store, Stored};

/// Why weights could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The checkpoint.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The repacking.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The device they go to.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Weights in 8-bit floats, and no device.
    #[error("fp8 weights are computed on GPUs only; use q8_0")]
    NeedsGpu,
    /// An adapter of experts, where rows come from other ranks, without a word whose they are.
    #[error("adapters of experts, or of their router, need a deployment with dp 1")]
    ExpertsOfOthers,
    /// Someone asked to stop.
    #[error("loading was cancelled")]
    Cancelled,
}

/// Called with the bytes loaded so far and the bytes in all; false stops the loading.
pub type Progress<'a> = dyn FnMut(u64, u64) -> bool + 'a;

/// One rank's weights.
#[derive(Debug)]
pub struct RankWeights<M = WeightMatrix> {
    /// Rows `slice.vocab` of the embedding: on the first stage, and on the last where it is the output layer.
    pub embedding: Option<M>,
    /// The same rows of the output layer, on the last stage; `None` where it is the embedding.
    pub output: Option<M>,
    /// Of the last norm.
    pub final_norm: Vec<f32>,
    /// The layers of the rank's stage.
    pub layers: Vec<LayerWeights<M>>,
    /// Of these matrices, those that lie in files.
    pub mapped: Vec<Mapped>,
}

impl RankWeights {
    /// Loads what rank `rank` of `plan` holds, for the CPU, mapped where it can be; the threads of `pool` share the work.
    ///
    /// # Errors
    /// If a tensor cannot be read, or `progress` says to stop.
    pub fn load(
        model: &Checkpoint,
        plan: &SlicePlan,
        rank: usize,
        quantize: Quantize,
        pool: &ThreadPool,
        progress: &mut Progress<'_>,
    ) -> Result<Self, LoadError> {
        Self::load_to(&OnCpu::default(), model, plan, rank, quantize, pool, progress)
    }
}

impl<M: Held> RankWeights<M> {
    /// The same into any store.
    ///
    /// # Errors
    /// If a tensor cannot be read or held, or `progress` says to stop.
    pub fn load_to<S: Store<Matrix = M>>(
        store: &S,
        model: &Checkpoint,
        plan: &SlicePlan,
        rank: usize,
        quantize: Quantize,
        pool: &ThreadPool,
        progress: &mut Progress<'_>,
    ) -> Result<Self, LoadError> {
        let (spec, slice) = (model.spec(), &plan.ranks[rank]);
        let mut loader = Loader::new(model, store, quantize, pool, progress);
        let (first, last) = (slice.place.stage == 0, slice.place.stage + 1 == plan.shape.pp);
        let hidden = 0..spec.hidden;
        let end = |loader: &Loader<'_, '_, S>, role, here: bool| {
            here.then(|| loader.part(role, slice.vocab.clone(), hidden.clone())).transpose()
        };
        let embedding = end(&loader, TensorRole::Embedding, first || (last && spec.tied_output))?;
        let output = end(&loader, TensorRole::Output, last && !spec.tied_output)?;
        let mut total: u64 = embedding.iter().chain(&output).map(|part| part.bytes() as u64).sum();
        for layer in slice.layers.clone() {
            total += LayerWeights::<M>::bytes_read(&loader, slice, layer)?;
        }
        loader.expect(total)?;
        let matrix = |loader: &mut Loader<'_, '_, S>, part: Option<loader::Part>| {
            part.map(|part| loader.matrix(&[part])).transpose()
        };
        let embedding = matrix(&mut loader, embedding)?;
        if !(last && spec.tied_output) {
            loader.only_looked_up();
        }
        let weights = Self {
            embedding,
            output: matrix(&mut loader, output)?,
            final_norm: loader.norm(TensorRole::FinalNorm)?,
            layers: slice
                .layers
                .clone()
                .map(|l| LayerWeights::load(&mut loader, slice, l))
                .collect::<Result<_, _>>()?,
            mapped: Vec::new(),
        };
        Ok(Self { mapped: loader.end(), ..weights })
    }

    /// Bytes of memory of all matrices.
    pub fn bytes(&self) -> usize {
        let ends = self.embedding.iter().chain(&self.output).map(Held::bytes).sum::<usize>();
        ends + self.layers.iter().map(LayerWeights::bytes).sum::<usize>()
    }
}

/// The kernels' name of a stored type.
pub fn weight_type(dtype: DType) -> WeightType {
    match dtype {
        DType::F32 => WeightType::F32,
        DType::F16 => WeightType::F16,
        DType::BF16 => WeightType::BF16,
        DType::Q4_0 => WeightType::Q4_0,
        DType::Q4_1 => WeightType::Q4_1,
        DType::Q5_0 => WeightType::Q5_0,
        DType::Q5_1 => WeightType::Q5_1,
        DType::Q8_0 => WeightType::Q8_0,
        DType::Q4_K => WeightType::Q4_K,
        DType::Q5_K => WeightType::Q5_K,
        DType::Q6_K => WeightType::Q6_K,
    }
}

#[cfg(test)]
mod tests;
