//! Sixteen floats, which may be eight of each of two panels, in AVX-512 registers, with VNNI.
//!
//! SAFETY of this whole file: values of [`F32x16`] are made only inside functions that are entered (by `simd_wide!` and
//! `simd_panels!`, and by `op/matmul/tiles.rs`, whose tiles come with nothing less) after `detect` has found
//! AVX-512 F, BW and VNNI ([`Native`] is met only in those that `simd_pairs!` enters after it has found AVX512_BF16, too); every pointer comes from a reference to an array of just the size that is read or written, and all
//! loads and stores are unaligned ones.

use std::arch::x86_64::*;

use bytemuck::Pod;

use super::avx2::F32x8;
use super::lanes::{Codes, Floats, PanelLanes, Wide};
use super::pairs::Pairs;

/// Sixteen floats in a register.
#[derive(Debug, Clone, Copy)]
pub struct F32x16(__m512);

/// The four activations that belong to vector `v`, broadcast.
#[inline(always)]
fn four(a: &Codes, v: usize) -> __m512i {
    let a = &a.codes;
    let [b, c, d, e]: [i8; 4] = *a[v * 4..].first_chunk().expect("four of 32");
    let bytes = [b as u8, c as u8, d as u8, e as u8];
    // SAFETY: see the head of the file.
    unsafe { _mm512_set1_epi32(i32::from_le_bytes(bytes)) }
}

/// Bytes `32 v..32 v + 32` of both panels.
#[inline(always)]
fn vector<const N: usize>(codes: [&[u8; N]; 2], v: usize) -> __m512i {
    let [a, b] = [&codes[0][v * 32..][..32], &codes[1][v * 32..][..32]];
    // SAFETY: see the head of the file.
    unsafe {
        let (a, b) = (_mm256_loadu_si256(a.as_ptr().cast()), _mm256_loadu_si256(b.as_ptr().cast()));
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b)
    }
}

/// Signed codes times activations over the vectors `FROM..TO`. The instruction takes unsigned codes: they are 128 more, and 128
/// times the sum of the activations is where sums begin.
#[inline(always)]
fn signed<const T: usize, const FROM: usize, const TO: usize>(
    codes: [&[u8; 256]; 2],
    a: [&Codes; T],
) -> [F32x16; T] {
    // SAFETY: see the head of the file.
    unsafe {
        let mut sums = [_mm512_setzero_si512(); T];
        for t in 0..T {
            let [low, high] = a[t].totals;
            let total = if FROM == 0 { low } else { 0 } + if TO == 8 { high } else { 0 };
            sums[t] = _mm512_set1_epi32(-128 * total);
        }
        for v in FROM..TO {
            let unsigned = _mm512_xor_si512(vector(codes, v), _mm512_set1_epi8(-128));
            for t in 0..T {
                sums[t] = _mm512_dpbusd_epi32(sums[t], unsigned, four(a[t], v));
            }
        }
        floats(sums)
    }
}

/// Converts integers.
#[inline(always)]
fn floats<const T: usize>(x: [__m512i; T]) -> [F32x16; T] {
    // SAFETY: see the head of the file.
    unsafe {
        let mut floats = [F32x16(_mm512_setzero_ps()); T];
        for t in 0..T {
            floats[t] = F32x16(_mm512_cvtepi32_ps(x[t]));
        }
        floats
    }
}

/// Writes 4-bit codes of both panels as bytes, vector by vector.
#[inline(always)]
pub(crate) fn unpack_u4(codes: [&[u8; 128]; 2], to: &mut [u8; 512]) {
    // SAFETY: see the head of the file; the eight stores cover the 512 bytes.
    unsafe {
        let (to, mask) = (to.as_mut_ptr(), _mm512_set1_epi8(15));
        for v in 0..4 {
            let packed = vector(codes, v);
            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(packed), mask);
            _mm512_storeu_si512(to.add(v * 64).cast(), _mm512_and_si512(packed, mask));
            _mm512_storeu_si512(to.add(256 + v * 64).cast(), high);
        }
    }
}

/// Writes 8-bit codes of both panels, vector by vector.
#[inline(always)]
pub(crate) fn unpack_i8(codes: [&[u8; 256]; 2], to: &mut [u8; 512]) {
    // SAFETY: see the head of the file; the eight stores cover the 512 bytes.
    unsafe {
        for v in 0..8 {
            _mm512_storeu_si512(to.as_mut_ptr().add(v * 64).cast(), vector(codes, v));
        }
    }
}

impl F32x16 {
    /// Converts integers.
    #[inline(always)]
    pub(crate) fn from_integers(from: &[i32; 16]) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm512_cvtepi32_ps(_mm512_loadu_si512(from.as_ptr().cast())) })
    }
}

/// Sixteen half floats from two places.
#[inline(always)]
fn halves([a, b]: [&[u8; 16]; 2]) -> __m256i {
    // SAFETY: see the head of the file.
    unsafe { _mm256_set_m128i(_mm_loadu_si128(b.as_ptr().cast()), _mm_loadu_si128(a.as_ptr().cast())) }
}

/// Two halves beside each other.
#[inline(always)]
fn join(low: __m256, high: __m256) -> F32x16 {
    // SAFETY: see the head of the file.
    unsafe {
        let low = _mm512_castps_pd(_mm512_castps256_ps512(low));
        F32x16(_mm512_castpd_ps(_mm512_insertf64x4::<1>(low, _mm256_castps_pd(high))))
    }
}

/// Sixteen floats from two places.
#[inline(always)]
fn wholes<T: Pod>([a, b]: [&[T; 8]; 2]) -> F32x16 {
    const { assert!(size_of::<T>() == 4) };
    // SAFETY: see the head of the file.
    unsafe { join(_mm256_loadu_ps(a.as_ptr().cast()), _mm256_loadu_ps(b.as_ptr().cast())) }
}

impl Floats for F32x16 {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm512_set1_ps(x) })
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm512_mul_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm512_div_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm512_min_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
    }
    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }
    #[inline(always)]
    fn exp2_integer(self) -> Self {
        // SAFETY: see the head of the file.
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvttps_epi32(self.0), _mm512_set1_epi32(127));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased)))
        }
    }
    #[inline(always)]
    fn any_above(self, other: Self) -> bool {
        // SAFETY: see the head of the file.
        unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, other.0) != 0 }
    }
    #[inline(always)]
    fn times_exp2(self, n: Self) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm512_scalef_ps(self.0, n.0) })
    }
}

impl Wide for F32x16 {
    type Half = F32x8;
    const ONE_REGISTER: bool = true;
    #[inline(always)]
    fn load(from: &[f32; 16]) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm512_loadu_ps(from.as_ptr()) })
    }
    #[inline(always)]
    fn load_f16(from: &[u16; 16]) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) })
    }
    #[inline(always)]
    fn load_i8(from: &[i8; 16]) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))) })
    }
    #[inline(always)]
    fn of([low, high]: [F32x8; 2]) -> Self {
        join(low.0, high.0)
    }
    #[inline(always)]
    fn halves(self) -> [F32x8; 2] {
        // SAFETY: see the head of the file.
        unsafe {
            let high = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0));
            [F32x8(_mm512_castps512_ps256(self.0)), F32x8(_mm256_castpd_ps(high))]
        }
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; 16]) {
        // SAFETY: see the head of the file.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn store_f16(self, to: &mut [u16; 16]) {
        // SAFETY: see the head of the file.
        unsafe {
            let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), halves);
        }
    }
    #[inline(always)]
    fn to_codes(values: [Self; 2]) -> Codes {
        // SAFETY: see the head of the file.
        unsafe {
            let [low, high] = values;
            let low = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(low.0));
            let high = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(high.0));
            let codes = _mm256_set_m128i(high, low);
            // Sums of eight bytes, which the instruction takes as unsigned: each is 128 more.
            let eights =
                _mm256_sad_epu8(_mm256_xor_si256(codes, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
            let halves = _mm256_add_epi64(eights, _mm256_unpackhi_epi64(eights, eights));
            let total = |sum: i32| sum - 16 * 128;
            let totals = [total(_mm256_extract_epi32::<0>(halves)), total(_mm256_extract_epi32::<4>(halves))];
            let mut bytes = [0i8; 32];
            _mm256_storeu_si256(bytes.as_mut_ptr().cast(), codes);
            Codes { totals, codes: bytes }
        }
    }
}

impl PanelLanes<2> for F32x16 {
    const TILE: usize = 8;
    const FLOAT_TILE: usize = 8;
    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm512_set1_ps(x) })
    }
    #[inline(always)]
    fn load(from: [&[f32; 8]; 2]) -> Self {
        wholes(from)
    }
    #[inline(always)]
    fn load_f16(from: [&[u16; 8]; 2]) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm512_cvtph_ps(halves([bytemuck::cast_ref(from[0]), bytemuck::cast_ref(from[1])])) })
    }
    #[inline(always)]
    fn load_bf16(from: [&[u16; 8]; 2]) -> Self {
        // SAFETY: see the head of the file.
        unsafe {
            let both = halves([bytemuck::cast_ref(from[0]), bytemuck::cast_ref(from[1])]);
            let bits = _mm512_cvtepu16_epi32(both);
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
        }
    }
    #[inline(always)]
    fn load_bytes(from: [&[u8; 32]; 2]) -> Self {
        let [a, b]: [&[[u8; 4]; 8]; 2] = [bytemuck::cast_ref(from[0]), bytemuck::cast_ref(from[1])];
        wholes([a, b])
    }
    #[inline(always)]
    fn load_f16_bytes(from: [&[u8; 16]; 2]) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm512_cvtph_ps(halves(from)) })
    }
    #[inline(always)]
    fn words(rows: [[&[u8; 16]; 8]; 2]) -> [Self; 4] {
        // SAFETY: see the head of the file.
        unsafe {
            // Rows r and r + 4 of each panel beside each other; then two rows in turn, then four.
            let quarter = |panel: usize, row: usize| _mm_loadu_si128(rows[panel][row].as_ptr().cast());
            let four = |row: usize| {
                let all = _mm512_castsi128_si512(quarter(0, row));
                let all = _mm512_inserti32x4::<1>(all, quarter(0, row + 4));
                let all = _mm512_inserti32x4::<2>(all, quarter(1, row));
                _mm512_inserti32x4::<3>(all, quarter(1, row + 4))
            };
            let (a, b, c, d) = (four(0), four(1), four(2), four(3));
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (ab_2, cd_2) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            [
                Self(_mm512_castsi512_ps(_mm512_unpacklo_epi64(ab, cd))),
                Self(_mm512_castsi512_ps(_mm512_unpackhi_epi64(ab, cd))),
                Self(_mm512_castsi512_ps(_mm512_unpacklo_epi64(ab_2, cd_2))),
                Self(_mm512_castsi512_ps(_mm512_unpackhi_epi64(ab_2, cd_2))),
            ]
        }
    }
    #[inline(always)]
    fn pair_f16(self) -> [Self; 2] {
        // SAFETY: see the head of the file.
        unsafe {
            let bits = _mm512_castps_si512(self.0);
            let high = _mm512_srli_epi32::<16>(bits);
            [
                Self(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(bits))),
                Self(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(high))),
            ]
        }
    }
    #[inline(always)]
    fn pair_bf16(self) -> [Self; 2] {
        // SAFETY: see the head of the file.
        unsafe {
            let bits = _mm512_castps_si512(self.0);
            let high = _mm512_and_si512(bits, _mm512_set1_epi32(-0x1_0000));
            let low = _mm512_slli_epi32::<16>(bits);
            [Self(_mm512_castsi512_ps(low)), Self(_mm512_castsi512_ps(high))]
        }
    }
    #[inline(always)]
    fn store(self, panel: usize, to: &mut [f32; 8]) {
        // SAFETY: see the head of the file.
        unsafe {
            let lanes = match panel {
                0 => _mm512_castps512_ps256(self.0),
                _ => _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0))),
            };
            _mm256_storeu_ps(to.as_mut_ptr(), lanes);
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm512_mul_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        // SAFETY: see the head of the file.
        Self(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
    }
    #[inline(always)]
    fn dots_u4<const T: usize>(codes: [&[u8; 128]; 2], a: [&Codes; T]) -> [Self; T] {
        // SAFETY: see the head of the file.
        unsafe {
            let mask = _mm512_set1_epi8(15);
            let mut sums = [_mm512_setzero_si512(); T];
            for v in 0..4 {
                let packed = vector(codes, v);
                let low = _mm512_and_si512(packed, mask);
                for t in 0..T {
                    sums[t] = _mm512_dpbusd_epi32(sums[t], low, four(a[t], v));
                }
                let high = _mm512_and_si512(_mm512_srli_epi16::<4>(packed), mask);
                for t in 0..T {
                    sums[t] = _mm512_dpbusd_epi32(sums[t], high, four(a[t], v + 4));
                }
            }
            floats(sums)
        }
    }
    #[inline(always)]
    fn dots_i8<const T: usize>(codes: [&[u8; 256]; 2], a: [&Codes; T]) -> [Self; T] {
        signed::<T, 0, 8>(codes, a)
    }
    #[inline(always)]
    fn halves_i8<const T: usize>(codes: [&[u8; 256]; 2], a: [&Codes; T]) -> [[Self; T]; 2] {
        [signed::<T, 0, 4>(codes, a), signed::<T, 4, 8>(codes, a)]
    }
}

/// The instruction for products of bfloat16.
#[derive(Debug)]
pub struct Native;

impl Pairs<F32x16, 2> for Native {
    type Weights = F32x16;
    type Activations = u32;
    #[inline(always)]
    fn choose<'a>(pairs: &'a [u32], _: &'a [[f32; 2]]) -> &'a [u32] {
        pairs
    }
    #[inline(always)]
    fn columns(even: [&[u16; 8]; 2], odd: [&[u16; 8]; 2]) -> F32x16 {
        let both = |[a, b]: [&[u16; 8]; 2]| halves([bytemuck::cast_ref(a), bytemuck::cast_ref(b)]);
        let (even, odd) = (both(even), both(odd));
        // SAFETY: see the head of the file.
        unsafe {
            let high = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(odd));
            F32x16(_mm512_castsi512_ps(_mm512_or_si512(_mm512_cvtepu16_epi32(even), high)))
        }
    }
    #[inline(always)]
    fn words(bits: F32x16) -> F32x16 {
        bits
    }
    #[inline(always)]
    fn add<const T: usize>(sums: &mut [F32x16; T], weights: F32x16, x: [u32; T]) {
        // SAFETY: see the head of the file; both are 512 bits, of which every pattern is 32 bfloat16.
        unsafe {
            let weights: __m512bh = std::mem::transmute(weights.0);
            for t in 0..T {
                let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(x[t] as i32));
                sums[t] = F32x16(_mm512_dpbf16_ps(sums[t].0, weights, x));
            }
        }
    }
}
