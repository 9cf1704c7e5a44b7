//! Sums over the ranks of a group whose rows are on devices.
//!
//! By way of the host: rows are downloaded, go through the host's collectives, and are uploaded again. (NCCL does it in place.)

use foggara_kernels::cuda::Buffer;

use super::ForwardError;
use crate::decoder::Comms;

/// Sums rows over ranks, and hands them from stage to stage.
#[derive(Default)]
pub(super) struct Sums {
    host: Vec<f32>,
}

impl Sums {
    /// The first `len` elements become their sums over the ranks that split tensors.
    pub(super) fn over_ranks(
        &mut self,
        values: &mut Buffer<f32>,
        len: usize,
        comms: &mut Comms,
    ) -> Result<(), ForwardError> {
        if comms.tp().size() == 1 {
            return Ok(());
        }
        self.host.resize(len, 0.0);
        values.view().slice(0..len).download(&mut self.host)?;
        comms.tp().all_reduce(&mut self.host)?;
        Ok(values.view_mut().slice(0..len).upload(&self.host)?)
    }

    /// Takes the first `len` elements from the stage before.
    pub(super) fn receive(
        &mut self,
        values: &mut Buffer<f32>,
        len: usize,
        comms: &mut Comms,
    ) -> Result<(), ForwardError> {
        self.host.resize(len, 0.0);
        comms.receive(&mut self.host)?;
        Ok(values.view_mut().slice(0..len).upload(&self.host)?)
    }

    /// Gives them to the stage after; nothing on the last.
    pub(super) fn send(
        &mut self,
        values: &mut Buffer<f32>,
        len: usize,
        comms: &mut Comms,
    ) -> Result<(), ForwardError> {
        if !comms.has_next() {
            return Ok(());
        }
        self.host.resize(len, 0.0);
        values.view().slice(0..len).download(&mut self.host)?;
        Ok(comms.send(&mut self.host)?)
    }
}
