use super::*;
use crate::cuda::testing::{Random, assert_close, devices};
use crate::cuda::{Acts, Device, F8Rows, activations_to_f8, f8_stride};

/// Each row of `x` divided by its root mean square.
fn normalised(x: &[f64], width: usize, weight: &[f32], eps: f32) -> Vec<f64> {
    let rows = x.chunks(width).flat_map(|row| {
        let squares: f64 = row.iter().map(|x| x * x).sum();
        let scale = 1.0 / (squares / width as f64 + f64::from(eps)).sqrt();
        row.iter().zip(weight).map(move |(x, weight)| x * scale * f64::from(*weight))
    });
    rows.collect()
}

struct Case {
    rows: usize,
    width: usize,
    kind: ActType,
    with_added: bool,
    with_post_norm: bool,
    with_out: bool,
}

fn check(device: &Device, random: &mut Random, case: &Case) {
    let Case { rows, width, kind, with_added, with_post_norm, with_out } = *case;
    let what = format!("{rows} × {width} {kind:?} {with_added} {with_post_norm} {with_out}");
    let (x, added) = (random.floats(rows * width), random.floats(rows * width));
    let (post_norm, weight) = (random.floats(width), random.floats(width));
    let eps = 1e-5;
    let exact = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let more = match (with_added, with_post_norm) {
        (false, _) => vec![0.0; rows * width],
        (true, false) => exact(&added),
        (true, true) => normalised(&exact(&added), width, &post_norm, eps),
    };
    let sum: Vec<f64> = exact(&x).iter().zip(&more).map(|(x, more)| x + more).collect();

    let (mut on_device, added) = (device.upload(&x).unwrap(), device.upload(&added).unwrap());
    let (post_norm, on_weight) = (device.upload(&post_norm).unwrap(), device.upload(&weight).unwrap());
    let mut out = Acts::alloc(device, kind, rows * width).unwrap();
    out.view_mut().fill(0xff).unwrap();
    add_and_norm(
        with_out.then(|| out.view_mut()),
        on_device.view_mut(),
        with_added.then(|| added.view()),
        with_post_norm.then(|| post_norm.view()),
        on_weight.view(),
        rows,
        width,
        eps,
    )
    .unwrap();
    assert_close(&on_device.download().unwrap(), &sum, 2e-6, &format!("x of {what}"));
    let found = out.download().unwrap();
    if !with_out {
        assert!(found.iter().all(|x| x.is_nan()), "out of {what}");
        return;
    }
    let tolerance = match kind {
        ActType::F32 => 1e-5,
        // Half a unit of 8 bits, of at most about 2.
        _ => 8e-3,
    };
    assert_close(&found, &normalised(&sum, width, &weight, eps), tolerance, &format!("out of {what}"));
}

#[test]
fn adds_and_normalises() {
    for device in devices() {
        let mut random = Random::new(1);
        for round in 0..60 {
            let width = [1, 2, 31, 32, 33, 576, 1000, 2049, 4096, 7168][round % 10];
            let case = Case {
                rows: 1 + random.below(5),
                width,
                kind: if random.below(2) == 0 { ActType::F32 } else { ActType::Bf16 },
                with_added: random.below(3) > 0,
                with_post_norm: random.below(2) == 0,
                with_out: random.below(5) > 0,
            };
            check(&device, &mut random, &case);
        }
        assert!(device.driver().launches().iter().map(|(_, count)| count).sum::<u64>() > 40);
    }
}

/// A norm's rows in f32, and the same in E4M3, alone or with bf16 beside them.
fn check_codes(device: &Device, random: &mut Random, width: usize, beside: bool) {
    let rows = 4;
    let (mut x, mut weight) = (random.floats(rows * width), random.floats(width));
    // A row of nothing, and one that is seen.
    x[width..2 * width].fill(0.0);
    x[2 * width] = f32::NAN;
    weight[0] = 30.0;
    let (added, weight) = (device.zeros(rows * width).unwrap(), device.upload(&weight).unwrap());
    let norm = |out: Normed<'_>| {
        let mut x = device.upload(&x).unwrap();
        add_and_norm(out, x.view_mut(), Some(added.view()), None, weight.view(), rows, width, 1e-5).unwrap();
    };
    let mut plain = Acts::alloc(device, ActType::F32, rows * width).unwrap();
    norm(plain.view_mut().into());
    let mut also = Acts::alloc(device, ActType::Bf16, rows * width).unwrap();
    let mut codes = F8Rows::alloc(device, rows, width).unwrap();
    codes.view_mut().fill(0xa5).unwrap();
    norm(Normed { plain: beside.then(|| also.view_mut()), codes: Some(codes.view_mut()) });

    let (values, what) = (plain.download().unwrap(), format!("{width} wide, {beside}"));
    let (codes, scales) = codes.download_codes().unwrap();
    let found = codes.chunks_exact(f8_stride(width)).zip(&scales);
    for (row, ((codes, scale), values)) in found.zip(values.chunks_exact(width)).enumerate() {
        let mut expected = Vec::new();
        let by = activations_to_f8(values, &mut expected);
        expected.resize(codes.len(), 0);
        assert_eq!(codes, expected, "{what}: row {row}");
        assert!(*scale == by || row == 2 && scale.is_nan() && by.is_nan(), "{what}: row {row}: {scale}");
        assert_eq!(*scale == 0.0, row == 1, "{what}: row {row}");
    }
    if beside {
        let expected = Acts::upload(device, ActType::Bf16, &values).unwrap().download().unwrap();
        let same = |(a, b): (&f32, &f32)| a == b || a.is_nan() && b.is_nan();
        assert!(also.download().unwrap().iter().zip(&expected).all(same), "{what}: bf16");
    }
}

#[test]
fn codes_are_those_of_the_rows_in_f32() {
    for device in devices() {
        let mut random = Random::new(2);
        for width in [1, 9, 33, 1000, 8, 20, 64, 576, 4096, 4100, 7168, 8192, 8196] {
            check_codes(&device, &mut random, width, width % 3 == 0);
            check_codes(&device, &mut random, width, width % 3 != 0);
        }
    }
}
