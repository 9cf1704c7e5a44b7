//! Sums over ranks, whose rows are on devices: `((r0 + r1) + r2) + …` for every element, as the host's collectives add up.
//!
//! NCCL adds up in an order of its own, which depends on how long a message is and where in it an element lies: a row's sum over
//! three ranks or more would depend on the rows beside it. So it only carries what ranks have, and a kernel adds up. Of two
//! numbers the sum is the same in either order: two ranks leave it to NCCL.
//!
//! Short sums are one exchange: every rank gets everything and adds up by itself. For longer ones each rank adds up its part and
//! all get the parts, which is as much traffic as NCCL's own sums are.

use std::ops::Range;

use super::nccl::NcclComm;
use super::op::rank_sum::rank_sum;
use super::{Buffer, Device, DeviceError, View, ViewMut};

/// How devices of a group's ranks are connected: what is asked for is done in the device's order. All ranks ask for the same.
pub trait Connected {
    /// This rank.
    fn rank(&self) -> usize;

    /// All ranks.
    fn ranks(&self) -> usize;

    /// The sum over all ranks, in place, added up in any order.
    ///
    /// # Errors
    /// If the group is broken.
    fn all_reduce(&self, values: ViewMut<'_, f32>) -> Result<(), DeviceError>;

    /// What every rank has, in order of ranks.
    ///
    /// # Errors
    /// If the group is broken.
    fn all_gather(&self, out: ViewMut<'_, f32>, from: View<'_, f32>) -> Result<(), DeviceError>;

    /// Sends `sent[r]` elements to each rank `r` (one after the other in `from`) and receives `received[r]` from it.
    ///
    /// # Errors
    /// If the group is broken.
    fn exchange(
        &self,
        out: ViewMut<'_, f32>,
        received: &[usize],
        from: View<'_, f32>,
        sent: &[usize],
    ) -> Result<(), DeviceError>;

    /// Rank `r` has the `counts[r]` elements of `values` that follow those of the ranks before: gives them to all.
    ///
    /// # Errors
    /// If the group is broken.
    fn spread(&self, values: ViewMut<'_, f32>, counts: &[usize]) -> Result<(), DeviceError>;
}

/// How sums are cut, in elements.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Up to here every rank adds up everything by itself.
    direct: usize,
    /// At most so many at once: what bounds the memory it takes.
    piece: usize,
}

/// 256 KiB of each rank: eight ranks get that in the time that a second exchange takes to begin, over NVLink at least. And
/// 32 MiB, which is enough to be as fast as links are.
const LIMITS: Limits = Limits { direct: 64 << 10, piece: 8 << 20 };

/// Elements of `len` that rank `rank` of `ranks` adds up. In whole fours as far as they go, for kernels that take four at once.
fn part(len: usize, ranks: usize, rank: usize) -> Range<usize> {
    let each = len.div_ceil(ranks).next_multiple_of(4);
    (rank * each).min(len)..((rank + 1) * each).min(len)
}

impl Limits {
    /// Elements of all ranks that one has at once, in sums of up to `longest`.
    fn room(&self, longest: usize, ranks: usize) -> usize {
        let piece = longest.min(self.piece);
        let (direct, parted) = (piece.min(self.direct), part(piece, ranks, 0).len());
        ranks * direct.max(parted)
    }
}

/// Sums over the ranks of a group.
#[derive(Debug)]
pub struct RankSums<C> {
    connected: C,
    limits: Limits,
    /// What ranks have: made once, so that sums can be recorded.
    gathered: Buffer<f32>,
}

impl<C: Connected> RankSums<C> {
    /// Sums of up to `longest` elements on `device`, over the ranks that `connected` connects.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn new(device: &Device, connected: C, longest: usize) -> Result<Self, DeviceError> {
        Self::with_limits(device, connected, longest, LIMITS)
    }

    fn with_limits(
        device: &Device,
        connected: C,
        longest: usize,
        limits: Limits,
    ) -> Result<Self, DeviceError> {
        let room = match connected.ranks() {
            0..=2 => 0,
            ranks => limits.room(longest, ranks),
        };
        Ok(Self { connected, limits, gathered: device.alloc(room)? })
    }

    /// What connects the ranks.
    pub fn connected(&self) -> &C {
        &self.connected
    }

    /// The sum over all ranks, in place, in the order of ranks. Nothing is allocated.
    ///
    /// # Errors
    /// If the group is broken, or the device fails.
    ///
    /// # Panics
    /// If it is longer than was said.
    pub fn sum(&mut self, mut values: ViewMut<'_, f32>) -> Result<(), DeviceError> {
        match self.connected.ranks() {
            1 => return Ok(()),
            2 => return self.connected.all_reduce(values),
            _ => {}
        }
        let Limits { direct, piece } = self.limits;
        let len = values.len();
        for start in (0..len).step_by(piece) {
            let values = values.reborrow().slice(start..len.min(start + piece));
            match values.len() <= direct {
                true => self.sum_all(values)?,
                false => self.sum_in_parts(values)?,
            }
        }
        Ok(())
    }

    /// Every rank adds up everything.
    fn sum_all(&mut self, values: ViewMut<'_, f32>) -> Result<(), DeviceError> {
        let ranks = self.connected.ranks();
        let all = 0..ranks * values.len();
        self.connected.all_gather(self.gathered.view_mut().slice(all.clone()), values.as_view())?;
        rank_sum(values, self.gathered.view().slice(all), ranks)
    }

    /// Each rank adds up its part.
    fn sum_in_parts(&mut self, mut values: ViewMut<'_, f32>) -> Result<(), DeviceError> {
        let (rank, ranks) = (self.connected.rank(), self.connected.ranks());
        let parts: Vec<Range<usize>> = (0..ranks).map(|rank| part(values.len(), ranks, rank)).collect();
        let counts: Vec<usize> = parts.iter().map(Range::len).collect();
        let mine = counts[rank];
        let all = self.gathered.view_mut().slice(0..ranks * mine);
        self.connected.exchange(all, &vec![mine; ranks], values.as_view(), &counts)?;
        let own = values.reborrow().slice(parts[rank].clone());
        rank_sum(own, self.gathered.view().slice(0..ranks * mine), ranks)?;
        self.connected.spread(values, &counts)
    }
}

impl Connected for NcclComm {
    fn rank(&self) -> usize {
        self.rank()
    }

    fn ranks(&self) -> usize {
        self.ranks()
    }

    fn all_reduce(&self, values: ViewMut<'_, f32>) -> Result<(), DeviceError> {
        self.all_reduce(values)
    }

    fn all_gather(&self, out: ViewMut<'_, f32>, from: View<'_, f32>) -> Result<(), DeviceError> {
        self.all_gather(out, from)
    }

    fn exchange(
        &self,
        out: ViewMut<'_, f32>,
        received: &[usize],
        from: View<'_, f32>,
        sent: &[usize],
    ) -> Result<(), DeviceError> {
        self.exchange(out, received, from, sent)
    }

    fn spread(&self, values: ViewMut<'_, f32>, counts: &[usize]) -> Result<(), DeviceError> {
        self.spread(values, counts)
    }
}

#[cfg(test)]
#[path = "rank_sums_tests.rs"]
mod tests;
