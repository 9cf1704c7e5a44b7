//! Reads parts of tensors and repacks them for the kernels, one matrix after the other.

use std::ops::Range;

use foggara_kernels::op::panels::WeightMatrix;
use foggara_models::{Checkpoint, DType, LayerRole, ModelError, Quantize, TensorRole, TensorSlice};

use super::{LoadError, Progress, weight_type};

/// A part of a stored matrix, and what becomes of it.
#[derive(Debug, Clone)]
pub(super) struct Part {
    slice: TensorSlice,
    /// The type it is held in.
    loaded: DType,
    /// Columns read before the wanted ones, so that whole blocks are quantized.
    skip: usize,
    cols: usize,
}

/// Loads tensors one by one and tells how far it is.
pub(super) struct Loader<'a, 'p> {
    pub(super) model: &'a Checkpoint,
    pub(super) quantize: Quantize,
    done: u64,
    total: u64,
    progress: &'a mut Progress<'p>,
}

impl<'a, 'p> Loader<'a, 'p> {
    pub(super) fn new(model: &'a Checkpoint, quantize: Quantize, progress: &'a mut Progress<'p>) -> Self {
        Self { model, quantize, done: 0, total: 0, progress }
    }

    /// Rows `rows` and columns `cols` of a matrix.
    pub(super) fn part(
        &self,
        role: TensorRole,
        rows: Range<usize>,
        cols: Range<usize>,
    ) -> Result<Part, ModelError> {
        let tensor = self.model.tensor(role)?;
        let loaded = self.quantize.loaded(role, &tensor);
        // A type that is stored is cut inside its blocks; one that is made must be made of whole ones.
        let block = if loaded == tensor.dtype { 1 } else { loaded.block_elems() };
        let from = cols.start / block * block;
        let to = if cols.is_empty() { from } else { cols.end.next_multiple_of(block).min(tensor.cols) };
        let slice = tensor.slice(rows, from..to)?;
        Ok(Part { slice, loaded, skip: cols.start - from, cols: cols.len() })
    }

    /// All columns of some rows of a layer's matrix.
    pub(super) fn rows(&self, layer: usize, role: LayerRole, rows: Range<usize>) -> Result<Part, ModelError> {
        let role = TensorRole::Layer(layer, role);
        let cols = self.model.tensor(role)?.cols;
        self.part(role, rows, 0..cols)
    }

    /// Some columns of all rows of a layer's matrix.
    pub(super) fn columns(
        &self,
        layer: usize,
        role: LayerRole,
        cols: Range<usize>,
    ) -> Result<Part, ModelError> {
        let role = TensorRole::Layer(layer, role);
        let rows = self.model.tensor(role)?.rows;
        self.part(role, 0..rows, cols)
    }

    /// The whole of a layer's matrix.
    pub(super) fn whole(&self, layer: usize, role: LayerRole) -> Result<Part, ModelError> {
        let rows = self.model.tensor(TensorRole::Layer(layer, role))?.rows;
        self.rows(layer, role, 0..rows)
    }

    /// One matrix of the rows of all `parts`, in order. Parts must have one type and one width.
    pub(super) fn matrix(&mut self, parts: &[Part]) -> Result<WeightMatrix, LoadError> {
        let first = &parts[0];
        let rows = parts.iter().map(|part| part.slice.rows).sum();
        let (stored, skip) = match first.loaded == first.slice.dtype {
            true => (first.slice.cols_stored, first.slice.col_skip),
            false => (first.slice.cols, first.skip),
        };
        let mut packer = WeightMatrix::packer(weight_type(first.loaded), rows, stored, skip, first.cols)?;
        let mut scratch = Scratch::default();
        for part in parts {
            part.slice.advise_will_need();
            for row in 0..part.slice.rows {
                if part.slice.row_bytes() > 0 {
                    packer.push_rows(part.row(row, &mut scratch)?)?;
                }
            }
            // What has been repacked is not needed in its stored form again.
            part.slice.advise_dont_need();
            self.count(part.slice.bytes())?;
        }
        Ok(packer.finish()?)
    }

    fn count(&mut self, bytes: usize) -> Result<(), LoadError> {
        self.done += bytes as u64;
        match (self.progress)(self.done, self.total.max(self.done)) {
            true => Ok(()),
            false => Err(LoadError::Cancelled),
        }
    }

    /// Elements `range` of a layer's vector.
    pub(super) fn vector(
        &mut self,
        layer: usize,
        role: LayerRole,
        range: Range<usize>,
    ) -> Result<Vec<f32>, LoadError> {
        Ok(self.model.slice(TensorRole::Layer(layer, role), 0..1, range)?.to_f32()?)
    }

    /// A norm's weights, as they are multiplied with.
    pub(super) fn norm(&mut self, role: TensorRole) -> Result<Vec<f32>, LoadError> {
        let cols = self.model.tensor(role)?.cols;
        let mut weights = self.model.slice(role, 0..1, 0..cols)?.to_f32()?;
        if self.model.spec().norm_plus_one {
            weights.iter_mut().for_each(|weight| *weight += 1.0);
        }
        Ok(weights)
    }

    /// The values of a part, row after row.
    pub(super) fn values(&mut self, part: &Part) -> Result<Vec<f32>, LoadError> {
        let ty = weight_type(part.slice.dtype);
        let mut values = Vec::with_capacity(part.slice.rows * part.cols);
        let (mut bytes, mut row) = (Vec::new(), vec![0.0; part.slice.cols_stored]);
        for i in 0..part.slice.rows {
            foggara_kernels::op::dequantize::dequantize(ty, part.slice.row(i, &mut bytes), &mut row)?;
            values.extend_from_slice(&row[part.slice.col_skip..][..part.cols]);
        }
        self.count(part.slice.bytes())?;
        Ok(values)
    }

    /// Says how many bytes will be read in all.
    pub(super) fn expect(&mut self, total: u64) {
        self.total = total;
    }
}

/// Memory for rows that do not lie in the file as they are needed.
#[derive(Default)]
struct Scratch {
    stored: Vec<u8>,
    values: Vec<f32>,
    made: Vec<u8>,
}

impl Part {
    /// Bytes in the file.
    pub(super) fn bytes(&self) -> usize {
        self.slice.bytes()
    }

    /// The type it is held in.
    pub(super) fn loaded(&self) -> DType {
        self.loaded
    }

    /// The type it is stored in.
    pub(super) fn stored(&self) -> DType {
        self.slice.dtype
    }

    fn row<'a>(&'a self, i: usize, scratch: &'a mut Scratch) -> Result<&'a [u8], LoadError> {
        let Scratch { stored, values, made } = scratch;
        let row = self.slice.row(i, stored);
        if self.loaded == self.slice.dtype {
            return Ok(row);
        }
        values.resize(self.slice.cols, 0.0);
        foggara_kernels::op::dequantize::dequantize(weight_type(self.slice.dtype), row, values)?;
        made.clear();
        todo_quantize(weight_type(self.loaded), values, made)?;
        Ok(made)
    }
}

fn todo_quantize(
    _: foggara_kernels::WeightType,
    _: &[f32],
    _: &mut Vec<u8>,
) -> Result<(), foggara_kernels::KernelError> {
    unimplemented!()
}
