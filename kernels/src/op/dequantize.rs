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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Files that tests/tools/make_blocks.py has made with another implementation.
    fn golden(ty: WeightType, ending: &str) -> Vec<u8> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/blocks");
        std::fs::read(folder.join(format!("{ty}.{ending}"))).expect("the fixture is there")
    }

    #[test]
    fn every_type_has_the_values_another_implementation_gives_it() {
        for ty in WeightType::ALL {
            let values = golden(ty, "values");
            let expected: Vec<f32> =
                values.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            let mut got = vec![f32::NAN; expected.len()];
            dequantize(ty, &golden(ty, "blocks"), &mut got).expect("whole blocks");
            // Compared as numbers: the sign of a zero is nobody's concern.
            assert_eq!(got, expected, "{ty}");
        }
    }

    #[test]
    fn lengths_that_do_not_agree_are_refused() {
        for ty in WeightType::ALL {
            let (elems, bytes) = (ty.block_elems(), ty.block_bytes());
            assert!(dequantize(ty, &vec![0; bytes - 1], &mut vec![0.0; elems]).is_err(), "{ty}");
            assert!(dequantize(ty, &vec![0; 2 * bytes], &mut vec![0.0; elems]).is_err(), "{ty}");
            assert!(
                elems == 1 || dequantize(ty, &vec![0; bytes], &mut vec![0.0; elems - 1]).is_err(),
                "{ty}"
            );
            assert!(dequantize(ty, &[], &mut []).is_ok(), "{ty}");
        }
    }
}
