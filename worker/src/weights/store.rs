//! Where weights are put: into panels for the CPU's kernels, nowhere where these can use them as they lie, or onto a device.

use std::fmt;
use std::str::FromStr;

use foggara_kernels::op::pack::WeightPacker;
use foggara_kernels::op::panels::WeightMatrix;
use foggara_kernels::op::repack::Repacking;
use foggara_kernels::op::stored::RowRun;
use foggara_kernels::{ThreadPool, WeightType};

use super::LoadError;

/// What a store is to make of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// What suits it best, with the numbers that are given. On devices that is floats.
    AsGiven,
    /// The same, but on devices the blocks that are given, if they can be met as they are.
    Blocks,
    /// bf16, and what it is multiplied with is rounded to it on CPUs, too. (On devices it always is.)
    InBf16,
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
    /// What makes a form of it that is computed with faster, where it lies in a file.
    fn repacking(&self) -> Option<Repacking> {
        None
    }
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

    /// Whether rows of floats may stay in the file that they are mapped from: [`place`](Self::place) takes them.
    fn in_place(&self) -> bool {
        false
    }

    /// A matrix of rows of `cols` elements of `ty`, a type of floats, where they lie.
    ///
    /// # Errors
    /// If it cannot be held so.
    fn place(
        &self,
        ty: WeightType,
        hold: Hold,
        cols: usize,
        rows: Vec<RowRun>,
    ) -> Result<Self::Matrix, LoadError>;

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

    fn repacking(&self) -> Option<Repacking> {
        self.repacking()
    }
}

/// Where floats are that need no conversion.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Residence {
    /// In their files at first, mapped, so that a start takes no time; while the rank computes, panels are made of them, which are
    /// computed with faster. Results have the same bits before and after.
    #[default]
    Auto,
    /// In their files, mapped into memory: nothing is copied, and processes on a machine share them.
    Mapped,
    /// In this process's own memory.
    Copied,
}

impl FromStr for Residence {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "mapped" => Ok(Self::Mapped),
            "copied" => Ok(Self::Copied),
            _ => Err("must be auto, mapped or copied".into()),
        }
    }
}

impl fmt::Display for Residence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Mapped => "mapped",
            Self::Copied => "copied",
        })
    }
}

/// Holds matrices for the CPU: as they lie in their files where that is possible and wanted, else in panels in this process's
/// memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct OnCpu(pub Residence);

impl Store for OnCpu {
    type Matrix = WeightMatrix;
    type Packer = WeightPacker;

    fn begin(&self, s: Stored) -> Result<WeightPacker, LoadError> {
        if s.hold == Hold::F8 {
            return Err(LoadError::NeedsGpu);
        }
        let packer = WeightMatrix::packer(s.ty, s.rows, s.cols_stored, s.col_skip, s.cols)?;
        Ok(if s.hold == Hold::InBf16 { packer.multiplied_in_bf16() } else { packer })
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

    fn in_place(&self) -> bool {
        self.0 != Residence::Copied && cfg!(target_endian = "little")
    }

    fn place(
        &self,
        ty: WeightType,
        hold: Hold,
        cols: usize,
        rows: Vec<RowRun>,
    ) -> Result<WeightMatrix, LoadError> {
        let matrix = WeightMatrix::of_stored(ty, cols, rows)?;
        Ok(if hold == Hold::InBf16 { matrix.multiplied_in_bf16() } else { matrix })
    }

    fn finish(&self, packer: WeightPacker) -> Result<WeightMatrix, LoadError> {
        Ok(packer.finish()?)
    }
}
