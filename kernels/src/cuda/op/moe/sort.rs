//! Pairs of row and expert, sorted by expert.

use super::{MoeBuffers, Placement};
use crate::cuda::{Arg, DeviceError, Launch};

/// Threads of a block that sorts.
pub(super) const SORT_THREADS: usize = 1024;

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
    buffers.set_rows(rows);
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

/// A tile is 32 times so many rows: of each group, a bit for each of them is held in shared memory.
pub(super) fn words(groups: usize) -> usize {
    match groups {
        0..=512 => 8,
        513..=2048 => 2,
        _ => 1,
    }
}

/// Bytes of shared memory for a tile's bits, and for where each group begins.
pub(super) fn mask_bytes(groups: usize, words: usize) -> usize {
    groups * (words + 1) * size_of::<u32>()
}

/// Looks at lengths; returns the address of the counts, or none.
pub(super) fn check(buffers: &MoeBuffers, rows: usize, placement: &Placement<'_>) -> u64 {
    assert!(rows <= buffers.max_rows, "{rows} rows of {}", buffers.max_rows);
    assert_eq!(placement.local.len(), buffers.experts, "a number for each expert");
    placement.counts.as_ref().map_or(0, |counts| {
        assert_eq!(counts.len(), buffers.experts, "a count for each expert");
        counts.address()
    })
}
