//! Matrices that lie in mapped files.

use foggara_kernels::op::repack::Repacking;
use foggara_kernels::{KernelError, ThreadPool};
use foggara_models::TensorSlice;

/// Where a matrix lies, and what makes panels of it.
#[derive(Debug)]
pub struct Mapped {
    pub(super) slices: Vec<TensorSlice>,
    /// `None`: it is only looked up in, or computed with as it is.
    pub(super) repacking: Option<Repacking>,
}

impl Mapped {
    /// Bytes that panels of it take; 0 if there are to be none.
    pub fn bytes(&self) -> usize {
        self.repacking.as_ref().map_or(0, Repacking::bytes)
    }

    /// Makes panels of it, if there are to be any, while products may use it, and then lets the system have its pages: they are
    /// not needed again. `false`: nobody has the matrix any more.
    ///
    /// # Errors
    /// If it cannot be repacked.
    pub fn repack(&self, pool: &ThreadPool) -> Result<bool, KernelError> {
        let Some(repacking) = &self.repacking else { return Ok(true) };
        let there = repacking.run(pool)?;
        // A product that has begun with the rows has these pages read again, that is all.
        self.slices.iter().for_each(TensorSlice::advise_dont_need);
        Ok(there)
    }
}
