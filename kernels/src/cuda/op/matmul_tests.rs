use half::{bf16, f16};

use super::*;
use crate::cuda::testing::{Random, devices};
use crate::cuda::{Acts, Buffer, Device, Gpu, from_f8};

/// A matrix on a device, and its numbers as products take them: in f64, in rows.
struct Weights {
    matrix: DeviceMatrix,
    numbers: Vec<f64>,
}

/// Random weights. With activations in bf16, f16 is rounded to it: so are the numbers.
fn weights(
    device: &Device,
    random: &mut Random,
    kind: WeightKind,
    ty: ActType,
    n: usize,
    k: usize,
) -> Weights {
    let values = random.floats(n * k);
    let number = |value: f32| match (kind, ty) {
        (WeightKind::F32, _) => value,
        (WeightKind::Bf16, _) => bf16::from_f32(value).to_f32(),
        (WeightKind::F16, ActType::F32) => f16::from_f32(value).to_f32(),
        (WeightKind::F16, _) => bf16::from_f32(f16::from_f32(value).to_f32()).to_f32(),
        _ => value,
    };
    if kind == WeightKind::F8 {
        // Every code but NaN, and scales that are not powers of two.
        let codes: Vec<u8> = (0..n * k).map(|_| (random.below(127) + 128 * random.below(2)) as u8).collect();
        let scales: Vec<f32> = (0..n).map(|_| 0.01 + random.float().abs()).collect();
        let mut matrix = DeviceMatrix::from_rows(device, kind, n, k, &codes).expect("matrix");
        matrix.put_scales(0, &scales).expect("scales");
        let numbers =
            codes.iter().zip(0..).map(|(code, i)| f64::from(from_f8(*code)) * f64::from(scales[i / k]));
        return Weights { matrix, numbers: numbers.collect() };
    }
    let matrix = DeviceMatrix::from_f32(device, kind, n, k, &values).expect("matrix");
    Weights { matrix, numbers: values.iter().map(|value| f64::from(number(*value))).collect() }
}

/// Random activations, and their numbers.
pub(super) fn activations(random: &mut Random, ty: ActType, len: usize) -> Vec<f32> {
    let values = random.floats(len);
    match ty {
        ActType::F32 => values,
        _ => values.iter().map(|value| bf16::from_f32(*value).to_f32()).collect(),
    }
}

pub(super) fn upload_acts(device: &Device, ty: ActType, values: &[f32]) -> Acts {
    let bits = || values.iter().map(|value| bf16::from_f32(*value).to_bits()).collect::<Vec<u16>>();
    match ty {
        ActType::F32 => Acts::F32(device.upload(values).expect("upload")),
        _ => Acts::Bf16(device.upload(&bits()).expect("upload")),
    }
}

/// Expects `found` to be x · w, with errors of rounding only: relative to the sum of the products' sizes.
fn assert_product(found: &[f32], x: &[f32], w: &[f64], k: usize, what: &str) {
    let mut worst = (0.0, 0);
    for (o, found) in found.iter().enumerate() {
        let products = x.iter().zip(&w[o * k..(o + 1) * k]).map(|(x, w)| f64::from(*x) * w);
        let (sum, size) = products.fold((0.0, 0.0), |(sum, size), one| (sum + one, size + one.abs()));
        let error = (f64::from(*found) - sum).abs() / (size + 1e-30);
        let error = if error.is_nan() { f64::INFINITY } else { error };
        if error > worst.0 {
            worst = (error, o);
        }
    }
    assert!(worst.0 < 3e-6, "{what}: relative error {:.2e} at output {}", worst.0, worst.1);
}

pub(super) fn poisoned(device: &Device, len: usize) -> Buffer<f32> {
    let mut out = device.alloc(len).expect("alloc");
    out.view_mut().fill(0xff).expect("fill");
    out
}

fn types() -> impl Iterator<Item = (WeightKind, ActType)> {
    WeightKind::WITHOUT_BLOCKS.into_iter().flat_map(|kind| [(kind, ActType::F32), (kind, ActType::Bf16)])
}

fn check_dense(
    device: &Device,
    kind: WeightKind,
    ty: ActType,
    (rows, n, k): (usize, usize, usize),
    gap: usize,
) {
    let mut random = Random::new((rows * 1_000_003 + n * 1009 + k) as u64);
    let w = weights(device, &mut random, kind, ty, n, k);
    let x = activations(&mut random, ty, rows * k);
    let stride = n + gap;
    let mut out = poisoned(device, (rows - 1) * stride + n);
    let acts = upload_acts(device, ty, &x);
    matmul(out.view_mut(), stride, acts.view(), &w.matrix, rows).expect("product");
    let found = out.download().expect("download");
    for r in 0..rows {
        let what = format!("{kind:?} · {ty:?}, row {r} of {rows}, {n} × {k}");
        assert_product(&found[r * stride..r * stride + n], &x[r * k..(r + 1) * k], &w.numbers, k, &what);
        let between = found[r * stride..].iter().take(stride).skip(n);
        assert!(between.clone().all(|v| v.is_nan()), "{what}: wrote between rows");
    }
}

#[test]
fn dense_products_of_every_type_are_right() {
    for device in devices() {
        for (kind, ty) in types() {
            for shape in [
                (1, 40, 256),
                (2, 17, 96),
                (3, 16, 1040),
                (5, 33, 520),
                (8, 48, 64),
                (9, 70, 136),
                (2, 50, 1024),
            ] {
                check_dense(&device, kind, ty, shape, shape.0 % 3);
            }
        }
    }
}

#[test]
fn inputs_of_any_number_are_summed() {
    for device in devices() {
        for (kind, ty) in types() {
            for shape in [(1, 3, 1), (2, 5, 7), (4, 19, 33), (11, 18, 130), (1, 1, 999), (7, 20, 24)] {
                check_dense(&device, kind, ty, shape, 1);
            }
        }
    }
}

#[test]
fn tiles_of_every_height_are_right() {
    for device in devices() {
        for kind in [WeightKind::Bf16, WeightKind::F16, WeightKind::F8] {
            for shape in
                [(16, 64, 512), (13, 72, 40), (17, 130, 200), (32, 64, 72), (50, 129, 456), (64, 128, 64)]
            {
                check_dense(&device, kind, ActType::Bf16, shape, 2);
            }
            check_dense(&device, kind, ActType::Bf16, (12, 40, 1536), 2);
            check_dense(&device, kind, ActType::Bf16, (16, 20, 3584), 0);
            check_dense(&device, kind, ActType::Bf16, (70, 131, 456), 1);
            check_dense(&device, kind, ActType::Bf16, (129, 20, 64), 0);
            check_dense(&device, kind, ActType::Bf16, (270, 150, 200), 0);
            check_dense(&device, kind, ActType::Bf16, (20, 150, 1104), 1);
            check_dense(&device, kind, ActType::Bf16, (90, 40, 1096), 0);
        }
    }
}

#[test]
fn blocks_that_have_several_tiles_do_all_of_them() {
    for device in devices() {
        check_dense(&device, WeightKind::Bf16, ActType::Bf16, (1, 25_400, 256), 1);
        check_dense(&device, WeightKind::F8, ActType::Bf16, (1, 25_347, 512), 1);
        check_dense(&device, WeightKind::F16, ActType::Bf16, (3, 25_400, 24), 0);
    }
}

#[test]
fn a_row_has_the_same_bits_however_many_share_the_product() {
    for device in devices() {
        for (kind, ty) in types() {
            for (k, rows) in [(1104, 9), (531, 9), (2048, 18), (200, 70)] {
                let n = 35;
                let mut random = Random::new(5);
                let w = weights(&device, &mut random, kind, ty, n, k);
                let x = activations(&mut random, ty, rows * k);
                let product = |from: usize, rows: usize| {
                    let mut out = poisoned(&device, rows * n);
                    let acts = upload_acts(&device, ty, &x[from * k..(from + rows) * k]);
                    matmul(out.view_mut(), n, acts.view(), &w.matrix, rows).expect("product");
                    bits(&out)
                };
                let all = product(0, rows);
                for few in [1, 2, 3, 7, 8, 9, 17, 33].into_iter().filter(|few| *few < rows) {
                    assert_eq!(product(0, few), all[..few * n], "{kind:?} · {ty:?}: {few} rows of {k}");
                }
                assert_eq!(product(5, 1), all[5 * n..6 * n], "{kind:?} · {ty:?}: row 5 of {k}");
            }
        }
    }
}

pub(super) fn bits(out: &Buffer<f32>) -> Vec<u32> {
    out.download().expect("download").iter().map(|v| v.to_bits()).collect()
}

/// On a GPU, the vendor's library among them.
#[test]
fn all_kernels_add_up_in_one_order() {
    for device in devices() {
        let large = Gpu::of(&device).is_some();
        for kind in [WeightKind::Bf16, WeightKind::F16, WeightKind::F8] {
            let shapes: &[_] = if large {
                &[(300, 1000, 4096), (200, 128, 14_336), (70, 150, 456)]
            } else {
                &[(70, 150, 456)]
            };
            for (rows, n, k) in shapes.iter().copied() {
                let mut random = Random::new(23);
                let w = weights(&device, &mut random, kind, ActType::Bf16, n, k);
                let x = activations(&mut random, ActType::Bf16, rows * k);
                let acts = upload_acts(&device, ActType::Bf16, &x);
                let mut expected = poisoned(&device, rows * n);
                matmul(expected.view_mut(), n, acts.view(), &w.matrix, rows).expect("product");
                let expected = bits(&expected);
                let sizes = of_one(&device, 0, acts.view(), &w.matrix, rows).sizes();
                let wide = has_wide(&device).then(|| sizes.by_wgmma());
                for form in choose::ALL.into_iter().chain(wide) {
                    let mut out = poisoned(&device, rows * n);
                    let product = of_one(&device, out.view_mut().address(), acts.view(), &w.matrix, rows);
                    let launch = sizes.launch(form).expect("a kernel");
                    let what = format!("{}, {rows} rows, {n} × {k}", launch.kernel);
                    product.start(&launch).expect("product");
                    let found = bits(&out);
                    let others = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
                    assert_eq!(others, 0, "{what}: of {} numbers", found.len());
                }
            }
        }
    }
}

/// A product of one matrix with rows that follow each other.
pub(super) fn of_one<'a>(
    device: &'a Device,
    out: u64,
    x: ActsView<'a>,
    w: &'a DeviceMatrix,
    rows: usize,
) -> Product<'a> {
    Product {
        out,
        device,
        out_stride: w.rows(),
        out_batch: 0,
        x,
        x_stride: w.cols(),
        x_batch: 0,
        kind: w.kind(),
        n: w.rows(),
        k: w.cols(),
        rows,
        which: Which::One(w),
        known: false,
        gate: None,
        own: false,
    }
}

/// Groups of so many rows each, known to have at most `max_rows`.
pub(super) fn groups(device: &Device, sizes: &[u32], max_rows: usize) -> Groups {
    let mut offsets = vec![0];
    for size in sizes {
        offsets.push(offsets[offsets.len() - 1] + size);
    }
    Groups {
        count: sizes.len(),
        offsets: device.upload(&offsets).expect("upload"),
        max_rows,
        most_of_one: max_rows,
        group_of_row: device.zeros(max_rows).expect("zeros"),
        token_of_row: device.zeros(max_rows).expect("zeros"),
    }
}

struct Grouped<'a> {
    kind: WeightKind,
    ty: ActType,
    sizes: &'a [u32],
    max_rows: usize,
    n: usize,
    k: usize,
    through: bool,
}

fn check_grouped(device: &Device, case: &Grouped<'_>) {
    let Grouped { kind, ty, sizes, max_rows, n, k, through } = *case;
    let mut random = Random::new((max_rows + n + k) as u64);
    let (numbers, matrices): (Vec<_>, Vec<_>) = sizes
        .iter()
        .map(|_| weights(device, &mut random, kind, ty, n, k))
        .map(|w| (w.numbers, w.matrix))
        .unzip();
    let table = MatrixTable::new(matrices).expect("table");
    let groups = groups(device, sizes, max_rows);
    let tokens = if through { 5 } else { max_rows };
    let x = activations(&mut random, ty, tokens * k);
    let acts = upload_acts(device, ty, &x);
    let rows: Vec<u32> = (0..max_rows).map(|_| random.below(tokens) as u32).collect();
    let x_rows = device.upload(&rows).expect("upload");
    let stride = n + 3;
    let mut out = poisoned(device, max_rows * stride);
    let view = through.then(|| x_rows.view());
    grouped_matmul(out.view_mut(), stride, acts.view(), view, &table, &groups).expect("product");
    let found = out.download().expect("download");
    let mut row = 0;
    for (g, size) in sizes.iter().enumerate() {
        for _ in 0..*size {
            let from = if through { rows[row] as usize } else { row };
            let what = format!("{kind:?} · {ty:?}, {n} × {k}, row {row} in group {g} of {sizes:?}");
            let x = &x[from * k..(from + 1) * k];
            assert_product(&found[row * stride..row * stride + n], x, &numbers[g], k, &what);
            assert!(found[row * stride + n..(row + 1) * stride].iter().all(|v| v.is_nan()), "{what}: beside");
            row += 1;
        }
    }
    assert!(found[row * stride..].iter().all(|v| v.is_nan()), "{kind:?}: wrote past the last row");
}

#[test]
fn rows_of_groups_meet_their_matrices() {
    let many = [&[0_u32; 40][..], &[1, 0, 2], &[0; 30], &[9, 0, 3]].concat();
    for device in devices() {
        for (kind, ty) in types() {
            for (sizes, max_rows, n, k) in [
                (&[1_u32, 1][..], 2, 40, 256),
                (&[0, 1, 0, 0, 1, 0, 0, 0], 2, 20, 264),
                (&[0, 0, 3], 6, 16, 136),
                (&[10, 0, 2], 12, 24, 72),
                (&[0, 0, 0], 5, 16, 64),
                (&[2, 1, 3], 6, 17, 13),
                (&many, 40, 10, 24),
            ] {
                for through in [false, true] {
                    check_grouped(&device, &Grouped { kind, ty, sizes, max_rows, n, k, through });
                }
            }
        }
    }
}

#[test]
fn tiles_of_groups_meet_their_matrices() {
    let many = [&[0_u32; 40][..], &[17, 0, 130], &[0; 30], &[9, 60, 3]].concat();
    for device in devices() {
        for kind in [WeightKind::Bf16, WeightKind::F16, WeightKind::F8] {
            let ty = ActType::Bf16;
            for (sizes, max_rows, n, k) in [
                (&[20_u32, 1, 0][..], 21, 70, 136),
                (&[7, 0, 40, 16], 70, 64, 72),
                (&[70, 65], 140, 140, 64),
                (&[129, 0, 1], 230, 30, 72),
                (&[1, 300], 301, 140, 456),
                (&many, 240, 10, 24),
            ] {
                check_grouped(
                    &device,
                    &Grouped { kind, ty, sizes, max_rows, n, k, through: sizes.len() % 2 == 0 },
                );
            }
        }
    }
}

/// Whether what only Hopper has runs there: on it, and on the host.
pub(super) fn has_wide(device: &Device) -> bool {
    device.driver().as_any().downcast_ref::<Gpu>().is_none_or(|gpu| gpu.capability() == HOPPER)
}

#[test]
fn tiles_of_hopper_are_right() {
    for device in devices().iter().filter(|device| has_wide(device)) {
        for kind in [WeightKind::Bf16, WeightKind::F16, WeightKind::F8] {
            for (rows, n, k) in
                [(256, 128, 64), (300, 150, 136), (100, 40, 456), (64, 70, 328), (3, 131, 200)]
            {
                let mut random = Random::new(17);
                let w = weights(device, &mut random, kind, ActType::Bf16, n, k);
                let x = activations(&mut random, ActType::Bf16, rows * k);
                let acts = upload_acts(device, ActType::Bf16, &x);
                let mut out = poisoned(device, rows * n);
                let product = of_one(device, out.view_mut().address(), acts.view(), &w.matrix, rows);
                let sizes = product.sizes();
                let launch = sizes.launch(sizes.by_wgmma()).expect("a kernel");
                product.start(&launch).expect("product");
                let found = out.download().expect("download");
                for r in 0..rows {
                    let what = format!("{kind:?}, row {r} of {rows}, {n} × {k}");
                    assert_product(&found[r * n..(r + 1) * n], &x[r * k..(r + 1) * k], &w.numbers, k, &what);
                }
            }
        }
    }
}

#[test]
fn batches_meet_their_matrices() {
    for device in devices() {
        for (kind, ty) in types() {
            for (rows, n, k) in [(1, 20, 64), (3, 16, 72), (8, 33, 17), (21, 70, 40)] {
                let batches = 3;
                let mut random = Random::new(11);
                let (numbers, matrices): (Vec<_>, Vec<_>) = (0..batches)
                    .map(|_| weights(&device, &mut random, kind, ty, n, k))
                    .map(|w| (w.numbers, w.matrix))
                    .unzip();
                let table = MatrixTable::new(matrices).expect("table");
                // Heads side by side, as attention has them.
                let (x_batch, out_batch) = (k + 8, n + 1);
                let (x_stride, out_stride) = (batches * x_batch, batches * out_batch);
                let x = activations(&mut random, ty, rows * x_stride);
                let acts = upload_acts(&device, ty, &x);
                let mut out = poisoned(&device, rows * out_stride);
                let to = out.view_mut();
                batched_matmul(to, out_stride, out_batch, acts.view(), x_stride, x_batch, &table, rows)
                    .expect("product");
                let found = out.download().expect("download");
                for (b, numbers) in numbers.iter().enumerate() {
                    for r in 0..rows {
                        let what = format!("{kind:?} · {ty:?}, {n} × {k}, batch {b}, row {r} of {rows}");
                        let (x_at, out_at) = (r * x_stride + b * x_batch, r * out_stride + b * out_batch);
                        assert_product(&found[out_at..out_at + n], &x[x_at..x_at + k], numbers, k, &what);
                        assert!(found[out_at + n].is_nan(), "{what}: beside");
                    }
                }
            }
        }
    }
}
