//! Where weights are put: into panels for the CPU's kernels, or onto a device.

use foggara_kernels::op::pack::WeightPacker;
use foggara_kernels::op::panels::WeightMatrix;
use foggara_kernels::{ThreadPool, WeightType};

use super::LoadError;

/// What a store is to make of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// What suits it best, with the numbers that are given.
    AsGiven,
    /// E4M3 with a scale for each row. On devices only.
    F8,
}

/// A matrix as it comes from a checkpoint: rows of a stored type, of whose columns a part is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Stored {
    /// The type of the rows that are given.
    pub ty: WeightType,
    /// Rows.
    pub rows: usize,
    /// Columns of the rows that are given.
    pub cols_stored: usize,
    /// Of these, the first that is wanted.
    pub col_skip: usize,
    /// Columns that are wanted.
    pub cols: usize,
    /// What becomes of them.
    pub hold: Hold,
}

/// A matrix that is held.
pub trait Held {
    /// Its rows.
    fn rows(&self) -> usize;
    /// Bytes of memory it takes.
    fn bytes(&self) -> usize;
}

/// Takes matrices, some rows at a time.
pub trait Store {
    /// What becomes of them.
    type Matrix: Held;
    /// One that is not complete.
    type Packer;

    /// Begins a matrix.
    ///
    /// # Errors
    /// If there is no memory for it, or it cannot be held.
    fn begin(&self, stored: Stored) -> Result<Self::Packer, LoadError>;

    /// Adds the next `count` rows: `row(i)` is the i-th of them, as stored. The threads of `pool` share the work.
    ///
    /// # Errors
    /// If rows have another length than they must have, or there are too many.
    fn push<'r>(
        &self,
        packer: &mut Self::Packer,
        pool: &ThreadPool,
        count: usize,
        row: impl Fn(usize) -> &'r [u8] + Sync,
    ) -> Result<(), LoadError>;

    /// The matrix, once every row is there.
    ///
    /// # Errors
    /// If rows are missing.
    fn finish(&self, packer: Self::Packer) -> Result<Self::Matrix, LoadError>;
}

impl Held for WeightMatrix {
    fn rows(&self) -> usize {
        self.rows()
    }

    fn bytes(&self) -> usize {
        self.bytes()
    }
}

/// Holds matrices in this process's memory, in panels.
#[derive(Debug, Clone, Copy)]
pub struct Panels;

impl Store for Panels {
    type Matrix = WeightMatrix;
    type Packer = WeightPacker;

    fn begin(&self, s: Stored) -> Result<WeightPacker, LoadError> {
        if s.hold == Hold::F8 {
            return Err(LoadError::NeedsGpu);
        }
        Ok(WeightMatrix::packer(s.ty, s.rows, s.cols_stored, s.col_skip, s.cols)?)
    }

    fn push<'r>(
        &self,
        packer: &mut WeightPacker,
        pool: &ThreadPool,
        count: usize,
        row: impl Fn(usize) -> &'r [u8] + Sync,
    ) -> Result<(), LoadError> {
        Ok(packer.push_with(pool, count, row)?)
    }

    fn finish(&self, packer: WeightPacker) -> Result<WeightMatrix, LoadError> {
        Ok(packer.finish()?)
    }
}
