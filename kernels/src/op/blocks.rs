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

#[inline(always)]
fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Thirty-two bytes on which the same is done, eight at a time. No step carries from one byte to another.
#[derive(Clone, Copy)]
struct Bytes([u64; 4]);

/// Eight times the same byte.
const fn each(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

impl Bytes {
    #[inline(always)]
    fn at(bytes: &[u8]) -> Self {
        Self(bytemuck::cast::<[u8; 32], _>(*bytes.first_chunk().expect("a block holds its codes")))
    }

    /// Low nibbles are elements 0..16, high nibbles 16..32.
    #[inline(always)]
    fn nibbles(bytes: &[u8]) -> Self {
        let [a, b]: [u64; 2] =
            bytemuck::cast::<[u8; 16], _>(*bytes.first_chunk().expect("a block holds its codes"));
        Self([a, b, a >> 4, b >> 4].map(|bytes| bytes & each(15)))
    }

    /// The bits of a little-endian u32, a byte for each.
    #[inline(always)]
    fn bits(bits: &[u8]) -> Self {
        let spread = |byte: u8| {
            let own = (u64::from(byte) * 0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
            (((own + 0x7f7f_7f7f_7f7f_7f7f) >> 7) & 0x0101_0101_0101_0101).to_le_bytes()
        };
        Self(bytemuck::cast([spread(bits[0]), spread(bits[1]), spread(bits[2]), spread(bits[3])]))
    }

    /// `width` bits of each byte, from bit `from` on.
    #[inline(always)]
    fn field(self, from: usize, width: u32) -> Self {
        Self(self.0.map(|bytes| (bytes >> from) & each((1 << width) - 1)))
    }

    /// With `high`, whose bytes are below 16, from bit 4 on.
    #[inline(always)]
    fn with_high(self, high: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] | high.0[i] << 4))
    }

    /// Of bytes below 128, each less `offset`, which is below 128 too.
    #[inline(always)]
    fn minus(self, offset: u8) -> Self {
        // The borrow stays inside a byte whose top bit is set.
        Self(self.0.map(|bytes| ((bytes | each(128)) - each(offset)) ^ each(128)))
    }

    #[inline(always)]
    fn codes(self) -> [i8; 32] {
        bytemuck::cast(self.0)
    }
}

/// The 6-bit scale and minimum of run `j` of 8 in a K-quant's 12 bytes.
#[inline(always)]
pub(crate) fn k_steps(s: &[u8], j: usize) -> [u8; 2] {
    if j < 4 {
        [s[j] & 63, s[j + 4] & 63]
    } else {
        [(s[j + 4] & 15) | ((s[j - 4] >> 6) << 4), (s[j + 4] >> 4) | ((s[j] >> 6) << 4)]
    }
}

/// Decodes elements `32 × run .. 32 × run + 32` of a stored row of the quantized type `ty`.
///
/// # Panics
/// If `row` is shorter than that, or `ty` is a float type.
#[inline(always)]
pub fn decode(ty: WeightType, row: &[u8], run: usize) -> Block32 {
    let runs = ty.block_elems() / 32;
    assert!(runs > 0, "{ty} has no blocks");
    let block = &row[run / runs * ty.block_bytes()..][..ty.block_bytes()];
    let j = run % runs;
    let simple = |codes: Bytes, scale, min| Block32 { codes: codes.codes(), scales: [scale; 2], min };
    match ty {
        WeightType::Q4_0 => {
            let d = half_at(block, 0);
            simple(Bytes::nibbles(&block[2..]), d, -8.0 * d)
        }
        WeightType::Q4_1 => simple(Bytes::nibbles(&block[4..]), half_at(block, 0), half_at(block, 2)),
        WeightType::Q5_0 => {
            let codes = Bytes::nibbles(&block[6..]).with_high(Bytes::bits(&block[2..6]));
            simple(codes.minus(16), half_at(block, 0), 0.0)
        }
        WeightType::Q5_1 => {
            let codes = Bytes::nibbles(&block[8..]).with_high(Bytes::bits(&block[4..8]));
            simple(codes, half_at(block, 0), half_at(block, 2))
        }
        WeightType::Q8_0 => simple(Bytes::at(&block[2..]), half_at(block, 0), 0.0),
        WeightType::Q4_K => {
            let [scale, min] = k_steps(&block[4..16], j).map(f32::from);
            let codes = Bytes::at(&block[16 + j / 2 * 32..]).field(j % 2 * 4, 4);
            simple(codes, half_at(block, 0) * scale, -(half_at(block, 2) * min))
        }
        WeightType::Q5_K => {
            let [scale, min] = k_steps(&block[4..16], j).map(f32::from);
            let low = Bytes::at(&block[48 + j / 2 * 32..]).field(j % 2 * 4, 4);
            let codes = low.with_high(Bytes::at(&block[16..48]).field(j, 1));
            simple(codes, half_at(block, 0) * scale, -(half_at(block, 2) * min))
        }
        WeightType::Q6_K => {
            // Two halves of 128 elements; in each, runs 0 and 1 are low nibbles, 2 and 3 high ones.
            let (half, quarter) = (j / 4, j % 4);
            let low = Bytes::at(&block[half * 64 + quarter % 2 * 32..]).field(quarter / 2 * 4, 4);
            let codes = low.with_high(Bytes::at(&block[128 + half * 32..]).field(quarter * 2, 2)).minus(32);
            let scales = &block[192 + half * 8 + quarter * 2..][..2];
            let d = half_at(block, 208);
            Block32 {
                codes: codes.codes(),
                scales: [d * f32::from(scales[0] as i8), d * f32::from(scales[1] as i8)],
                min: 0.0,
            }
        }
        WeightType::F32 | WeightType::F16 | WeightType::BF16 => unreachable!("refused above"),
    }
}
