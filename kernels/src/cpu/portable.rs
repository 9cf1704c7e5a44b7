//! Lanes in plain Rust: the specification of the others, and the only ones where there is no AVX2.

use half::{bf16, f16};

use super::lanes::Lanes;

/// Eight floats in an array.
#[derive(Debug, Clone, Copy)]
pub struct F32x8([f32; 8]);

impl F32x8 {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

/// Sum over the vectors `which` of codes × activations, for each row.
fn dot(codes: &[[i8; 32]; 8], a: &[i8; 32], which: std::ops::Range<usize>) -> F32x8 {
    F32x8(std::array::from_fn(|row| {
        let mut sum = 0i32;
        for v in which.clone() {
            for i in 0..4 {
                sum += i32::from(codes[v][row * 4 + i]) * i32::from(a[v * 4 + i]);
            }
        }
        sum as f32
    }))
}

impl Lanes for F32x8 {
    type Codes = [i8; 32];

    fn splat(x: f32) -> Self {
        Self([x; 8])
    }
    fn load(from: &[f32; 8]) -> Self {
        Self(*from)
    }
    fn load_f16(from: &[u16; 8]) -> Self {
        Self(from.map(|bits| f16::from_bits(bits).to_f32()))
    }
    fn load_bf16(from: &[u16; 8]) -> Self {
        Self(from.map(|bits| bf16::from_bits(bits).to_f32()))
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
    fn to_codes(values: [Self; 4]) -> ([i8; 32], i32) {
        let codes = std::array::from_fn(|i| values[i / 8].0[i % 8].round_ties_even() as i8);
        (codes, codes.iter().map(|code| i32::from(*code)).sum())
    }
    fn unpack4(from: &[u8; 128]) -> [[i8; 32]; 8] {
        std::array::from_fn(|v| {
            let bytes = &from[v % 4 * 32..][..32];
            std::array::from_fn(|i| if v < 4 { (bytes[i] & 15) as i8 } else { (bytes[i] >> 4) as i8 })
        })
    }
    fn load8(from: &[u8; 256]) -> [[i8; 32]; 8] {
        std::array::from_fn(|v| std::array::from_fn(|i| from[v * 32 + i] as i8))
    }
    fn dot_u4(codes: &[[i8; 32]; 8], a: &[i8; 32]) -> Self {
        dot(codes, a, 0..8)
    }
    fn dot_i8(codes: &[[i8; 32]; 8], a: &[i8; 32]) -> (Self, Self) {
        (dot(codes, a, 0..4), dot(codes, a, 4..8))
    }
    fn dot_i8_whole(codes: &[[i8; 32]; 8], a: &[i8; 32]) -> Self {
        dot(codes, a, 0..8)
    }
}
