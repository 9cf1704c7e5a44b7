//! Loops that do nothing but multiply bytes, one for each way this machine has of doing it.
//!
//! Weights come from the nearest cache, activations and sums stay in registers, and nothing is scaled: no product of quantized
//! weights can be faster.

use std::hint::black_box;

#[cfg(target_arch = "x86_64")]
use crate::cpu::detect::{Widest, features};

/// What a cache line of codes looks like.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(super) struct Line([u8; 64]);

/// Lines of weights: few enough for the nearest cache.
const LINES: usize = 64;
/// Times that they are read for each look at the clock.
const ROUNDS: usize = 100;

/// What one thread multiplies: 4-bit codes, so that 16-bit sums of eight pairs do not overflow.
pub(super) fn lines() -> Vec<Line> {
    (0..LINES).map(|line| Line(std::array::from_fn(|i| ((line * 31 + i * 7) % 16) as u8))).collect()
}

/// A loop: takes weights, returns how many operations it did (a multiply-add is two).
pub(super) type Form = fn(&[Line]) -> u64;

/// Those that this machine has.
pub(super) fn forms() -> Vec<Form> {
    let mut forms: Vec<Form> = vec![portable];
    #[cfg(target_arch = "x86_64")]
    {
        let widest = features().lanes();
        // SAFETY: the features that these are compiled for have just been found.
        let wider: [(Widest, Form); 3] = [
            (Widest::Avx2, |lines| unsafe { x86::pairs(lines) }),
            (Widest::Avx512, |lines| unsafe { x86::fours(lines) }),
            (Widest::Amx, x86::tiles),
        ];
        forms.extend(wider.into_iter().filter(|(needs, _)| *needs <= widest).map(|(_, form)| form));
    }
    forms
}

fn portable(lines: &[Line]) -> u64 {
    let factor: [i8; 64] = black_box([101; 64]);
    let mut sum = 0i32;
    for line in black_box(lines) {
        let dots = line.0.iter().zip(&factor).map(|(w, a)| i32::from(*w) * i32::from(*a));
        sum = sum.wrapping_add(dots.sum());
    }
    black_box(sum);
    (lines.len() * 64 * 2) as u64
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::{LINES, Line, ROUNDS};

    /// Activation rows of the two loops in registers: as many as these hold beside sums.
    const ROWS_OF_PAIRS: usize = 4;
    const ROWS_OF_FOURS: usize = 12;

    /// AVX2: pairs of products in 16 bits, eight of which are summed before they are widened.
    #[target_feature(enable = "avx2")]
    pub(super) fn pairs(lines: &[Line]) -> u64 {
        const ROWS: usize = ROWS_OF_PAIRS;
        let rows: [i8; ROWS] = black_box([101, 99, 97, 95]);
        let rows = rows.map(|x| _mm256_set1_epi8(x));
        let ones = _mm256_set1_epi16(1);
        let mut sums = [_mm256_setzero_si256(); ROWS];
        for _ in 0..ROUNDS {
            for four in black_box(lines).as_chunks::<4>().0 {
                let mut short = [_mm256_setzero_si256(); ROWS];
                for Line(line) in four {
                    for half in 0..2 {
                        // SAFETY: half a line of 64 bytes has 32.
                        let w = unsafe { _mm256_load_si256(line.as_ptr().add(half * 32).cast()) };
                        for t in 0..ROWS {
                            short[t] = _mm256_add_epi16(short[t], _mm256_maddubs_epi16(w, rows[t]));
                        }
                    }
                }
                for t in 0..ROWS {
                    sums[t] = _mm256_add_epi32(sums[t], _mm256_madd_epi16(short[t], ones));
                }
            }
        }
        black_box(sums);
        (ROUNDS * (lines.len() / 4 * 4) * ROWS * 64 * 2) as u64
    }

    /// VNNI: four products and their sum in one instruction.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) fn fours(lines: &[Line]) -> u64 {
        const ROWS: usize = ROWS_OF_FOURS;
        let rows: [i8; ROWS] = black_box(std::array::from_fn(|t| 101 - t as i8));
        let rows = rows.map(|x| _mm512_set1_epi8(x));
        let mut sums = [_mm512_setzero_si512(); ROWS];
        for _ in 0..ROUNDS {
            for Line(line) in black_box(lines) {
                // SAFETY: a line is 64 bytes.
                let w = unsafe { _mm512_load_si512(line.as_ptr().cast()) };
                for t in 0..ROWS {
                    sums[t] = _mm512_dpbusd_epi32(sums[t], w, rows[t]);
                }
            }
        }
        black_box(sums);
        (ROUNDS * lines.len() * ROWS * 64 * 2) as u64
    }

    /// The configuration of tile registers (`LDTILECFG`): eight full ones.
    #[repr(C, align(64))]
    struct Config([u8; 64]);

    static CONFIG: Config = {
        let mut bytes = [0; 64];
        // The palette.
        bytes[0] = 1;
        let mut tile = 0;
        while tile < 8 {
            // Bytes of a row, in 16 bits; rows.
            bytes[16 + 2 * tile] = 64;
            bytes[48 + tile] = 16;
            tile += 1;
        }
        Config(bytes)
    };

    /// Products that the loop below does in a turn, and operations of each: 16 rows of 64 codes with 16 rows.
    const PRODUCTS: usize = 4;
    const PRODUCT_OPS: usize = 16 * 16 * 64 * 2;

    /// AMX: two full tiles of activations with two of weights, which stay where they are.
    pub(super) fn tiles(lines: &[Line]) -> u64 {
        assert!(lines.len() >= LINES, "four tiles of 16 lines");
        let turns = 20 * ROUNDS as u64;
        // SAFETY: `forms` takes this only where there are tiles; the configuration is a valid one of 64 bytes; what is loaded is
        // within the 64 lines (just checked). Nobody keeps anything in tiles from one call to the next.
        unsafe {
            asm!(
                "ldtilecfg [{config}]",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "tileloadd tmm4, [{lines} + {line}]",
                "tileloadd tmm5, [{lines} + {line} + 1024]",
                "tileloadd tmm6, [{lines} + {line} + 2048]",
                "tileloadd tmm7, [{lines} + {line} + 3072]",
                "2:",
                "tdpbusd tmm0, tmm4, tmm6",
                "tdpbusd tmm1, tmm4, tmm7",
                "tdpbusd tmm2, tmm5, tmm6",
                "tdpbusd tmm3, tmm5, tmm7",
                "dec {turns}",
                "jnz 2b",
                "tilerelease",
                config = in(reg) &raw const CONFIG,
                lines = in(reg) lines.as_ptr(),
                line = in(reg) 64usize,
                turns = inout(reg) turns => _,
                options(nostack, readonly),
            );
        }
        turns * (PRODUCTS * PRODUCT_OPS) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_counts_what_it_does() {
        let lines = lines();
        let counts: Vec<u64> = forms().into_iter().map(|form| form(&lines)).collect();
        // Of what there is here, in the order of `forms`: see the shapes above.
        let expected = [64 * 64 * 2, 100 * 64 * 4 * 64 * 2, 100 * 64 * 12 * 64 * 2, 2_000 * 4 * 32_768];
        assert_eq!(counts, expected[..counts.len()]);
    }
}
