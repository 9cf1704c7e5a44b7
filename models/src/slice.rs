//! A part of a tensor, read where it lies in the file.

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use crate::dtype::DType;
use crate::error::ModelError;
use crate::mmap::MappedFile;

/// Where a tensor is and what it looks like. A vector has one row.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Its name in the file.
    pub name: String,
    /// Stored type.
    pub dtype: DType,
    /// Output features.
    pub rows: usize,
    /// Input features: consecutive in memory.
    pub cols: usize,
    pub(crate) file: Arc<MappedFile>,
    pub(crate) range: Range<usize>,
}

impl TensorInfo {
    /// Bytes in the file.
    pub fn bytes(&self) -> usize {
        self.range.len()
    }

    /// Rows `rows`, and of them columns `cols`.
    ///
    /// # Errors
    /// If the part does not exist, or a quantized row would be cut elsewhere than at a run of 32.
    pub fn slice(&self, rows: Range<usize>, cols: Range<usize>) -> Result<TensorSlice, ModelError> {
        let wrong = |reason: String| Err(ModelError::tensor(self.file.path(), &self.name, reason));
        if rows.start > rows.end || rows.end > self.rows || cols.start > cols.end || cols.end > self.cols {
            return wrong(format!("{rows:?} × {cols:?} of {} × {}", self.rows, self.cols));
        }
        let unit = self.dtype.column_granularity();
        if !cols.start.is_multiple_of(unit) || !cols.len().is_multiple_of(unit) {
            return wrong(format!("{} cannot be cut at columns {cols:?}", self.dtype));
        }
        let block = self.dtype.block_elems();
        let first = cols.start / block;
        let blocks = if cols.is_empty() { 0 } else { cols.end.div_ceil(block) - first };
        Ok(TensorSlice {
            name: self.name.clone(),
            dtype: self.dtype,
            rows: rows.len(),
            cols: cols.len(),
            cols_stored: blocks * block,
            col_skip: cols.start - first * block,
            file: Arc::clone(&self.file),
            start: self.range.start
                + rows.start * self.dtype.row_bytes(self.cols)
                + first * self.dtype.block_bytes(),
            stride: self.dtype.row_bytes(self.cols),
        })
    }
}

/// Rows of whole blocks in a mapped file.
#[derive(Debug, Clone)]
pub struct TensorSlice {
    name: String,
    /// Stored type.
    pub dtype: DType,
    /// Rows.
    pub rows: usize,
    /// Columns wanted.
    pub cols: usize,
    /// Elements in the bytes of each row: whole blocks around the wanted columns.
    pub cols_stored: usize,
    /// Elements before the wanted ones in them.
    pub col_skip: usize,
    file: Arc<MappedFile>,
    start: usize,
    stride: usize,
}

impl TensorSlice {
    /// The bytes of row `i`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, i: usize) -> &[u8] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        &self.file.bytes()[self.start + i * self.stride..][..self.row_bytes()]
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.dtype.row_bytes(self.cols_stored)
    }

    /// Bytes of all rows.
    pub fn bytes(&self) -> usize {
        self.rows * self.row_bytes()
    }

    /// The values of a small float tensor (norms, biases).
    ///
    /// # Errors
    /// If it is quantized.
    pub fn to_f32(&self) -> Result<Vec<f32>, ModelError> {
        let mut values = Vec::with_capacity(self.rows * self.cols);
        for i in 0..self.rows {
            let row = self.row(i);
            match self.dtype {
                DType::F32 => values.extend(row.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))),
                DType::F16 => {
                    values.extend(row.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()))
                }
                DType::BF16 => {
                    values.extend(row.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()))
                }
                other => {
                    let reason = format!("a vector of type {other}; F32, F16 and BF16 can be read");
                    return Err(ModelError::tensor(self.file.path(), &self.name, reason));
                }
            }
        }
        Ok(values)
    }

    /// Tells the system that the slice will be read soon.
    pub fn advise_will_need(&self) {
        self.file.advise_will_need(self.extent());
    }

    /// Gives the slice's pages back to the system after they were read.
    pub fn advise_dont_need(&self) {
        self.file.advise_dont_need(self.extent());
    }

    fn extent(&self) -> Range<usize> {
        let len = if self.rows == 0 { 0 } else { (self.rows - 1) * self.stride + self.row_bytes() };
        self.start..self.start + len
    }
}
