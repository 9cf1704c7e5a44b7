//! Lanes in AVX2 registers, with FMA and F16C.
//!
//! SAFETY of this whole file: values of [`F32x8`] are made only inside functions that the `simd!` macro enters after it has
//! found AVX2, FMA and F16C; every pointer comes from a reference to an array of just the size that is read or written, and
//! all loads and stores are unaligned ones.

use std::arch::asm;
use std::arch::x86_64::*;

use super::lanes::{Codes, Floats, Lanes};

/// Eight floats in a register.
#[derive(Debug, Clone, Copy)]
pub struct F32x8(pub(super) __m256);

/// Broadcasts the four activations that belong to vector `v`, one of eight.
#[inline(always)]
fn four(a: &[i8; 32], v: usize) -> __m256i {
    debug_assert!(v < 8);
    // SAFETY: see the head of the file; there are eight fours. (The compiler would check each: it does not know how many times a loop
    // runs that is not to be unrolled.)
    unsafe { _mm256_set1_epi32(a.as_ptr().add(v * 4).cast::<i32>().read_unaligned()) }
}

/// A number that the compiler does not know. It would unroll the loop over a block's vectors, put its sums in another order, and then
/// keep what was unpacked in memory, in want of registers: three loads for each product.
#[inline(always)]
fn hidden(mut number: usize) -> usize {
    // SAFETY: nothing is done.
    unsafe { asm!("/* {0} */", inout(reg) number, options(pure, nomem, nostack, preserves_flags)) };
    number
}

/// Sums pairs of 16-bit lanes into 32 bits.
#[inline(always)]
fn widen(x: __m256i) -> __m256i {
    // SAFETY: see the head of the file.
    unsafe { _mm256_madd_epi16(x, _mm256_set1_epi16(1)) }
}

/// Signed codes times activations over the vectors `FROM..TO`. |code| × 127 × 2 ≤ 32,512 fits 16 bits.
#[inline(always)]
fn signed<const P: usize, const T: usize, const FROM: usize, const TO: usize>(
    codes: [&[u8; 256]; P],
    a: [&[i8; 32]; T],
) -> [[F32x8; P]; T] {
    // SAFETY: see the head of the file; the loads are within the 256 bytes.
    unsafe {
        let mut sums = [[_mm256_setzero_si256(); P]; T];
        for v in FROM..TO {
            let mut vectors = [_mm256_setzero_si256(); P];
            for p in 0..P {
                vectors[p] = _mm256_loadu_si256(codes[p].as_ptr().add(v * 32).cast());
            }
            for t in 0..T {
                let four = four(a[t], v);
                for p in 0..P {
                    let magnitudes = _mm256_abs_epi8(vectors[p]);
                    let products = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(four, vectors[p]));
                    sums[t][p] = _mm256_add_epi32(sums[t][p], widen(products));
                }
            }
        }
        floats(sums)
    }
}

/// Converts integers.
#[inline(always)]
fn floats<const P: usize, const T: usize>(x: [[__m256i; P]; T]) -> [[F32x8; P]; T] {
    // SAFETY: see the head of the file.
    unsafe {
        let mut floats = [[F32x8(_mm256_setzero_ps()); P]; T];
        for t in 0..T {
            for p in 0..P {
                floats[t][p] = F32x8(_mm256_cvtepi32_ps(x[t][p]));
            }
        }
        floats
    }
}

impl Floats for F32x8 {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm256_set1_ps(x) })
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm256_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm256_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm256_mul_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm256_div_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm256_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm256_min_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm256_fmadd_ps(self.0, b.0, c.0) })
    }
    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }
    #[inline(always)]
    fn exp2_integer(self) -> Self {
        // SAFETY: see the head of the file.
        unsafe {
            let biased = _mm256_add_epi32(_mm256_cvttps_epi32(self.0), _mm256_set1_epi32(127));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased)))
        }
    }
    #[inline(always)]
    fn any_above(self, other: Self) -> bool {
        // SAFETY: see the head of the file.
        unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(self.0, other.0)) != 0 }
    }
}

impl Lanes for F32x8 {
    #[inline(always)]
    fn load(from: &[f32; 8]) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm256_loadu_ps(from.as_ptr()) })
    }
    #[inline(always)]
    fn load_f16(from: &[u16; 8]) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())) })
    }
    #[inline(always)]
    fn load_bf16(from: &[u16; 8]) -> Self {
        // SAFETY: see the head of the file.
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits)))
        }
    }
    #[inline(always)]
    fn words(rows: [&[u8; 16]; 8]) -> [Self; 4] {
        // SAFETY: see the head of the file.
        unsafe {
            // Rows r and r + 4 beside each other; then two rows in turn, then four.
            let half = |row: usize| _mm_loadu_si128(rows[row].as_ptr().cast());
            let two = |row: usize| _mm256_set_m128i(half(row + 4), half(row));
            let (a, b, c, d) = (two(0), two(1), two(2), two(3));
            let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
            let (ab_2, cd_2) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
            [
                Self(_mm256_castsi256_ps(_mm256_unpacklo_epi64(ab, cd))),
                Self(_mm256_castsi256_ps(_mm256_unpackhi_epi64(ab, cd))),
                Self(_mm256_castsi256_ps(_mm256_unpacklo_epi64(ab_2, cd_2))),
                Self(_mm256_castsi256_ps(_mm256_unpackhi_epi64(ab_2, cd_2))),
            ]
        }
    }
    #[inline(always)]
    fn pair_f16(self) -> [Self; 2] {
        // SAFETY: see the head of the file.
        unsafe {
            let bits = _mm256_castps_si256(self.0);
            let low = _mm256_and_si256(bits, _mm256_set1_epi32(0xffff));
            // Packing works on each half of the registers; the permutation puts them back in order.
            let packed = _mm256_packus_epi32(low, _mm256_srli_epi32::<16>(bits));
            let both = _mm256_permute4x64_epi64::<0b_11_01_10_00>(packed);
            [
                Self(_mm256_cvtph_ps(_mm256_castsi256_si128(both))),
                Self(_mm256_cvtph_ps(_mm256_extracti128_si256::<1>(both))),
            ]
        }
    }
    #[inline(always)]
    fn pair_bf16(self) -> [Self; 2] {
        // SAFETY: see the head of the file.
        unsafe {
            let bits = _mm256_castps_si256(self.0);
            let high = _mm256_and_si256(bits, _mm256_set1_epi32(-0x1_0000));
            let low = _mm256_slli_epi32::<16>(bits);
            [Self(_mm256_castsi256_ps(low)), Self(_mm256_castsi256_ps(high))]
        }
    }
    #[inline(always)]
    fn load_i8(from: &[i8; 8]) -> Self {
        // SAFETY: see the head of the file.
        unsafe { Self(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.as_ptr().cast())))) }
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; 8]) {
        // SAFETY: see the head of the file.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn store_f16(self, to: &mut [u16; 8]) {
        // SAFETY: see the head of the file.
        unsafe {
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0))
        }
    }
    #[inline(always)]
    fn to_codes(values: [Self; 4]) -> Codes {
        // SAFETY: see the head of the file.
        unsafe {
            let [a, b, c, d] = values;
            let (a, b) = (_mm256_cvtps_epi32(a.0), _mm256_cvtps_epi32(b.0));
            let (c, d) = (_mm256_cvtps_epi32(c.0), _mm256_cvtps_epi32(d.0));
            // Packing works on each half of the registers; the permutation puts groups of four back in order.
            let halves = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            let codes = _mm256_permutevar8x32_epi32(halves, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            let fours = widen(_mm256_maddubs_epi16(_mm256_set1_epi8(1), codes));
            // Both halves of the register at once: columns 0..16 and 16..32.
            let eights = _mm256_add_epi32(fours, _mm256_shuffle_epi32::<0b_00_00_11_10>(fours));
            let halves = _mm256_add_epi32(eights, _mm256_shuffle_epi32::<1>(eights));
            let totals = [_mm256_extract_epi32::<0>(halves), _mm256_extract_epi32::<4>(halves)];
            let mut bytes = [0i8; 32];
            _mm256_storeu_si256(bytes.as_mut_ptr().cast(), codes);
            Codes { totals, codes: bytes }
        }
    }
    #[inline(always)]
    fn dots_u4<const P: usize, const T: usize>(codes: [&[u8; 128]; P], a: [&[i8; 32]; T]) -> [[Self; P]; T] {
        // 15 × 127 × 2 × 8 = 30,480: all eight products of a lane are summed in 16 bits. Rows take turns, so that none waits
        // for its own last sum.
        // SAFETY: see the head of the file; the four loads cover the 128 bytes.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            let mut sums = [[_mm256_setzero_si256(); P]; T];
            for v in 0..if P * T > 2 { hidden(4) } else { 4 } {
                let mut vectors = [_mm256_setzero_si256(); P];
                for p in 0..P {
                    vectors[p] = _mm256_loadu_si256(codes[p].as_ptr().add(v * 32).cast());
                }
                for t in 0..T {
                    let four = four(a[t], v);
                    for p in 0..P {
                        let low = _mm256_and_si256(vectors[p], mask);
                        sums[t][p] = _mm256_add_epi16(sums[t][p], _mm256_maddubs_epi16(low, four));
                    }
                }
                for t in 0..T {
                    let four = four(a[t], v + 4);
                    for p in 0..P {
                        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(vectors[p]), mask);
                        sums[t][p] = _mm256_add_epi16(sums[t][p], _mm256_maddubs_epi16(high, four));
                    }
                }
            }
            for sum in sums.as_flattened_mut() {
                *sum = widen(*sum);
            }
            floats(sums)
        }
    }
    #[inline(always)]
    fn dots_i8<const P: usize, const T: usize>(codes: [&[u8; 256]; P], a: [&[i8; 32]; T]) -> [[Self; P]; T] {
        signed::<P, T, 0, 8>(codes, a)
    }
    #[inline(always)]
    fn halves_i8<const P: usize, const T: usize>(
        codes: [&[u8; 256]; P],
        a: [&[i8; 32]; T],
    ) -> [[[Self; P]; T]; 2] {
        [signed::<P, T, 0, 4>(codes, a), signed::<P, T, 4, 8>(codes, a)]
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: see the head of the file.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    fn greatest(self) -> f32 {
        // SAFETY: see the head of the file.
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
}
