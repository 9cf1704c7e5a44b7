use half::bf16;

use super::*;
use crate::cuda::op::matmul::tests::has_wide;
use crate::cuda::op::matmul::{grouped_gated_matmul, grouped_matmul};
use crate::cuda::testing::{Random, devices};
use crate::cuda::{Acts, Buffer, Device, DeviceMatrix};
use crate::op::gated::GatedActivation;

/// Groups of rows, each a row of x, and their matrices.
struct Case {
    groups: Groups,
    w: MatrixTable,
    x: Acts,
}

/// Groups of so many rows, and two rows that are of none; every row of 7.
fn case(device: &Device, sizes: &[u32], n: usize, k: usize) -> Case {
    let mut random = Random::new((n * 31 + k) as u64);
    let mut offsets = vec![0];
    for (group, size) in sizes.iter().enumerate() {
        offsets.push(offsets[group] + size);
    }
    let (max_rows, tokens) = (offsets[sizes.len()] as usize + 2, 7);
    let from: Vec<u32> = (0..max_rows).map(|_| random.below(tokens) as u32).collect();
    let groups = Groups {
        count: sizes.len(),
        offsets: device.upload(&offsets).expect("upload"),
        max_rows,
        most_of_one: max_rows,
        group_of_row: device.zeros(max_rows).expect("zeros"),
        token_of_row: device.upload(&from).expect("upload"),
    };
    let mut matrix = || {
        let values: Vec<f32> = random.floats(n * k).iter().map(|x| x * 0.2).collect();
        DeviceMatrix::from_f32(device, WeightKind::Bf16, n, k, &values).expect("matrix")
    };
    let w = MatrixTable::new(sizes.iter().map(|_| matrix()).collect()).expect("table");
    let x = Acts::upload(device, ActType::Bf16, &random.floats(tokens * k)).expect("upload");
    Case { groups, w, x }
}

fn poisoned(device: &Device, len: usize) -> Buffer<f32> {
    let mut out = device.alloc(len).expect("alloc");
    out.view_mut().fill(0xff).expect("fill");
    out
}

fn bits(out: &Buffer<f32>) -> Vec<u32> {
    out.download().expect("download").iter().map(|x| x.to_bits()).collect()
}

/// Expects the bits of the other kernels, and of the places beside and after the rows those of before.
fn check(device: &Device, sizes: &[u32], n: usize, k: usize, gap: usize) {
    let Case { groups, w, x } = case(device, sizes, n, k);
    let (rows, stride) = (groups.max_rows, n + gap);
    let mut expected = poisoned(device, rows * stride);
    let tokens = groups.token_of_row.view();
    grouped_matmul(expected.view_mut(), stride, x.view(), Some(tokens), &w, &groups).expect("product");

    let mut room = poisoned(device, rows * k / 2);
    let sorted = gather(room.view_mut(), x.view(), tokens, k, &groups).expect("rows");
    let mut out = poisoned(device, rows * stride);
    let of = of_groups(device, sorted, &w, &groups);
    let product = Product { out: out.view_mut().address(), out_stride: stride, ..of };
    assert!(product.can_stream(), "{n} × {k}");
    let launch = product.launch_streamed();
    product.start(&launch).expect("product");
    let (found, expected) = (bits(&out), bits(&expected));
    let differs = found.iter().zip(&expected).position(|(a, b)| a != b);
    assert_eq!(differs.map(|at| (at / stride, at % stride)), None, "groups of {sizes:?}, {n} × {k}");
}

#[test]
fn products_have_the_bits_of_other_kernels() {
    for device in devices().iter().filter(|device| has_wide(device)) {
        // Tiles of every height, and of two heights by turns.
        check(device, &[100, 0, 150, 210, 250], 40, 328, 0);
        check(device, &[270, 288, 310, 321, 1], 136, 264, 3);
        // More tiles than stay on a device at once: a block does several, of several groups.
        check(device, &[5, 2], 40 * 256 + 8, 256, 0);
    }
}

#[test]
fn activations_are_those_of_other_kernels() {
    for device in devices().iter().filter(|device| has_wide(device)) {
        for (sizes, width, k) in [(&[3_u32, 0, 65][..], 64, 264), (&[330, 257], 104, 328), (&[20], 8, 256)] {
            let Case { groups, w, x } = case(device, sizes, 2 * width, k);
            let rows = groups.max_rows;
            for activation in [
                GatedActivation::Silu,
                GatedActivation::GeluTanh,
                GatedActivation::ClampedSwiglu { alpha: 1.702, limit: 0.5 },
            ] {
                let new =
                    || Acts::upload(device, ActType::Bf16, &vec![f32::NAN; rows * width]).expect("upload");
                let (mut out, mut expected) = (new(), new());
                let tokens = groups.token_of_row.view();
                let done = grouped_gated_matmul(
                    expected.view_mut(),
                    x.view(),
                    Some(tokens),
                    &w,
                    &groups,
                    activation,
                );
                assert!(done.expect("product"), "{width} × {k}: not done");

                let mut room = poisoned(device, rows * k / 2);
                let sorted = gather(room.view_mut(), x.view(), tokens, k, &groups).expect("rows");
                let of = of_groups(device, sorted, &w, &groups);
                let (to, gate) = (out.view_mut().address(), Some(activation));
                let product = Product { out: to, out_stride: width, gate, ..of };
                assert!(product.can_stream(), "{width} × {k}");
                let launch = product.launch_streamed();
                product.start(&launch).expect("product");
                let (found, expected) =
                    (out.download().expect("download"), expected.download().expect("download"));
                for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    // To the last bit: the vendor's compiler may join a product and a sum in one and not in the other.
                    let near = (found - expected).abs() <= expected.abs() / 128.0;
                    assert!(
                        near || found.is_nan() && expected.is_nan(),
                        "groups of {sizes:?}, {activation:?}: {found} in place of {expected} at {i}"
                    );
                }
            }
        }
    }
}

#[test]
fn rows_are_gathered_up_to_the_last_group() {
    for device in devices() {
        let Case { groups, w, x } = case(&device, &[3, 0, 4], 16, 72);
        let mut room = poisoned(&device, groups.max_rows * 72 / 2);
        let tokens = groups.token_of_row.view();
        gather(room.view_mut(), x.view(), tokens, 72, &groups).expect("rows");
        let found: Vec<u16> = bits(&room).iter().flat_map(|two| [*two as u16, (*two >> 16) as u16]).collect();
        let (x, tokens) =
            (x.download().expect("download"), groups.token_of_row.download().expect("download"));
        for (row, found) in found.chunks_exact(72).enumerate() {
            let from = tokens[row] as usize * 72;
            let expected = x[from..from + 72].iter().map(|x| bf16::from_f32(*x).to_bits());
            let expected: Vec<u16> = if row < 7 { expected.collect() } else { vec![0xffff; 72] };
            assert_eq!(found, expected, "row {row}");
        }
        // Few rows are not: nothing is written.
        let x = Acts::upload(&device, ActType::Bf16, &vec![1.0; 7 * 72]).expect("upload");
        let mut room = poisoned(&device, groups.max_rows * 72 / 2);
        let tokens = groups.token_of_row.view();
        let none = gather_if_faster(room.view_mut(), x.view(), tokens, &w, &groups).expect("no rows");
        assert!(none.is_none());
        assert!(bits(&room).iter().all(|bits| *bits == u32::MAX));
    }
}

#[test]
fn many_rows_of_groups_are_streamed_on_hopper() {
    let sizes = |rows, count, hopper| Sizes {
        kind: WeightKind::Bf16,
        rows,
        n: 4096,
        matrices: Matrices::Groups { count, most: rows / 2 },
        aligned: true,
        gated: false,
        hopper,
    };
    assert!(sizes(4096, 8, true).are_to_stream());
    assert!(!sizes(4096, 8, false).are_to_stream());
    assert!(!sizes(1024, 8, true).are_to_stream());
    assert!(!sizes(4096, 128, true).are_to_stream());
    let one = Sizes { matrices: Matrices::Batch(1), ..sizes(4096, 8, true) };
    assert!(!one.are_to_stream());
}

#[test]
fn what_maps_cannot_have_is_left_to_other_kernels() {
    for device in devices() {
        let gate = Some(GatedActivation::Silu);
        for (n, k, gate, can) in [
            (24, 256, None, true),
            (24, 256, gate, false),
            (32, 256, gate, true),
            (24, 260, None, false),
            (24, 248, None, false),
        ] {
            let Case { groups, w, x } = case(&device, &[2], n, k);
            let product = Product { gate, out_stride: n / 2, ..of_groups(&device, x.view(), &w, &groups) };
            assert_eq!(product.can_stream(), can, "{n} × {k}, {gate:?}");
        }
    }
}
