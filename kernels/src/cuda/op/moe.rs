//! Experts: which a row goes to, its rows sorted by expert, and what they give added up. All of it stays on the device, in
//! buffers whose addresses never change, so a step of so many rows can be recorded and replayed.

use crate::cuda::{Arg, Buffer, Device, DeviceError, Groups, Launch, View, ViewMut};

/// Experts a layer may have at most.
pub const MAX_EXPERTS: usize = 4096;
/// Experts a row may go to at most.
pub const MAX_TOP_K: usize = 64;
/// Rows that [`route_and_sort`] does with one launch at most.
const FUSED_ROWS: usize = 64;
/// Scores of experts that a block holds at once, unless a single row has more.
const SCORES: usize = 4096;
/// Bytes of shared memory that every device gives a block without being asked.
const SHARED: usize = 48 * 1024 - 512;
/// Threads of a block that sorts.
const SORT_THREADS: usize = 1024;

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
}

/// [`route`] and [`sort_by_expert`], in one launch if there are few rows.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// As those two.
pub fn route_and_sort(
    buffers: &mut MoeBuffers,
    logits: View<'_, f32>,
    rows: usize,
    router: &Router<'_>,
    placement: Placement<'_>,
) -> Result<(), DeviceError> {
    let choice = Choice::new(buffers, logits, rows, router);
    let threads = (rows * 32).clamp(256, SORT_THREADS);
    // A bit for each row, and not for each of the largest tile.
    let width = rows.div_ceil(32).max(1);
    let kept = buffers.experts + rows * buffers.top_k;
    let to_sort = mask_bytes(buffers.groups.count, width) + kept * size_of::<u32>();
    let per_pass = choice.rows_at_once(threads / 32, SHARED.saturating_sub(to_sort));
    if rows > FUSED_ROWS || per_pass == 0 {
        route(buffers, logits, rows, router)?;
        return sort_by_expert(buffers, rows, placement);
    }
    let shared = choice.shared(per_pass) + to_sort;
    let counts = check(buffers, rows, &placement);
    let mut args = choice.args.to_vec();
    args.extend([
        Arg::U32(per_pass as u32),
        Arg::Ptr(buffers.positions.view().address()),
        Arg::Ptr(buffers.groups.offsets.view().address()),
        Arg::Ptr(buffers.groups.group_of_row.view().address()),
        Arg::Ptr(buffers.groups.token_of_row.view().address()),
        Arg::Ptr(counts),
        Arg::Ptr(placement.local.address()),
        Arg::Ptr(buffers.live.view().address()),
        Arg::U32(buffers.groups.count as u32),
        Arg::U32(width as u32),
    ]);
    buffers.groups.max_rows = buffers.max_sorted(rows);
    let launch = Launch {
        kernel: "moe_route_and_sort",
        grid: [1, 1, 1],
        threads: threads as u32,
        shared: shared as u32,
    };
    // SAFETY: all of the kernel's types; `Choice::new` and `check` looked at every length.
    unsafe { buffers.ids.device().launch(&launch, &args) }
}

/// Writes the experts of each row to `buffers.ids`, in the order of their numbers, and their weights to `buffers.weights`,
/// from `logits`: `[rows][experts]`.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If there are more rows than the buffers are for, or lengths do not fit them, or the experts cannot be so divided into groups.
pub fn route(
    buffers: &mut MoeBuffers,
    logits: View<'_, f32>,
    rows: usize,
    router: &Router<'_>,
) -> Result<(), DeviceError> {
    let choice = Choice::new(buffers, logits, rows, router);
    let per_block = choice.rows_at_once(8, SHARED);
    assert!(per_block > 0, "too many groups: {} scores of a row", choice.scores);
    let launch = Launch {
        kernel: "moe_route",
        grid: [rows.div_ceil(per_block) as u32, 1, 1],
        threads: 32 * per_block as u32,
        shared: choice.shared(per_block) as u32,
    };
    // SAFETY: of the kernel's types; `Choice::new` looked at every length.
    unsafe { buffers.ids.device().launch(&launch, &choice.args) }
}

/// Sorts the pairs of `buffers.ids` by expert, up to row `buffers.live`: writes `buffers.groups` and `buffers.positions`.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If there are more rows than the buffers are for, or not one number (and count) for each expert.
pub fn sort_by_expert(
    buffers: &mut MoeBuffers,
    rows: usize,
    placement: Placement<'_>,
) -> Result<(), DeviceError> {
    let counts = check(buffers, rows, &placement);
    buffers.groups.max_rows = buffers.max_sorted(rows);
    let groups = &buffers.groups;
    let width = words(groups.count);
    let tiles = rows.div_ceil(32 * width).max(1);
    let from = [
        Arg::Ptr(buffers.ids.view().address()),
        Arg::Ptr(placement.local.address()),
        Arg::Ptr(buffers.live.view().address()),
    ];
    let to = [
        Arg::Ptr(buffers.positions.view().address()),
        Arg::Ptr(groups.group_of_row.view().address()),
        Arg::Ptr(groups.token_of_row.view().address()),
    ];
    let offsets = Arg::Ptr(groups.offsets.view().address());
    let tile_counts = Arg::Ptr(buffers.tile_counts.view().address());
    let sizes = [
        Arg::U32(rows as u32),
        Arg::U32(buffers.top_k as u32),
        Arg::U32(groups.count as u32),
        Arg::U32(width as u32),
    ];
    let pairs_of_tile = rows.min(32 * width) * buffers.top_k;
    let threads = pairs_of_tile.next_multiple_of(32).clamp(256, SORT_THREADS) as u32;
    let launch = |kernel: &'static str, blocks: usize, threads: u32, shared: usize, args: &[&[Arg]]| {
        let launch = Launch { kernel, grid: [blocks as u32, 1, 1], threads, shared: shared as u32 };
        // SAFETY: of the kernel's types; `check` looked at every length, and the buffers have room for so many tiles.
        unsafe { buffers.ids.device().launch(&launch, &args.concat()) }
    };
    let shared = mask_bytes(groups.count, width);
    let counts = Arg::Ptr(counts);
    if tiles == 1 {
        return launch("moe_sort", 1, threads, shared, &[&to, &[offsets, counts], &from, &sizes]);
    }
    launch("moe_count", tiles, threads, shared, &[&[tile_counts, counts], &from, &sizes])?;
    let total = [offsets, tile_counts, Arg::U32(tiles as u32), Arg::U32(groups.count as u32)];
    launch("moe_offsets", 1, SORT_THREADS as u32, 0, &[&total])?;
    launch("moe_scatter", tiles, threads, shared, &[&to, &[offsets, tile_counts], &from, &sizes])
}

/// What [`combine`] adds to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Onto {
    /// What is there.
    Sum,
    /// Nothing: what is there is overwritten.
    Nothing,
}

/// `out[r] (+)= Σ weight · (y[position] + bias[group])` over the pairs of row r whose expert is here, one after the other in
/// the order of the experts' numbers, in f32. `out`: `[rows][width]`; `y`: sorted rows of `width`, `stride` elements apart;
/// `bias`: `[groups][width]`.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If lengths do not fit.
pub fn combine(
    out: ViewMut<'_, f32>,
    onto: Onto,
    y: View<'_, f32>,
    stride: usize,
    bias: Option<View<'_, f32>>,
    buffers: &MoeBuffers,
    rows: usize,
    width: usize,
) -> Result<(), DeviceError> {
    assert!(rows <= buffers.max_rows, "{rows} rows of {}", buffers.max_rows);
    assert_eq!(out.len(), rows * width, "combined rows");
    assert!(stride >= width, "rows of {width}, {stride} apart");
    let sorted = buffers.max_sorted(rows);
    assert!(sorted == 0 || y.len() >= (sorted - 1) * stride + width, "{sorted} sorted rows in {}", y.len());
    assert!(
        bias.is_none_or(|bias| bias.len() == buffers.groups.count * width),
        "bias of {} groups",
        buffers.groups.count
    );
    let bias = bias.map_or(0, |bias| bias.address());
    let whole = [width, stride].iter().all(|n| n.is_multiple_of(4))
        && [out.address(), y.address(), bias].iter().all(|address| address.is_multiple_of(16));
    let (kernel, lanes) = if whole { ("moe_combine_4", width / 4) } else { ("moe_combine_1", width) };
    // Enough blocks for the whole device even where there is one row.
    let threads = if rows < 32 { 64 } else { 256 }.min(lanes.next_multiple_of(32).max(32));
    let launch = Launch {
        kernel,
        grid: [lanes.div_ceil(threads) as u32, rows as u32, 1],
        threads: threads as u32,
        shared: 0,
    };
    let args = [
        Arg::Ptr(out.address()),
        Arg::Ptr(y.address()),
        Arg::Ptr(bias),
        Arg::Ptr(buffers.positions.view().address()),
        Arg::Ptr(buffers.weights.view().address()),
        Arg::Ptr(buffers.groups.group_of_row.view().address()),
        Arg::U32(lanes as u32),
        Arg::U32((if whole { stride / 4 } else { stride }) as u32),
        Arg::U32(buffers.top_k as u32),
        Arg::U32(u32::from(onto == Onto::Sum)),
    ];
    // SAFETY: of the kernel's types; the lengths were looked at, and positions are of sorted rows or of none.
    unsafe { out.device().launch(&launch, &args) }
}

/// The arguments with which experts are chosen.
struct Choice {
    args: [Arg; 13],
    rows: usize,
    /// Scores of a row, those of its groups among them.
    scores: usize,
}

impl Choice {
    fn new(buffers: &MoeBuffers, logits: View<'_, f32>, rows: usize, router: &Router<'_>) -> Self {
        let experts = buffers.experts;
        assert!(rows <= buffers.max_rows, "{rows} rows of {}", buffers.max_rows);
        assert_eq!(logits.len(), rows * experts, "router logits");
        for each in [router.bias, router.correction].into_iter().flatten() {
            assert_eq!(each.len(), experts, "one for each expert");
        }
        let (groups, top_groups, renormalize, scale) = match router.routing {
            Routing::Softmax { renormalize } => (0, 0, renormalize, 1.0),
            Routing::GroupedSigmoid { groups, top_groups, renormalize, scale } => {
                assert!(groups > 0 && experts.is_multiple_of(groups), "{groups} groups of {experts} experts");
                assert!(top_groups <= groups, "{top_groups} of {groups} groups");
                (groups, top_groups, renormalize, scale)
            }
        };
        let address = |view: Option<View<'_, f32>>| Arg::Ptr(view.map_or(0, |view| view.address()));
        let args = [
            Arg::Ptr(buffers.ids.view().address()),
            Arg::Ptr(buffers.weights.view().address()),
            Arg::Ptr(logits.address()),
            address(router.bias),
            address(router.correction),
            Arg::U32(rows as u32),
            Arg::U32(experts as u32),
            Arg::U32(buffers.top_k as u32),
            // Without groups: a softmax.
            Arg::U32(groups as u32),
            Arg::U32(top_groups as u32),
            Arg::U32(u32::from(renormalize)),
            Arg::F32(scale),
            Arg::U32((experts + groups) as u32),
        ];
        Self { args, rows, scores: experts + groups }
    }

    /// Rows of a block at once, with so many bytes of shared memory: a warp chooses for each. 0 if there is no room for one.
    fn rows_at_once(&self, warps: usize, room: usize) -> usize {
        let most = (SCORES / self.scores.max(1)).clamp(1, warps).min(self.rows.max(1));
        most.min(room / self.shared(1).max(1))
    }

    /// Bytes of shared memory for so many.
    fn shared(&self, rows: usize) -> usize {
        rows * self.scores * size_of::<u64>()
    }
}

/// A tile is 32 times so many rows: of each group, a bit for each of them is held in shared memory.
fn words(groups: usize) -> usize {
    match groups {
        0..=512 => 8,
        513..=2048 => 2,
        _ => 1,
    }
}

/// Bytes of shared memory for a tile's bits, and for where each group begins.
fn mask_bytes(groups: usize, words: usize) -> usize {
    groups * (words + 1) * size_of::<u32>()
}

/// Looks at lengths; returns the address of the counts, or none.
fn check(buffers: &MoeBuffers, rows: usize, placement: &Placement<'_>) -> u64 {
    assert!(rows <= buffers.max_rows, "{rows} rows of {}", buffers.max_rows);
    assert_eq!(placement.local.len(), buffers.experts, "a number for each expert");
    placement.counts.as_ref().map_or(0, |counts| {
        assert_eq!(counts.len(), buffers.experts, "a count for each expert");
        counts.address()
    })
}

#[cfg(test)]
#[path = "moe_tests.rs"]
mod tests;
