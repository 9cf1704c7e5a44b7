use half::bf16;

use super::*;
use crate::cuda::Buffer;
use crate::cuda::op::elementwise::embed;
use crate::cuda::testing::devices;

fn bits(seed: u64, counter: u64) -> u64 {
    let mut z = seed.wrapping_add((counter + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn number(seed: u64, counter: u64) -> f32 {
    let bits = bits(seed, counter);
    let sum: i64 = (0..4).map(|part| (bits >> (16 * part) & 0xffff) as i64).sum();
    (sum - 131_070) as f32
}

/// The bytes of an element, as the kernel should have made them.
fn element(kind: WeightKind, seed: u64, at: u64, deviation: f32) -> Vec<u8> {
    let value = number(seed, at) * (deviation * 3f32.sqrt() / 65536.0);
    match kind {
        WeightKind::F32 => value.to_le_bytes().to_vec(),
        WeightKind::Bf16 => bf16::from_f32(value).to_le_bytes().to_vec(),
        WeightKind::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        WeightKind::F8 => {
            let code = (bits(seed, at / 8) >> (at % 8 * 8)) as u8;
            vec![if code & 0x7f == 0x7f { code ^ 1 } else { code }]
        }
        _ => unreachable!("blocks are looked at by themselves"),
    }
}

fn value(kind: WeightKind, bytes: &[u8], scale: f32) -> f64 {
    match *bytes {
        [a] => f64::from(from_f8(a) * scale),
        [a, b] if kind == WeightKind::Bf16 => bf16::from_le_bytes([a, b]).to_f64(),
        [a, b] => f16::from_le_bytes([a, b]).to_f64(),
        [a, b, c, d] => f64::from(f32::from_le_bytes([a, b, c, d])),
        _ => unreachable!("elements have 1, 2 or 4 bytes"),
    }
}

#[test]
fn numbers_are_those_of_the_seed_and_have_the_deviation() {
    for device in devices() {
        for kind in WeightKind::WITHOUT_BLOCKS {
            for (rows, cols, deviation) in
                [(1, 1, 1.0), (3, 5, 0.02), (40, 1031, 0.02), (2, 9000, 3.0), (0, 8, 1.0)]
            {
                let case = format!("{kind:?}, {rows} × {cols} on {device:?}");
                let matrix = random_matrix(&device, kind, rows, cols, 7, deviation).unwrap();
                let mut data = vec![0; matrix.data().len()];
                matrix.data().download(&mut data).unwrap();
                let scales = matrix.scales().map(|view| {
                    let mut scales = vec![0.0; rows];
                    view.download(&mut scales).unwrap();
                    scales
                });
                let mut squares = 0.0;
                for (row, bytes) in data.chunks_exact(matrix.row_bytes()).enumerate() {
                    let (elements, rest) = bytes.split_at(cols * (kind.bits() / 8));
                    for (col, found) in elements.chunks_exact(kind.bits() / 8).enumerate() {
                        let expected = element(kind, 7, (row * cols + col) as u64, deviation);
                        assert_eq!(found, expected, "row {row}, column {col}: {case}");
                        let scale = scales.as_ref().map_or(1.0, |scales| scales[row]);
                        squares += value(kind, found, scale).powi(2);
                    }
                    assert!(rest.iter().all(|byte| *byte == 0), "what is behind row {row}: {case}");
                }
                if rows * cols > 10_000 {
                    let found = (squares / (rows * cols) as f64).sqrt() / f64::from(deviation);
                    assert!((found - 1.0).abs() < 0.03, "{found} of the deviation: {case}");
                }
            }
        }
    }
}

#[test]
fn blocks_have_any_codes_and_one_scale() {
    for device in devices() {
        for kind in WeightKind::BLOCKS {
            let (rows, cols, deviation) = (5, 4096 + kind.block_elems(), 0.02);
            let matrix = random_matrix(&device, kind, rows, cols, 7, deviation).unwrap();
            let mut data = vec![0; matrix.data().len()];
            matrix.data().download(&mut data).unwrap();
            let layout = Layout::of(kind).expect("has blocks");
            let (codes, shared) = (layout.code_bytes(cols), layout.shared_at(cols));
            for (row, bytes) in data.chunks_exact(matrix.row_bytes()).enumerate() {
                for (i, found) in bytes[..codes].iter().enumerate() {
                    let at = (row * codes + i) as u64;
                    assert_eq!(
                        *found,
                        (bits(7, at / 8) >> (at % 8 * 8)) as u8,
                        "{kind:?}, row {row}, byte {i}"
                    );
                }
                for part in [codes..shared, shared..bytes.len()] {
                    let first = &bytes[part.start..][..part.len().min(4)];
                    assert!(
                        bytes[part].chunks(4).all(|four| four == &first[..four.len()]),
                        "{kind:?}, row {row}"
                    );
                }
            }
            let tokens = device.upload(&[0_u32, 1, 2, 3, 4]).unwrap();
            let mut weights: Buffer<f32> = device.alloc(rows * cols).unwrap();
            embed(weights.view_mut(), tokens.view(), &matrix, 0, 1.0).unwrap();
            let squares = weights.download().unwrap().iter().map(|w| f64::from(*w).powi(2)).sum::<f64>();
            let found = (squares / (rows * cols) as f64).sqrt() / f64::from(deviation);
            assert!((found - 1.0).abs() < 0.03, "{kind:?}: {found} of the deviation");
        }
    }
}
