//! What is put together and rounded to E4M3 on the way is what is put together and rounded by itself.

use super::*;
use crate::cuda::op::matmul::matmul;
use crate::cuda::op::quantize::quantize_rows;
use crate::cuda::op::random::random_matrix;
use crate::cuda::{ActsView, F8Rows, WeightKind};

/// Codes and scales of a case by one function and by two, bit by bit.
fn check_codes(device: &Device, case: &Case) {
    let mut random = Random::new(11);
    let filled = filled(device, &mut random, case);
    let of = case.kv_head_of();
    let live: usize = case.runs.iter().map(|(_, rows)| rows).sum();
    let rows = case.fixed.unwrap_or(live);
    let width = of.len() * case.values.dim();
    let mut q: Vec<f32> = random.floats(live * of.len() * case.key_dim).iter().map(|x| x * 4.0).collect();
    q.resize(rows * of.len() * case.key_dim, f32::NAN);
    let q = device.upload(&q).unwrap();
    let context = case.runs.iter().map(|(at, rows)| at + rows).max().unwrap_or(0);
    let mut step = match case.fixed {
        Some(rows) => StepRows::fixed(device, rows, filled.tables.concat().len(), context).unwrap(),
        None => StepRows::new(device).unwrap(),
    };
    step.set(&runs_of(case, &filled.tables)).unwrap();
    let heads = HeadMap::new(device, &of).unwrap();
    let mut scratch =
        AttentionScratch::new(device, case.scratch, of.len(), case.values.dim(), context).unwrap();
    let sinks = device.upload(&random.floats(of.len())).unwrap();
    let a = Attention {
        heads: &heads,
        scale: 1.0 / (case.key_dim as f32).sqrt(),
        softcap: case.softcap,
        window: case.window,
        sinks: case.sinks.then(|| sinks.view()),
    };
    let mut plain = Acts::alloc(device, ActType::Bf16, rows * width).unwrap();
    attention(plain.view_mut(), q.view(), &filled.kv, LAYER, &step, &a, &mut scratch).unwrap();
    let mut expected = F8Rows::alloc(device, rows, width).unwrap();
    quantize_rows(expected.view_mut(), plain.view(), None).unwrap();
    let expected = expected.download_codes().unwrap();
    let live_codes = expected.0.iter().filter(|code| **code != 0).count();
    assert!(live_codes > live * width / 2, "{case:?}: {live_codes} codes");

    let mut found = F8Rows::alloc(device, rows, width).unwrap();
    found.view_mut().fill(0xa5).unwrap();
    let out = plain.view_mut();
    attention_codes(found.view_mut(), out, q.view(), &filled.kv, LAYER, &step, &a, &mut scratch).unwrap();
    let found = found.download_codes().unwrap();
    assert_eq!(found.0, expected.0, "{case:?}: codes");
    let bits = |scales: &[f32]| scales.iter().map(|scale| scale.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&found.1), bits(&expected.1), "{case:?}: scales");
}

#[test]
fn attention_is_rounded_to_e4m3_as_it_is_put_together() {
    let far = [(0, 1), (15, 2), (255, 1), (256, 1), (700, 1), (1700, 1)];
    let together = [(0, 17), (700, 1)];
    for device in devices() {
        for (kind, dim, groups) in [
            (KvKind::F16, 64, vec![4, 4]),
            // More than a thread's four of each of a block; 36 behind which there are zeros; and heads that are taken one by one.
            (KvKind::F16, 128, vec![16, 16, 8]),
            (KvKind::F16, 36, vec![1, 2]),
            (KvKind::F8, 128, vec![16, 16, 8]),
            (KvKind::F32, 12, vec![3, 3]),
            (KvKind::F32, 6, vec![3]),
        ] {
            let case = Case::new(kind, &groups, dim, &far);
            check_codes(&device, &case);
            check_codes(&device, &Case { fixed: Some(9), sinks: true, ..case.clone() });
            check_codes(&device, &Case { window: Some(300), softcap: Some(1.0), ..case.clone() });
            // One block for all of a row; several rounds; rows that are taken together.
            check_codes(&device, &Case { window: Some(100), ..case.clone() });
            check_codes(&device, &Case { scratch: 2, ..case.clone() });
            check_codes(&device, &Case { runs: together.to_vec(), ..case });
        }
    }
}

/// Codes that nobody has written.
const FILL: u8 = 0x3c;

/// The product of what a case's rows give with a matrix of `n` outputs, by one function and by two, bit by bit; whether the codes were
/// nowhere but in the product. `context`: of the fixed form, positions that rows may see.
fn meets_as_codes_do(device: &Device, case: &Case, n: usize, context: usize) -> bool {
    let mut random = Random::new(n as u64);
    let filled = filled(device, &mut random, case);
    let of = case.kv_head_of();
    let live: usize = case.runs.iter().map(|(_, rows)| rows).sum();
    let rows = case.fixed.unwrap_or(live);
    let width = of.len() * case.values.dim();
    let mut q: Vec<f32> = random.floats(live * of.len() * case.key_dim).iter().map(|x| x * 4.0).collect();
    q.resize(rows * of.len() * case.key_dim, 0.0);
    let q = device.upload(&q).unwrap();
    let mut step = match case.fixed {
        Some(rows) => StepRows::fixed(device, rows, filled.tables.concat().len(), context).unwrap(),
        None => StepRows::new(device).unwrap(),
    };
    step.set(&runs_of(case, &filled.tables)).unwrap();
    let heads = HeadMap::new(device, &of).unwrap();
    let mut scratch = AttentionScratch::new(device, 8, of.len(), case.values.dim(), context).unwrap();
    let sinks = device.upload(&random.floats(of.len())).unwrap();
    let a = Attention {
        heads: &heads,
        scale: 1.0 / (case.key_dim as f32).sqrt(),
        softcap: case.softcap,
        window: case.window,
        sinks: case.sinks.then(|| sinks.view()),
    };
    let w = random_matrix(device, WeightKind::F8, n, width, 5, 0.3).unwrap();
    let mut product = |one: bool| {
        let mut plain = Acts::alloc(device, ActType::Bf16, rows * width).unwrap();
        let mut codes = F8Rows::alloc(device, rows, width).unwrap();
        codes.view_mut().fill(FILL).unwrap();
        let mut out = device.alloc::<f32>(rows * n).unwrap();
        out.view_mut().fill(0xff).unwrap();
        let (plain, kv) = (plain.view_mut(), &filled.kv);
        if one {
            let (out, codes) = (out.view_mut(), codes.view_mut());
            attention_matmul(out, &w, codes, plain, q.view(), kv, LAYER, &step, &a, &mut scratch).unwrap();
        } else {
            attention_codes(codes.view_mut(), plain, q.view(), kv, LAYER, &step, &a, &mut scratch).unwrap();
            matmul(out.view_mut(), n, ActsView::F8(codes.view()), &w, rows).unwrap();
        }
        let bits: Vec<u32> = out.download().unwrap().iter().map(|x| x.to_bits()).collect();
        let untouched = codes.download_codes().unwrap().0.iter().all(|code| *code == FILL);
        (bits, untouched)
    };
    let ((expected, written), (found, untouched)) = (product(false), product(true));
    assert!(!written && expected.iter().all(|bits| f32::from_bits(*bits).is_finite()), "{case:?}");
    assert!(found == expected, "{case:?}, {n} outputs, a context of {context}");
    untouched
}

#[test]
fn spans_of_one_row_meet_a_matrix_as_if_they_had_been_put_together_before() {
    for device in devices().iter().filter(|device| device.multiplies_f8()) {
        for (kind, dim, groups, n, far) in [
            (KvKind::F16, 64, vec![4, 4], 100, 1999),
            // Rows of more than a thread's four fours; not of whole stages; in f32, by another kernel; more than a tile for each block.
            (KvKind::F16, 128, vec![16, 16, 8], 40, 700),
            (KvKind::F8, 128, vec![4, 4, 4], 40, 1200),
            (KvKind::F16, 36, vec![1, 2], 9000, 700),
            (KvKind::F32, 12, vec![3, 3], 33, 1999),
        ] {
            let fused = |case: &Case, context| meets_as_codes_do(device, case, n, context);
            for position in [256, far] {
                let case = Case::new(kind, &groups, dim, &[(position, 1)]);
                assert!(fused(&case, position + 1), "{case:?}");
                assert!(fused(&Case { fixed: Some(1), sinks: true, ..case.clone() }, 2048), "{case:?}");
                let window = Case { window: Some(300), softcap: Some(1.0), ..case };
                assert!(fused(&window, position + 1), "{window:?}");
            }
            // A row that sees less than there are spans, and one that does not exist.
            let case = Case::new(kind, &groups, dim, &[(3, 1)]);
            assert!(fused(&Case { fixed: Some(1), ..case.clone() }, 1024), "{case:?}");
            assert!(fused(&Case { runs: vec![], fixed: Some(1), ..case.clone() }, 1024), "no row");
            // One span, many of them, and several rows.
            assert!(!fused(&case, 200));
            assert!(!fused(&Case { fixed: Some(1), ..case.clone() }, 2049));
            assert!(!fused(&Case { fixed: Some(2), ..case }, 1024));
        }
    }
}
