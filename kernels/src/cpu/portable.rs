//! Lanes in plain Rust: the specification of the others, and the only ones where there is no AVX2.

use half::{bf16, f16};

use super::lanes::{Codes, Floats, Lanes};

/// Eight floats in an array.
#[derive(Debug, Clone, Copy)]
pub struct F32x8([f32; 8]);

impl F32x8 {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

/// Sum over columns of codes × activations, for each row of weights.
fn dot(code: impl Fn(usize, usize) -> i32, a: &[i8; 32], columns: std::ops::Range<usize>) -> F32x8 {
    F32x8(std::array::from_fn(|row| {
        columns.clone().map(|column| code(row, column) * i32::from(a[column])).sum::<i32>() as f32
    }))
}

/// Where the code of a row's column is.
fn at(row: usize, column: usize) -> usize {
    column / 4 * 32 + row * 4 + column % 4
}

/// Signed codes times activations.
fn dot_i8(codes: &[u8; 256], a: &[i8; 32], columns: std::ops::Range<usize>) -> F32x8 {
    dot(|row, column| i32::from(codes[at(row, column)] as i8), a, columns)
}

impl Floats for F32x8 {
    fn splat(x: f32) -> Self {
        Self([x; 8])
    }
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }
    fn fma(self, b: Self, c: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].mul_add(b.0[i], c.0[i])))
    }
    fn round(self) -> Self {
        Self(self.0.map(f32::round_ties_even))
    }
    fn exp2_integer(self) -> Self {
        Self(self.0.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23)))
    }
    fn any_above(self, other: Self) -> bool {
        self.0.iter().zip(other.0).any(|(x, y)| *x > y)
    }
}

impl Lanes for F32x8 {
    fn load(from: &[f32; 8]) -> Self {
        Self(*from)
    }
    fn load_f16(from: &[u16; 8]) -> Self {
        Self(from.map(|bits| f16::from_bits(bits).to_f32()))
    }
    fn load_bf16(from: &[u16; 8]) -> Self {
        Self(from.map(|bits| bf16::from_bits(bits).to_f32()))
    }
    fn words(rows: [&[u8; 16]; 8]) -> [Self; 4] {
        let word = |row: usize, i: usize| u32::from_ne_bytes(std::array::from_fn(|b| rows[row][4 * i + b]));
        std::array::from_fn(|i| Self(std::array::from_fn(|row| f32::from_bits(word(row, i)))))
    }
    fn pair_f16(self) -> [Self; 2] {
        let half = |bits: u32| f16::from_bits(bits as u16).to_f32();
        [Self(self.0.map(|x| half(x.to_bits()))), Self(self.0.map(|x| half(x.to_bits() >> 16)))]
    }
    fn pair_bf16(self) -> [Self; 2] {
        let half = |bits: u32| bf16::from_bits(bits as u16).to_f32();
        [Self(self.0.map(|x| half(x.to_bits()))), Self(self.0.map(|x| half(x.to_bits() >> 16)))]
    }
    fn load_i8(from: &[i8; 8]) -> Self {
        Self(from.map(f32::from))
    }
    fn store(self, to: &mut [f32; 8]) {
        *to = self.0;
    }
    fn store_f16(self, to: &mut [u16; 8]) {
        *to = self.0.map(|x| f16::from_f32(x).to_bits());
    }
    fn to_codes(values: [Self; 4]) -> Codes {
        let codes: [i8; 32] = std::array::from_fn(|i| values[i / 8].0[i % 8].round_ties_even() as i8);
        let total = |half: usize| codes[16 * half..][..16].iter().map(|code| i32::from(*code)).sum();
        Codes { totals: [total(0), total(1)], codes }
    }
    fn dots_u4<const P: usize, const T: usize>(codes: [&[u8; 128]; P], a: [&[i8; 32]; T]) -> [[Self; P]; T] {
        let code = |codes: &[u8; 128], row, column| {
            let byte = codes[at(row, column % 16)];
            i32::from(if column < 16 { byte & 15 } else { byte >> 4 })
        };
        a.map(|a| codes.map(|codes| dot(|row, column| code(codes, row, column), a, 0..32)))
    }
    fn dots_i8<const P: usize, const T: usize>(codes: [&[u8; 256]; P], a: [&[i8; 32]; T]) -> [[Self; P]; T] {
        a.map(|a| codes.map(|codes| dot_i8(codes, a, 0..32)))
    }
    fn halves_i8<const P: usize, const T: usize>(
        codes: [&[u8; 256]; P],
        a: [&[i8; 32]; T],
    ) -> [[[Self; P]; T]; 2] {
        [0..16, 16..32].map(|columns| a.map(|a| codes.map(|codes| dot_i8(codes, a, columns.clone()))))
    }
}
