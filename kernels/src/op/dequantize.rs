//! Stored weights as floats: the reference for every product.

use half::{bf16, f16};

use super::blocks;
use crate::cpu::lanes::Lanes;
use crate::cpu::simd;
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
        WeightType::F16 => halves(bytes, out),
        WeightType::BF16 => brain_halves(bytes, out),
        _ => {
            for (run, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                let block = blocks::decode(ty, bytes, run);
                *values = std::array::from_fn(|i| block.value(i));
            }
        }
    }
    Ok(())
}

simd! { fn halves(bytes: &[u8], out: &mut [f32]) => halves_body }
simd! { fn brain_halves(bytes: &[u8], out: &mut [f32]) => brain_halves_body }

#[inline(always)]
fn halves_body<L: Lanes>(bytes: &[u8], out: &mut [f32]) {
    let (eights, rest) = out.as_chunks_mut::<8>();
    let (from, from_rest) = bytes.as_chunks::<16>();
    for (out, from) in eights.iter_mut().zip(from) {
        L::load_f16(&words(from)).store(out);
    }
    for (out, from) in rest.iter_mut().zip(from_rest.as_chunks::<2>().0) {
        *out = f16::from_le_bytes(*from).to_f32();
    }
}

#[inline(always)]
fn brain_halves_body<L: Lanes>(bytes: &[u8], out: &mut [f32]) {
    let (eights, rest) = out.as_chunks_mut::<8>();
    let (from, from_rest) = bytes.as_chunks::<16>();
    for (out, from) in eights.iter_mut().zip(from) {
        L::load_bf16(&words(from)).store(out);
    }
    for (out, from) in rest.iter_mut().zip(from_rest.as_chunks::<2>().0) {
        *out = bf16::from_le_bytes(*from).to_f32();
    }
}

/// Little endian, as stored.
#[inline(always)]
fn words(bytes: &[u8; 16]) -> [u16; 8] {
    let words: [u16; 8] = bytemuck::cast(*bytes);
    words.map(u16::from_le)
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
