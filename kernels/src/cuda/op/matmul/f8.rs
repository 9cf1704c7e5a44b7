//! Which kernel does a product of activations in E4M3 with weights in E4M3 (`kernels/cu/matmul_f8_few.cu`, `matmul_f8_many.cu`), and on
//! how many blocks. All of them add up in one order (`kernels/cu/matmul_f8.cuh`), so that only the time depends on it.

use super::choose::{Matrices, PROCESSORS, Sizes};
use crate::cuda::Launch;
use crate::cuda::op::kv_cache::KvKind;

/// Kernels that make tiles of so many rows and outputs.
#[derive(Debug, Clone, Copy)]
pub(super) struct F8Form {
    height: usize,
    width: usize,
    threads: usize,
    /// Stages of shared memory, and the bytes of each.
    stages: (usize, usize),
    /// Inputs of a stage.
    inputs: usize,
    /// Besides them.
    spare: usize,
    /// Blocks that a multiprocessor has room for.
    blocks: usize,
    kernel: &'static str,
    /// That which does the gated activation of what comes out, too.
    gated: &'static str,
}

/// Inputs that are added up from zero.
const GROUP: usize = 128;
/// What all of them have to align their shared memory.
const SPARE: usize = 1024;

/// A form of `matmul_f8_few.cu`, by what is said there: rows, groups of inputs at the same time, warpgroups, stages, lines.
macro_rules! few {
    ($name:literal, $height:literal, $pair:literal, $warpgroups:literal, $stages:literal, $lines:literal) => {
        F8Form {
            height: $height,
            width: 64 / $pair * $warpgroups,
            threads: 128 + 128 * $warpgroups,
            stages: ($stages, $lines * ($warpgroups * 8192 + $height * $pair * 128)),
            inputs: $lines * $pair * GROUP,
            spare: SPARE,
            blocks: 2,
            kernel: concat!("f8_few_", $name),
            gated: concat!("f8_few_gated_", $name),
        }
    };
}

const EIGHT: F8Form = few!("8", 8, 2, 1, 5, 2);
const SIXTEEN: F8Form = few!("16", 16, 2, 1, 4, 2);
const THIRTY_TWO: F8Form = few!("32", 32, 1, 1, 4, 2);
const SIXTY_FOUR: F8Form = few!("64", 64, 1, 2, 4, 1);
/// Of half as many outputs, where there are too few tiles otherwise.
const SIXTY_FOUR_NARROW: F8Form = few!("64_narrow", 64, 1, 1, 3, 2);
/// For one row in bf16, of which the kernel makes codes that it keeps: fewer stages leave room for them.
const OWN: F8Form = F8Form {
    stages: (4, EIGHT.stages.1),
    kernel: "f8_few_own",
    gated: "f8_few_own",
    ..few!("8", 8, 2, 1, 4, 2)
};
/// Inputs that it has registers for.
pub(super) const OWN_INPUTS: usize = 16 * 1024;
/// Those of [`EIGHT`] that do what comes before or after, too (`matmul_f8_cached.cu`, `matmul_f8_attended.cu`).
const CACHED_F16: F8Form = F8Form { kernel: "f8_few_cached_f16", gated: "f8_few_cached_f16", ..EIGHT };
const CACHED_F8: F8Form = F8Form { kernel: "f8_few_cached_f8", gated: "f8_few_cached_f8", ..EIGHT };
/// One block a multiprocessor: its ring holds nearly all of a tile of the inputs that it is for.
const ATTENDED_4: F8Form =
    F8Form { blocks: 1, kernel: "f8_few_attended_4", gated: "f8_few_attended_4", ..few!("8", 8, 2, 1, 6, 3) };
const ATTENDED_8: F8Form = F8Form { kernel: "f8_few_attended_8", gated: "f8_few_attended_8", ..EIGHT };
/// Inputs that the first of the last two has registers for, and the second.
pub(super) const ATTENDED_INPUTS: [usize; 2] = [4 * 1024, 8 * 1024];
/// Rows that [`EIGHT`] meets at once.
pub(super) const EIGHT_ROWS: usize = EIGHT.height;
/// Shared memory of a multiprocessor, and what each block takes of it besides its own.
const SHARED_OF_ALL: usize = 228 << 10;
const SHARED_OF_EACH: usize = 1 << 10;
const MANY: F8Form = F8Form {
    height: 128,
    width: 128,
    threads: 384,
    stages: (6, (128 + 128) * 128),
    inputs: GROUP,
    // And what the rows of a tile are multiplied by, for each of two warpgroups.
    spare: SPARE + 2 * 128 * size_of::<f32>(),
    blocks: 1,
    kernel: "f8_many",
    gated: "f8_many_gated",
};

#[cfg(test)]
pub(super) const ALL: [&F8Form; 6] = [&EIGHT, &SIXTEEN, &THIRTY_TWO, &SIXTY_FOUR, &SIXTY_FOUR_NARROW, &MANY];

impl F8Form {
    /// The kernel for these sizes.
    pub(super) fn of(sizes: &Sizes) -> &'static Self {
        match sizes.typical_rows() {
            ..=8 => &EIGHT,
            9..=16 => &SIXTEEN,
            17..=32 => &THIRTY_TWO,
            33..=64 if SIXTY_FOUR.tiles(sizes) >= 2 * PROCESSORS => &SIXTY_FOUR,
            33..=64 => &THIRTY_TWO,
            // Large tiles that leave half of all multiprocessors idle are slower than small ones that do not.
            _ if MANY.tiles(sizes) > PROCESSORS / 2 => &MANY,
            _ => &SIXTY_FOUR_NARROW,
        }
    }

    /// The kernel for one row in bf16.
    pub(super) fn own() -> &'static Self {
        &OWN
    }

    /// The kernel for queries, keys and values that go into a cache of this kind, if there is one.
    pub(super) fn cached(kind: KvKind) -> Option<&'static Self> {
        match kind {
            KvKind::F32 => None,
            KvKind::F16 => Some(&CACHED_F16),
            KvKind::F8 => Some(&CACHED_F8),
        }
    }

    /// The kernel for a row of so many inputs that attention's spans gave, if there is one.
    pub(super) fn attended(inputs: usize) -> Option<&'static Self> {
        let forms = ATTENDED_INPUTS.into_iter().zip([&ATTENDED_4, &ATTENDED_8]);
        forms.filter(|(most, _)| (1..=*most).contains(&inputs)).map(|(_, form)| form).next()
    }

    /// The same as [`launch`](Self::launch) for a kernel that keeps the codes of a row of so many inputs, and `more` bytes behind them:
    /// as many blocks as there is room for.
    pub(super) fn launch_own(&self, sizes: &Sizes, inputs: usize, more: usize) -> Launch {
        // Codes of whole stages.
        let kept = inputs.next_multiple_of(self.inputs) + more;
        let shared = self.stages.0 * self.stages.1 + self.spare + kept;
        let blocks = self.blocks.min(SHARED_OF_ALL / (shared + SHARED_OF_EACH)).max(1);
        let launch = Self { blocks, ..*self }.launch(sizes);
        Launch { shared: shared as u32, ..launch }
    }

    /// Tiles; of groups, at most.
    fn tiles(&self, sizes: &Sizes) -> usize {
        let batches = match sizes.matrices {
            Matrices::Batch(batches) => batches,
            Matrices::Groups { .. } => 1,
        };
        sizes.row_tiles(self.height) * sizes.n.div_ceil(self.width) * batches
    }

    /// Its kernel, and blocks that share all tiles: as many as run at the same time.
    pub(super) fn launch(&self, sizes: &Sizes) -> Launch {
        let blocks = self.tiles(sizes).min(PROCESSORS * self.blocks);
        Launch {
            kernel: if sizes.gated { self.gated } else { self.kernel },
            grid: [blocks as u32, 1, 1],
            threads: self.threads as u32,
            shared: (self.stages.0 * self.stages.1 + self.spare) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::WeightKind;

    fn sizes(rows: usize, n: usize, matrices: Matrices) -> Sizes {
        Sizes { kind: WeightKind::F8, rows, n, matrices, aligned: true, gated: false, hopper: true }
    }

    fn chosen(sizes: &Sizes) -> (&'static str, u32) {
        let launch = F8Form::of(sizes).launch(sizes);
        (launch.kernel, launch.grid[0])
    }

    #[test]
    fn tiles_are_as_high_as_there_are_rows() {
        let one = |rows, n| chosen(&sizes(rows, n, Matrices::Batch(1)));
        assert_eq!(one(1, 4096), ("f8_few_8", 128));
        assert_eq!(one(8, 28_672), ("f8_few_8", 264));
        assert_eq!(one(9, 6144), ("f8_few_16", 192));
        assert_eq!(one(32, 6144), ("f8_few_32", 96));
        assert_eq!(one(64, 6144), ("f8_few_32", 192));
        assert_eq!(one(64, 57_344), ("f8_few_64", 264));
        assert_eq!(one(256, 6144), ("f8_many", 96));
        assert_eq!(one(300, 100), ("f8_few_64_narrow", 10));
        assert_eq!(one(2048, 6144), ("f8_many", 132));
        let gated = Sizes { gated: true, ..sizes(2048, 28_672, Matrices::Batch(1)) };
        assert_eq!(chosen(&gated), ("f8_many_gated", 132));
        assert_eq!(chosen(&Sizes { rows: 2, ..gated }), ("f8_few_gated_8", 264));
    }

    #[test]
    fn groups_share_rows() {
        let grouped = |rows, most| chosen(&sizes(rows, 4096, Matrices::Groups { count: 8, most }));
        assert_eq!(grouped(2, 1), ("f8_few_8", 256));
        assert_eq!(grouped(32, 16), ("f8_few_8", 264));
        assert_eq!(grouped(128, 64), ("f8_few_32", 264));
        assert_eq!(grouped(256, 128), ("f8_few_64", 264));
        assert_eq!(grouped(512, 256), ("f8_many", 132));
        assert_eq!(grouped(4096, 2048), ("f8_many", 132));
    }

    #[test]
    fn what_a_kernel_takes_fits_a_multiprocessor() {
        let all = sizes(100, 1000, Matrices::Batch(1));
        for form in ALL {
            let shared = form.launch(&all).shared as usize;
            assert!(form.blocks * (shared + 1024) <= 228 << 10, "{form:?}: {shared}");
        }
        let shared = OWN.launch_own(&all, OWN_INPUTS, 0).shared as usize;
        assert!(OWN.blocks * (shared + 1024) <= 228 << 10, "{OWN:?}: {shared}");
        // Codes of a row, and what is beside them; where it does not fit twice, it does once.
        let wide = sizes(1, 8192, Matrices::Batch(1));
        let launched = |inputs: usize, more| {
            let launch = F8Form::attended(inputs).expect("a form").launch_own(&wide, inputs, more);
            (launch.kernel, launch.grid[0], launch.shared)
        };
        assert_eq!(launched(4096, 2176), ("f8_few_attended_4", 132, 192_128));
        assert_eq!(launched(8192, 4352), ("f8_few_attended_8", 132, 115_968));
    }
}

#[cfg(test)]
#[path = "f8_tests.rs"]
mod product_tests;
