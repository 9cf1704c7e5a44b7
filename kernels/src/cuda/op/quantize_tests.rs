use super::*;
use crate::cuda::testing::{Random, devices};
use crate::cuda::{Acts, Device, F8Rows, activations_to_f8, f8_stride};

const FILL: u8 = 0xa5;

/// Expects codes and scales, bit by bit, and zeros behind rows; of rows from `end` on that nothing was written.
fn assert_codes(found: &F8Rows, width: usize, expected: &[f32], end: usize, what: &str) {
    let (codes, scales) = found.download_codes().unwrap();
    let rows = codes.chunks_exact(f8_stride(width)).zip(&scales).zip(expected.chunks_exact(width));
    assert_eq!(rows.len(), expected.len() / width, "{what}: rows");
    for (row, ((codes, scale), values)) in rows.enumerate() {
        if row >= end {
            assert!(codes.iter().all(|code| *code == FILL), "{what}: row {row} is behind the end");
            assert_eq!(scale.to_bits(), u32::from_ne_bytes([FILL; 4]), "{what}: row {row}");
            continue;
        }
        let mut wanted = Vec::new();
        let wanted_scale = activations_to_f8(values, &mut wanted);
        wanted.resize(codes.len(), 0);
        assert!(
            scale.to_bits() == wanted_scale.to_bits() || scale.is_nan() && wanted_scale.is_nan(),
            "{what}: row {row} is times {scale} in place of {wanted_scale}"
        );
        let differs = codes.iter().zip(&wanted).position(|(found, wanted)| found != wanted);
        assert_eq!(differs, None, "{what}: the first code of row {row} that differs");
    }
}

fn check(device: &Device, ty: ActType, width: usize, values: &[f32], what: &str) {
    let x = Acts::upload(device, ty, values).unwrap();
    let rows = values.len() / width;
    let mut out = F8Rows::alloc(device, rows, width).unwrap();
    out.view_mut().fill(FILL).unwrap();
    quantize_rows(out.view_mut(), x.view(), None).unwrap();
    assert_codes(&out, width, &x.download().unwrap(), rows, &format!("{what}, {rows} × {width} {ty:?}"));
}

#[test]
fn rows_have_the_codes_and_scales_of_the_host() {
    for device in devices() {
        let mut random = Random::new(1);
        let widths = [1, 2, 7, 8, 15, 16, 17, 24, 100, 512, 1000, 4096, 8192, 8200, 14_336, 18_432, 40_000];
        for (ty, width) in [ActType::F32, ActType::Bf16].into_iter().flat_map(|ty| widths.map(|w| (ty, w))) {
            let rows = if width > 5000 { 2 } else { 1 + random.below(5) };
            // Of sizes from 2^-20 to 2^20, which differ from row to row and from number to number.
            let mut number = |_| {
                let power = random.below(41) as i32 - 20;
                random.float() * 2.0_f32.powi(power)
            };
            let values: Vec<f32> = (0..rows * width).map(&mut number).collect();
            check(&device, ty, width, &values, "numbers of all sizes");
        }
    }
}

#[test]
fn many_rows_are_as_one() {
    for device in devices() {
        let mut random = Random::new(2);
        for width in [8, 40, 4104] {
            check(&device, ActType::Bf16, width, &random.floats(MANY * width), "many rows");
        }
    }
}

/// Every number of bf16 that is one, beside 448: each is rounded by itself.
#[test]
fn every_number_is_rounded_to_the_nearest() {
    for device in devices() {
        let all = (0..=u16::MAX).map(|bits| half::bf16::from_bits(bits).to_f32());
        let mut values: Vec<f32> = all.filter(|x| x.abs() <= 448.0).collect();
        // Ties, and what is just beside them.
        for code in 0..0x7e_u8 {
            let middle = f32::midpoint(crate::cuda::from_f8(code), crate::cuda::from_f8(code + 1));
            values.extend([middle.next_down(), middle, middle.next_up(), -middle]);
        }
        let rows = values.chunks(1023).flat_map(|row| {
            let mut row = row.to_vec();
            row.resize(1023, 0.0);
            row.push(448.0);
            row
        });
        check(&device, ActType::F32, 1024, &rows.collect::<Vec<_>>(), "every number");
    }
}

#[test]
fn rows_without_codes_are_seen() {
    for device in devices() {
        for (ty, width) in [(ActType::F32, 20), (ActType::F32, 4096), (ActType::Bf16, 24), (ActType::Bf16, 9)]
        {
            let ordinary: Vec<f32> = (0..width).map(|i| i as f32 - 3.5).collect();
            let with = |at: usize, value: f32| {
                let mut row = ordinary.clone();
                row[at] = value;
                row
            };
            let rows = [
                vec![0.0; width],
                vec![-0.0; width],
                with(0, f32::NAN),
                with(width - 1, -f32::NAN),
                with(1, f32::INFINITY),
                with(2, f32::NEG_INFINITY),
                ordinary.clone(),
                // Of what has no codes and what just has them, the largest float, and what cannot be told from nothing.
                ordinary.iter().map(|x| x.signum() * 2.0_f32.powi(-101)).collect(),
                ordinary.iter().map(|x| x.signum() * 2.0_f32.powi(-100)).collect(),
                ordinary.iter().map(|x| x * f32::MIN_POSITIVE / 1000.0).collect(),
                with(0, 3.3e38),
            ];
            check(&device, ty, width, &rows.concat(), "rows of all kinds");
        }
    }
}

#[test]
fn rows_behind_the_last_group_are_left_alone() {
    for device in devices() {
        let mut random = Random::new(3);
        for width in [20, 64] {
            let x = Acts::upload(&device, ActType::Bf16, &random.floats(9 * width)).unwrap();
            let groups = Groups {
                count: 2,
                offsets: device.upload(&[0_u32, 3, 5, 9]).unwrap(),
                max_rows: 9,
                most_of_one: 9,
                group_of_row: device.zeros(9).unwrap(),
                token_of_row: device.zeros(9).unwrap(),
            };
            let mut out = F8Rows::alloc(&device, 9, width).unwrap();
            out.view_mut().fill(FILL).unwrap();
            quantize_rows(out.view_mut(), x.view(), Some(&groups)).unwrap();
            assert_codes(&out, width, &x.download().unwrap(), 5, "groups");
        }
    }
}
