//! Experts: which a row goes to, its rows sorted by expert, and what they give added up. All of it stays on the device, in
//! buffers whose addresses never change, so a step of so many rows can be recorded and replayed.

mod combine;
mod normed;
mod product;
mod route;
mod sort;

pub use combine::{Onto, Results, combine};
pub use normed::norm_route_and_sort;
pub use product::product_route_and_sort;
pub use route::{route, route_and_sort};
pub use sort::sort_by_expert;

use crate::cuda::{Arg, Buffer, Device, DeviceError, Groups, View, ViewMut};
use sort::words;

/// Experts a layer may have at most.
pub const MAX_EXPERTS: usize = 4096;
/// Experts a row may go to at most.
pub const MAX_TOP_K: usize = 64;

/// How experts are chosen from a router's logits, in f64; of equal scores the lower number, and what is not a number last.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Routing {
    /// The greatest of a softmax over all experts.
    Softmax {
        /// The chosen weights are divided by their sum.
        renormalize: bool,
    },
    /// The greatest of the sigmoids, of the groups of experts whose two best are best.
    GroupedSigmoid {
        /// Groups of consecutive experts.
        groups: usize,
        /// Groups that may be chosen from.
        top_groups: usize,
        /// The chosen weights are divided by their sum.
        renormalize: bool,
        /// Multiplies the weights.
        scale: f32,
    },
}

/// A layer's router, after its product.
#[derive(Debug, Clone, Copy)]
pub struct Router<'a> {
    /// How experts are chosen.
    pub routing: Routing,
    /// Added to the logits: one for each expert.
    pub bias: Option<View<'a, f32>>,
    /// Added to sigmoids for the choice only: one for each expert.
    pub correction: Option<View<'a, f32>>,
}

/// Which experts are here, and who counts.
#[derive(Debug)]
pub struct Placement<'a> {
    /// Of each expert, the number of its matrices here (no two experts have the same); `u32::MAX`: it is not here.
    pub local: View<'a, u32>,
    /// Of each expert, the pairs so far; this step's are added. `None`: another rank counts these rows.
    pub counts: Option<ViewMut<'a, u64>>,
}

/// Where a step's routing is kept. One serves every layer with so many experts.
#[derive(Debug)]
pub struct MoeBuffers {
    max_rows: usize,
    top_k: usize,
    experts: usize,
    /// `[rows][top_k]`: each row's experts, in the order of their numbers.
    pub ids: Buffer<u32>,
    /// `[rows][top_k]`: their weights.
    pub weights: Buffer<f32>,
    /// `[rows][top_k]`: which row of the sorted ones each pair is; `u32::MAX`: its expert is not here.
    pub positions: Buffer<u32>,
    /// The sorted rows: by expert, and in order within one.
    pub groups: Groups,
    /// One number: rows from this one on are not sorted and not counted, so that what was recorded for many rows can be done
    /// for fewer. The greatest there is, unless the caller writes another.
    pub live: Buffer<u32>,
    /// Of each tile of rows and each group, how many pairs; then, how many in the tiles before.
    tile_counts: Buffer<u32>,
}

impl MoeBuffers {
    /// Buffers for steps of up to `max_rows` rows, each of which goes to `top_k` of `experts` experts, of which up to
    /// `local_experts` are here.
    ///
    /// # Errors
    /// If there is no memory.
    ///
    /// # Panics
    /// If there are more than [`MAX_EXPERTS`] experts, or a row goes to more than there are, or to more than [`MAX_TOP_K`].
    pub fn new(
        device: &Device,
        max_rows: usize,
        top_k: usize,
        experts: usize,
        local_experts: usize,
    ) -> Result<Self, DeviceError> {
        assert!(experts <= MAX_EXPERTS && local_experts <= experts, "{local_experts} of {experts} experts");
        assert!(top_k <= MAX_TOP_K && top_k <= experts, "{top_k} of {experts} experts");
        let pairs = max_rows * top_k;
        let sorted = max_rows * top_k.min(local_experts);
        let tiles = max_rows.div_ceil(32 * words(local_experts));
        Ok(Self {
            max_rows,
            top_k,
            experts,
            ids: device.alloc(pairs)?,
            weights: device.alloc(pairs)?,
            positions: device.alloc(pairs)?,
            groups: Groups {
                count: local_experts,
                offsets: device.zeros(local_experts + 1)?,
                max_rows: 0,
                most_of_one: max_rows,
                group_of_row: device.alloc(sorted)?,
                token_of_row: device.alloc(sorted)?,
            },
            live: device.upload(&[u32::MAX])?,
            tile_counts: device.alloc(tiles * local_experts)?,
        })
    }

    /// From here on, so many of the experts are here: of a layer that has fewer than another.
    ///
    /// # Panics
    /// If there are more than the buffers are for.
    pub fn set_held(&mut self, groups: usize) {
        assert!(groups < self.groups.offsets.len(), "{groups} experts of {}", self.groups.offsets.len() - 1);
        self.groups.count = groups;
    }

    /// Experts each row goes to.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Rows of a step at most.
    pub fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// Sorted rows that `rows` rows become at most: what buffers of the experts' inputs and results are sized by.
    pub fn max_sorted(&self, rows: usize) -> usize {
        rows * self.top_k.min(self.groups.count)
    }

    /// So many rows are sorted next.
    fn set_rows(&mut self, rows: usize) {
        self.groups.max_rows = self.max_sorted(rows);
        // No row goes to an expert twice.
        self.groups.most_of_one = rows;
    }

    /// What kernels that choose and sort in one block take for the sorting, `words` words of bits for a group.
    fn sort_args(&self, placement: &Placement<'_>, counts: u64, words: usize) -> [Arg; 9] {
        [
            Arg::Ptr(self.positions.view().address()),
            Arg::Ptr(self.groups.offsets.view().address()),
            Arg::Ptr(self.groups.group_of_row.view().address()),
            Arg::Ptr(self.groups.token_of_row.view().address()),
            Arg::Ptr(counts),
            Arg::Ptr(placement.local.address()),
            Arg::Ptr(self.live.view().address()),
            Arg::U32(self.groups.count as u32),
            Arg::U32(words as u32),
        ]
    }
}

#[cfg(test)]
mod tests;
