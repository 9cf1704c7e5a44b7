//! Which experts rows go to.

use super::sort::{SORT_THREADS, check, mask_bytes};
use super::{MoeBuffers, Placement, Router, Routing, sort_by_expert};
use crate::cuda::{Arg, DeviceError, Launch, View};

/// Rows that [`route_and_sort`] does with one launch at most.
const FUSED_ROWS: usize = 64;
/// Scores of experts that a block holds at once, unless a single row has more.
const SCORES: usize = 4096;
/// Bytes of shared memory that every device gives a block without being asked.
const SHARED: usize = 48 * 1024 - 512;

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
    let (width, to_sort) = to_sort(buffers, rows);
    let per_pass = choice.rows_at_once(threads / 32, SHARED.saturating_sub(to_sort));
    if rows > FUSED_ROWS || per_pass == 0 {
        route(buffers, logits, rows, router)?;
        return sort_by_expert(buffers, rows, placement);
    }
    let shared = choice.shared(per_pass) + to_sort;
    let counts = check(buffers, rows, &placement);
    let mut args = choice.args.to_vec();
    args.push(Arg::U32(per_pass as u32));
    args.extend(buffers.sort_args(&placement, counts, width));
    buffers.set_rows(rows);
    let launch = Launch {
        kernel: "moe_route_and_sort",
        grid: [1, 1, 1],
        threads: threads as u32,
        shared: shared as u32,
    };
    // SAFETY: all of the kernel's types; `Choice::new` and `check` looked at every length.
    unsafe { buffers.ids.device().launch(&launch, &args) }
}

/// What sorting few rows after choosing for them needs in shared memory: words of bits of a group, and bytes.
pub(super) fn to_sort(buffers: &MoeBuffers, rows: usize) -> (usize, usize) {
    // A bit for each row, and not for each of the largest tile.
    let width = rows.div_ceil(32).max(1);
    let kept = buffers.experts + rows * buffers.top_k;
    (width, mask_bytes(buffers.groups.count, width) + kept * size_of::<u32>())
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

/// The arguments with which experts are chosen.
pub(super) struct Choice {
    pub(super) args: [Arg; 13],
    rows: usize,
    /// Scores of a row, those of its groups among them.
    scores: usize,
}

impl Choice {
    pub(super) fn new(buffers: &MoeBuffers, logits: View<'_, f32>, rows: usize, router: &Router<'_>) -> Self {
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
    pub(super) fn shared(&self, rows: usize) -> usize {
        rows * self.scores * size_of::<u64>()
    }
}
