//! Eight or sixteen floats at a time: the vocabulary in which the kernels are written.
//!
//! [`Lanes`] has two implementations that agree bit for bit: AVX2 (`avx2.rs`) and plain Rust (`portable.rs`). Each method is
//! one rounding (or none), so an algorithm written over it has one result. What is written over [`Wide`], sixteen floats, takes two
//! of these or one register of AVX-512 (`avx512.rs`). Products, where nearly all the time goes, are written over [`PanelLanes`],
//! which AVX-512 has too.

use bytemuck::{Pod, Zeroable};

/// 32 values within ±127, and their sums over columns 0..16 and 16..32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Codes {
    pub(crate) totals: [i32; 2],
    pub(crate) codes: [i8; 32],
}

/// Floats side by side: what is done with each of them alone, whatever their number is.
pub trait Floats: Copy {
    /// All lanes `x`.
    fn splat(x: f32) -> Self;
    /// `self + other`.
    fn add(self, other: Self) -> Self;
    /// `self - other`.
    fn sub(self, other: Self) -> Self;
    /// `self * other`.
    fn mul(self, other: Self) -> Self;
    /// `self / other`.
    fn div(self, other: Self) -> Self;
    /// The greater; `other` where either is NaN.
    fn max(self, other: Self) -> Self;
    /// The lesser; `other` where either is NaN.
    fn min(self, other: Self) -> Self;
    /// `self * b + c` with one rounding.
    fn fma(self, b: Self, c: Self) -> Self;
    /// To the nearest integer, ties to even.
    fn round(self) -> Self;
    /// 2^self for integers in -126..=127.
    fn exp2_integer(self) -> Self;
    /// Whether any lane is above that of `other`; none is where either is NaN.
    fn any_above(self, other: Self) -> bool;

    /// `self · 2^n` for integers in -126..=127.
    #[inline(always)]
    fn times_exp2(self, n: Self) -> Self {
        self.mul(n.exp2_integer())
    }

    /// 2^self for what is not above 0, within 3 parts in 10^7, and exactly 1 of 0; clamped below at 2^-126, which is next to nothing.
    ///
    /// A polynomial of degree 5 with constant 1, fitted by least squares whose weights were moved until its relative error was about
    /// the same at all its peaks over half a unit on either side of 0: 9.2e-8, and 1.7e-7 with the roundings of f32.
    #[inline(always)]
    fn exp2_of_negative(self) -> Self {
        #[allow(clippy::approx_constant, reason = "near it, as the first coefficient must be, and not it")]
        const BEFORE_LAST: [f32; 4] = [9.671_513e-3, 5.550_733_6e-2, 0.240_222_42, 0.693_147];
        let x = self.max(Self::splat(-126.0));
        let n = x.round();
        let r = x.sub(n);
        let mut p = Self::splat(1.326_472_7e-3);
        for coefficient in BEFORE_LAST {
            p = p.fma(r, Self::splat(coefficient));
        }
        p.fma(r, Self::splat(1.0)).times_exp2(n)
    }

    /// e^self, within 2 units in the last place; 0 below about -87.3, infinity never (clamped at e^88).
    ///
    /// Cody and Waite's reduction (Software Manual for the Elementary Functions, 1980) and a degree 6 polynomial.
    #[inline(always)]
    fn exp(self) -> Self {
        let lowest = Self::splat(-87.336_54);
        let x = self.min(Self::splat(88.0)).max(lowest);
        let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
        let r = n.fma(Self::splat(-0.693_359_4), x);
        let r = n.fma(Self::splat(2.121_944_4e-4), r);
        let mut p = Self::splat(1.0 / 720.0);
        for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = p.fma(r, Self::splat(coefficient));
        }
        p.times_exp2(n)
    }

    /// e^self - 1, within a few units in the last place also near 0; clamped as [`exp`](Self::exp).
    #[inline(always)]
    fn exp_m1(self) -> Self {
        let x = self.min(Self::splat(88.0)).max(Self::splat(-87.336_54));
        let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
        let r = n.fma(Self::splat(-0.693_359_4), x);
        let r = n.fma(Self::splat(2.121_944_4e-4), r);
        let mut p = Self::splat(1.0 / 5040.0);
        for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5] {
            p = p.fma(r, Self::splat(coefficient));
        }
        // e^r - 1 = r + r²p, and 2^n - 1 is exact where it matters.
        let small = p.mul(r).fma(r, r);
        let power = n.exp2_integer();
        small.fma(power, power.sub(Self::splat(1.0)))
    }

    /// tanh self, within a few units in the last place.
    #[inline(always)]
    fn tanh(self) -> Self {
        // Beyond 10 it is 1 in f32.
        let x = self.min(Self::splat(10.0)).max(Self::splat(-10.0));
        let e = x.add(x).exp_m1();
        e.div(e.add(Self::splat(2.0)))
    }
}

/// Eight f32 lanes and the integer products that end in them.
pub trait Lanes: Floats {
    /// Reads 8 floats.
    fn load(from: &[f32; 8]) -> Self;
    /// Reads 8 IEEE half floats, given by their bits.
    fn load_f16(from: &[u16; 8]) -> Self;
    /// Reads 8 bfloat16, given by their bits.
    fn load_bf16(from: &[u16; 8]) -> Self;
    /// Eight rows become lanes: of each, four words of four bytes in turn, as they are.
    fn words(rows: [&[u8; 16]; 8]) -> [Self; 4];
    /// The half floats that each lane's bits are, the low ones first.
    fn pair_f16(self) -> [Self; 2];
    /// The bfloat16 that each lane's bits are, the low ones first.
    fn pair_bf16(self) -> [Self; 2];
    /// Reads 8 signed bytes.
    fn load_i8(from: &[i8; 8]) -> Self;
    /// Writes 8 floats.
    fn store(self, to: &mut [f32; 8]);
    /// Rounds to half floats (to nearest, ties to even).
    fn store_f16(self, to: &mut [u16; 8]);
    /// The nearest integers (ties to even) to 32 values within ±127.
    fn to_codes(values: [Self; 4]) -> Codes;

    /// Exact sums, for each of `T` rows of activations `a` (each within ±127) and each of eight rows of weights, of `P` times eight,
    /// of their products over 32 columns. Weights are unsigned 4-bit codes: vector `v` holds columns `4v..4v + 4` of the eight rows in its low
    /// halves of bytes, and columns 16 further on in the high ones.
    fn dots_u4<const P: usize, const T: usize>(codes: [&[u8; 128]; P], a: [&[i8; 32]; T]) -> [[Self; P]; T];
    /// The same of signed 8-bit codes: vector `v` holds columns `4v..4v + 4` of the eight rows.
    fn dots_i8<const P: usize, const T: usize>(codes: [&[u8; 256]; P], a: [&[i8; 32]; T]) -> [[Self; P]; T];
    /// The same over columns 0..16 and 16..32.
    fn halves_i8<const P: usize, const T: usize>(
        codes: [&[u8; 256]; P],
        a: [&[i8; 32]; T],
    ) -> [[[Self; P]; T]; 2];

    /// Sum of the lanes: ((0+4)+(2+6)) + ((1+5)+(3+7)).
    #[inline(always)]
    fn sum(self) -> f32 {
        let mut l = [0.0; 8];
        self.store(&mut l);
        ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
    }

    /// Greatest of the lanes.
    #[inline(always)]
    fn greatest(self) -> f32 {
        let mut l = [0.0; 8];
        self.store(&mut l);
        l.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

/// Sixteen floats: two [`Lanes`] beside each other, in one register where there are such. What is summed is summed as in eight.
pub trait Wide: Floats {
    /// One half.
    type Half: Lanes;
    /// Whether they are one register, of which there are 32.
    const ONE_REGISTER: bool;
    /// Reads 16 floats.
    fn load(from: &[f32; 16]) -> Self;
    /// Reads 16 IEEE half floats, given by their bits.
    fn load_f16(from: &[u16; 16]) -> Self;
    /// Reads 16 signed bytes.
    fn load_i8(from: &[i8; 16]) -> Self;
    /// Both halves.
    fn of(halves: [Self::Half; 2]) -> Self;
    /// Both halves.
    fn halves(self) -> [Self::Half; 2];
    /// Writes 16 floats.
    fn store(self, to: &mut [f32; 16]);
    /// Rounds to half floats (to nearest, ties to even).
    fn store_f16(self, to: &mut [u16; 16]);
    /// The nearest integers (ties to even) to 32 values within ±127.
    fn to_codes(values: [Self; 2]) -> Codes;

    /// Sum of the lanes: of the halves' sum, as [`Lanes::sum`].
    #[inline(always)]
    fn sum(self) -> f32 {
        let [low, high] = self.halves();
        Floats::add(low, high).sum()
    }

    /// Greatest of the lanes.
    #[inline(always)]
    fn greatest(self) -> f32 {
        let [low, high] = self.halves();
        low.max(high).greatest()
    }
}

/// Both halves of an array.
#[inline(always)]
fn halves_of<T>(from: &[T; 16]) -> [&[T; 8]; 2] {
    let (halves, _) = from.as_chunks::<8>();
    [&halves[0], &halves[1]]
}

/// Both halves of an array, to be written.
#[inline(always)]
fn halves_of_mut<T>(to: &mut [T; 16]) -> [&mut [T; 8]; 2] {
    let [low, high] = to.as_chunks_mut::<8>().0 else { unreachable!("twice eight") };
    [low, high]
}

/// One after the other, for machines with eight lanes.
impl<L: Lanes> Floats for [L; 2] {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        [L::splat(x); 2]
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        [self[0].add(other[0]), self[1].add(other[1])]
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        [self[0].sub(other[0]), self[1].sub(other[1])]
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        [self[0].mul(other[0]), self[1].mul(other[1])]
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        [self[0].div(other[0]), self[1].div(other[1])]
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        [self[0].max(other[0]), self[1].max(other[1])]
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        [self[0].min(other[0]), self[1].min(other[1])]
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        [self[0].fma(b[0], c[0]), self[1].fma(b[1], c[1])]
    }
    #[inline(always)]
    fn round(self) -> Self {
        [self[0].round(), self[1].round()]
    }
    #[inline(always)]
    fn exp2_integer(self) -> Self {
        [self[0].exp2_integer(), self[1].exp2_integer()]
    }
    #[inline(always)]
    fn any_above(self, other: Self) -> bool {
        self[0].any_above(other[0]) | self[1].any_above(other[1])
    }
}

impl<L: Lanes> Wide for [L; 2] {
    type Half = L;
    const ONE_REGISTER: bool = false;
    #[inline(always)]
    fn load(from: &[f32; 16]) -> Self {
        let [low, high] = halves_of(from);
        [L::load(low), L::load(high)]
    }
    #[inline(always)]
    fn load_f16(from: &[u16; 16]) -> Self {
        let [low, high] = halves_of(from);
        [L::load_f16(low), L::load_f16(high)]
    }
    #[inline(always)]
    fn load_i8(from: &[i8; 16]) -> Self {
        let [low, high] = halves_of(from);
        [L::load_i8(low), L::load_i8(high)]
    }
    #[inline(always)]
    fn of(halves: [L; 2]) -> Self {
        halves
    }
    #[inline(always)]
    fn halves(self) -> [L; 2] {
        self
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; 16]) {
        let [low, high] = halves_of_mut(to);
        self[0].store(low);
        self[1].store(high);
    }
    #[inline(always)]
    fn store_f16(self, to: &mut [u16; 16]) {
        let [low, high] = halves_of_mut(to);
        self[0].store_f16(low);
        self[1].store_f16(high);
    }
    #[inline(always)]
    fn to_codes([a, b]: [Self; 2]) -> Codes {
        L::to_codes([a[0], a[1], b[0], b[1]])
    }
}

/// Lanes that are the rows of `P` panels beside each other: what products are written over, with one result whatever `P` is.
pub trait PanelLanes<const P: usize>: Copy {
    /// Rows of activations that share the unpacked weights of a block: with more, sums leave the registers. One of 4 and 8.
    const TILE: usize;
    /// Rows of activations that share weights of floats. One of 3, 4 and 8.
    const FLOAT_TILE: usize;
    /// All lanes `x`.
    fn splat(x: f32) -> Self;
    /// Reads the floats of each panel.
    fn load(from: [&[f32; 8]; P]) -> Self;
    /// Reads the half floats of each panel, given by their bits.
    fn load_f16(from: [&[u16; 8]; P]) -> Self;
    /// Reads the bfloat16 of each panel, given by their bits.
    fn load_bf16(from: [&[u16; 8]; P]) -> Self;
    /// Reads floats that are bytes in the machine's order.
    fn load_bytes(from: [&[u8; 32]; P]) -> Self;
    /// Reads half floats that are bytes in the machine's order.
    fn load_f16_bytes(from: [&[u8; 16]; P]) -> Self;
    /// [`Lanes::words`] of the rows of each panel.
    fn words(rows: [[&[u8; 16]; 8]; P]) -> [Self; 4];
    /// The half floats that each lane's bits are, the low ones first.
    fn pair_f16(self) -> [Self; 2];
    /// The bfloat16 that each lane's bits are, the low ones first.
    fn pair_bf16(self) -> [Self; 2];
    /// Writes the lanes of one panel.
    fn store(self, panel: usize, to: &mut [f32; 8]);
    /// `self + other`.
    fn add(self, other: Self) -> Self;
    /// `self * other`.
    fn mul(self, other: Self) -> Self;
    /// `self * b + c` with one rounding.
    fn fma(self, b: Self, c: Self) -> Self;
    /// [`Lanes::dots_u4`] of each panel.
    fn dots_u4<const T: usize>(codes: [&[u8; 128]; P], a: [&Codes; T]) -> [Self; T];
    /// [`Lanes::dots_i8`] of each panel.
    fn dots_i8<const T: usize>(codes: [&[u8; 256]; P], a: [&Codes; T]) -> [Self; T];
    /// [`Lanes::halves_i8`] of each panel.
    fn halves_i8<const T: usize>(codes: [&[u8; 256]; P], a: [&Codes; T]) -> [[Self; T]; 2];
}

/// The codes alone.
#[inline(always)]
fn codes_of<'a, const T: usize>(a: [&'a Codes; T]) -> [&'a [i8; 32]; T] {
    const NONE: &[i8; 32] = &[0; 32];
    let mut codes: [&'a [i8; 32]; T] = [NONE; T];
    for t in 0..T {
        codes[t] = &a[t].codes;
    }
    codes
}

impl<L: Lanes> PanelLanes<1> for L {
    const TILE: usize = 4;
    const FLOAT_TILE: usize = 4;
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Floats::splat(x)
    }
    #[inline(always)]
    fn load([from]: [&[f32; 8]; 1]) -> Self {
        Lanes::load(from)
    }
    #[inline(always)]
    fn load_f16([from]: [&[u16; 8]; 1]) -> Self {
        Lanes::load_f16(from)
    }
    #[inline(always)]
    fn load_bf16([from]: [&[u16; 8]; 1]) -> Self {
        Lanes::load_bf16(from)
    }
    #[inline(always)]
    fn load_bytes([from]: [&[u8; 32]; 1]) -> Self {
        Lanes::load(&std::array::from_fn(|i| f32::from_ne_bytes(std::array::from_fn(|j| from[4 * i + j]))))
    }
    #[inline(always)]
    fn load_f16_bytes([from]: [&[u8; 16]; 1]) -> Self {
        Lanes::load_f16(&std::array::from_fn(|i| u16::from_ne_bytes([from[2 * i], from[2 * i + 1]])))
    }
    #[inline(always)]
    fn words([rows]: [[&[u8; 16]; 8]; 1]) -> [Self; 4] {
        Lanes::words(rows)
    }
    #[inline(always)]
    fn pair_f16(self) -> [Self; 2] {
        Lanes::pair_f16(self)
    }
    #[inline(always)]
    fn pair_bf16(self) -> [Self; 2] {
        Lanes::pair_bf16(self)
    }
    #[inline(always)]
    fn store(self, _: usize, to: &mut [f32; 8]) {
        Lanes::store(self, to);
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Floats::add(self, other)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Floats::mul(self, other)
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        Floats::fma(self, b, c)
    }
    #[inline(always)]
    fn dots_u4<const T: usize>(codes: [&[u8; 128]; 1], a: [&Codes; T]) -> [Self; T] {
        alone(Lanes::dots_u4(codes, codes_of(a)))
    }
    #[inline(always)]
    fn dots_i8<const T: usize>(codes: [&[u8; 256]; 1], a: [&Codes; T]) -> [Self; T] {
        alone(Lanes::dots_i8(codes, codes_of(a)))
    }
    #[inline(always)]
    fn halves_i8<const T: usize>(codes: [&[u8; 256]; 1], a: [&Codes; T]) -> [[Self; T]; 2] {
        let [low, high] = Lanes::halves_i8(codes, codes_of(a));
        [alone(low), alone(high)]
    }
}

/// What there is one of, each.
#[inline(always)]
fn alone<L: Lanes, const T: usize>(sums: [[L; 1]; T]) -> [L; T] {
    let mut all = [L::splat(0.0); T];
    for t in 0..T {
        all[t] = sums[t][0];
    }
    all
}

/// Two panels in two registers: what is read of the activations serves both.
impl<L: Lanes> PanelLanes<2> for [L; 2] {
    const TILE: usize = 4;
    const FLOAT_TILE: usize = 3;
    #[inline(always)]
    fn splat(x: f32) -> Self {
        [L::splat(x); 2]
    }
    #[inline(always)]
    fn load(from: [&[f32; 8]; 2]) -> Self {
        [Lanes::load(from[0]), Lanes::load(from[1])]
    }
    #[inline(always)]
    fn load_f16(from: [&[u16; 8]; 2]) -> Self {
        [Lanes::load_f16(from[0]), Lanes::load_f16(from[1])]
    }
    #[inline(always)]
    fn load_bf16(from: [&[u16; 8]; 2]) -> Self {
        [Lanes::load_bf16(from[0]), Lanes::load_bf16(from[1])]
    }
    #[inline(always)]
    fn load_bytes([a, b]: [&[u8; 32]; 2]) -> Self {
        [PanelLanes::load_bytes([a]), PanelLanes::load_bytes([b])]
    }
    #[inline(always)]
    fn load_f16_bytes([a, b]: [&[u8; 16]; 2]) -> Self {
        [PanelLanes::load_f16_bytes([a]), PanelLanes::load_f16_bytes([b])]
    }
    #[inline(always)]
    fn words(rows: [[&[u8; 16]; 8]; 2]) -> [Self; 4] {
        let ([a, b, c, d], [e, f, g, h]) = (Lanes::words(rows[0]), Lanes::words(rows[1]));
        [[a, e], [b, f], [c, g], [d, h]]
    }
    #[inline(always)]
    fn pair_f16(self) -> [Self; 2] {
        let ([a, b], [c, d]) = (Lanes::pair_f16(self[0]), Lanes::pair_f16(self[1]));
        [[a, c], [b, d]]
    }
    #[inline(always)]
    fn pair_bf16(self) -> [Self; 2] {
        let ([a, b], [c, d]) = (Lanes::pair_bf16(self[0]), Lanes::pair_bf16(self[1]));
        [[a, c], [b, d]]
    }
    #[inline(always)]
    fn store(self, panel: usize, to: &mut [f32; 8]) {
        Lanes::store(self[panel], to);
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Floats::add(self, other)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Floats::mul(self, other)
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        Floats::fma(self, b, c)
    }
    #[inline(always)]
    fn dots_u4<const T: usize>(codes: [&[u8; 128]; 2], a: [&Codes; T]) -> [Self; T] {
        Lanes::dots_u4(codes, codes_of(a))
    }
    #[inline(always)]
    fn dots_i8<const T: usize>(codes: [&[u8; 256]; 2], a: [&Codes; T]) -> [Self; T] {
        Lanes::dots_i8(codes, codes_of(a))
    }
    #[inline(always)]
    fn halves_i8<const T: usize>(codes: [&[u8; 256]; 2], a: [&Codes; T]) -> [[Self; T]; 2] {
        Lanes::halves_i8(codes, codes_of(a))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{portable, simd};

    simd! { fn exp2_of(x: &[f32; 8], out: &mut [f32; 8]) => exp2_body }

    #[inline(always)]
    fn exp2_body<L: Lanes>(x: &[f32; 8], out: &mut [f32; 8]) {
        L::load(x).exp2_of_negative().store(out);
    }

    crate::cpu::simd_wide! { fn exp2_wide(x: &[f32; 16], out: &mut [f32; 16]) => exp2_wide_body }

    #[inline(always)]
    fn exp2_wide_body<W: Wide>(x: &[f32; 16], out: &mut [f32; 16]) {
        W::load(x).exp2_of_negative().store(out);
    }

    #[test]
    fn exp2_agrees_with_double_precision_and_across_lanes() {
        for step in 0..30_000u32 {
            let x: [f32; 8] = std::array::from_fn(|i| (step * 8 + i as u32) as f32 * -5.3e-4);
            let (mut out, mut plain, mut wide) = ([0.0; 8], [0.0; 8], [0.0; 16]);
            exp2_of(&x, &mut out);
            exp2_body::<portable::F32x8>(&x, &mut plain);
            exp2_wide(&std::array::from_fn(|i| x[i % 8]), &mut wide);
            assert_eq!(out.map(f32::to_bits), plain.map(f32::to_bits));
            assert_eq!(out.map(f32::to_bits), std::array::from_fn(|i| wide[i + 8].to_bits()));
            for (x, got) in x.into_iter().zip(out) {
                let exact = f64::from(x.max(-126.0)).exp2();
                assert!((f64::from(got) - exact).abs() <= 3e-7 * exact, "{x}: {got} {exact}");
            }
        }
        let mut out = [0.5; 8];
        exp2_of(&[0.0, f32::NEG_INFINITY, -126.0, -1e30, -0.0, -1.0, -2.0, -125.5], &mut out);
        assert_eq!(out[..7], [1.0, 1.175_494_4e-38, 1.175_494_4e-38, 1.175_494_4e-38, 1.0, 0.5, 0.25]);
    }

    simd! { fn above(x: &[f32; 8], y: &[f32; 8]) -> bool => above_body }

    #[inline(always)]
    fn above_body<L: Lanes>(x: &[f32; 8], y: &[f32; 8]) -> bool {
        L::load(x).any_above(L::load(y))
    }

    crate::cpu::simd_wide! { fn above_wide(x: &[f32; 16], y: &[f32; 16]) -> bool => above_wide_body }

    #[inline(always)]
    fn above_wide_body<W: Wide>(x: &[f32; 16], y: &[f32; 16]) -> bool {
        W::load(x).any_above(W::load(y))
    }

    #[test]
    fn any_lane_may_be_the_one_above() {
        for lane in 0..16 {
            for (x, is_above) in
                [(1.5, true), (1.0, false), (0.5, false), (f32::NAN, false), (f32::INFINITY, true)]
            {
                let (mut all, other) = ([f32::NEG_INFINITY; 16], [1.0; 16]);
                all[lane] = x;
                assert_eq!(above_wide(&all, &other), is_above, "{x} in lane {lane}");
                let (half, of) = (all.as_chunks().0[lane / 8], [1.0; 8]);
                assert_eq!(above(&half, &of), is_above, "{x} in lane {lane}");
                assert_eq!(above_body::<portable::F32x8>(&half, &of), is_above, "{x} in lane {lane}");
            }
        }
    }

    simd! { fn tanh_of(x: &[f32; 8], out: &mut [f32; 8]) => tanh_body }

    #[inline(always)]
    fn tanh_body<L: Lanes>(x: &[f32; 8], out: &mut [f32; 8]) {
        L::load(x).tanh().store(out);
    }

    #[test]
    fn tanh_agrees_with_double_precision_and_across_lanes() {
        for step in 0..4000u32 {
            let x: [f32; 8] = std::array::from_fn(|i| {
                let magnitude = 1e-6 * 1.0045f32.powi((step + i as u32) as i32 % 4000);
                if i % 2 == 0 { magnitude } else { -magnitude }
            });
            let (mut out, mut plain) = ([0.0; 8], [0.0; 8]);
            tanh_of(&x, &mut out);
            tanh_body::<portable::F32x8>(&x, &mut plain);
            assert_eq!(out.map(f32::to_bits), plain.map(f32::to_bits));
            for (x, got) in x.into_iter().zip(out) {
                let exact = f64::from(x).tanh();
                assert!((f64::from(got) - exact).abs() <= 4e-7 * exact.abs(), "{x}: {got} {exact}");
            }
        }
    }
}
