//! Weights in GGUF's blocks as a device holds them (`kernels/cu/blocks.cuh`): a row is planes of codes, then what each block of 32 has
//! beside them, then what eight of these share, so that all of it is read some words at a time. Nothing is rounded on the way.

use half::f16;

use super::WeightKind;
use crate::dtype::WeightType;
use crate::error::KernelError;
use crate::op::blocks::{decode, k_steps};

/// Elements of a block, and of those that share something.
const ELEMENTS: usize = 32;
const SHARERS: usize = 256;
/// Bytes of a plane that are read at once.
const UNIT: usize = 16;

/// How a kind of blocks is laid out: as `Layout` of `kernels/cu/blocks.cuh`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// Bits of a code in the first plane.
    low: usize,
    /// And above, in the second.
    high: usize,
    /// Bytes beside codes of a block.
    scale: usize,
    /// Bytes that eight blocks share.
    shared: usize,
}

impl Layout {
    /// Of a kind that has blocks.
    pub(super) const fn of(kind: WeightKind) -> Option<Self> {
        let (low, high, scale, shared) = match kind {
            WeightKind::Q8_0 => (8, 0, 2, 0),
            WeightKind::Q4_0 => (4, 0, 2, 0),
            WeightKind::Q4_1 => (4, 0, 4, 0),
            WeightKind::Q5_1 => (4, 1, 4, 0),
            WeightKind::Q4_K => (4, 0, 2, 4),
            WeightKind::Q5_K => (4, 1, 2, 4),
            WeightKind::Q6_K => (4, 2, 2, 4),
            WeightKind::F32 | WeightKind::Bf16 | WeightKind::F16 | WeightKind::F8 => return None,
        };
        Some(Self { low, high, scale, shared })
    }

    /// Bytes of the codes of a row.
    pub(super) const fn code_bytes(self, cols: usize) -> usize {
        let planes = [cols * self.low, cols * self.high];
        (planes[0].div_ceil(8 * UNIT) + planes[1].div_ceil(8 * UNIT)) * UNIT
    }

    /// Where what blocks share begins.
    pub(super) const fn shared_at(self, cols: usize) -> usize {
        self.code_bytes(cols) + cols / ELEMENTS * self.scale
    }

    /// Bytes of a row.
    pub(super) const fn row_bytes(self, cols: usize) -> usize {
        self.shared_at(cols) + cols / SHARERS * self.shared
    }
}

/// Adds a row that is stored in `ty` to `out`, as a device holds it. Where codes have a zero that is not 0, a scale that is no finite
/// number is none at all, so that every weight of its block is none.
///
/// # Errors
/// If `ty` has no blocks, or the row is not whole ones.
pub fn pack_row(ty: WeightType, row: &[u8], out: &mut Vec<u8>) -> Result<(), KernelError> {
    let wrong = |reason: String| Err(KernelError::new("pack", reason));
    let Some(layout) = WeightKind::of_blocks(ty).and_then(Layout::of) else {
        return wrong(format!("{ty} has no blocks"));
    };
    if !row.len().is_multiple_of(ty.block_bytes()) {
        return wrong(format!("a row of {} bytes is not whole blocks of {}", row.len(), ty.block_bytes()));
    }
    let blocks = row.chunks_exact(ty.block_bytes());
    match ty {
        // Stored as they are held, but that these count from 0.
        WeightType::Q8_0 => {
            blocks.clone().for_each(|block| out.extend(block[2..].iter().map(|code| code ^ 0x80)))
        }
        WeightType::Q4_0 => blocks.clone().for_each(|block| out.extend(&block[2..])),
        WeightType::Q4_1 => blocks.clone().for_each(|block| out.extend(&block[4..])),
        _ => {
            let codes = codes(ty, row);
            put_plane(&codes, 0, layout.low, out);
            put_plane(&codes, layout.low, layout.high, out);
        }
    }
    blocks.clone().for_each(|block| put_own(ty, block, out));
    blocks.for_each(|block| put_shared(ty, block, out));
    Ok(())
}

/// The codes of a row, from 0 on.
fn codes(ty: WeightType, row: &[u8]) -> Vec<u8> {
    let zero = match ty {
        WeightType::Q5_0 => 128,
        WeightType::Q6_K => 32,
        _ => 0_u8,
    };
    let runs = row.len() / ty.block_bytes() * ty.block_elems() / ELEMENTS;
    (0..runs).flat_map(|run| decode(ty, row, run).codes.map(|code| zero.wrapping_add_signed(code))).collect()
}

/// Adds `bits` bits of each code, from bit `from` on: byte j of a unit has codes j, 16 + j and so on, the first in its lowest bits.
fn put_plane(codes: &[u8], from: usize, bits: usize, out: &mut Vec<u8>) {
    if bits == 0 {
        return;
    }
    let mask = u8::MAX >> (8 - bits);
    for codes in codes.chunks(UNIT * 8 / bits) {
        let mut unit = [0; UNIT];
        for (field, codes) in codes.as_chunks::<UNIT>().0.iter().enumerate() {
            for (byte, code) in unit.iter_mut().zip(codes) {
                *byte |= ((code >> from) & mask) << (field * bits);
            }
        }
        out.extend(unit);
    }
}

/// Adds what a stored block's blocks of 32 have beside codes.
fn put_own(ty: WeightType, block: &[u8], out: &mut Vec<u8>) {
    match ty {
        // Multiplied and added as they are.
        WeightType::Q4_1 | WeightType::Q5_1 => out.extend(&block[..4]),
        WeightType::Q4_K | WeightType::Q5_K => out.extend((0..8).flat_map(|j| k_steps(&block[4..16], j))),
        WeightType::Q6_K => out.extend(block[192..208].iter().map(|scale| scale ^ 0x80)),
        _ => out.extend(finite_or_none(&block[..2]).to_le_bytes()),
    }
}

/// Adds what a stored block's blocks of 32 share.
fn put_shared(ty: WeightType, block: &[u8], out: &mut Vec<u8>) {
    match ty {
        WeightType::Q4_K | WeightType::Q5_K => out.extend(&block[..4]),
        WeightType::Q6_K => out.extend(finite_or_none(&block[208..]).to_f32().to_le_bytes()),
        _ => {}
    }
}

fn finite_or_none(scale: &[u8]) -> f16 {
    let scale = f16::from_le_bytes([scale[0], scale[1]]);
    if scale.is_finite() { scale } else { f16::NAN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_come_first_and_then_scales() {
        let mut q8_0 = f16::from_f32(0.5).to_le_bytes().to_vec();
        q8_0.extend((0..32).map(|i| (i - 16) as i8 as u8));
        q8_0.extend(f16::INFINITY.to_le_bytes());
        q8_0.extend([0x80; 32]);
        let mut out = Vec::new();
        pack_row(WeightType::Q8_0, &q8_0, &mut out).expect("two blocks");
        let codes: Vec<u8> = (112..144).chain([0; 32]).collect();
        assert_eq!(out[..64], codes[..]);
        assert_eq!(out[64..66], f16::from_f32(0.5).to_le_bytes());
        assert!(f16::from_le_bytes([out[66], out[67]]).is_nan(), "no scale");
        assert_eq!(out.len(), 68);

        let q4_0: Vec<u8> = [0x00, 0x3c].into_iter().chain(0..16).collect();
        out.clear();
        pack_row(WeightType::Q4_0, &q4_0, &mut out).expect("one block");
        assert_eq!(out, (0..16).chain([0x00, 0x3c]).collect::<Vec<u8>>());

        let q4_1: Vec<u8> = [0x00, 0x3c, 0x00, 0xb8].into_iter().chain(0..16).collect();
        out.clear();
        pack_row(WeightType::Q4_1, &q4_1, &mut out).expect("one block");
        assert_eq!(out, (0..16).chain([0x00, 0x3c, 0x00, 0xb8]).collect::<Vec<u8>>());
    }

    #[test]
    fn codes_of_five_and_six_bits_are_in_two_planes() {
        // Q5_1: element 3 is 21, and 19 is 31.
        let mut q5_1 = vec![0; 24];
        (q5_1[1], q5_1[3]) = (0x3c, 0xb8);
        (q5_1[4], q5_1[6], q5_1[8 + 3]) = (1 << 3, 1 << 3, 0xf5);
        let mut out = Vec::new();
        pack_row(WeightType::Q5_1, &q5_1, &mut out).expect("one block");
        let mut expected = vec![0; 36];
        (expected[3], expected[16 + 3]) = (0xf5, 0b11);
        expected[32..].copy_from_slice(&[0x00, 0x3c, 0x00, 0xb8]);
        assert_eq!(out, expected);

        // Q6_K: all codes zero, but that element 0 has both upper bits; the second scale is -2.
        let mut q6_k = vec![0; 210];
        (q6_k[128], q6_k[193], q6_k[209]) = (3, 254, 0x3c);
        out.clear();
        pack_row(WeightType::Q6_K, &q6_k, &mut out).expect("one block");
        let mut expected = vec![0; 192];
        expected[128] = 3;
        expected.extend([0x80; 16]);
        expected[193] = 0x7e;
        expected.extend(1.0_f32.to_le_bytes());
        assert_eq!(out, expected);
        assert_eq!(out.len(), WeightKind::Q6_K.tight_bytes(256));
    }

    #[test]
    fn what_has_no_blocks_is_refused_by_name() {
        let told = pack_row(WeightType::F16, &[0; 64], &mut Vec::new()).expect_err("another type");
        assert!(told.to_string().contains("F16 has no blocks"), "{told}");
        let told = pack_row(WeightType::Q4_0, &[0; 19], &mut Vec::new()).expect_err("half a block");
        assert!(told.to_string().contains("19 bytes is not whole blocks of 18"), "{told}");
    }
}
