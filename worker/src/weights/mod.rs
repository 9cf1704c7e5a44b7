//! Reading a rank's slice of a checkpoint and repacking it for the kernels.

mod layer;

use foggara_kernels::op::panels::WeightMatrix;
use foggara_kernels::{KernelError, WeightType};
use foggara_models::{Checkpoint, DType, ModelError, RankSlice, TensorRole, TensorSlice};

pub use layer::{Column, LayerWeights};

/// Why weights could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The checkpoint.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The repacking.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Someone asked to stop.
    #[error("loading was cancelled")]
    Cancelled,
}

/// Called with the bytes loaded so far and the bytes in all; false stops the loading.
pub type Progress<'a> = dyn FnMut(u64, u64) -> bool + 'a;

/// One rank's weights.
#[derive(Debug)]
pub struct RankWeights {
    /// Rows `slice.vocab` of the embedding.
    pub embedding: WeightMatrix,
    /// The same rows of the output layer; `None` where it is the embedding.
    pub output: Option<WeightMatrix>,
    /// Of the last norm.
    pub final_norm: Vec<f32>,
    /// Layer by layer.
    pub layers: Vec<LayerWeights>,
}

impl RankWeights {
    /// Reads and repacks the tensors of `slice`.
    ///
    /// # Errors
    /// If a tensor cannot be read, or `progress` says to stop.
    pub fn load(
        model: &Checkpoint,
        slice: &RankSlice,
        progress: &mut Progress<'_>,
    ) -> Result<Self, LoadError> {
        let spec = model.spec();
        let mut loader = Loader { model, done: 0, total: 0, progress };
        let hidden = 0..spec.hidden;
        loader.total = layer::bytes(model, slice)? * spec.layers as u64;
        let embedding = model.slice(TensorRole::Embedding, slice.vocab.clone(), hidden.clone())?;
        let output = match spec.tied_output {
            true => None,
            false => Some(model.slice(TensorRole::Output, slice.vocab.clone(), hidden)?),
        };
        loader.total += embedding.bytes() as u64 + output.as_ref().map_or(0, |output| output.bytes() as u64);
        Ok(Self {
            embedding: loader.matrix(&[embedding])?,
            output: output.map(|output| loader.matrix(&[output])).transpose()?,
            final_norm: loader.vector(TensorRole::FinalNorm, 0..spec.hidden)?,
            layers: (0..spec.layers)
                .map(|l| LayerWeights::load(&mut loader, slice, l))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Bytes of memory of all matrices.
    pub fn bytes(&self) -> usize {
        let output = self.output.as_ref().map_or(0, WeightMatrix::bytes);
        self.embedding.bytes() + output + self.layers.iter().map(LayerWeights::bytes).sum::<usize>()
    }
}

/// Loads tensors one by one and tells how far it is.
struct Loader<'a, 'p> {
    model: &'a Checkpoint,
    done: u64,
    total: u64,
    progress: &'a mut Progress<'p>,
}

impl Loader<'_, '_> {
    /// One matrix of the rows of all `parts`, in order. Parts must have one type and one width.
    fn matrix(&mut self, parts: &[TensorSlice]) -> Result<WeightMatrix, LoadError> {
        let first = &parts[0];
        let rows = parts.iter().map(|part| part.rows).sum();
        let mut packer = WeightMatrix::packer(
            weight_type(first.dtype),
            rows,
            first.cols_stored,
            first.col_skip,
            first.cols,
        )?;
        for part in parts {
            part.advise_will_need();
            for row in 0..part.rows {
                if part.row_bytes() > 0 {
                    packer.push_rows(part.row(row))?;
                }
            }
            // What has been repacked is not needed in its stored form again.
            part.advise_dont_need();
            self.done += part.bytes() as u64;
            if !(self.progress)(self.done, self.total) {
                return Err(LoadError::Cancelled);
            }
        }
        Ok(packer.finish()?)
    }

    /// Elements `range` of a vector.
    fn vector(&mut self, role: TensorRole, range: std::ops::Range<usize>) -> Result<Vec<f32>, LoadError> {
        Ok(self.model.slice(role, 0..1, range)?.to_f32()?)
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
