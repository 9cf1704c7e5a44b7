//! A part of a tensor, read where it lies in the file.

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use crate::dtype::DType;
use crate::error::ModelError;
use crate::in_place::{InPlace, fills_pages};
use crate::mmap::MappedFile;
use crate::roles::Part;

/// Where a tensor is and what it looks like: a matrix, or a stack of `count` of them. A vector has one row.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Its name in the file.
    pub name: String,
    /// Stored type.
    pub dtype: DType,
    /// Matrices in the stack.
    pub count: usize,
    /// Output features of each.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    pub(crate) file: Arc<MappedFile>,
    pub(crate) range: Range<usize>,
    /// Bytes from a row to the next.
    row_stride: usize,
    /// Bytes from an element to the next; 0 where rows are stored as they are read, in whole blocks.
    col_stride: usize,
}

impl TensorInfo {
    /// A tensor as a file has it: row after row.
    pub(crate) fn stored(
        name: String,
        dtype: DType,
        [count, rows, cols]: [usize; 3],
        file: Arc<MappedFile>,
        range: Range<usize>,
    ) -> Self {
        let row_stride = dtype.row_bytes(cols);
        Self { name, dtype, count, rows, cols, file, range, row_stride, col_stride: 0 }
    }

    /// Bytes in the file.
    pub fn bytes(&self) -> usize {
        self.count * self.rows * self.dtype.row_bytes(self.cols)
    }

    /// The part of it that a role means.
    pub(crate) fn part(&self, part: &Part) -> Result<Self, ModelError> {
        let wrong = |reason: String| Err(ModelError::tensor(self.file.path(), &self.name, reason));
        let matrix = self.rows * self.row_stride;
        match *part {
            Part::Whole if self.count == 1 => Ok(self.clone()),
            Part::Whole => wrong(format!("is a stack of {} matrices; one matrix is expected", self.count)),
            Part::Rows { first, count } => {
                // Of a vector, elements.
                if self.rows == 1 && self.count == 1 && !self.dtype.is_quantized() {
                    let width = self.dtype.block_bytes();
                    if first + count > self.cols {
                        return wrong(format!("{first}+{count} of {} elements", self.cols));
                    }
                    let start = self.range.start + first * width;
                    return Ok(Self { cols: count, range: start..start + count * width, ..self.clone() });
                }
                if self.count != 1 || first + count > self.rows {
                    return wrong(format!("rows {first}+{count} of {} × {}", self.count, self.rows));
                }
                let start = self.range.start + first * self.row_stride;
                Ok(Self { rows: count, range: start..start + count * self.row_stride, ..self.clone() })
            }
            // Vectors side by side are the rows of one matrix.
            Part::StackedVector { index } if self.count == 1 && index < self.rows => {
                let start = self.range.start + index * self.row_stride;
                Ok(Self { rows: 1, range: start..start + self.row_stride, ..self.clone() })
            }
            Part::Stacked { index } if index < self.count => {
                let start = self.range.start + index * matrix;
                Ok(Self { count: 1, range: start..start + matrix, ..self.clone() })
            }
            Part::StackedVector { index } => {
                wrong(format!("has no vector {index}, it is {} × {} of them", self.count, self.rows))
            }
            Part::Stacked { index } => {
                wrong(format!("has no matrix {index}, it is a stack of {}", self.count))
            }
            Part::Strided { index, first, step } => self.strided(index, first, step),
        }
    }

    fn strided(&self, index: usize, first: usize, step: usize) -> Result<Self, ModelError> {
        let wrong = |reason: String| Err(ModelError::tensor(self.file.path(), &self.name, reason));
        if self.dtype.is_quantized() {
            return wrong(format!("is stored input × output features in {}; floats can be", self.dtype));
        }
        let width = self.dtype.block_bytes();
        let features = self.cols.saturating_sub(first).div_ceil(step);
        if self.count == 1 {
            if index >= self.rows {
                return wrong(format!("has no vector {index}, it is a stack of {}", self.rows));
            }
            let start = self.range.start + index * self.row_stride + first * width;
            let range = start..self.range.start + (index + 1) * self.row_stride;
            return Ok(Self { rows: 1, cols: features, range, col_stride: step * width, ..self.clone() });
        }
        if index >= self.count {
            return wrong(format!("has no matrix {index}, it is a stack of {}", self.count));
        }
        let matrix = self.rows * self.row_stride;
        let start = self.range.start + index * matrix;
        Ok(Self {
            count: 1,
            rows: features,
            cols: self.rows,
            range: start + first * width..start + matrix,
            row_stride: step * width,
            col_stride: self.row_stride,
            ..self.clone()
        })
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
        if self.count != 1 {
            return wrong(format!("is a stack of {} matrices", self.count));
        }
        let unit = self.dtype.column_granularity();
        if !cols.start.is_multiple_of(unit) || !cols.len().is_multiple_of(unit) {
            return wrong(format!("{} cannot be cut at columns {cols:?}", self.dtype));
        }
        let block = self.dtype.block_elems();
        let first = cols.start / block;
        let blocks = if cols.is_empty() { 0 } else { cols.end.div_ceil(block) - first };
        let col_step = if self.col_stride == 0 { self.dtype.block_bytes() } else { self.col_stride };
        Ok(TensorSlice {
            name: self.name.clone(),
            dtype: self.dtype,
            rows: rows.len(),
            cols: cols.len(),
            cols_stored: blocks * block,
            col_skip: cols.start - first * block,
            file: Arc::clone(&self.file),
            start: self.range.start + rows.start * self.row_stride + first * col_step,
            row_stride: self.row_stride,
            col_stride: self.col_stride,
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
    row_stride: usize,
    col_stride: usize,
}

impl TensorSlice {
    /// The bytes of row `i`, as they lie in the file; in `scratch` where they do not lie side by side there.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row<'a>(&'a self, i: usize, scratch: &'a mut Vec<u8>) -> &'a [u8] {
        match self.contiguous_row(i) {
            Some(row) => row,
            None => {
                let (width, from) = (self.dtype.block_bytes(), self.start + i * self.row_stride);
                scratch.clear();
                scratch.reserve(self.row_bytes());
                for k in 0..self.cols_stored {
                    scratch.extend_from_slice(&self.file.bytes()[from + k * self.col_stride..][..width]);
                }
                scratch
            }
        }
    }

    /// The bytes of row `i`, if they lie side by side.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn contiguous_row(&self, i: usize) -> Option<&[u8]> {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        (self.col_stride == 0 || self.cols_stored == 0)
            .then(|| &self.file.bytes()[self.start + i * self.row_stride..][..self.row_bytes()])
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
        let mut scratch = Vec::new();
        for i in 0..self.rows {
            let row = self.row(i, &mut scratch);
            match self.dtype {
                DType::F32 => values.extend(row.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))),
                DType::F16 => {
                    values.extend(row.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()))
                }
                DType::BF16 => {
                    values.extend(row.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()))
                }
                other => {
                    let reason = format!("of type {other}; only F32, F16 and BF16 can be read here");
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

    /// Makes rows `rows` readable without a page fault each few pages; waits for what is not in memory yet.
    ///
    /// # Panics
    /// If there are no such rows.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn populate(&self, rows: Range<usize>) -> Result<(), ModelError> {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        self.file.populate(self.extent_of(rows))
    }

    /// Where its rows lie, if they can be used there: each side by side, in pages that hold little else.
    pub fn in_place(&self) -> Option<InPlace> {
        let worth = fills_pages(self.start, self.row_stride, self.row_bytes(), self.rows);
        (self.col_stride == 0 && worth).then(|| InPlace {
            file: Arc::<MappedFile>::clone(&self.file),
            start: self.start,
            stride: self.row_stride,
        })
    }

    /// Gives the slice's pages back to the system after they were read.
    pub fn advise_dont_need(&self) {
        self.file.advise_dont_need(self.extent());
    }

    /// Its file.
    pub(crate) fn file(&self) -> &Arc<MappedFile> {
        &self.file
    }

    /// From the first of its bytes to the last.
    pub(crate) fn extent(&self) -> Range<usize> {
        self.extent_of(0..self.rows)
    }

    fn extent_of(&self, rows: Range<usize>) -> Range<usize> {
        let start = self.start + rows.start * self.row_stride;
        if rows.is_empty() || self.cols_stored == 0 {
            return start..start;
        }
        let row = match self.col_stride {
            0 => self.row_bytes(),
            stride => (self.cols_stored - 1) * stride + self.dtype.block_bytes(),
        };
        start..start + (rows.len() - 1) * self.row_stride + row
    }
}
