//! Matrices that lie in mapped files.

use foggara_kernels::op::repack::Repacking;
use foggara_kernels::{KernelError, ThreadPool};
use foggara_models::{TensorSlice, keep_only};

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
    /// not needed again. What was mapped around them stays, until [`Mapped::end`]. `false`: nobody has the matrix any more.
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

    /// When panels of the first `repacked` of `all` have been made, and no more will be: of the files, only those pages stay in
    /// this process's memory that hold others.
    pub fn end(all: &[Self], repacked: usize) {
        let slices = |kept: &dyn Fn(usize, &Self) -> bool| -> Vec<TensorSlice> {
            let mapped = all.iter().enumerate().filter(|(i, mapped)| kept(*i, mapped));
            mapped.flat_map(|(_, mapped)| mapped.slices.iter().cloned()).collect()
        };
        keep_only(&slices(&|_, _| true), &slices(&|i, mapped| i >= repacked || mapped.bytes() == 0));
    }
}
