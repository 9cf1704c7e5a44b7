//! GGUF's quantized blocks, decoded: the one place that knows how they are laid out.
//!
//! Every format comes apart into runs of 32 elements with integer codes and `value = scale × code + min`. Layouts follow
//! ggml's `ggml-common.h` and `ggml-quants.c` (as data: this is our own decoder).

use half::f16;

use crate::dtype::WeightType;

/// Thirty-two elements of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Block32 {
    /// Integer codes; 0..=15 for the 4-bit formats, else within -128..=127.
    pub codes: [i8; 32],
    /// Scales of the elements 0..16 and 16..32 (equal but for Q6_K).
    pub scales: [f32; 2],
    /// Added to every element.
    pub min: f32,
}

impl Block32 {
    /// The value of element `i`.
    pub fn value(&self, i: usize) -> f32 {
        self.scales[i / 16] * f32::from(self.codes[i]) + self.min
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Low nibbles are elements 0..16, high nibbles 16..32.
fn nibbles(bytes: &[u8]) -> [i8; 32] {
    std::array::from_fn(|i| if i < 16 { (bytes[i] & 15) as i8 } else { (bytes[i - 16] >> 4) as i8 })
}

/// As [`nibbles`], with the fifth bits in a little-endian u32.
fn nibbles_and_fifth(high: &[u8], bytes: &[u8]) -> [i8; 32] {
    let fifth = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
    let low = nibbles(bytes);
    std::array::from_fn(|i| low[i] | (((fifth >> i) & 1) << 4) as i8)
}

/// The 6-bit scale and minimum of run `j` of 8 in a K-quant's 12 bytes.
fn k_scale(s: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        ((s[j + 4] & 15) | ((s[j - 4] >> 6) << 4), (s[j + 4] >> 4) | ((s[j] >> 6) << 4))
    };
    (f32::from(scale), f32::from(min))
}

/// Decodes elements `32 × run .. 32 × run + 32` of a stored row of the quantized type `ty`.
///
/// # Panics
/// If `row` is shorter than that, or `ty` is a float type.
pub fn decode(ty: WeightType, row: &[u8], run: usize) -> Block32 {
    let runs = ty.block_elems() / 32;
    assert!(runs > 0, "{ty} has no blocks");
    let block = &row[run / runs * ty.block_bytes()..][..ty.block_bytes()];
    let j = run % runs;
    let simple = |codes, scale, min| Block32 { codes, scales: [scale; 2], min };
    match ty {
        WeightType::Q4_0 => {
            let d = half_at(block, 0);
            simple(nibbles(&block[2..]), d, -8.0 * d)
        }
        WeightType::Q4_1 => simple(nibbles(&block[4..]), half_at(block, 0), half_at(block, 2)),
        WeightType::Q5_0 => {
            simple(nibbles_and_fifth(&block[2..6], &block[6..]).map(|c| c - 16), half_at(block, 0), 0.0)
        }
        WeightType::Q5_1 => {
            simple(nibbles_and_fifth(&block[4..8], &block[8..]), half_at(block, 0), half_at(block, 2))
        }
        WeightType::Q8_0 => simple(std::array::from_fn(|i| block[2 + i] as i8), half_at(block, 0), 0.0),
        WeightType::Q4_K => {
            let (scale, min) = k_scale(&block[4..16], j);
            let bytes = &block[16 + j / 2 * 32..][..32];
            let codes = std::array::from_fn(|i| ((bytes[i] >> (j % 2 * 4)) & 15) as i8);
            simple(codes, half_at(block, 0) * scale, -(half_at(block, 2) * min))
        }
        WeightType::Q5_K => {
            let (scale, min) = k_scale(&block[4..16], j);
            let (high, bytes) = (&block[16..48], &block[48 + j / 2 * 32..][..32]);
            let codes = std::array::from_fn(|i| {
                (((bytes[i] >> (j % 2 * 4)) & 15) | (((high[i] >> j) & 1) << 4)) as i8
            });
            simple(codes, half_at(block, 0) * scale, -(half_at(block, 2) * min))
        }
        WeightType::Q6_K => {
            // Two halves of 128 elements; in each, runs 0 and 1 are low nibbles, 2 and 3 high ones.
            let (half, quarter) = (j / 4, j % 4);
            let low = &block[half * 64 + quarter % 2 * 32..][..32];
            let high = &block[128 + half * 32..][..32];
            let codes = std::array::from_fn(|i| {
                let nibble = (low[i] >> (quarter / 2 * 4)) & 15;
                (nibble | (((high[i] >> (quarter * 2)) & 3) << 4)) as i8 - 32
            });
            let scales = &block[192 + half * 8 + quarter * 2..][..2];
            let d = half_at(block, 208);
            Block32 {
                codes,
                scales: [d * f32::from(scales[0] as i8), d * f32::from(scales[1] as i8)],
                min: 0.0,
            }
        }
        WeightType::F32 | WeightType::F16 | WeightType::BF16 => unreachable!("refused above"),
    }
}
