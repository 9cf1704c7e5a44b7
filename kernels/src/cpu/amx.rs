//! Products of codes in AMX tiles: sixteen rows of activations with sixteen rows of weights (two panels), over 32 columns.
//!
//! The instructions are written as assembler: the standard library does not have them yet. Tile registers are used by nothing
//! else, so they keep what they hold from one piece of assembler to the next.
//!
//! Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.

use std::arch::asm;

use super::detect::{Widest, features};

/// Tiles with sums that there may be at a time.
pub(crate) const SETS: usize = 4;
/// Rows of activations in a tile.
pub(crate) const ROWS: usize = 16;
/// Bytes of the weights of two panels: eight rows of a tile, of four columns each.
pub(crate) const WEIGHT_BYTES: usize = 512;

/// What a tile with sums looks like in memory: by row of activations, then of weights.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Sums(pub(crate) [[i32; 16]; ROWS]);

/// Weights as a tile takes them.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Weights(pub(crate) [u8; WEIGHT_BYTES]);

/// Whether this machine has tiles of bytes, and the system lets this process use them.
pub(crate) fn available() -> bool {
    has_tiles() && permitted()
}

/// CPUID leaf 7: bit 24 says that there are tiles, bit 25 that they multiply bytes.
fn has_tiles() -> bool {
    std::arch::x86_64::__cpuid_count(7, 0).edx & (3 << 24) == 3 << 24
}

/// Linux saves a thread's tiles only if its process has asked for it
/// (<https://docs.kernel.org/arch/x86/xstate.html>).
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: this request takes no pointer.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The configuration of tile registers (`LDTILECFG`).
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    bytes_of_row: [u16; 16],
    rows: [u8; 16],
}

/// Tiles 0 to 3: sums; 4 and 5: activations; 6 and 7: weights.
static CONFIG: Config = {
    let (mut bytes_of_row, mut rows) = ([0; 16], [0; 16]);
    let shapes = [(64, 16), (64, 16), (64, 16), (64, 16), (32, 16), (32, 16), (64, 8), (64, 8)];
    let mut tile = 0;
    while tile < shapes.len() {
        (bytes_of_row[tile], rows[tile]) = shapes[tile];
        tile += 1;
    }
    Config { palette: 1, start: 0, reserved: [0; 14], bytes_of_row, rows }
};

/// This thread's tiles, configured.
#[derive(Debug)]
pub(crate) struct Tiles {
    // Another thread has others.
    _here: std::marker::PhantomData<*const ()>,
}

impl Tiles {
    /// `None` where there are none.
    pub(crate) fn configured() -> Option<Self> {
        if features().lanes() != Widest::Amx {
            return None;
        }
        // SAFETY: there are tiles, and the configuration is a valid one of 64 bytes.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, preserves_flags, readonly))
        };
        Some(Self { _here: std::marker::PhantomData })
    }

    /// `sums[t][r] = Σ weights[r] · a[t]`, exactly. `a` begins with the 32 codes of the first row; those of the next are `stride`
    /// bytes further on. Signed codes of activations; of weights if `SIGNED`. `WHICH` of [`SETS`] sets of tiles is used: what follows
    /// with others need not wait.
    ///
    /// # Panics
    /// If `a` is too short for [`ROWS`] rows.
    #[inline(always)]
    pub(crate) fn dots<const SIGNED: bool, const WHICH: u8>(
        &self,
        a: &[u8],
        stride: usize,
        weights: &Weights,
        sums: &mut Sums,
    ) {
        assert!(a.len() >= (ROWS - 1) * stride + 32, "rows of activations");
        macro_rules! tiles {
            ($product:literal, $sums:literal, $a:literal, $weights:literal) => {
                // SAFETY: `self` says that tiles are there and configured; what they read and write is within `a` (just checked),
                // `weights` and `sums`.
                unsafe {
                    asm!(
                        concat!("tilezero ", $sums),
                        concat!("tileloadd ", $a, ", [{a} + {stride}]"),
                        concat!("tileloadd ", $weights, ", [{weights} + {line}]"),
                        concat!($product, " ", $sums, ", ", $a, ", ", $weights),
                        concat!("tilestored [{sums} + {line}], ", $sums),
                        a = in(reg) a.as_ptr(),
                        stride = in(reg) stride,
                        weights = in(reg) weights.0.as_ptr(),
                        line = in(reg) 64usize,
                        sums = in(reg) sums.0.as_mut_ptr(),
                        options(nostack, preserves_flags),
                    );
                }
            };
        }
        match (SIGNED, WHICH) {
            (false, 0) => tiles!("tdpbsud", "tmm0", "tmm4", "tmm6"),
            (false, 1) => tiles!("tdpbsud", "tmm1", "tmm5", "tmm7"),
            (false, 2) => tiles!("tdpbsud", "tmm2", "tmm4", "tmm6"),
            (false, _) => tiles!("tdpbsud", "tmm3", "tmm5", "tmm7"),
            (true, 0) => tiles!("tdpbssd", "tmm0", "tmm4", "tmm6"),
            (true, 1) => tiles!("tdpbssd", "tmm1", "tmm5", "tmm7"),
            (true, 2) => tiles!("tdpbssd", "tmm2", "tmm4", "tmm6"),
            (true, _) => tiles!("tdpbssd", "tmm3", "tmm5", "tmm7"),
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: there are tiles, or `self` would not be.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_multiply_exactly() {
        let Some(tiles) = Tiles::configured() else { return };
        let mut a = vec![0u8; ROWS * 48];
        for (i, byte) in a.iter_mut().enumerate() {
            *byte = (i * 37 % 255) as u8;
        }
        let weights = Weights(std::array::from_fn(|i| (i * 101 % 256) as u8));
        let mut sums = [Sums([[7; 16]; ROWS]); 2];
        tiles.dots::<true, 0>(&a, 48, &weights, &mut sums[0]);
        tiles.dots::<false, 1>(&a, 48, &weights, &mut sums[1]);
        for t in 0..ROWS {
            for r in 0..16 {
                let (mut signed, mut unsigned) = (0, 0);
                for column in 0..32 {
                    let x = i32::from(a[t * 48 + column] as i8);
                    let weight = weights.0[column / 4 * 64 + r * 4 + column % 4];
                    signed += x * i32::from(weight as i8);
                    unsigned += x * i32::from(weight);
                }
                assert_eq!((sums[0].0[t][r], sums[1].0[t][r]), (signed, unsigned), "row {t}, {r}");
            }
        }
    }
}
