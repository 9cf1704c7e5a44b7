//! Reads parts of tensors and repacks them for the kernels, or leaves them where they lie, one matrix after the other.

use std::ops::Range;
use std::sync::OnceLock;

use foggara_kernels::op::dequantize::dequantize;
use foggara_kernels::op::quantize_weights::quantize_row;
use foggara_kernels::op::stored::RowRun;
use foggara_kernels::{ThreadPool, WeightType};
use foggara_models::{
    Checkpoint, DType, LayerRole, Loaded, ModelError, Quantize, TensorRole, TensorSlice, keep_only,
};

use super::mapped::Mapped;
use super::store::{Held, Hold, Store, Stored};
use super::{LoadError, Progress, weight_type};

/// Bytes that are read between two looks at whether to go on.
const CHUNK_BYTES: usize = 4 << 20;

/// Rows that are made from stored ones at once.
const MADE_AT_ONCE: usize = 8;

/// A part of a stored matrix, and what becomes of it.
#[derive(Debug, Clone)]
pub(super) struct Part {
    slice: TensorSlice,
    /// The type that its rows are converted to before a store gets them; `None` if it gets them as they are.
    made: Option<DType>,
    /// How a store is to hold what it gets.
    hold: Hold,
    /// Columns read before the wanted ones, so that whole blocks are quantized.
    skip: usize,
    cols: usize,
}

/// Loads tensors one by one and tells how far it is.
pub(super) struct Loader<'a, 'p, S> {
    pub(super) model: &'a Checkpoint,
    store: &'a S,
    quantize: Quantize,
    pool: &'a ThreadPool,
    /// What is used where it lies.
    mapped: Vec<Mapped>,
    done: u64,
    total: u64,
    progress: &'a mut Progress<'p>,
}

impl<'a, 'p, S: Store> Loader<'a, 'p, S> {
    pub(super) fn new(
        model: &'a Checkpoint,
        store: &'a S,
        quantize: Quantize,
        pool: &'a ThreadPool,
        progress: &'a mut Progress<'p>,
    ) -> Self {
        Self { model, store, quantize, pool, mapped: Vec::new(), done: 0, total: 0, progress }
    }

    /// Rows `rows` and columns `cols` of a matrix.
    pub(super) fn part(
        &self,
        role: TensorRole,
        rows: Range<usize>,
        cols: Range<usize>,
    ) -> Result<Part, ModelError> {
        let tensor = self.model.tensor(role)?;
        let made = match self.quantize.loaded(role, &tensor) {
            Loaded::As(dtype) if dtype != tensor.dtype => Some(dtype),
            Loaded::As(_) | Loaded::F8 => None,
        };
        // A type that is stored is cut inside its blocks; one that is made must be made of whole ones.
        let block = made.map_or(1, DType::block_elems);
        let from = cols.start / block * block;
        let to = if cols.is_empty() { from } else { cols.end.next_multiple_of(block).min(tensor.cols) };
        let slice = tensor.slice(rows, from..to)?;
        let hold = match self.quantize.loaded_on_gpu(role, tensor.dtype, tensor.cols) {
            Loaded::F8 => Hold::F8,
            Loaded::As(_) if self.quantize.multiplies_in_bf16(role, tensor.dtype) => Hold::InBf16,
            Loaded::As(dtype) if dtype.is_quantized() => Hold::Blocks,
            Loaded::As(_) => Hold::AsGiven,
        };
        Ok(Part { slice, made, hold, skip: cols.start - from, cols: cols.len() })
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
    pub(super) fn matrix(&mut self, parts: &[Part]) -> Result<S::Matrix, LoadError> {
        if let Some(matrix) = self.place(parts)? {
            return Ok(matrix);
        }
        let first = &parts[0];
        let rows = parts.iter().map(|part| part.slice.rows).sum();
        let (ty, cols_stored, col_skip) = match first.made {
            None => (first.slice.dtype, first.slice.cols_stored, first.slice.col_skip),
            Some(made) => (made, first.slice.cols, first.skip),
        };
        let (ty, cols, hold) = (weight_type(ty), first.cols, first.hold);
        let stored = Stored { ty, rows, cols_stored, col_skip, cols, hold };
        let mut packer = self.store.begin(stored)?;
        for part in parts.iter().filter(|part| part.slice.row_bytes() > 0) {
            part.slice.advise_will_need();
            let (rows, row_bytes) = (part.slice.rows, part.slice.row_bytes());
            let each = (CHUNK_BYTES / row_bytes).next_multiple_of(8).max(8);
            for from in (0..rows).step_by(each) {
                let to = rows.min(from + each);
                part.slice.populate(from..to)?;
                part.pack(self.store, &mut packer, from..to, self.pool)?;
                self.count((to - from) * row_bytes)?;
            }
            // What has been repacked is not needed in its stored form again.
            part.slice.advise_dont_need();
        }
        self.store.finish(packer)
    }

    /// The same where the rows lie, if all of them can be used there.
    fn place(&mut self, parts: &[Part]) -> Result<Option<S::Matrix>, LoadError> {
        if !self.store.in_place() {
            return Ok(None);
        }
        let runs: Option<Vec<RowRun>> = parts.iter().map(Part::run).collect();
        let Some(runs) = runs else { return Ok(None) };
        for part in parts {
            part.slice.advise_will_need();
            let (rows, threads) = (part.slice.rows, self.pool.threads());
            let each = (CHUNK_BYTES / part.slice.row_bytes()).max(1);
            for from in (0..rows).step_by(each * threads) {
                let to = rows.min(from + each * threads);
                let read: Vec<OnceLock<Result<(), ModelError>>> =
                    (0..threads).map(|_| OnceLock::new()).collect();
                self.pool.run(threads, |i| {
                    let piece = to.min(from + i * each)..to.min(from + (i + 1) * each);
                    // Each piece is read once.
                    read[i].set(part.slice.populate(piece)).ok();
                });
                read.into_iter().filter_map(OnceLock::into_inner).collect::<Result<(), _>>()?;
                self.count((to - from) * part.slice.row_bytes())?;
            }
        }
        let (ty, hold, cols) = (weight_type(parts[0].slice.dtype), parts[0].hold, parts[0].cols);
        let matrix = self.store.place(ty, hold, cols, runs)?;
        let slices = parts.iter().map(|part| part.slice.clone()).collect();
        self.mapped.push(Mapped { slices, repacking: matrix.repacking() });
        Ok(Some(matrix))
    }

    /// What has been loaded so far is only looked up in, never multiplied with: panels of it would be no gain.
    pub(super) fn only_looked_up(&mut self) {
        self.mapped.iter_mut().for_each(|mapped| mapped.repacking = None);
    }

    /// After the last: nothing of the files stays in this process's memory but what is used there, which is returned.
    pub(super) fn end(self) -> Vec<Mapped> {
        let used: Vec<TensorSlice> = self.mapped.iter().flat_map(|mapped| mapped.slices.clone()).collect();
        keep_only(&used, &used);
        self.mapped
    }

    /// A matrix of these values, rounded to `ty`, one of the types of floats.
    pub(super) fn made(
        &mut self,
        ty: WeightType,
        rows: usize,
        cols: usize,
        values: &[f32],
    ) -> Result<S::Matrix, LoadError> {
        let bytes: Vec<u8> = match ty {
            WeightType::BF16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
            WeightType::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        let row_bytes = ty.row_bytes(cols);
        let hold = Hold::AsGiven;
        let mut packer = self.store.begin(Stored { ty, rows, cols_stored: cols, col_skip: 0, cols, hold })?;
        self.store.push(&mut packer, self.pool, rows, |i| &bytes[i * row_bytes..][..row_bytes])?;
        self.store.finish(packer)
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
            dequantize(ty, part.slice.row(i, &mut bytes), &mut row)?;
            values.extend_from_slice(&row[part.slice.col_skip..][..part.cols]);
        }
        self.count(part.slice.bytes())?;
        Ok(values)
    }

    /// Says how many bytes will be read in all, and that none has been: the first read may be the one that hangs.
    pub(super) fn expect(&mut self, total: u64) -> Result<(), LoadError> {
        self.total = total;
        self.count(0)
    }
}

impl Part {
    /// Bytes in the file.
    pub(super) fn bytes(&self) -> usize {
        self.slice.bytes()
    }

    /// The type it is stored in.
    pub(super) fn stored(&self) -> DType {
        self.slice.dtype
    }

    /// Whether its rows and the other's can be those of one matrix.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        (self.slice.dtype, self.made, self.hold) == (other.slice.dtype, other.made, other.hold)
    }

    /// Its rows where they lie, if they are floats that can be used there.
    fn run(&self) -> Option<RowRun> {
        let as_is = self.made.is_none() && self.hold != Hold::F8 && !self.slice.dtype.is_quantized();
        let lies = self.slice.in_place().filter(|_| as_is)?;
        Some(RowRun::new(lies.file, lies.start, lies.stride, self.slice.rows))
    }

    /// Rows `rows` as they will be held, one after the other, where they do not lie in the file like that.
    fn made_rows(&self, rows: Range<usize>) -> Result<Vec<u8>, LoadError> {
        let ty = self.made.unwrap_or(self.slice.dtype);
        let mut made = Vec::with_capacity(rows.len() * ty.row_bytes(self.slice.cols_stored));
        let (mut stored, mut values) = (Vec::new(), vec![0.0; self.slice.cols]);
        for i in rows {
            let row = self.slice.row(i, &mut stored);
            if self.made.is_none() {
                made.extend_from_slice(row);
                continue;
            }
            dequantize(weight_type(self.slice.dtype), row, &mut values)?;
            match ty {
                DType::BF16 => {
                    made.extend(values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()))
                }
                _ => quantize_row(weight_type(ty), &values, &mut made)?,
            }
        }
        Ok(made)
    }

    /// Rows `rows` of it, added to a matrix.
    fn pack<S: Store>(
        &self,
        store: &S,
        packer: &mut S::Packer,
        rows: Range<usize>,
        pool: &ThreadPool,
    ) -> Result<(), LoadError> {
        let as_stored = |i: usize| self.slice.contiguous_row(rows.start + i);
        if self.made.is_none() && as_stored(0).is_some() {
            // All rows of a slice lie like the first.
            return store.push(packer, pool, rows.len(), |i| as_stored(i).unwrap_or(&[]));
        }
        let runs = rows.len().div_ceil(MADE_AT_ONCE);
        let made: Vec<OnceLock<Result<Vec<u8>, LoadError>>> = (0..runs).map(|_| OnceLock::new()).collect();
        pool.run(runs, |run| {
            let from = rows.start + run * MADE_AT_ONCE;
            // Each run is made once.
            made[run].set(self.made_rows(from..rows.end.min(from + MADE_AT_ONCE))).ok();
        });
        let made: Vec<Vec<u8>> =
            made.into_iter().filter_map(OnceLock::into_inner).collect::<Result<_, _>>()?;
        let row_bytes = made.first().map_or(0, |run| run.len() / rows.len().min(MADE_AT_ONCE));
        let row = |i: usize| &made[i / MADE_AT_ONCE][i % MADE_AT_ONCE * row_bytes..][..row_bytes];
        store.push(packer, pool, rows.len(), row)
    }
}
