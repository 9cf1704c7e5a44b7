//! Sums over the ranks of a group whose rows are on devices: in place, over NCCL, where all ranks have GPUs that it connects; else by
//! way of the host, where rows are downloaded, go through the host's collectives, and are uploaded again. The bits are the same.

use std::time::Duration;

use foggara_kernels::collective::{AbortHandle, CollectiveError};
use foggara_kernels::cuda::nccl::NcclComm;
use foggara_kernels::cuda::rank_sums::RankSums;
use foggara_kernels::cuda::{Buffer, Device, DeviceError};

use super::ForwardError;
use crate::decoder::Comms;

/// How long ranks wait for each other to connect.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sums rows over ranks, and hands them from stage to stage.
#[derive(Default)]
pub(super) struct Sums {
    nccl: Option<RankSums<NcclComm>>,
    host: Vec<f32>,
}

/// The sum over ranks that split tensors of a yes or no.
fn yes_of_all(yes: bool, comms: &mut Comms) -> Result<bool, CollectiveError> {
    let mut count = [f32::from(u8::from(yes))];
    comms.tp().all_reduce(&mut count)?;
    Ok(count[0] as usize == comms.tp().size())
}

impl Sums {
    /// Connects the ranks that split tensors by NCCL, for sums of up to `longest` elements, if it can be for all of them. Every one
    /// of them must call it.
    ///
    /// # Errors
    /// If the host's collectives fail. That NCCL does is only logged: the host's do its work then.
    pub(super) fn connect(
        &mut self,
        device: &Device,
        longest: usize,
        comms: &mut Comms,
    ) -> Result<Option<AbortHandle>, CollectiveError> {
        let (rank, size) = (comms.tp().rank(), comms.tp().size());
        if size == 1 || !yes_of_all(NcclComm::is_for(device), comms)? {
            return Ok(None);
        }
        // Rank 0 names the group. Whoever has no library has said so before.
        let mut id = match rank {
            0 => NcclComm::unique_id().map(|id| id.to_vec()).unwrap_or_default(),
            _ => Vec::new(),
        };
        comms.tp().broadcast(&mut id)?;
        let joined = match <[u8; 128]>::try_from(id) {
            Ok(id) => NcclComm::join(device, &id, rank, size, PATIENCE)
                .and_then(|comm| RankSums::new(device, comm, longest))
                .map_err(|error| error.to_string()),
            Err(_) => Err("rank 0 could not name the group".to_owned()),
        };
        if let Err(reason) = &joined {
            tracing::warn!(reason, "no NCCL between these ranks: their sums go by way of the host");
        }
        let joined = joined.ok();
        if yes_of_all(joined.is_some(), comms)? {
            tracing::info!(rank, size, "connected by NCCL");
            self.nccl = joined;
        }
        Ok(self.nccl.as_ref().map(|sums| sums.connected().abort_handle()))
    }

    /// Whether nothing but the device is needed for the steps of this rank's group, so that they can be recorded.
    pub(super) fn are_on_device(&self, comms: &mut Comms) -> bool {
        comms.is_one_stage() && (comms.tp().size() == 1 || self.nccl.is_some())
    }

    /// The first `len` elements become their sums over the ranks that split tensors.
    pub(super) fn over_ranks(
        &mut self,
        values: &mut Buffer<f32>,
        len: usize,
        comms: &mut Comms,
    ) -> Result<(), ForwardError> {
        if let Some(nccl) = &mut self.nccl {
            return Ok(nccl.sum(values.view_mut().slice(0..len))?);
        }
        if comms.tp().size() == 1 {
            return Ok(());
        }
        self.host.resize(len, 0.0);
        values.view().slice(0..len).download(&mut self.host)?;
        comms.tp().all_reduce(&mut self.host)?;
        Ok(values.view_mut().slice(0..len).upload(&self.host)?)
    }

    /// Whether the group still stands, as far as is known here.
    pub(super) fn health(&self) -> Result<(), DeviceError> {
        self.nccl.as_ref().map_or(Ok(()), |sums| sums.connected().health())
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
