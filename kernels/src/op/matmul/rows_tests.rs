//! Products on rows as stored against products on panels: the same bits.

use std::sync::Arc;

use super::super::{matmul, pairs};
use super::*;
use crate::ThreadPool;
use crate::cpu::pairs::{Pairs, Widened};
use crate::cpu::portable;
#[cfg(target_arch = "x86_64")]
use crate::cpu::{avx2, avx512, detect};
use crate::op::stored::{Holder, RowRun};

const FLOATS: [WeightType; 3] = [WeightType::F32, WeightType::F16, WeightType::BF16];

/// Numbers of moderate size and either sign, and zeros of both.
fn number(state: &mut u64) -> f32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    match (*state >> 40) % 64 {
        0 => 0.0,
        1 => -0.0,
        _ => ((*state >> 33) % 4001) as f32 / 1000.0 - 2.0,
    }
}

fn stored(ty: WeightType, value: f32) -> Vec<u8> {
    match ty {
        WeightType::F32 => value.to_le_bytes().to_vec(),
        WeightType::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
        _ => half::bf16::from_f32(value).to_le_bytes().to_vec(),
    }
}

/// The product on lanes that may not be the widest.
fn product<L: PanelLanes<P>, const P: usize, D: Pairs<L, P>>(w: &WeightMatrix, x: &Activations) -> Vec<f32> {
    let mut y = vec![f32::NAN; w.rows() * x.rows()];
    let slice = SharedSlice::new(&mut y);
    let out = Output { out: &slice, stride: w.rows(), rows: w.rows() };
    let (stored, panels) = (w.stored().expect("as stored"), (0, w.rows().div_ceil(PANEL_ROWS)));
    match w.weight_type() {
        WeightType::F32 => f32_body::<L, P>(stored, x, panels, &out),
        WeightType::F16 => f16_body::<L, P>(stored, x, panels, &out),
        _ if w.is_multiplied_in_bf16() => pairs::rows_body::<L, P, D>(stored, x, panels, &out),
        _ => bf16_body::<L, P>(stored, x, panels, &out),
    }
    y
}

/// The same numbers as rows in two runs, each of which begins `skip` bytes into memory whose rows have `gap` bytes between them,
/// and in panels.
fn both(ty: WeightType, rows: usize, cols: usize, skip: usize, gap: usize) -> (WeightMatrix, WeightMatrix) {
    let mut state = (rows * 1000 + cols) as u64;
    let packed: Vec<u8> = (0..rows * cols).flat_map(|_| stored(ty, number(&mut state))).collect();
    let (row_bytes, first) = (ty.row_bytes(cols), rows / 3);
    let run = |from: usize, to: usize| {
        let mut bytes = vec![0xff; skip];
        for r in from..to {
            bytes.extend_from_slice(&packed[r * row_bytes..][..row_bytes]);
            if r + 1 < to {
                bytes.extend(std::iter::repeat_n(0xff, gap));
            }
        }
        // Nothing may be read past the last row: there is nothing.
        let bytes: Holder = Arc::new(bytes.into_boxed_slice());
        RowRun::new(bytes, skip, row_bytes + gap, to - from)
    };
    let in_place = WeightMatrix::of_stored(ty, cols, vec![run(0, first), run(first, rows)]);
    let in_panels = WeightMatrix::pack(ty, rows, cols, 0, cols, &packed);
    (in_place.expect("all rows are there"), in_panels.expect("sizes agree"))
}

fn activations(rows: usize, cols: usize) -> Activations {
    let mut x = Activations::new(rows, cols);
    let mut state = 77;
    x.f32_rows_mut().iter_mut().for_each(|value| *value = number(&mut state));
    x.pair_as(&ThreadPool::new(1), true, true);
    x
}

fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn products_on_rows_have_the_bits_of_products_on_panels() {
    let pool = ThreadPool::new(3);
    for (ty, in_bf16) in FLOATS.map(|ty| (ty, false)).into_iter().chain([(WeightType::BF16, true)]) {
        for (rows, cols, skip, gap) in [
            (1, 1, 1, 0),
            (5, 7, 0, 2),
            (8, 8, 2, 0),
            (17, 16, 4, 6),
            (16, 133, 3, 0),
            (83, 64, 8, 64),
            (40, 300, 6, 10),
            (33, 1100, 62, 2),
        ] {
            let (mut in_place, mut in_panels) = both(ty, rows, cols, skip, gap);
            if in_bf16 {
                in_place = in_place.multiplied_in_bf16();
                in_panels = in_panels.multiplied_in_bf16();
            }
            assert_eq!(in_place.bytes(), rows * ty.row_bytes(cols));
            for batch in [1, 2, 3, 4, 5, 8, 13, 16, 64, 65, 130] {
                let what = format!("{ty} ({in_bf16}) {rows} × {cols} after {skip}, {batch} rows");
                let x = activations(batch, cols);
                let (mut got, mut expected) = (vec![f32::NAN; rows * batch], vec![f32::NAN; rows * batch]);
                matmul(&pool, &in_place, &x, &mut got, rows);
                matmul(&pool, &in_panels, &x, &mut expected, rows);
                assert_eq!(bits(&got), bits(&expected), "{what}");
                let plain = product::<portable::F32x8, 1, Widened>(&in_place, &x);
                assert_eq!(bits(&plain), bits(&expected), "{what}, portable");
                #[cfg(target_arch = "x86_64")]
                if detect::features().lanes() >= detect::Widest::Avx2 {
                    let y = product::<[avx2::F32x8; 2], 2, Widened>(&in_place, &x);
                    assert_eq!(bits(&y), bits(&expected), "{what}, AVX2");
                }
                #[cfg(target_arch = "x86_64")]
                if detect::features().lanes() >= detect::Widest::Avx512 {
                    let y = product::<avx512::F32x16, 2, Widened>(&in_place, &x);
                    assert_eq!(bits(&y), bits(&expected), "{what}, AVX-512");
                }
            }
        }
    }
}

#[test]
fn rows_come_back_as_they_are_stored() {
    for ty in FLOATS {
        let (in_place, in_panels) = both(ty, 11, 37, 5, 3);
        for row in 0..11 {
            let (mut got, mut expected) = ([0.0; 37], [1.0; 37]);
            in_place.dequantize_row(row, &mut got);
            in_panels.dequantize_row(row, &mut expected);
            assert_eq!(bits(&got), bits(&expected), "{ty} row {row}");
        }
    }
}

#[test]
fn matrices_without_columns_give_zeros() {
    let (in_place, _) = both(WeightType::BF16, 5, 0, 0, 0);
    let mut y = [f32::NAN; 10];
    matmul(&ThreadPool::new(1), &in_place, &activations(2, 0), &mut y, 5);
    assert_eq!(y, [0.0; 10]);
}
