use super::*;
use crate::cuda::op::elementwise::gated as activate;
use crate::cuda::op::matmul::{Product, Which, gated_matmul, grouped_gated_matmul, grouped_matmul, matmul};
use crate::cuda::testing::{Random, devices};
use crate::cuda::{
    ActType, Acts, Buffer, Device, DeviceMatrix, Groups, MatrixTable, WeightKind, activations_to_f8, from_f8,
};
use crate::op::gated::GatedActivation;

/// A matrix of any codes but NaN, and its numbers.
fn weights(device: &Device, random: &mut Random, n: usize, k: usize) -> (DeviceMatrix, Vec<f64>) {
    let codes: Vec<u8> = (0..n * k).map(|_| (random.below(127) + 128 * random.below(2)) as u8).collect();
    let scales: Vec<f32> = (0..n).map(|_| 0.01 + random.float().abs()).collect();
    let mut matrix = DeviceMatrix::from_rows(device, WeightKind::F8, n, k, &codes).expect("matrix");
    matrix.put_scales(0, &scales).expect("scales");
    let numbers = codes.iter().zip(0..).map(|(code, i)| f64::from(from_f8(*code)) * f64::from(scales[i / k]));
    (matrix, numbers.collect())
}

/// Rows in E4M3, and their numbers.
fn rows_of(device: &Device, values: &[f32], k: usize) -> (Acts, Vec<f64>) {
    let mut numbers = Vec::new();
    for row in values.chunks_exact(k) {
        let mut codes = Vec::new();
        let scale = activations_to_f8(row, &mut codes);
        numbers.extend(codes.iter().map(|code| f64::from(from_f8(*code)) * f64::from(scale)));
    }
    (Acts::upload_rows(device, ActType::F8, k, values).expect("rows"), numbers)
}

fn poisoned(device: &Device, len: usize) -> Buffer<f32> {
    let mut out = device.alloc(len).expect("alloc");
    out.view_mut().fill(0xff).expect("fill");
    out
}

/// How far a product may be from the exact one, in parts of the sum of its products' sizes. The twin adds exactly within 32 inputs.
/// Hopper cuts each of 32 products and the sum so far to some 13 bits below the largest of them (DeepSeek-V3, technical report, 3.3.2).
fn most(device: &Device) -> f64 {
    if device.name() == "host twin" { 1e-5 } else { 33.0 * 2f64.powi(-13) }
}

/// Expects x · w.
fn assert_product(found: &[f32], x: &[f64], w: &[f64], most: f64, what: &str) {
    let k = x.len();
    for (o, found) in found.iter().enumerate() {
        let products = x.iter().zip(&w[o * k..(o + 1) * k]).map(|(x, w)| x * w);
        let (sum, size) = products.fold((0.0, 1e-30), |(sum, size), one| (sum + one, size + one.abs()));
        let error = (f64::from(*found) - sum).abs() / size;
        assert!(error < most, "{what}: relative error {error:.2e} at output {o}");
    }
}

fn product<'a>(
    device: &'a Device,
    out: u64,
    x: &'a Acts,
    w: &'a DeviceMatrix,
    rows: usize,
    gate: Option<GatedActivation>,
) -> Product<'a> {
    Product {
        out,
        device,
        out_stride: if gate.is_some() { w.rows() / 2 } else { w.rows() },
        out_batch: 0,
        x: x.view(),
        x_stride: w.cols(),
        x_batch: 0,
        kind: w.kind(),
        n: w.rows(),
        k: w.cols(),
        rows,
        which: Which::One(w),
        known: false,
        gate,
        own: false,
    }
}

fn bits(out: &Buffer<f32>) -> Vec<u32> {
    out.download().expect("download").iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_kernel_is_right_and_all_add_up_in_one_order() {
    for device in devices().iter().filter(|device| device.multiplies_f8()) {
        for (rows, n, k) in [(1, 40, 16), (7, 70, 200), (33, 130, 1000), (130, 264, 24), (70, 20, 520)] {
            let mut random = Random::new((rows + n + k) as u64);
            let (w, w_numbers) = weights(device, &mut random, n, k);
            let (x, x_numbers) = rows_of(device, &random.floats(rows * k), k);
            let mut first = None;
            for form in ALL {
                let mut out = poisoned(device, rows * n);
                let product = product(device, out.view_mut().address(), &x, &w, rows, None);
                let launch = form.launch(&product.sizes());
                product.start(&launch).expect("product");
                let (found, of_bits) = (out.download().expect("download"), bits(&out));
                for r in 0..rows {
                    let what = format!("{}, row {r} of {rows}, {n} × {k}", launch.kernel);
                    assert_product(
                        &found[r * n..(r + 1) * n],
                        &x_numbers[r * k..(r + 1) * k],
                        &w_numbers,
                        most(device),
                        &what,
                    );
                }
                let expected = first.get_or_insert_with(|| of_bits.clone());
                assert!(*expected == of_bits, "{}: other bits, {rows} rows of {n} × {k}", launch.kernel);
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_beside_others() {
    for device in devices().iter().filter(|device| device.multiplies_f8()) {
        let (rows, n, k) = (40, 35, 300);
        let mut random = Random::new(9);
        let (w, _) = weights(device, &mut random, n, k);
        let mut values = random.floats(rows * k);
        values[3 * k] = f32::NAN;
        let made = |from: usize, rows: usize| {
            let (x, _) = rows_of(device, &values[from * k..(from + rows) * k], k);
            let mut out = poisoned(device, rows * n);
            matmul(out.view_mut(), n, x.view(), &w, rows).expect("product");
            bits(&out)
        };
        let all = made(0, rows);
        assert!(all[3 * n..4 * n].iter().all(|bits| f32::from_bits(*bits).is_nan()));
        for (from, count) in [(0, 3), (1, 2), (5, 1), (4, 12), (20, 20), (39, 1)] {
            assert_eq!(made(from, count), all[from * n..(from + count) * n], "{count} rows from {from}");
        }
    }
}

fn groups(device: &Device, sizes: &[u32], max_rows: usize, from: &[u32]) -> Groups {
    let (mut offsets, mut of_row) = (vec![0], Vec::new());
    for (group, size) in sizes.iter().enumerate() {
        offsets.push(offsets[group] + size);
        of_row.extend(vec![group as u32; *size as usize]);
    }
    of_row.resize(max_rows, 0);
    Groups {
        count: sizes.len(),
        offsets: device.upload(&offsets).expect("upload"),
        max_rows,
        most_of_one: max_rows,
        group_of_row: device.upload(&of_row).expect("upload"),
        token_of_row: device.upload(from).expect("upload"),
    }
}

#[test]
fn rows_of_groups_meet_their_matrices() {
    for device in devices().iter().filter(|device| device.multiplies_f8()) {
        let many = [&[0_u32; 40][..], &[1, 0, 2], &[0; 30], &[9, 0, 3]].concat();
        for (sizes, n, k) in [
            (&[1_u32, 0, 1][..], 40, 264),
            (&[0, 0, 20, 3], 72, 40),
            (&[0, 140, 0, 2], 30, 136),
            (&many, 10, 24),
        ] {
            let mut random = Random::new((n + k) as u64);
            let used = sizes.iter().sum::<u32>() as usize;
            let (tokens, max_rows) = (6, used + 2);
            let from: Vec<u32> = (0..max_rows).map(|_| random.below(tokens) as u32).collect();
            let groups = groups(device, sizes, max_rows, &from);
            let (matrices, numbers): (Vec<_>, Vec<_>) =
                sizes.iter().map(|_| weights(device, &mut random, n, k)).unzip();
            let table = MatrixTable::new(matrices).expect("table");
            let (x, x_numbers) = rows_of(device, &random.floats(tokens * k), k);
            let stride = n + 3;
            let mut out = poisoned(device, max_rows * stride);
            let through = Some(groups.token_of_row.view());
            grouped_matmul(out.view_mut(), stride, x.view(), through, &table, &groups).expect("product");
            let found = out.download().expect("download");
            let of_row = groups.group_of_row.download().expect("download");
            for row in 0..used {
                let what = format!("row {row} of {sizes:?}, {n} × {k}");
                let x = &x_numbers[from[row] as usize * k..][..k];
                assert_product(
                    &found[row * stride..][..n],
                    x,
                    &numbers[of_row[row] as usize],
                    most(device),
                    &what,
                );
                assert!(
                    found[row * stride + n..(row + 1) * stride].iter().all(|x| x.is_nan()),
                    "{what}: beside"
                );
            }
            assert!(found[used * stride..].iter().all(|x| x.is_nan()), "{sizes:?}: past the last row");
        }
    }
}

/// Expects the same numbers, to the last bit of bf16.
fn assert_same(found: &Acts, expected: &Acts, what: &str) {
    let (found, expected) = (found.download().expect("download"), expected.download().expect("download"));
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let near = (found - expected).abs() <= expected.abs() / 128.0;
        assert!(near || found.is_nan() && expected.is_nan(), "{what}: {found} in place of {expected} at {i}");
    }
}

#[test]
fn gated_products_are_products_and_their_activation() {
    for device in devices().iter().filter(|device| device.multiplies_f8()) {
        for (rows, width, k) in [(1, 20, 264), (9, 21, 40), (70, 66, 136)] {
            let mut random = Random::new((rows + width + k) as u64);
            let (w, _) = weights(device, &mut random, 2 * width, k);
            let values: Vec<f32> = random.floats(rows * k).iter().map(|x| x * 1e-3).collect();
            let (x, _) = rows_of(device, &values, k);
            let mut both = poisoned(device, rows * 2 * width);
            matmul(both.view_mut(), 2 * width, x.view(), &w, rows).expect("product");
            for activation in [GatedActivation::Silu, GatedActivation::GeluTanh] {
                let room = || Acts::alloc(device, ActType::Bf16, rows * width).expect("alloc");
                let mut expected = room();
                activate(expected.view_mut(), both.view(), None, None, rows, width, activation)
                    .expect("done");
                let mut out = room();
                assert!(gated_matmul(out.view_mut(), x.view(), &w, rows, activation).expect("product"));
                assert_same(&out, &expected, &format!("{rows} rows, {width} × {k}"));
                for form in ALL {
                    let mut out = room();
                    out.view_mut().fill(0xff).expect("fill");
                    let product = product(device, out.view_mut().address(), &x, &w, rows, Some(activation));
                    let launch = form.launch(&product.sizes());
                    product.start(&launch).expect("product");
                    assert_same(&out, &expected, &format!("{}, {rows} rows, {width} × {k}", launch.kernel));
                }
            }
        }
    }
}

#[test]
fn gated_products_of_groups() {
    for device in devices().iter().filter(|device| device.multiplies_f8()) {
        let (sizes, width, k) = ([2_u32, 0, 3, 1], 36, 264);
        let mut random = Random::new(11);
        let from = [1_u32, 2, 0, 1, 3, 3, 0, 0];
        let groups = groups(device, &sizes, 8, &from);
        let matrices = sizes.iter().map(|_| weights(device, &mut random, 2 * width, k).0).collect();
        let table = MatrixTable::new(matrices).expect("table");
        let values: Vec<f32> = random.floats(4 * k).iter().map(|x| x * 1e-3).collect();
        let (x, _) = rows_of(device, &values, k);
        let rows = || Some(groups.token_of_row.view());
        let mut both: Buffer<f32> = device.zeros(8 * 2 * width).expect("alloc");
        grouped_matmul(both.view_mut(), 2 * width, x.view(), rows(), &table, &groups).expect("product");
        let room = || {
            let mut out = Acts::alloc(device, ActType::Bf16, 8 * width).expect("alloc");
            out.view_mut().fill(0xff).expect("fill");
            out
        };
        let (mut out, mut expected, silu) = (room(), room(), GatedActivation::Silu);
        activate(expected.view_mut(), both.view(), None, Some(&groups), 8, width, silu).expect("done");
        assert!(
            grouped_gated_matmul(out.view_mut(), x.view(), rows(), &table, &groups, silu).expect("product")
        );
        assert_same(&out, &expected, "groups");
    }
}
