//! Stored weights as floats: the reference for every product.

use half::{bf16, f16};

use super::blocks;
use crate::dtype::WeightType;
use crate::error::KernelError;

/// Writes the values of `bytes` (whole blocks of `ty`, little endian) to `out`.
///
/// # Errors
/// If the lengths do not agree.
pub fn dequantize(ty: WeightType, bytes: &[u8], out: &mut [f32]) -> Result<(), KernelError> {
    if !out.len().is_multiple_of(ty.block_elems()) || bytes.len() != ty.row_bytes(out.len()) {
        let reason = format!("{} bytes of {ty} do not hold {} elements", bytes.len(), out.len());
        return Err(KernelError::new("dequantize", reason));
    }
    match ty {
        WeightType::F32 => {
            out.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(o, b)| *o = f32::from_le_bytes(*b));
        }
        WeightType::F16 => {
            out.iter_mut()
                .zip(bytes.as_chunks::<2>().0)
                .for_each(|(o, b)| *o = f16::from_le_bytes(*b).to_f32());
        }
        WeightType::BF16 => {
            out.iter_mut()
                .zip(bytes.as_chunks::<2>().0)
                .for_each(|(o, b)| *o = bf16::from_le_bytes(*b).to_f32());
        }
        _ => {
            for (run, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                let block = blocks::decode(ty, bytes, run);
                *values = std::array::from_fn(|i| block.value(i));
            }
        }
    }
    Ok(())
}
