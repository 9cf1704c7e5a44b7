//! Which kernel does a product on the tensor cores, and on how many blocks. All of them add up in one order
//! (`kernels/cu/product.cuh`), so that only the time depends on it.

use crate::cuda::{Launch, WeightKind};

/// Sizes of a product of activations in bf16.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub kind: WeightKind,
    /// Of each batch; of all groups at most.
    pub rows: usize,
    pub n: usize,
    pub matrices: Matrices,
    /// Rows of x begin at, and have, multiples of 16 bytes.
    pub aligned: bool,
    /// The gated activation of the result is wanted.
    pub gated: bool,
    /// There is wgmma.
    pub hopper: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Matrices {
    /// Every one meets all rows.
    Batch(usize),
    /// Each has some of the rows, at most `most`.
    Groups { count: usize, most: usize },
}

/// Kernels that make tiles of so many rows and outputs: of `kernels/cu/matmul_rows.cuh`, or [`WIDE`].
#[derive(Debug)]
pub(super) struct Form {
    height: usize,
    width: usize,
    threads: usize,
    /// Stages of shared memory, and lines in each: of weights of 16 bits, in f8, in q8_0, in q4_0 or q4_1, and in other
    /// blocks. No stages: there is no kernel.
    stages: [(usize, usize); 5],
    /// For bf16, f16, f8, q8_0, q4_0, q4_1, q5_1, q4_k, q5_k and q6_k.
    kernels: [&'static str; 10],
    /// Those that do the gated activation of what comes out, too.
    gated: Option<[&'static str; 10]>,
}

/// Kernels of a form for every type: `$name` and what follows.
macro_rules! of_types {
    ($($name:literal),*) => {
        [
            concat!($($name),*, "_bf16"),
            concat!($($name),*, "_f16"),
            concat!($($name),*, "_f8"),
            concat!($($name),*, "_q8_0"),
            concat!($($name),*, "_q4_0"),
            concat!($($name),*, "_q4_1"),
            concat!($($name),*, "_q5_1"),
            concat!($($name),*, "_q4_k"),
            concat!($($name),*, "_q5_k"),
            concat!($($name),*, "_q6_k"),
        ]
    };
}

macro_rules! form {
    ($name:literal, $height:literal x $width:literal, $threads:literal, $stages:expr) => {
        Form {
            height: $height,
            width: $width,
            threads: $threads,
            stages: $stages,
            kernels: of_types!("rows_", $name),
            gated: Some(of_types!("rows_gated_", $name)),
        }
    };
}

/// A warp has 16 outputs of few rows, or two times 16 where there are enough of them.
const ONE: [Form; 2] = [
    form!("1", 1 x 16, 32, [(6, 4), (5, 4), (3, 4), (4, 4), (6, 2)]),
    form!("1_of_32", 1 x 32, 32, [(3, 4), (3, 4), (4, 2), (3, 4), (0, 0)]),
];
const EIGHT: [Form; 2] = [
    form!("8", 8 x 16, 32, [(8, 2), (6, 2), (4, 2), (4, 2), (4, 2)]),
    form!("8_of_32", 8 x 32, 32, [(5, 2), (4, 2), (3, 2), (4, 2), (0, 0)]),
];
/// Narrow and wide tiles of as many rows: wide ones read x less often, if there are enough of them for all multiprocessors.
const SIXTEEN: [Form; 2] = [
    form!("16", 16 x 32, 128, [(8, 2), (6, 2), (4, 2), (4, 2), (0, 0)]),
    form!("16_of_64", 16 x 64, 128, [(3, 2), (3, 2), (3, 2), (3, 2), (3, 2)]),
];
const THIRTY_TWO: [Form; 2] = [
    form!("32", 32 x 32, 128, [(6, 2), (4, 2), (4, 2), (3, 2), (0, 0)]),
    form!("32_of_64", 32 x 64, 256, [(4, 2), (3, 2), (2, 2), (3, 2), (3, 2)]),
];
const SIXTY_FOUR: [Form; 2] = [
    form!("64", 64 x 32, 256, [(4, 2), (4, 1), (4, 1), (2, 2), (0, 0)]),
    form!("64_of_64", 64 x 64, 256, [(3, 2), (4, 1), (4, 1), (2, 2), (2, 2)]),
];
const MANY: Form =
    Form { gated: None, ..form!("128", 128 x 128, 256, [(3, 1), (2, 1), (2, 1), (0, 0), (0, 0)]) };
/// For x of any length and place.
const ANY: Form = Form { gated: None, ..form!("any", 8 x 16, 32, [(4, 1), (3, 1), (3, 1), (3, 2), (3, 2)]) };
/// By wgmma (`kernels/cu/matmul_wide.cuh`).
const WIDE: Form = Form {
    height: 256,
    width: 128,
    threads: 256,
    stages: [(4, 1), (5, 1), (5, 1), (5, 1), (5, 1)],
    kernels: of_types!("wide"),
    gated: Some(of_types!("gated_wide")),
};
/// The same for bf16, which is not converted: there are registers for more.
const WIDE_DIRECT: Form = Form { width: 192, threads: 384, ..WIDE };
/// What [`WIDE`] has to align its shared memory, and what a stage has for what blocks have beside codes.
const WIDE_SPARE: usize = 1024;
const WIDE_SCALES: usize = 1024;

/// All of them, but those of x in any place, and [`Sizes::by_wgmma`].
#[cfg(test)]
pub(super) const ALL: [&Form; 11] = [
    &ONE[0],
    &ONE[1],
    &EIGHT[0],
    &EIGHT[1],
    &SIXTEEN[0],
    &SIXTEEN[1],
    &THIRTY_TWO[0],
    &THIRTY_TWO[1],
    &SIXTY_FOUR[0],
    &SIXTY_FOUR[1],
    &MANY,
];

/// Multiprocessors of a large GPU, the shared memory of each, and what of it a block takes besides its own.
pub(in crate::cuda::op) const PROCESSORS: usize = 132;
const SHARED: usize = 228 << 10;
const SHARED_OF_BLOCK: usize = 1 << 10;

impl Sizes {
    /// The kernels for these sizes.
    pub(super) fn form(&self) -> &'static Form {
        if !self.aligned {
            return &ANY;
        }
        let one = match self.matrices {
            Matrices::Batch(_) => self.rows == 1,
            Matrices::Groups { most, .. } => most == 1,
        };
        match self.typical_rows() {
            _ if one => self.two_chains(&ONE),
            ..=8 => self.two_chains(&EIGHT),
            9..=16 => self.wide_enough(&SIXTEEN),
            17..=32 => self.wide_enough(&THIRTY_TWO),
            33..=64 => self.wide_enough(&SIXTY_FOUR),
            _ => self.many(),
        }
    }

    /// Rows that meet a matrix, as a rule.
    pub(super) fn typical_rows(&self) -> usize {
        match self.matrices {
            Matrices::Batch(_) => self.rows,
            // How rows fall on groups is not known here: some have twice what there is on average.
            Matrices::Groups { count, most } => (self.rows.div_ceil(count) * 3 / 2).min(most),
        }
    }

    fn wide_enough(&self, forms: &'static [Form; 2]) -> &'static Form {
        let tiles = self.row_tiles(forms[1].height) * self.output_tiles(&forms[1]) * self.batches();
        self.one_of(forms, tiles >= 2 * PROCESSORS)
    }

    /// The wide one, if it is wanted, as far as there are both.
    fn one_of(&self, forms: &'static [Form; 2], wide: bool) -> &'static Form {
        let [narrow, wider] = forms;
        let both = self.launch(narrow).is_some() && self.launch(wider).is_some();
        if if both { wide } else { self.launch(wider).is_some() } { wider } else { narrow }
    }

    /// Making bf16 of weights is what a warp waits for: with two chains of products it has something else to do meanwhile.
    fn two_chains(&self, forms: &'static [Form; 2]) -> &'static Form {
        let tiles = self.row_tiles(forms[1].height) * self.output_tiles(&forms[1]) * self.batches();
        self.one_of(forms, self.kind.bits() <= 8 && tiles >= 2 * PROCESSORS)
    }

    fn many(&self) -> &'static Form {
        let form = if self.hopper { self.by_wgmma() } else { &MANY };
        // Large tiles that leave half of all multiprocessors idle are slower than small ones that do not.
        let idle = self.row_tiles(form.height) * self.output_tiles(form) * self.batches() <= PROCESSORS / 2;
        let can = self.launch(form).is_some();
        if idle || !can { self.wide_enough(&SIXTY_FOUR) } else { form }
    }

    /// On Hopper.
    pub(super) fn by_wgmma(&self) -> &'static Form {
        if self.kind == WeightKind::Bf16 { &WIDE_DIRECT } else { &WIDE }
    }

    /// Tiles of `height` rows; of groups, at most.
    pub(super) fn row_tiles(&self, height: usize) -> usize {
        match self.matrices {
            Matrices::Batch(_) => self.rows.div_ceil(height),
            // Every group's last tile may have a single row.
            Matrices::Groups { count, .. } => (self.rows + count.min(self.rows) * (height - 1)) / height,
        }
    }

    fn output_tiles(&self, form: &Form) -> usize {
        self.n.div_ceil(form.width)
    }

    fn batches(&self) -> usize {
        match self.matrices {
            Matrices::Batch(batches) => batches,
            Matrices::Groups { .. } => 1,
        }
    }

    /// Whether a kernel does the gated activation as well.
    pub(super) fn can_be_gated(&self) -> bool {
        self.aligned && self.kind != WeightKind::F32 && self.form().gated.is_some()
    }

    /// The kernel of a form, and its blocks; `None` for weights in f32.
    pub(super) fn launch(&self, form: &Form) -> Option<Launch> {
        let (slot, of_stages) = match self.kind {
            WeightKind::F32 => return None,
            WeightKind::Bf16 => (0, 0),
            WeightKind::F16 => (1, 0),
            WeightKind::F8 => (2, 1),
            WeightKind::Q8_0 => (3, 2),
            WeightKind::Q4_0 => (4, 3),
            WeightKind::Q4_1 => (5, 3),
            WeightKind::Q5_1 => (6, 4),
            WeightKind::Q4_K => (7, 4),
            WeightKind::Q5_K => (8, 4),
            WeightKind::Q6_K => (9, 4),
        };
        let kernels = if self.gated { form.gated? } else { form.kernels };
        let (stages, lines) = form.stages[of_stages];
        if stages == 0 {
            return None;
        }
        let by_wgmma = form.height == WIDE.height;
        let inputs = if by_wgmma || self.kind.bits() > 8 { 64 } else { 128 };
        let scales = match self.kind.blocks() {
            None => 0,
            Some(_) if by_wgmma => WIDE_SCALES,
            // Whatever 256 inputs take besides their codes.
            Some(_) => form.width * inputs * (self.kind.tight_bytes(256) - 32 * self.kind.bits()) / 256,
        };
        // Of a second plane a stage by wgmma has what is of two bits.
        let bits = if by_wgmma { self.kind.bits().next_multiple_of(2) } else { self.kind.bits() };
        let line = inputs * (form.height * size_of::<u16>()) + form.width * inputs * bits / 8 + scales;
        let spare = if by_wgmma { WIDE_SPARE } else { 0 };
        let shared = stages * lines * line + spare;
        let (rows, batches, mut outputs) =
            (self.row_tiles(form.height), self.batches(), self.output_tiles(form));
        if form.threads == 32 {
            // A warp begins with nothing on its way to it: so once only, and does one tile after the other.
            let at_once = PROCESSORS * (SHARED / (shared + SHARED_OF_BLOCK));
            let each = (outputs * rows * batches).div_ceil(at_once);
            outputs = outputs.div_ceil(each);
        }
        Some(Launch {
            kernel: kernels[slot],
            grid: [rows, outputs, batches].map(|blocks| blocks as u32),
            threads: form.threads as u32,
            shared: shared as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(rows: usize, n: usize) -> Sizes {
        let matrices = Matrices::Batch(1);
        Sizes { kind: WeightKind::Bf16, rows, n, matrices, aligned: true, gated: false, hopper: true }
    }

    #[test]
    fn tiles_are_as_high_as_there_are_rows() {
        let kernel = |sizes: Sizes| sizes.launch(sizes.form()).map(|launch| (launch.kernel, launch.grid));
        assert_eq!(kernel(sizes(1, 4096)), Some(("rows_1_bf16", [1, 256, 1])));
        assert_eq!(kernel(sizes(5, 4096)), Some(("rows_8_bf16", [1, 256, 1])));
        assert_eq!(kernel(sizes(16, 4096)), Some(("rows_16_bf16", [1, 128, 1])));
        assert_eq!(kernel(sizes(16, 32_000)), Some(("rows_16_of_64_bf16", [1, 500, 1])));
        assert_eq!(kernel(sizes(32, 4096)), Some(("rows_32_bf16", [1, 128, 1])));
        assert_eq!(kernel(sizes(64, 4096)), Some(("rows_64_bf16", [1, 128, 1])));
        assert_eq!(kernel(sizes(200, 4096)), Some(("rows_64_bf16", [4, 128, 1])));
        assert_eq!(kernel(sizes(260, 4096)), Some(("rows_64_of_64_bf16", [5, 64, 1])));
        assert_eq!(kernel(sizes(2048, 4096)), Some(("wide_bf16", [8, 22, 1])));
        let old = Sizes { hopper: false, ..sizes(2048, 4096) };
        assert_eq!(kernel(old), Some(("rows_128_bf16", [16, 32, 1])));
        assert_eq!(kernel(Sizes { aligned: false, ..sizes(20, 100) }), Some(("rows_any_bf16", [3, 7, 1])));
    }

    #[test]
    fn blocks_of_four_bits_have_no_tiles_of_128_rows() {
        let kernel = |sizes: Sizes| sizes.launch(sizes.form()).map(|launch| launch.kernel);
        let many = |kind, hopper| kernel(Sizes { kind, hopper, ..sizes(2048, 4096) });
        assert_eq!(many(WeightKind::Q8_0, false), Some("rows_128_q8_0"));
        assert_eq!(many(WeightKind::Q4_0, false), Some("rows_64_of_64_q4_0"));
        assert_eq!(many(WeightKind::Q4_0, true), Some("wide_q4_0"));
        assert_eq!(kernel(Sizes { kind: WeightKind::Q4_0, ..sizes(1, 32_000) }), Some("rows_1_of_32_q4_0"));
    }

    #[test]
    fn other_blocks_have_one_size_of_tiles_for_as_many_rows() {
        let kernel = |sizes: Sizes| sizes.launch(sizes.form()).map(|launch| launch.kernel);
        let of = |rows, n| kernel(Sizes { kind: WeightKind::Q5_K, ..sizes(rows, n) });
        for n in [100, 32_000] {
            let found = [1, 2, 9, 17, 33].map(|rows| of(rows, n).unwrap_or_default());
            let names =
                ["1", "8", "16_of_64", "32_of_64", "64_of_64"].map(|name| format!("rows_{name}_q5_k"));
            assert_eq!(found.as_slice(), names, "{n}");
        }
        assert_eq!(of(2048, 4096), Some("wide_q5_k"));
    }

    #[test]
    fn groups_share_rows() {
        let grouped =
            |rows, most| Sizes { matrices: Matrices::Groups { count: 8, most }, ..sizes(rows, 28_672) };
        let kernel = |sizes: Sizes| sizes.launch(sizes.form()).map(|launch| (launch.kernel, launch.grid[0]));
        assert_eq!(kernel(grouped(2, 1)), Some(("rows_1_bf16", 2)));
        assert_eq!(kernel(grouped(4, 2)), Some(("rows_8_bf16", 4)));
        assert_eq!(kernel(grouped(16, 8)), Some(("rows_8_bf16", 9)));
        assert_eq!(kernel(grouped(64, 32)), Some(("rows_16_of_64_bf16", 11)));
        assert_eq!(kernel(grouped(4096, 2048)), Some(("wide_bf16", 23)));
    }

    #[test]
    fn what_a_kernel_takes_fits_a_multiprocessor() {
        let floats = [WeightKind::Bf16, WeightKind::F16, WeightKind::F8];
        for kind in floats.into_iter().chain(WeightKind::BLOCKS) {
            for rows in [1, 8, 16, 32, 64, 100, 5000] {
                for (n, gated) in [(100, false), (30_000, true), (30_000, false)] {
                    for hopper in [true, false] {
                        let sizes = Sizes { kind, gated, hopper, ..sizes(rows, n) };
                        let launch = sizes.launch(sizes.form()).expect("a kernel");
                        assert!(launch.shared <= 227 << 10, "{launch:?}");
                        assert!(
                            !launch.kernel.starts_with("rows") || launch.shared <= 99 << 10,
                            "{launch:?}"
                        );
                    }
                }
            }
        }
    }
}
