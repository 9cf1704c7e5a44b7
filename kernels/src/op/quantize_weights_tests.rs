//! What comes back from the blocks against what went in.

use super::*;
use crate::cpu::portable;
use crate::op::dequantize::dequantize;

const TYPES: [WeightType; 3] = [WeightType::Q8_0, WeightType::Q4_0, WeightType::Q4_K];

fn there_and_back(ty: WeightType, row: &[f32]) -> Vec<f32> {
    let mut blocks = vec![9; 5];
    quantize_row(ty, row, &mut blocks).expect("whole blocks of finite values");
    assert_eq!(blocks[..5], [9; 5], "appended");
    let mut back = vec![f32::NAN; row.len()];
    dequantize(ty, &blocks[5..], &mut back).expect("whole blocks");
    back
}

/// Roughly normal, as weights are.
fn noise(count: usize, deviation: f32) -> Vec<f32> {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    // The sum of twelve uniform variables has variance 1.
    (0..count).map(|_| (0..12).map(|_| next()).sum::<f32>() * deviation).collect()
}

fn squared_error(x: &[f32], back: &[f32]) -> f64 {
    x.iter().zip(back).map(|(x, b)| f64::from(x - b).powi(2)).sum()
}

#[test]
fn errors_of_weights_are_within_what_the_bits_allow() {
    for deviation in [1.0, 0.02, 3e-3] {
        let x = noise(64 * 256, deviation);
        let power: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
        // Of normal values, relative to their power: half a percent and less for 8 bits, some percent for 4.
        for (ty, bound) in [(WeightType::Q8_0, 6e-5), (WeightType::Q4_0, 9e-3), (WeightType::Q4_K, 7.5e-3)] {
            let error = squared_error(&x, &there_and_back(ty, &x)) / power;
            assert!(error < bound, "{ty} of deviation {deviation}: {error}");
        }
    }
}

#[test]
fn q8_0_is_off_by_half_a_step_at_most() {
    let x = noise(32 * 50, 0.3);
    let back = there_and_back(WeightType::Q8_0, &x);
    for (x, back) in x.as_chunks::<32>().0.iter().zip(back.as_chunks::<32>().0) {
        let step = x.iter().fold(0.0f32, |most, x| most.max(x.abs())) / 127.0;
        for (x, back) in x.iter().zip(back) {
            assert!((x - back).abs() <= step * 0.56, "{x} {back} {step}");
        }
    }
}

#[test]
fn q4_0_is_never_worse_than_the_plain_rule() {
    let mut x = noise(32 * 400, 0.05);
    // Some blocks with one large value.
    x.iter_mut().step_by(32 * 7 + 3).for_each(|x| *x *= 20.0);
    let back = there_and_back(WeightType::Q4_0, &x);
    let (mut ours, mut plain) = (0.0, 0.0);
    for (x, back) in x.as_chunks::<32>().0.iter().zip(back.as_chunks::<32>().0) {
        let extreme = x.iter().fold(0.0f32, |most, x| if x.abs() > most.abs() { *x } else { most });
        let scale = f16::from_f32(extreme / -8.0).to_f32();
        let rule = x.map(|x| (x / scale).round_ties_even().clamp(-8.0, 7.0) * scale);
        let mean = x.iter().map(|x| x * x).sum::<f32>() / 32.0;
        let error = |back: &[f32; 32]| -> f32 {
            x.iter().zip(back).map(|(x, b)| (x * x + mean) * (x - b) * (x - b)).sum()
        };
        assert!(error(back) <= error(&rule) * 1.0001, "{x:?}");
        // Relative to the block: large blocks must not be all that is seen.
        ours += error(back) / (mean * mean);
        plain += error(&rule) / (mean * mean);
    }
    assert!(ours < plain * 0.9, "{ours} {plain}");
}

#[test]
fn zeros_constants_and_ramps_come_back() {
    for ty in TYPES {
        let check = |row: Vec<f32>, relative: f32| {
            let back = there_and_back(ty, &row);
            let most = row.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            for (x, back) in row.iter().zip(&back) {
                assert!((x - back).abs() <= most * relative, "{ty}: {x} {back} of {most}");
            }
        };
        check(vec![0.0; 512], 0.0);
        for value in [1.0, -1.0, 0.037, -0.037, 1e-3, 6e4, -6e4] {
            // Q4_K's scale is finer than a small f16 can be.
            check(vec![value; 256], if ty == WeightType::Q4_K { 6e-3 } else { 2e-3 });
        }
        let ramp = (0..256).map(|i| (i as f32 - 100.0) * 0.01).collect();
        check(ramp, if ty == WeightType::Q8_0 { 0.005 } else { 0.09 });
        let mut lonely = vec![0.0; 256];
        lonely[77] = -3.5;
        check(lonely, 2e-3);
    }
}

#[test]
fn values_out_of_reach_are_cut_off_and_tiny_ones_keep_what_they_can() {
    for (ty, low, high) in [
        (WeightType::Q8_0, -127.0 * 65504.0, 127.0 * 65504.0),
        (WeightType::Q4_0, -7.0 * 65504.0, 7.0 * 65504.0),
        (WeightType::Q4_K, -63.0 * 65504.0, 63.0 * 15.0 * 65504.0),
    ] {
        let mut row = vec![1.0; 256];
        (row[3], row[200]) = (f32::MAX, f32::MIN);
        let back = there_and_back(ty, &row);
        assert!(back.iter().all(|x| x.is_finite()), "{ty}");
        assert!(back[3] >= high * 0.8 && back[200] <= low * 0.8, "{ty}: {} {}", back[3], back[200]);
        // Below the smallest scale steps are as wide as that scale.
        for magnitude in [1e-5, 1e-6, 2e-7, 4e-8, 1e-8, 1e-30, f32::from_bits(1)] {
            let row: Vec<f32> = (0..256).map(|i| (i as f32 / 128.0 - 1.0) * magnitude).collect();
            let back = there_and_back(ty, &row);
            for (x, back) in row.iter().zip(&back) {
                let step = 6e-8f32.max(magnitude * 0.14);
                assert!((x - back).abs() <= step, "{ty} {magnitude}: {x} {back}");
            }
        }
    }
}

#[test]
fn blocks_are_the_same_on_all_lanes_and_rows_do_not_see_each_other() {
    let x = [noise(1024, 0.05), vec![0.0; 256], noise(256, 1e-7)].concat();
    for ty in TYPES {
        let mut whole = Vec::new();
        quantize_row(ty, &x, &mut whole).expect("whole blocks");
        let mut parts = Vec::new();
        x.chunks(256).for_each(|part| quantize_row(ty, part, &mut parts).expect("whole blocks"));
        assert_eq!(whole, parts, "{ty}");
        let mut plain = vec![0; whole.len()];
        match ty {
            WeightType::Q8_0 => q8_0_body::<portable::F32x8>(&x, &mut plain),
            WeightType::Q4_0 => q4_0_body::<portable::F32x8>(&x, &mut plain),
            _ => quantize_k::q4_k_body::<portable::F32x8>(&x, &mut plain),
        }
        assert_eq!(whole, plain, "{ty}");
    }
}

#[test]
fn what_cannot_be_encoded_is_refused() {
    let mut out = Vec::new();
    for ty in WeightType::ALL.into_iter().filter(|ty| !can_quantize(*ty)) {
        assert!(quantize_row(ty, &[0.0; 256], &mut out).is_err(), "{ty}");
    }
    for ty in TYPES {
        assert!(quantize_row(ty, &vec![0.0; ty.block_elems() - 1], &mut out).is_err(), "{ty}");
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut row = vec![1.0; 2048];
            row[1500] = bad;
            let error = quantize_row(ty, &row, &mut out).expect_err("not finite").to_string();
            assert!(error.contains("element 1500"), "{error}");
        }
    }
    assert!(out.is_empty());
    assert!(quantize_row(WeightType::Q4_0, &[], &mut out).is_ok() && out.is_empty());
}
