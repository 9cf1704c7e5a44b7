//! Products with weight matrices. Which kernel does one depends on sizes and types only, so a request's numbers do not depend
//! on what else a device does; within a kernel no row's sum depends on the other rows.

use std::sync::OnceLock;

use super::elementwise::activation_args;
use crate::cuda::{
    ActType, ActsView, Arg, Device, DeviceError, DeviceMatrix, Gpu, Groups, Launch, MatrixTable, View,
    ViewMut, WeightKind,
};
use crate::op::gated::GatedActivation;

mod gated;

pub use gated::{gated_matmul, grouped_gated_matmul};

/// `out[r][o] = Σ_i x[r][i] · w[o][i]` for `rows` rows of `x`, which follow each other without gaps; `out_stride` elements from
/// one row of `out` to the next.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If `out` or `x` is shorter than that.
pub fn matmul(
    out: ViewMut<'_, f32>,
    out_stride: usize,
    x: ActsView<'_>,
    w: &DeviceMatrix,
    rows: usize,
) -> Result<(), DeviceError> {
    let (n, k) = (w.rows(), w.cols());
    if rows == 0 || n == 0 {
        return Ok(());
    }
    check_lengths(&out, (rows - 1) * out_stride + n, &x, rows * k);
    let wholly = k * 2 == w.row_bytes();
    if rows > FEW_ROWS && w.kind() == WeightKind::Bf16 && x.ty() == ActType::Bf16 && wholly {
        let (to, from, weights) = (out.address(), x.address(), w.data().address());
        // SAFETY: the lengths have just been checked, and rows of the matrix follow each other without gaps.
        let done = unsafe { out.device().driver().dense_product(to, out_stride, from, weights, rows, n, k) };
        if let Some(done) = done {
            return done;
        }
    }
    let product = Product {
        out: out.address(),
        device: out.device(),
        out_stride,
        out_batch: 0,
        x,
        x_stride: k,
        x_batch: 0,
        kind: w.kind(),
        n,
        k,
        rows,
        which: Which::One(w),
        known: false,
        gate: None,
    };
    product.launch()
}

/// `out[r][o] = Σ_i x[x_rows[r]][i] · w_g[o][i]` for the rows `r` of every group `g`; without `x_rows`, row `r` of `x`. Rows from
/// `groups.offsets[groups.count]` on are left alone. Rows of `x` follow each other without gaps, and every one that `x_rows`
/// names is there.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If `out` has no room for `groups.max_rows` rows, `x` or `x_rows` is too short, or there are fewer matrices than groups.
pub fn grouped_matmul(
    out: ViewMut<'_, f32>,
    out_stride: usize,
    x: ActsView<'_>,
    x_rows: Option<View<'_, u32>>,
    w: &MatrixTable,
    groups: &Groups,
) -> Result<(), DeviceError> {
    grouped(out, out_stride, x, x_rows, w, groups, false)
}

/// The same, after another grouped product of these groups: weights are asked for before what comes between has ended.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// As [`grouped_matmul`]. That the other product was started after `groups` were written is for the caller to see to.
pub fn grouped_matmul_next(
    out: ViewMut<'_, f32>,
    out_stride: usize,
    x: ActsView<'_>,
    x_rows: Option<View<'_, u32>>,
    w: &MatrixTable,
    groups: &Groups,
) -> Result<(), DeviceError> {
    grouped(out, out_stride, x, x_rows, w, groups, true)
}

/// `known`: the groups were there before the kernel before began.
fn grouped(
    out: ViewMut<'_, f32>,
    out_stride: usize,
    x: ActsView<'_>,
    x_rows: Option<View<'_, u32>>,
    w: &MatrixTable,
    groups: &Groups,
    known: bool,
) -> Result<(), DeviceError> {
    let (n, k, rows) = (w.rows(), w.cols(), groups.max_rows);
    if rows == 0 || n == 0 {
        return Ok(());
    }
    let of_x = check_groups(x_rows.as_ref(), w, groups);
    check_lengths(&out, (rows - 1) * out_stride + n, &x, of_x);
    let product = Product {
        out: out.address(),
        device: out.device(),
        out_stride,
        out_batch: 0,
        x,
        x_stride: k,
        x_batch: 0,
        kind: w.kind(),
        n,
        k,
        rows,
        which: Which::Group(w, groups, x_rows),
        known,
        gate: None,
    };
    product.launch()
}

/// How much of the input groups read.
fn check_groups(x_rows: Option<&View<'_, u32>>, w: &MatrixTable, groups: &Groups) -> usize {
    let rows = groups.max_rows;
    assert!(groups.count <= w.count(), "{} groups and {} matrices", groups.count, w.count());
    assert!(groups.offsets.len() > groups.count, "offsets of {} groups", groups.count);
    match x_rows {
        Some(x_rows) => {
            assert!(x_rows.len() >= rows, "{} rows named of {rows}", x_rows.len());
            w.cols()
        }
        None => rows * w.cols(),
    }
}

/// `out[b · out_batch + r · out_stride + o] = Σ_i x[b · x_batch + r · x_stride + i] · w_b[o][i]` for every matrix `b` and `rows`
/// rows each.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If `out` or `x` is shorter than that.
#[allow(clippy::too_many_arguments)]
pub fn batched_matmul(
    out: ViewMut<'_, f32>,
    out_stride: usize,
    out_batch: usize,
    x: ActsView<'_>,
    x_stride: usize,
    x_batch: usize,
    w: &MatrixTable,
    rows: usize,
) -> Result<(), DeviceError> {
    let (n, k, last) = (w.rows(), w.cols(), w.count() - 1);
    if rows == 0 || n == 0 {
        return Ok(());
    }
    let of_out = last * out_batch + (rows - 1) * out_stride + n;
    check_lengths(&out, of_out, &x, last * x_batch + (rows - 1) * x_stride + k);
    let product = Product {
        out: out.address(),
        device: out.device(),
        out_stride,
        out_batch,
        x,
        x_stride,
        x_batch,
        kind: w.kind(),
        n,
        k,
        rows,
        which: Which::Batch(w),
        known: false,
        gate: None,
    };
    product.launch()
}

fn check_lengths(out: &ViewMut<'_, f32>, of_out: usize, x: &ActsView<'_>, of_x: usize) {
    assert!(out.len() >= of_out, "a product of {of_out} elements in {}", out.len());
    assert!(x.len() >= of_x, "a product of {of_x} elements of {}", x.len());
}

/// Of so many rows `kernels/cu/matvec.cu` makes one reading of a matrix.
const FEW_ROWS: usize = 8;
/// And of so many, where the rows of x stay in the first-level cache.
const MORE_ROWS: usize = 16;
const MORE_ROWS_INPUTS: usize = 4096;
/// Outputs of a tile of `few_rows` there.
const FEW_OUTPUTS: usize = 16;
/// Bytes of a matrix's row that a warp of it takes at a time, how many of those are on their way to it, and the most warps of a
/// block.
const LINE: usize = 128;
const AHEAD: usize = 4;
const FEW_WARPS: usize = 8;
/// Tiles that are on a large GPU at once, if each has eight warps.
const WAVE: usize = 264;
/// Bytes a block reads at least, where there are blocks enough: so that its start is a small part of it.
const FEW_BYTES: usize = 128 << 10;
/// Outputs of a block of `plain_rows` there, a warp each.
const PLAIN_OUTPUTS: usize = 8;
/// So few outputs have a block each.
const PLAIN_FEW: usize = 264;

enum Which<'a> {
    One(&'a DeviceMatrix),
    Batch(&'a MatrixTable),
    Group(&'a MatrixTable, &'a Groups, Option<View<'a, u32>>),
}

/// A product whose lengths have been checked.
struct Product<'a> {
    /// The address of the result: f32, or bf16 where it is gated.
    out: u64,
    device: &'a Device,
    out_stride: usize,
    out_batch: usize,
    x: ActsView<'a>,
    x_stride: usize,
    x_batch: usize,
    kind: WeightKind,
    n: usize,
    k: usize,
    /// Of each batch; of all groups at most.
    rows: usize,
    which: Which<'a>,
    /// Another product of the same groups was started after these were written.
    known: bool,
    /// The result is this of the two halves of the outputs.
    gate: Option<GatedActivation>,
}

/// Tiles of `kernels/cu/matmul_mma.cu`.
struct Tile {
    height: usize,
    width: usize,
    threads: usize,
    /// Blocks that share a tile, each with a part of the inputs.
    parts: usize,
    /// Stages in shared memory: of 16-bit and of 8-bit weights.
    stages: [usize; 2],
    /// The kernels for bf16, f16 and f8.
    kernels: [&'static str; 3],
    /// Those that do the gated activation of what comes out, too.
    gated: Option<[&'static str; 3]>,
}

const TILES: [Tile; 4] = [
    Tile {
        height: 16,
        width: 64,
        threads: 128,
        parts: 1,
        stages: [6, 8],
        kernels: ["tile_16_bf16", "tile_16_f16", "tile_16_f8"],
        gated: Some(["gated_16_bf16", "gated_16_f16", "gated_16_f8"]),
    },
    Tile {
        height: 32,
        width: 64,
        threads: 128,
        parts: 1,
        stages: [6, 8],
        kernels: ["tile_32_bf16", "tile_32_f16", "tile_32_f8"],
        gated: Some(["gated_32_bf16", "gated_32_f16", "gated_32_f8"]),
    },
    Tile {
        height: 64,
        width: 128,
        threads: 256,
        parts: 1,
        stages: [4, 6],
        kernels: ["tile_64_bf16", "tile_64_f16", "tile_64_f8"],
        gated: Some(["gated_64_bf16", "gated_64_f16", "gated_64_f8"]),
    },
    Tile {
        height: 128,
        width: 128,
        threads: 256,
        parts: 1,
        stages: [3, 4],
        kernels: ["tile_128_bf16", "tile_128_f16", "tile_128_f8"],
        gated: None,
    },
];

/// The warps of a block that read rows of so many bytes in whole rounds of [`AHEAD`] lines each, `most` at most. None if that
/// would leave most of them out.
fn whole_rounds(row_bytes: usize, most: usize) -> Option<usize> {
    if row_bytes == 0 || !row_bytes.is_multiple_of(LINE * AHEAD) {
        return None;
    }
    let rounds = row_bytes / (LINE * AHEAD);
    let most = most.min(rounds);
    let warps = (1..=most).rev().find(|warps| rounds.is_multiple_of(*warps))?;
    (warps * 2 >= most).then_some(warps)
}

/// Up to so many rows of `count` groups are few. On an H200 tiles read bf16 faster from 4 rows on; with E4M3, which they take apart
/// again for every tile, they take half as long again. (f16 was not measured.) `FOGGARA_CUDA_FEW_ROWS` says another number, for measurements.
fn few_of_groups(kind: WeightKind, count: usize) -> usize {
    static SAID: OnceLock<Option<usize>> = OnceLock::new();
    let said = || std::env::var("FOGGARA_CUDA_FEW_ROWS").ok()?.parse().ok();
    let most = if kind == WeightKind::Bf16 { 3 } else { FEW_ROWS.max(2 * count) };
    SAID.get_or_init(said).unwrap_or(most)
}

/// The most warps a block should have: so many that all tiles are on a large GPU at once, and are read by all the warps it has
/// room for. Where they are more anyway, each warp has two rounds, to ask for one while it uses the other.
fn most_warps(row_bytes: usize, tiles: usize) -> usize {
    if tiles <= WAVE {
        FEW_WARPS
    } else if tiles <= 2 * WAVE {
        FEW_WARPS / 2
    } else {
        (row_bytes / (LINE * AHEAD)).div_ceil(2).clamp(1, FEW_WARPS)
    }
}

/// In place of the last of them on Hopper: its kernels use instructions that no other GPU has.
const WIDE: Tile = Tile {
    height: 256,
    width: 128,
    threads: 256,
    parts: 1,
    stages: [4, 5],
    kernels: ["wide_bf16", "wide_f16", "wide_f8"],
    gated: Some(["gated_wide_bf16", "gated_wide_f16", "gated_wide_f8"]),
};
/// The same for gated products in bf16, whose weights are not converted: there are registers for more.
const WIDE_GATED: Tile = Tile { width: 192, threads: 384, ..WIDE };
/// On Hopper, for one matrix whose tiles would leave multiprocessors idle.
const SPLIT: [Tile; 2] = [
    Tile {
        height: 64,
        width: 128,
        threads: 256,
        parts: 4,
        stages: [4, 6],
        kernels: ["split_64_bf16", "split_64_f16", "split_64_f8"],
        gated: None,
    },
    Tile {
        height: 128,
        width: 128,
        threads: 256,
        parts: 4,
        stages: [3, 4],
        kernels: ["split_128_bf16", "split_128_f16", "split_128_f8"],
        gated: None,
    },
];
/// So many tiles leave so many idle; and so many inputs are worth it.
const SPLIT_TILES: usize = 66;
const SPLIT_INPUTS: usize = 1024;
/// The compute capability of Hopper.
const HOPPER: (u32, u32) = (9, 0);
/// What the kernels of [`WIDE`] have to align their shared memory.
const WIDE_SPARE: usize = 1024;

impl Product<'_> {
    fn launch(self) -> Result<(), DeviceError> {
        let launch = self.choose();
        self.start(&launch)
    }

    fn start(self, launch: &Launch) -> Result<(), DeviceError> {
        let (one, table, offsets, x_rows, count) = match &self.which {
            Which::One(w) => (Some(*w), None, 0, 0, 1),
            Which::Batch(w) => (None, Some(*w), 0, 0, w.count()),
            Which::Group(w, groups, x_rows) => {
                let x_rows = x_rows.map_or(0, |rows| rows.address());
                (None, Some(*w), groups.offsets.view().address(), x_rows, groups.count)
            }
        };
        let mut args = vec![
            Arg::Ptr(self.out),
            Arg::U64(self.out_stride as u64),
            Arg::U64(self.out_batch as u64),
            Arg::Ptr(self.x.address()),
            Arg::U64(self.x_stride as u64),
            Arg::U64(self.x_batch as u64),
            Arg::Ptr(x_rows),
            Arg::Ptr(one.map_or(0, |w| w.data().address())),
            Arg::Ptr(one.and_then(DeviceMatrix::scales).map_or(0, |scales| scales.address())),
            Arg::Ptr(table.map_or(0, |w| w.data_addresses().address())),
            Arg::Ptr(table.and_then(MatrixTable::scale_addresses).map_or(0, |scales| scales.address())),
            Arg::Ptr(offsets),
            Arg::U32(count as u32),
            Arg::U32(self.rows as u32),
            Arg::U32(self.n as u32),
            Arg::U32(self.k as u32),
            Arg::U32(self.known.into()),
        ];
        args.extend(self.gate.into_iter().flat_map(activation_args));
        // SAFETY: the callers have checked the lengths of `out` and `x`; matrices, tables and groups are of the lengths that the
        // kernels read.
        unsafe { self.device.launch(launch, &args) }
    }

    /// The kernel, and its blocks.
    fn choose(&self) -> Launch {
        let slot = match self.kind {
            WeightKind::F32 => None,
            WeightKind::Bf16 => Some(0),
            WeightKind::F16 => Some(1),
            WeightKind::F8 => Some(2),
        };
        match (self.x.ty(), slot) {
            (ActType::F32, _) | (_, None) => self.plain(),
            (ActType::Bf16, Some(slot)) => match self.tile() {
                Some(tile) => self.tiles(tile, slot),
                None => self.few(slot),
            },
        }
    }

    /// Whether all rows of `x` begin at, and have, multiples of 16 bytes.
    fn aligned(&self) -> bool {
        self.x.address().is_multiple_of(16)
            && [self.k, self.x_stride, self.x_batch].iter().all(|n| n % 8 == 0)
    }

    /// The tiles to be used; none for few rows.
    fn tile(&self) -> Option<&'static Tile> {
        if !self.aligned() {
            return None;
        }
        let (few, typical) = match &self.which {
            Which::One(_) | Which::Batch(_) => {
                (self.rows <= FEW_ROWS || self.is_more() && self.whole().is_some(), self.rows)
            }
            // How rows fall on groups is not known here: some have twice what there is on average.
            Which::Group(_, groups, _) => (
                self.rows <= few_of_groups(self.kind, groups.count),
                self.rows.div_ceil(groups.count) * 3 / 2,
            ),
        };
        let fits = |tile: &&Tile| tile.height >= typical;
        if few {
            return None;
        }
        let gpu = self.device.driver().as_any().downcast_ref::<Gpu>();
        let hopper = gpu.is_some_and(|gpu| gpu.capability() == HOPPER);
        let (lower, last) = (&TILES[..TILES.len() - 1], &TILES[TILES.len() - 1]);
        let split = SPLIT.iter().find(fits).unwrap_or(&SPLIT[1]);
        let tiles = self.rows.div_ceil(split.height) * self.n.div_ceil(split.width);
        if hopper && matches!(self.which, Which::One(_)) && tiles <= SPLIT_TILES && self.k >= SPLIT_INPUTS {
            return Some(split);
        }
        lower.iter().find(fits).or(Some(if hopper { self.wide() } else { last }))
    }

    /// The tiles for many rows on Hopper.
    fn wide(&self) -> &'static Tile {
        if self.gate.is_some() && self.kind == WeightKind::Bf16 { &WIDE_GATED } else { &WIDE }
    }

    fn tiles(&self, tile: &Tile, slot: usize) -> Launch {
        let (row_tiles, batches) = match &self.which {
            Which::One(_) => (self.rows.div_ceil(tile.height), 1),
            Which::Batch(w) => (self.rows.div_ceil(tile.height), w.count()),
            // Every group's last tile may have a single row.
            Which::Group(_, groups, _) => (self.rows / tile.height + groups.count.min(self.rows), 1),
        };
        let spare = if tile.height == WIDE.height { WIDE_SPARE } else { 0 };
        let (stages, of_w) =
            if self.kind == WeightKind::F8 { (tile.stages[1], 64) } else { (tile.stages[0], 128) };
        let kernels = match (&self.gate, tile.gated) {
            (Some(_), Some(gated)) => gated,
            _ => tile.kernels,
        };
        Launch {
            kernel: kernels[slot],
            grid: [row_tiles as u32, self.n.div_ceil(tile.width) as u32, (batches * tile.parts) as u32],
            threads: tile.threads as u32,
            shared: (stages * (tile.height * 128 + tile.width * of_w) + spare) as u32,
        }
    }

    /// Matrices that a kernel of `matvec.cu` may meet.
    fn matrices(&self) -> u32 {
        match &self.which {
            Which::One(_) => 1,
            Which::Batch(w) => w.count() as u32,
            Which::Group(_, groups, _) => groups.count.min(self.rows) as u32,
        }
    }

    fn few(&self, slot: usize) -> Launch {
        let (tiles, row_bytes) = (self.n.div_ceil(FEW_OUTPUTS), self.kind.row_bytes(self.k));
        let whole = if self.aligned() { self.whole() } else { None };
        let kernels = match (whole, self.aligned()) {
            _ if self.gate.is_some() => ["gated_rows_bf16", "gated_rows_f16", "gated_rows_f8"],
            (Some(_), _) if self.rows > FEW_ROWS && self.is_more() => {
                ["few_rows_16_bf16", "few_rows_16_f16", "few_rows_16_f8"]
            }
            (Some(_), _) => ["few_rows_bf16", "few_rows_f16", "few_rows_f8"],
            (None, true) => ["few_rows_aligned_bf16", "few_rows_aligned_f16", "few_rows_aligned_f8"],
            (None, false) => ["few_rows_any_bf16", "few_rows_any_f16", "few_rows_any_f8"],
        };
        let warps = whole.unwrap_or_else(|| row_bytes.div_ceil(2 * LINE).clamp(1, FEW_WARPS));
        let tiles_each = (FEW_BYTES / (FEW_OUTPUTS * row_bytes.max(1)))
            .min(tiles * self.matrices() as usize / (3 * WAVE))
            .clamp(1, tiles);
        Launch {
            kernel: kernels[slot],
            grid: [tiles.div_ceil(tiles_each) as u32, self.matrices(), 1],
            threads: warps as u32 * 32,
            shared: 0,
        }
    }

    /// The warps of a block that reads its rows of a matrix in whole rounds.
    fn whole(&self) -> Option<usize> {
        let (row_bytes, tiles) = (self.k * self.kind.bytes(), self.n.div_ceil(FEW_OUTPUTS));
        whole_rounds(row_bytes, most_warps(row_bytes, tiles)).or_else(|| whole_rounds(row_bytes, FEW_WARPS))
    }

    /// Whether it is up to [`MORE_ROWS`] rows that meet each matrix, and they stay in the first-level cache.
    fn is_more(&self) -> bool {
        !matches!(self.which, Which::Group(..)) && self.rows <= MORE_ROWS && self.k <= MORE_ROWS_INPUTS
    }

    fn plain(&self) -> Launch {
        let kernel = match (self.kind, self.x.ty(), self.rows) {
            (WeightKind::F32, ActType::F32, 1) => "plain_row_f32",
            (WeightKind::F32, ActType::F32, _) => "plain_rows_f32",
            (WeightKind::F32, ActType::Bf16, 1) => "plain_row_f32_of_bf16",
            (WeightKind::F32, ActType::Bf16, _) => "plain_rows_f32_of_bf16",
            (WeightKind::Bf16, ..) => "plain_rows_bf16",
            (WeightKind::F16, ..) => "plain_rows_f16",
            (WeightKind::F8, ..) => "plain_rows_f8",
        };
        let blocks = if self.n <= PLAIN_FEW { self.n } else { self.n.div_ceil(PLAIN_OUTPUTS) };
        Launch {
            kernel,
            grid: [blocks as u32, self.matrices(), 1],
            threads: 32 * PLAIN_OUTPUTS as u32,
            shared: 0,
        }
    }
}

#[cfg(test)]
#[path = "matmul_tests.rs"]
mod tests;
