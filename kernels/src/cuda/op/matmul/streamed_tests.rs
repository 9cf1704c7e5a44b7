use half::bf16;

use super::*;
use crate::cuda::op::matmul::tests::has_wide;
use crate::cuda::op::matmul::{grouped_gated_matmul, grouped_matmul, matmul};
use crate::cuda::testing::{Random, devices};
use crate::cuda::{Acts, Buffer, Device, DeviceMatrix};
use crate::op::gated::GatedActivation;

/// As many blocks as there are.
const ALL: u32 = u32::MAX;

/// The type of rows that meet weights of `kind`.
fn rows_for(kind: WeightKind) -> ActType {
    if kind == WeightKind::F8 { ActType::F8 } else { ActType::Bf16 }
}

/// Groups of rows, each a row of x, and their matrices.
struct Case {
    groups: Groups,
    w: MatrixTable,
    x: Acts,
}

/// Groups of so many rows, and two rows that are of none; every row of 7.
fn case(device: &Device, kind: WeightKind, sizes: &[u32], n: usize, k: usize) -> Case {
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
        DeviceMatrix::from_f32(device, kind, n, k, &values).expect("matrix")
    };
    let w = MatrixTable::new(sizes.iter().map(|_| matrix()).collect()).expect("table");
    let x = Acts::upload_rows(device, rows_for(kind), k, &random.floats(tokens * k)).expect("upload");
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

/// Expects the bits of the other kernels, and of the places beside and after the rows those of before. `blocks`: at most.
fn check(device: &Device, kind: WeightKind, sizes: &[u32], (n, k): (usize, usize), gap: usize, blocks: u32) {
    let Case { groups, w, x } = case(device, kind, sizes, n, k);
    let (rows, stride) = (groups.max_rows, n + gap);
    let mut expected = poisoned(device, rows * stride);
    let tokens = groups.token_of_row.view();
    grouped_matmul(expected.view_mut(), stride, x.view(), Some(tokens), &w, &groups).expect("product");

    let mut room = poisoned(device, rows * (k / 2 + 1));
    let sorted = gather(room.view_mut(), x.view(), tokens, k, &groups).expect("rows");
    let mut out = poisoned(device, rows * stride);
    let of = of_groups(device, sorted, &w, &groups);
    let product = Product { out: out.view_mut().address(), out_stride: stride, ..of };
    start(product, blocks);
    let (found, expected) = (bits(&out), bits(&expected));
    let differs = found.iter().zip(&expected).position(|(a, b)| a != b);
    let what = format!("{kind:?}, groups of {sizes:?}, {n} × {k}");
    assert_eq!(differs.map(|at| (at / stride, at % stride)), None, "{what}");
}

/// Lets the kernel that streams do it on at most so many blocks, whether it is faster or not.
fn start(product: Product<'_>, blocks: u32) {
    let form = product.form_that_streams().expect("a kernel that streams");
    let mut launch = product.launch_streamed(form);
    launch.grid[0] = launch.grid[0].min(blocks);
    product.start(&launch).expect("product");
}

#[test]
fn products_have_the_bits_of_other_kernels() {
    for device in devices().iter().filter(|device| has_wide(device)) {
        // Tiles of every height, and of two heights by turns.
        check(device, WeightKind::Bf16, &[100, 0, 150, 210, 250], (40, 328), 0, ALL);
        check(device, WeightKind::Bf16, &[270, 288, 310, 321, 1], (136, 264), 3, ALL);
        // More tiles than stay on a device at once: a block does several, of several groups.
        check(device, WeightKind::Bf16, &[5, 2], (40 * 256 + 8, 256), 0, ALL);
    }
}

#[test]
fn products_in_e4m3_have_the_bits_of_other_kernels() {
    for device in devices().iter().filter(|device| device.multiplies_f8()) {
        check(device, WeightKind::F8, &[60, 0, 90, 100, 150], (40, 1000), 0, ALL);
        check(device, WeightKind::F8, &[190, 220, 250, 257, 288, 289, 1], (136, 520), 3, ALL);
        // A block does several tiles, of several groups and heights.
        check(device, WeightKind::F8, &[70, 5, 150, 2], (520, 530), 0, 2);
    }
}

#[test]
fn many_rows_of_one_matrix_in_e4m3_have_them_too() {
    for device in devices().iter().filter(|device| device.multiplies_f8()) {
        let (rows, n, k) = (300, 200, 530);
        let mut random = Random::new(5);
        let w = DeviceMatrix::from_f32(device, WeightKind::F8, n, k, &random.floats(n * k)).expect("matrix");
        let x = Acts::upload_rows(device, ActType::F8, k, &random.floats(rows * k)).expect("upload");
        let mut expected = poisoned(device, rows * n);
        for row in 0..rows {
            let one = x.view().slice(row * k..(row + 1) * k);
            matmul(expected.view_mut().slice(row * n..(row + 1) * n), n, one, &w, 1).expect("product");
        }
        let mut out = poisoned(device, rows * n);
        let product = Product {
            out: out.view_mut().address(),
            device,
            out_stride: n,
            out_batch: 0,
            x: x.view(),
            x_stride: k,
            x_batch: 0,
            kind: WeightKind::F8,
            n,
            k,
            rows,
            which: Which::One(&w),
            known: false,
            own: false,
            gate: None,
        };
        start(product, ALL);
        assert_eq!(bits(&out), bits(&expected));
    }
}

/// Expects the activations of the other kernels: to the last bit in E4M3, and in bf16 up to it, for there the vendor's compiler may
/// join a product and a sum in one kernel and not in the other.
fn check_activations(device: &Device, kind: WeightKind, sizes: &[u32], width: usize, k: usize) {
    let Case { groups, w, x } = case(device, kind, sizes, 2 * width, k);
    let rows = groups.max_rows;
    for activation in [
        GatedActivation::Silu,
        GatedActivation::GeluTanh,
        GatedActivation::ClampedSwiglu { alpha: 1.702, limit: 0.5 },
    ] {
        let new = || Acts::upload(device, ActType::Bf16, &vec![f32::NAN; rows * width]).expect("upload");
        let (mut out, mut expected) = (new(), new());
        let tokens = groups.token_of_row.view();
        let done = grouped_gated_matmul(expected.view_mut(), x.view(), Some(tokens), &w, &groups, activation);
        assert!(done.expect("product"), "{width} × {k}: not done");

        let mut room = poisoned(device, rows * (k / 2 + 1));
        let sorted = gather(room.view_mut(), x.view(), tokens, k, &groups).expect("rows");
        let of = of_groups(device, sorted, &w, &groups);
        let (to, gate) = (out.view_mut().address(), Some(activation));
        start(Product { out: to, out_stride: width, gate, ..of }, ALL);
        let (found, expected) = (out.download().expect("download"), expected.download().expect("download"));
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let most = if kind == WeightKind::F8 { 0.0 } else { expected.abs() / 128.0 };
            let near = (found - expected).abs() <= most;
            assert!(
                near || found.is_nan() && expected.is_nan(),
                "{kind:?}, groups of {sizes:?}, {activation:?}: {found} in place of {expected} at {i}"
            );
        }
    }
}

#[test]
fn activations_are_those_of_other_kernels() {
    for device in devices().iter().filter(|device| has_wide(device)) {
        for (sizes, width, k) in [(&[3_u32, 0, 65][..], 64, 264), (&[330, 257], 104, 328), (&[20], 8, 256)] {
            check_activations(device, WeightKind::Bf16, sizes, width, k);
        }
    }
    for device in devices().iter().filter(|device| device.multiplies_f8()) {
        for (sizes, width, k) in [(&[3_u32, 0, 129][..], 64, 520), (&[257, 280], 104, 600), (&[20], 8, 512)] {
            check_activations(device, WeightKind::F8, sizes, width, k);
        }
    }
}

#[test]
fn rows_are_gathered_up_to_the_last_group() {
    for device in devices() {
        let Case { groups, w, x } = case(&device, WeightKind::Bf16, &[3, 0, 4], 16, 72);
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
fn rows_in_e4m3_are_gathered_with_their_scales() {
    for device in devices().iter().filter(|device| device.multiplies_f8()) {
        let Case { groups, x, .. } = case(device, WeightKind::F8, &[3, 0, 4], 16, 72);
        let mut room = poisoned(device, groups.max_rows * 72 / 2);
        let tokens = groups.token_of_row.view();
        let sorted = gather(room.view_mut(), x.view(), tokens, 72, &groups).expect("rows");
        let (ActsView::F8(sorted), Acts::F8(x)) = (sorted, &x) else { panic!("rows of another type") };
        let mut scales = vec![0.0; groups.max_rows];
        sorted.scales().download(&mut scales).expect("download");
        let (stride, (codes, of_x)) = (sorted.stride(), x.download_codes().expect("download"));
        let room: Vec<u8> = bits(&room).iter().flat_map(|four| four.to_le_bytes()).collect();
        for (row, from) in groups.token_of_row.download().expect("download").iter().enumerate() {
            let (found, from) = (&room[row * stride..(row + 1) * stride], *from as usize);
            if row < 7 {
                assert_eq!(found, &codes[from * stride..(from + 1) * stride], "row {row}");
                assert_eq!(scales[row], of_x[from], "row {row}");
            } else {
                assert!(found.iter().all(|code| *code == 0xff) && scales[row].is_nan(), "row {row}");
            }
        }
    }
}

#[test]
fn many_rows_are_streamed_on_hopper() {
    let sizes = |rows, count, hopper| Sizes {
        kind: WeightKind::Bf16,
        rows,
        n: 4096,
        matrices: Matrices::Groups { count, most: rows / 2 },
        aligned: true,
        gated: false,
        hopper,
    };
    assert!(sizes(4096, 8, true).are_to_stream(129));
    assert!(!sizes(4096, 8, false).are_to_stream(129));
    assert!(!sizes(1024, 8, true).are_to_stream(129));
    assert!(sizes(1024, 8, true).are_to_stream(128));
    assert!(!sizes(4096, 128, true).are_to_stream(129));
    let one = |rows| Sizes { matrices: Matrices::Batch(1), ..sizes(rows, 1, true) };
    assert!(one(2048).are_to_stream(65));
    assert!(!one(64).are_to_stream(65));
    assert!(!one(512).are_to_stream(65), "64 tiles");
    assert_eq!(BF16.least, 129);
}

#[test]
fn what_maps_cannot_have_is_left_to_other_kernels() {
    for device in devices() {
        let gate = Some(GatedActivation::Silu);
        let can = |kind, n, k, gate| {
            let Case { groups, w, x } = case(&device, kind, &[2], n, k);
            let product = Product { gate, out_stride: n / 2, ..of_groups(&device, x.view(), &w, &groups) };
            product.form_that_streams().is_some()
        };
        for (n, k, gate, expected) in [
            (24, 256, None, true),
            (24, 256, gate, false),
            (32, 256, gate, true),
            (24, 260, None, false),
            (24, 248, None, false),
        ] {
            assert_eq!(can(WeightKind::Bf16, n, k, gate), expected, "{n} × {k}, {gate:?}");
        }
        for (n, k, gate, expected) in
            [(24, 513, None, true), (24, 512, gate, false), (32, 512, gate, true), (24, 511, None, false)]
        {
            assert_eq!(can(WeightKind::F8, n, k, gate), expected, "E4M3, {n} × {k}, {gate:?}");
        }
    }
}
