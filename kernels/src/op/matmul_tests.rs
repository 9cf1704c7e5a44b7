//! Products of every format against dequantized weights in double precision, and lanes against lanes.

use super::*;
use crate::cpu::portable;
#[cfg(target_arch = "x86_64")]
use crate::cpu::{avx2, detect};
use crate::op::dequantize::dequantize;

/// Bytes that are valid weights of any type: scales stay finite and moderate.
fn weights(ty: WeightType, count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as u32
    };
    if !ty.is_quantized() {
        let values = (0..count).map(|_| (next() % 2001) as f32 / 1000.0 - 1.0);
        return match ty {
            WeightType::F32 => values.flat_map(f32::to_le_bytes).collect(),
            WeightType::F16 => values.flat_map(|v| half::f16::from_f32(v).to_le_bytes()).collect(),
            _ => values.flat_map(|v| half::bf16::from_f32(v).to_le_bytes()).collect(),
        };
    }
    let mut bytes: Vec<u8> = (0..ty.row_bytes(count)).map(|_| next() as u8).collect();
    let halves: &[usize] = match ty {
        WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4_K | WeightType::Q5_K => &[0, 2],
        WeightType::Q6_K => &[208],
        _ => &[0],
    };
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        for at in halves {
            let value = half::f16::from_f32((next() % 1000) as f32 / 50_000.0 - 0.005);
            block[*at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
    }
    bytes
}

fn activations(rows: usize, cols: usize, seed: u64) -> Activations {
    let mut x = Activations::new(rows, cols);
    let mut state = seed;
    for value in x.f32_rows_mut() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
        *value = ((state >> 40) % 4001) as f32 / 1000.0 - 2.0;
    }
    x.quantize(&ThreadPool::new(1));
    x.pair_as(&ThreadPool::new(1), true, true);
    x
}

fn product(w: &WeightMatrix, x: &Activations, threads: usize) -> Vec<f32> {
    let mut y = vec![f32::NAN; w.rows() * x.rows()];
    matmul(&ThreadPool::new(threads), w, x, &mut y, w.rows());
    y
}

/// Every type, and that which activations may be rounded for, both ways.
fn types() -> impl Iterator<Item = (WeightType, bool)> {
    WeightType::ALL.into_iter().map(|ty| (ty, false)).chain([(WeightType::BF16, true)])
}

fn packed(ty: WeightType, in_bf16: bool, rows: usize, cols: usize, bytes: &[u8]) -> WeightMatrix {
    let w = WeightMatrix::pack(ty, rows, cols, 0, cols, bytes).expect("sizes agree");
    if in_bf16 { w.multiplied_in_bf16() } else { w }
}

#[test]
fn every_format_agrees_with_its_dequantized_weights() {
    for (ty, in_bf16) in types() {
        let (rows, cols) = (19, 512);
        let bytes = weights(ty, rows * cols, 7);
        let w = packed(ty, in_bf16, rows, cols, &bytes);
        let mut values = vec![0.0; rows * cols];
        dequantize(ty, &bytes, &mut values).expect("sizes agree");
        let x = activations(5, cols, 3);
        let y = product(&w, &x, 1);
        for t in 0..5 {
            for r in 0..rows {
                // The reference multiplies what the activations are in their 8-bit form: that error is not the product's.
                let mut exact = 0.0f64;
                let mut size = 0.0f64;
                for k in 0..cols {
                    let block = &x.blocks(t)[k / 32];
                    let coded = f64::from(block.scale) * f64::from(block.coded.codes[k % 32]);
                    let x = match ty {
                        ty if ty.is_quantized() => coded,
                        _ if in_bf16 => half::bf16::from_f32(x.row(t)[k]).to_f64(),
                        _ => f64::from(x.row(t)[k]),
                    };
                    exact += f64::from(values[r * cols + k]) * x;
                    size += (f64::from(values[r * cols + k]) * x).abs();
                }
                let error = (f64::from(y[t * rows + r]) - exact).abs();
                assert!(error <= 4e-6 * size + 1e-6, "{ty} ({t}, {r}): {error} of {size}");
            }
        }
    }
}

#[test]
fn rows_come_back_as_they_were_stored() {
    for ty in WeightType::ALL {
        let (rows, cols) = (11, 256);
        let bytes = weights(ty, rows * cols, 5);
        let w = WeightMatrix::pack(ty, rows, cols, 0, cols, &bytes).expect("sizes agree");
        let mut values = vec![0.0; rows * cols];
        dequantize(ty, &bytes, &mut values).expect("sizes agree");
        for r in 0..rows {
            let mut row = vec![0.0; cols];
            w.dequantize_row(r, &mut row);
            assert_eq!(row, values[r * cols..][..cols], "{ty} row {r}");
        }
    }
}

#[test]
fn tiles_cover_all_rows_in_sizes_that_there_are_loops_for() {
    for (rows, most, tiles) in [
        (1, 3, &[1][..]),
        (4, 3, &[2, 2]),
        (5, 3, &[3, 2]),
        (7, 3, &[3, 2, 2]),
        (7, 4, &[4, 3]),
        (7, 8, &[4, 3]),
        (45, 8, &[8, 8, 8, 8, 8, 4, 1]),
    ] {
        let (mut left, mut cut) = (rows, Vec::new());
        while left > 0 {
            cut.push(next_tile(left, most));
            left -= cut[cut.len() - 1];
        }
        assert_eq!(cut, tiles, "{rows} rows, at most {most}");
    }
}

#[test]
fn a_row_is_the_same_alone_and_in_any_batch_on_any_threads_and_lanes() {
    // Whole tiles of every kind, and some rows more.
    const BATCH: usize = 45;
    for (ty, in_bf16) in types() {
        let (rows, cols) = (83, 256);
        let w = packed(ty, in_bf16, rows, cols, &weights(ty, rows * cols, 9));
        let x = activations(BATCH, cols, 4);
        let all = product(&w, &x, 3);
        for t in 0..BATCH {
            let mut alone = Activations::new(1, cols);
            alone.f32_rows_mut().copy_from_slice(x.row(t));
            alone.prepare(&ThreadPool::new(1), &w);
            assert_eq!(product(&w, &alone, 1), all[t * rows..][..rows], "{ty} row {t}");
        }
        let panels = rows.div_ceil(PANEL_ROWS);
        let mut plain = vec![0.0; rows * BATCH];
        run_panels_body::<portable::F32x8, 1>(&w, &x, 0, 0, panels, &SharedSlice::new(&mut plain), rows);
        assert_eq!(plain, all, "{ty}: portable lanes");
        #[cfg(target_arch = "x86_64")]
        if detect::features().simd() {
            // Where there are wider ones, these would not be met otherwise.
            let mut narrow = vec![0.0; rows * BATCH];
            run_panels_body::<[avx2::F32x8; 2], 2>(
                &w,
                &x,
                0,
                0,
                panels,
                &SharedSlice::new(&mut narrow),
                rows,
            );
            assert_eq!(narrow, all, "{ty}: AVX2 lanes");
        }
    }
}

#[test]
fn columns_may_be_cut_out_of_stored_rows() {
    for ty in WeightType::ALL {
        let (rows, stored) = (9, 512);
        let bytes = weights(ty, rows * stored, 21);
        let mut values = vec![0.0; rows * stored];
        dequantize(ty, &bytes, &mut values).expect("sizes agree");
        let w = WeightMatrix::pack(ty, rows, stored, 96, 160, &bytes).expect("multiples of 32");
        for r in 0..rows {
            let mut row = vec![0.0; 160];
            w.dequantize_row(r, &mut row);
            assert_eq!(row, values[r * stored + 96..][..160], "{ty}");
        }
    }
}

#[test]
fn odd_and_empty_shapes_of_floats_work() {
    for (rows, cols, batch) in [(3, 7, 2), (1, 1, 1), (8, 24, 5), (0, 8, 2), (5, 0, 3)] {
        let bytes = weights(WeightType::F32, rows * cols, 1);
        let w = WeightMatrix::pack(WeightType::F32, rows, cols, 0, cols, &bytes).expect("sizes agree");
        let x = activations(batch, cols, 2);
        let y = product(&w, &x, 1);
        for (i, y) in y.iter().enumerate() {
            let (t, r) = (i / rows, i % rows);
            let mut row = vec![0.0; cols];
            w.dequantize_row(r, &mut row);
            let exact: f64 = row.iter().zip(x.row(t)).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            assert!((f64::from(*y) - exact).abs() < 1e-5, "{rows}×{cols}");
        }
    }
}

#[test]
fn sizes_that_do_not_agree_are_refused() {
    let pack = |ty, rows, stored, skip, cols, bytes: usize| {
        WeightMatrix::pack(ty, rows, stored, skip, cols, &vec![0; bytes])
            .map(|_| ())
            .map_err(|e| e.to_string())
    };
    assert!(pack(WeightType::Q4_0, 2, 64, 0, 64, 72).is_ok());
    for (ty, rows, stored, skip, cols, bytes) in [
        (WeightType::Q4_0, 2, 64, 0, 64, 71),
        (WeightType::Q4_0, 2, 64, 0, 64, 36),
        (WeightType::Q4_0, 2, 63, 0, 32, 72),
        (WeightType::Q4_0, 2, 64, 16, 32, 72),
        (WeightType::Q4_0, 2, 64, 32, 64, 72),
        (WeightType::F32, 1, 4, usize::MAX, 2, 16),
    ] {
        assert!(
            pack(ty, rows, stored, skip, cols, bytes).is_err(),
            "{ty} {rows} {stored} {skip} {cols} {bytes}"
        );
    }
}
