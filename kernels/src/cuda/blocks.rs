//! Weights in blocks of 32 with a scale each, GGUF's Q8_0, Q4_0 and Q4_1, as a device holds them (`kernels/cu/blocks.cuh`): a row is
//! its codes and then its scales in f16, so that both are read 16 bytes at a time. Nothing is rounded on the way.

use half::f16;

use super::WeightKind;
use crate::dtype::WeightType;
use crate::error::KernelError;

/// Elements of a block.
pub(super) const ELEMENTS: usize = 32;

/// Bytes of the scale of a block of this type, which come first where it is stored.
pub(super) const fn scale_bytes(ty: WeightType) -> usize {
    match ty {
        WeightType::Q8_0 => ty.block_bytes() - ELEMENTS,
        _ => ty.block_bytes() - ELEMENTS / 2,
    }
}

/// Adds a row that is stored in `ty` to `out`, as a device holds it in that type: codes count from 0 (of Q8_0 128 is zero). In Q8_0 and
/// Q4_0 a scale that is no finite number is none at all, so that every weight of its block is none.
///
/// # Errors
/// If `ty` is not Q8_0, Q4_0 or Q4_1, or the row is not whole blocks.
pub fn pack_row(ty: WeightType, row: &[u8], out: &mut Vec<u8>) -> Result<(), KernelError> {
    let wrong = |reason: String| Err(KernelError::new("pack", reason));
    if WeightKind::of_blocks(ty).is_none() {
        return wrong(format!("{ty} is not held in blocks on a device; Q8_0, Q4_0 and Q4_1 are"));
    }
    if !row.len().is_multiple_of(ty.block_bytes()) {
        return wrong(format!("a row of {} bytes is not whole blocks of {}", row.len(), ty.block_bytes()));
    }
    let blocks = row.chunks_exact(ty.block_bytes());
    for block in blocks.clone() {
        // Those of 4 bits are stored as they are held: their halves count from 0 already.
        let flip = if ty == WeightType::Q8_0 { 0x80 } else { 0 };
        out.extend(block[scale_bytes(ty)..].iter().map(|code| code ^ flip));
    }
    for block in blocks {
        if ty == WeightType::Q4_1 {
            // Multiplied and added as they are.
            out.extend(&block[..scale_bytes(ty)]);
            continue;
        }
        let scale = f16::from_le_bytes([block[0], block[1]]);
        let scale = if scale.is_finite() { scale } else { f16::NAN };
        out.extend(scale.to_le_bytes());
    }
    Ok(())
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
    fn what_is_not_held_in_blocks_is_refused_by_name() {
        let told = pack_row(WeightType::Q6_K, &[0; 210], &mut Vec::new()).expect_err("another type");
        assert!(told.to_string().contains("Q6_K is not held in blocks"), "{told}");
        let told = pack_row(WeightType::Q4_0, &[0; 19], &mut Vec::new()).expect_err("half a block");
        assert!(told.to_string().contains("19 bytes is not whole blocks of 18"), "{told}");
    }
}
