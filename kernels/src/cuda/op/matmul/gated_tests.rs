use half::bf16;

use super::*;
use crate::cuda::op::elementwise::gated as activate;
use crate::cuda::op::matmul::tests::has_wide;
use crate::cuda::op::matmul::{grouped_matmul, grouped_matmul_next, matmul};
use crate::cuda::testing::{Random, devices};
use crate::cuda::{Acts, Buffer, Device, Gpu};

const ACTIVATIONS: [GatedActivation; 3] = [
    GatedActivation::Silu,
    GatedActivation::GeluTanh,
    GatedActivation::ClampedSwiglu { alpha: 1.702, limit: 0.5 },
];

fn matrix(device: &Device, random: &mut Random, kind: WeightKind, n: usize, k: usize) -> DeviceMatrix {
    let values: Vec<f32> = random.floats(n * k).iter().map(|x| x * 0.2).collect();
    match kind {
        WeightKind::F8 => DeviceMatrix::quantize_f8(device, n, k, &values).expect("matrix"),
        _ => DeviceMatrix::from_f32(device, kind, n, k, &values).expect("matrix"),
    }
}

fn acts(device: &Device, random: &mut Random, len: usize) -> Acts {
    Acts::upload(device, ActType::Bf16, &random.floats(len)).expect("upload")
}

fn nothing(device: &Device, len: usize) -> Acts {
    let mut out = Acts::alloc(device, ActType::Bf16, len).expect("alloc");
    out.view_mut().fill(0xff).expect("fill");
    out
}

/// Expects the same numbers, to the last bit of bf16 (the vendor's compiler may join a product and a sum in one and not in the
/// other).
fn assert_same(found: &Acts, expected: &Acts, what: &str) {
    let (found, expected) = (found.download().expect("download"), expected.download().expect("download"));
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let near = (found - expected).abs() <= expected.abs() / 128.0;
        assert!(near || found.is_nan() && expected.is_nan(), "{what}: {found} in place of {expected} at {i}");
    }
}

fn check(device: &Device, kind: WeightKind, rows: usize, width: usize, k: usize) {
    let mut random = Random::new((rows * 7919 + width * 31 + k) as u64);
    let w = matrix(device, &mut random, kind, 2 * width, k);
    let x = acts(device, &mut random, rows * k);
    let mut both: Buffer<f32> = device.alloc(rows * 2 * width).expect("alloc");
    matmul(both.view_mut(), 2 * width, x.view(), &w, rows).expect("product");
    for activation in ACTIVATIONS {
        let what = format!("{kind:?}, {rows} rows, {width} × {k}, {activation:?}");
        let (mut out, mut expected) = (nothing(device, rows * width), nothing(device, rows * width));
        activate(expected.view_mut(), both.view(), None, None, rows, width, activation).expect("activation");
        let done = gated_matmul(out.view_mut(), x.view(), &w, rows, activation).expect("product");
        assert!(done, "{what}: not done");
        assert_same(&out, &expected, &what);
    }
}

#[test]
fn gated_products_are_products_and_their_activation() {
    for device in devices() {
        for kind in [WeightKind::Bf16, WeightKind::F16, WeightKind::F8] {
            check(&device, kind, 1, 8, 512);
            check(&device, kind, 3, 21, 1024);
            check(&device, kind, 8, 100, 512);
        }
        check(&device, WeightKind::Bf16, 2, 2200, 256);
    }
}

#[test]
fn what_no_kernel_does_at_once_is_left_alone() {
    for device in devices() {
        let mut random = Random::new(3);
        let refused = |kind, rows, n, k, random: &mut Random| {
            let w = matrix(&device, random, kind, n, k);
            let x = acts(&device, random, rows * k);
            let mut out = nothing(&device, rows * n);
            let done = gated_matmul(out.view_mut(), x.view(), &w, rows, GatedActivation::Silu);
            assert!(!done.expect("no product"), "{kind:?}, {rows} rows, {n} × {k}");
            assert!(out.download().expect("download").iter().all(|x| x.is_nan()), "{n} × {k}: written to");
        };
        refused(WeightKind::F32, 1, 16, 512, &mut random);
        refused(WeightKind::Bf16, 65, 16, 512, &mut random);
        refused(WeightKind::Bf16, 1, 17, 512, &mut random);
        refused(WeightKind::Bf16, 1, 16, 516, &mut random);
    }
}

#[test]
fn gated_products_of_groups_meet_their_matrices() {
    for device in devices() {
        for kind in [WeightKind::Bf16, WeightKind::F8] {
            let mut random = Random::new(11);
            let (sizes, max_rows, width, hidden) = ([2, 0, 3, 1], 8, 36, 512);
            let table = |n, k, random: &mut Random| {
                let matrices = sizes.iter().map(|_| matrix(&device, random, kind, n, k)).collect();
                MatrixTable::new(matrices).expect("table")
            };
            let (up, down) = (table(2 * width, hidden, &mut random), table(hidden, width, &mut random));
            let offsets = device.upload(&[0u32, 2, 2, 5, 6]).expect("upload");
            let group_of_row = device.upload(&[0u32, 0, 2, 2, 2, 3, 0, 0]).expect("upload");
            let token_of_row = device.upload(&[1u32, 2, 0, 1, 3, 3, 0, 0]).expect("upload");
            let groups = Groups {
                count: sizes.len(),
                offsets,
                max_rows,
                most_of_one: max_rows,
                group_of_row,
                token_of_row,
            };
            let x = acts(&device, &mut random, 4 * hidden);
            let rows = || Some(groups.token_of_row.view());

            let mut both: Buffer<f32> = device.zeros(max_rows * 2 * width).expect("alloc");
            grouped_matmul(both.view_mut(), 2 * width, x.view(), rows(), &up, &groups).expect("product");
            let (mut out, mut expected) =
                (nothing(&device, max_rows * width), nothing(&device, max_rows * width));
            let silu = GatedActivation::Silu;
            let (to, of) = (expected.view_mut(), both.view());
            activate(to, of, None, Some(&groups), max_rows, width, silu).expect("activation");
            let done = grouped_gated_matmul(out.view_mut(), x.view(), rows(), &up, &groups, silu);
            assert!(done.expect("product"), "{kind:?}: not done");
            assert_same(&out, &expected, &format!("{kind:?}, groups"));

            // What comes next gives the same, whether or not groups are known to be there.
            let mut results = [0, 1].map(|_| device.zeros::<f32>(max_rows * hidden).expect("alloc"));
            let [one, two] = &mut results;
            grouped_matmul(one.view_mut(), hidden, out.view(), None, &down, &groups).expect("product");
            grouped_gated_matmul(out.view_mut(), x.view(), rows(), &up, &groups, silu).expect("product");
            grouped_matmul_next(two.view_mut(), hidden, out.view(), None, &down, &groups).expect("product");
            let [one, two] = results.map(|of| of.download().expect("download"));
            assert_eq!(one, two, "{kind:?}");
        }
    }
}

#[test]
fn a_gate_is_rounded_once() {
    for device in devices() {
        let ones = vec![1.0; 2 * 512];
        let w = DeviceMatrix::from_f32(&device, WeightKind::Bf16, 2, 512, &ones).expect("matrix");
        let x = Acts::upload(&device, ActType::Bf16, &[1.0 / 256.0; 512]).expect("upload");
        let mut out = nothing(&device, 1);
        assert!(gated_matmul(out.view_mut(), x.view(), &w, 1, GatedActivation::Silu).expect("product"));
        let exact = 2.0 / (1.0 + (-2.0f32).exp()) * 2.0;
        assert_eq!(out.download().expect("download"), [bf16::from_f32(exact).to_f32()]);
    }
}

/// Groups of so many rows each, which have at most `max_rows`, of `tokens` rows of x.
fn groups(device: &Device, random: &mut Random, sizes: &[u32], max_rows: usize, tokens: usize) -> Groups {
    let (mut offsets, mut of_row) = (vec![0], Vec::new());
    for (group, size) in sizes.iter().enumerate() {
        offsets.push(offsets[group] + size);
        of_row.extend(vec![group as u32; *size as usize]);
    }
    of_row.resize(max_rows, 0);
    let from: Vec<u32> = (0..max_rows).map(|_| random.below(tokens) as u32).collect();
    Groups {
        count: sizes.len(),
        offsets: device.upload(&offsets).expect("upload"),
        max_rows,
        most_of_one: max_rows,
        group_of_row: device.upload(&of_row).expect("upload"),
        token_of_row: device.upload(&from).expect("upload"),
    }
}

/// Expects of tiles, of Hopper's if `wide`, what a product and its activation are.
fn check_tiles(device: &Device, kind: WeightKind, sizes: &[u32], width: usize, k: usize, wide: bool) {
    let mut random = Random::new((width * 31 + k) as u64);
    let (tokens, used) = (7, sizes.iter().sum::<u32>() as usize);
    let max_rows = used + 2;
    let groups = groups(device, &mut random, sizes, max_rows, tokens);
    let matrices = sizes.iter().map(|_| matrix(device, &mut random, kind, 2 * width, k)).collect();
    let w = MatrixTable::new(matrices).expect("table");
    let x = acts(device, &mut random, tokens * k);
    let x_rows = || Some(groups.token_of_row.view());
    let mut both: Buffer<f32> = device.zeros(max_rows * 2 * width).expect("alloc");
    grouped_matmul(both.view_mut(), 2 * width, x.view(), x_rows(), &w, &groups).expect("product");
    for activation in ACTIVATIONS {
        let what = format!("{kind:?}, groups of {sizes:?}, {width} × {k}, {activation:?}, wide {wide}");
        let (mut out, mut expected) = (nothing(device, max_rows * width), nothing(device, max_rows * width));
        let (to, of) = (expected.view_mut(), both.view());
        activate(to, of, None, Some(&groups), max_rows, width, activation).expect("activation");
        if wide {
            let product = Product {
                out: out.view_mut().address(),
                device,
                out_stride: width,
                out_batch: 0,
                x: x.view(),
                x_stride: k,
                x_batch: 0,
                kind,
                n: 2 * width,
                k,
                rows: max_rows,
                which: Which::Group(&w, &groups, x_rows()),
                known: false,
                gate: Some(activation),
                own: false,
            };
            let sizes = product.sizes();
            let launch = sizes.launch(sizes.by_wgmma()).expect("a kernel");
            product.start(&launch).expect("product");
        } else {
            let done = grouped_gated_matmul(out.view_mut(), x.view(), x_rows(), &w, &groups, activation);
            assert!(done.expect("product"), "{what}: not done");
        }
        assert_same(&out, &expected, &what);
    }
}

#[test]
fn gated_tiles_are_products_and_their_activation() {
    for device in devices() {
        for kind in [WeightKind::Bf16, WeightKind::F16, WeightKind::F8] {
            check_tiles(&device, kind, &[9, 0], 36, 136, false);
            check_tiles(&device, kind, &[20, 3], 33, 72, false);
            check_tiles(&device, kind, &[70, 0, 2], 70, 200, false);
        }
    }
}

#[test]
fn gated_tiles_of_hopper_are_products_and_their_activation() {
    for device in devices().iter().filter(|device| has_wide(device)) {
        for kind in [WeightKind::Bf16, WeightKind::F16, WeightKind::F8] {
            check_tiles(device, kind, &[3, 0, 65], 64, 136, true);
            check_tiles(device, kind, &[257], 102, 328, true);
            check_tiles(device, kind, &[70], 96, 64, true);
            check_tiles(device, kind, &[129, 1], 33, 72, true);
        }
    }
}

#[test]
fn gated_tiles_of_one_matrix() {
    for device in devices().iter().filter(|device| device.driver().as_any().downcast_ref::<Gpu>().is_none()) {
        check(device, WeightKind::F8, 40, 36, 136);
        check(device, WeightKind::F16, 17, 21, 72);
    }
}
