//! Products with weights in blocks have the bits of those with the same weights in bf16.

use half::{bf16, f16};

use super::tests::{activations, bits, groups, has_wide, of_one, poisoned, upload_acts};
use super::*;
use crate::cuda::op::elementwise::embed;
use crate::cuda::testing::{Random, devices};
use crate::cuda::{Acts, ActsViewMut, Buffer, pack_row};
use crate::dtype::WeightType;
use crate::op::dequantize::dequantize;

/// Stored rows of any codes, and of scales of either sign, large and small, some of them zero.
fn stored(random: &mut Random, ty: WeightType, n: usize, k: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..n * ty.row_bytes(k)).map(|_| random.below(256) as u8).collect();
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        let scale = match random.below(12) {
            0 => 0.0,
            1 => -0.0,
            2 => random.float() * 3e-7,
            3 => random.float() * 40.0,
            _ => random.float() * 0.02,
        };
        let at = if ty == WeightType::Q6_K { ty.block_bytes() - 2 } else { 0 };
        block[at..at + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        let has_least =
            [WeightType::Q4_1, WeightType::Q5_1, WeightType::Q4_K, WeightType::Q5_K].contains(&ty);
        if has_least {
            let added = if random.below(9) == 0 { 0.0 } else { random.float() * 0.1 };
            block[2..4].copy_from_slice(&f16::from_f32(added).to_le_bytes());
        }
    }
    bytes
}

/// The same matrix in blocks, and in bf16 as the host makes it.
fn both(device: &Device, random: &mut Random, kind: WeightKind, n: usize, k: usize) -> [DeviceMatrix; 2] {
    both_of(device, random, kind.blocks().expect("a kind with blocks"), n, k)
}

fn both_of(device: &Device, random: &mut Random, ty: WeightType, n: usize, k: usize) -> [DeviceMatrix; 2] {
    let kind = WeightKind::of_blocks(ty).expect("a type with blocks");
    let stored = stored(random, ty, n, k);
    let (mut packed, mut values) = (Vec::new(), vec![0.0; n * k]);
    for row in stored.chunks_exact(ty.row_bytes(k)) {
        pack_row(ty, row, &mut packed).expect("whole blocks");
    }
    dequantize(ty, &stored, &mut values).expect("whole blocks");
    let rounded: Vec<u8> = values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
    [
        DeviceMatrix::from_rows(device, kind, n, k, &packed).expect("matrix"),
        DeviceMatrix::from_rows(device, WeightKind::Bf16, n, k, &rounded).expect("matrix"),
    ]
}

fn tables(
    device: &Device,
    random: &mut Random,
    kind: WeightKind,
    (count, n, k): (usize, usize, usize),
) -> [MatrixTable; 2] {
    let all: Vec<[DeviceMatrix; 2]> = (0..count).map(|_| both(device, random, kind, n, k)).collect();
    let (blocks, floats) = all.into_iter().map(|[blocks, floats]| (blocks, floats)).unzip();
    [MatrixTable::new(blocks).expect("table"), MatrixTable::new(floats).expect("table")]
}

/// Expects what `product` makes with the blocks and with floats to be the same, bit by bit.
fn same<W>(
    device: &Device,
    len: usize,
    [blocks, floats]: &[W; 2],
    what: &str,
    product: impl Fn(ViewMut<'_, f32>, &W),
) {
    let [found, expected] = [blocks, floats].map(|w| {
        let mut out = poisoned(device, len);
        product(out.view_mut(), w);
        bits(&out)
    });
    let others = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
    assert_eq!(others, 0, "{what}: of {len} numbers");
}

fn acts(device: &Device, random: &mut Random, ty: ActType, len: usize) -> Acts {
    let x = activations(random, ty, len);
    upload_acts(device, ty, &x)
}

/// `k`, or as many more inputs as whole blocks need.
fn whole(kind: WeightKind, k: usize) -> usize {
    k.next_multiple_of(kind.block_elems())
}

fn check(device: &Device, kind: WeightKind, ty: ActType, (rows, n, k): (usize, usize, usize)) {
    let k = whole(kind, k);
    let random = &mut Random::new((rows * 1_000_003 + n * 1009 + k) as u64);
    let (w, x) = (both(device, random, kind, n, k), acts(device, random, ty, rows * k));
    let stride = n + rows % 3;
    let what = format!("{kind:?} · {ty:?}, {rows} rows, {n} × {k}");
    same(device, rows * stride, &w, &what, |out, w| {
        matmul(out, stride, x.view(), w, rows).expect("product");
    });
}

#[test]
fn products_of_few_rows_are_those_of_the_matrix_in_bf16() {
    for device in devices() {
        for kind in WeightKind::BLOCKS {
            for rows in 1..=16 {
                check(&device, kind, ActType::Bf16, (rows, 17 + rows, 32 * (1 + rows % 5)));
            }
            for shape in [(1, 3, 32), (1, 40, 1056), (2, 35, 544), (5, 131, 288), (20, 35, 160), (33, 70, 96)]
            {
                check(&device, kind, ActType::Bf16, shape);
            }
            for shape in [(32, 64, 512), (50, 129, 480), (64, 128, 64), (64, 33, 1024)] {
                check(&device, kind, ActType::Bf16, shape);
            }
        }
    }
}

#[test]
fn products_of_many_rows_are_those_of_the_matrix_in_bf16() {
    for device in devices() {
        for kind in WeightKind::BLOCKS {
            for shape in [(65, 20, 64), (70, 131, 480), (129, 150, 96), (270, 30, 224)] {
                check(&device, kind, ActType::Bf16, shape);
            }
        }
    }
}

#[test]
fn rows_in_f32_meet_blocks_as_they_meet_bf16() {
    for device in devices() {
        for kind in WeightKind::BLOCKS {
            for shape in [(1, 5, 32), (3, 40, 1056), (9, 270, 96)] {
                check(&device, kind, ActType::F32, shape);
            }
        }
    }
}

#[test]
fn blocks_that_have_several_tiles_meet_all_of_them() {
    for device in devices() {
        check(&device, WeightKind::Q8_0, ActType::Bf16, (1, 27_400, 96));
        check(&device, WeightKind::Q4_0, ActType::Bf16, (1, 31_003, 64));
        check(&device, WeightKind::Q4_0, ActType::Bf16, (3, 27_400, 32));
    }
}

/// Every kernel, whatever chooses it.
#[test]
fn all_kernels_with_blocks_add_up_in_one_order() {
    for device in devices() {
        for kind in WeightKind::BLOCKS {
            let random = &mut Random::new(23);
            // Of tiles of outputs two are enough where there are more inputs.
            let (rows, n, k) = (70, if kind.block_elems() == 32 { 150 } else { 70 }, whole(kind, 480));
            let [blocks, floats] = both(&device, random, kind, n, k);
            let x = acts(&device, random, ActType::Bf16, rows * k);
            let mut expected = poisoned(&device, rows * n);
            matmul(expected.view_mut(), n, x.view(), &floats, rows).expect("product");
            let expected = bits(&expected);
            let sizes = of_one(&device, 0, x.view(), &blocks, rows).sizes();
            let wide = has_wide(&device).then(|| sizes.by_wgmma());
            let any = Sizes { aligned: false, ..sizes }.form();
            let launches: Vec<_> = choose::ALL
                .into_iter()
                .chain(wide)
                .chain([any])
                .filter_map(|form| sizes.launch(form))
                .collect();
            let expected_launches = match kind {
                WeightKind::Q8_0 => 12,
                WeightKind::Q4_0 | WeightKind::Q4_1 => 11,
                _ => 6,
            };
            assert_eq!(launches.len(), expected_launches + usize::from(has_wide(&device)), "{kind:?}");
            for launch in launches {
                let mut out = poisoned(&device, rows * n);
                let product = of_one(&device, out.view_mut().address(), x.view(), &blocks, rows);
                product.start(&launch).expect("product");
                let found = bits(&out);
                let others = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
                assert_eq!(others, 0, "{}: of {} numbers", launch.kernel, found.len());
            }
        }
    }
}

/// Expects the same activations, bit by bit; on GPUs, whose compiler may join a product and a sum here and not there, nearly.
fn same_gated<W>(
    device: &Device,
    len: usize,
    [blocks, floats]: &[W; 2],
    what: &str,
    product: impl Fn(ActsViewMut<'_>, &W),
) {
    let [found, expected] = [blocks, floats].map(|w| {
        let mut out = Acts::alloc(device, ActType::Bf16, len).expect("alloc");
        out.view_mut().fill(0).expect("fill");
        product(out.view_mut(), w);
        out.download().expect("download")
    });
    let most = if Gpu::of(device).is_some() { 1.0 / 128.0 } else { 0.0 };
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let near = (found - expected).abs() <= expected.abs() * most || found.to_bits() == expected.to_bits();
        assert!(near, "{what}: {found} in place of {expected} at {i}");
    }
}

#[test]
fn gated_products_with_blocks_are_those_of_the_matrix_in_bf16() {
    for device in devices() {
        for kind in WeightKind::BLOCKS {
            for (rows, width, k) in [
                (1, 8, 512),
                (1, 2200, 64),
                (3, 21, 160),
                (8, 100, 96),
                (12, 20, 160),
                (20, 33, 96),
                (64, 36, 64),
            ] {
                let random = &mut Random::new((rows * 31 + width) as u64);
                let k = whole(kind, k);
                let (w, x) = (
                    both(&device, random, kind, 2 * width, k),
                    acts(&device, random, ActType::Bf16, rows * k),
                );
                let what = format!("{kind:?}, {rows} rows, {width} × {k}");
                same_gated(&device, rows * width, &w, &what, |out, w| {
                    let done = gated_matmul(out, x.view(), w, rows, GatedActivation::Silu).expect("product");
                    assert!(done, "{what}: not done");
                });
            }
        }
    }
}

#[test]
fn groups_meet_their_blocks() {
    let many = [&[0_u32; 40][..], &[17, 0, 30], &[0; 30], &[9, 0, 3]].concat();
    for device in devices() {
        for kind in WeightKind::BLOCKS {
            for (sizes, n, k) in [
                (&[1_u32, 1][..], 40, 256),
                (&[0, 1, 0, 0, 1, 0, 0, 0], 20, 288),
                (&[0, 0, 0], 16, 64),
                (&[10, 0, 2], 34, 96),
                (&[20, 1, 0], 70, 160),
                (&[70, 0, 65], 38, 64),
                (&many, 10, 32),
            ] {
                let random = &mut Random::new((n + k) as u64);
                let k = whole(kind, k);
                let max_rows = sizes.iter().sum::<u32>() as usize + 2;
                let w = tables(&device, random, kind, (sizes.len(), n, k));
                let (groups, tokens) = (groups(&device, sizes, max_rows), max_rows.min(5));
                let x = acts(&device, random, ActType::Bf16, max_rows * k);
                let x_rows: Vec<u32> = (0..max_rows).map(|_| random.below(tokens) as u32).collect();
                let x_rows = device.upload(&x_rows).expect("upload");
                let what = format!("{kind:?}, groups of {sizes:?}, {n} × {k}");
                same(&device, max_rows * n, &w, &what, |out, w| {
                    grouped_matmul(out, n, x.view(), Some(x_rows.view()), w, &groups).expect("product");
                });
                same(&device, max_rows * n, &w, &what, |mut out, w| {
                    // After another one that has seen the groups.
                    grouped_matmul(out.reborrow(), n, x.view(), None, w, &groups).expect("product");
                    grouped_matmul_next(out, n, x.view(), None, w, &groups).expect("product");
                });
                same_gated(&device, max_rows * n / 2, &w, &what, |out, w| {
                    let silu = GatedActivation::Silu;
                    let rows = Some(x_rows.view());
                    let done = grouped_gated_matmul(out, x.view(), rows, w, &groups, silu).expect("product");
                    assert!(done, "{what}: not done");
                });
            }
        }
    }
}

/// By wgmma, or as the host plays it.
#[test]
fn gated_tiles_of_hopper_meet_blocks() {
    for device in devices().iter().filter(|device| has_wide(device)) {
        for kind in WeightKind::BLOCKS {
            for (sizes, width, k) in [(&[3_u32, 0, 65][..], 64, 160), (&[257], 38, 96), (&[129, 1], 33, 64)] {
                let random = &mut Random::new((width + k) as u64);
                let k = whole(kind, k);
                let max_rows = sizes.iter().sum::<u32>() as usize + 2;
                let w = tables(device, random, kind, (sizes.len(), 2 * width, k));
                let x = acts(device, random, ActType::Bf16, max_rows * k);
                let groups = groups(device, sizes, max_rows);
                let what = format!("{kind:?}, groups of {sizes:?}, {width} × {k}");
                same_gated(device, max_rows * width, &w, &what, |out, w| {
                    let product = Product {
                        out: out.address(),
                        out_stride: width,
                        kind: w.kind(),
                        n: 2 * width,
                        k,
                        rows: max_rows,
                        which: Which::Group(w, &groups, None),
                        gate: Some(GatedActivation::Silu),
                        x_stride: k,
                        ..of_one(device, 0, x.view(), &w.matrices()[0], max_rows)
                    };
                    let sizes = product.sizes();
                    let launch = sizes.launch(sizes.by_wgmma()).expect("a kernel");
                    product.start(&launch).expect("product");
                });
            }
        }
    }
}

#[test]
fn batches_meet_their_blocks() {
    for device in devices() {
        for kind in WeightKind::BLOCKS {
            for (rows, n, k) in [(1, 20, 64), (8, 33, 32), (21, 70, 96)] {
                let (random, batches) = (&mut Random::new(11), 3);
                let k = whole(kind, k);
                let w = tables(&device, random, kind, (batches, n, k));
                let (x_batch, out_batch) = (k + 8, n + 1);
                let (x_stride, out_stride) = (batches * x_batch, batches * out_batch);
                let x = acts(&device, random, ActType::Bf16, rows * x_stride);
                same(
                    &device,
                    rows * out_stride,
                    &w,
                    &format!("{kind:?}, {rows} rows, {n} × {k}"),
                    |out, w| {
                        batched_matmul(out, out_stride, out_batch, x.view(), x_stride, x_batch, w, rows)
                            .expect("product");
                    },
                );
            }
        }
    }
}

#[test]
fn tokens_are_embedded_from_blocks() {
    for device in devices() {
        for ty in WeightType::ALL.into_iter().filter(|ty| WeightKind::of_blocks(*ty).is_some()) {
            let random = &mut Random::new(2);
            let (rows, width) = (7, 1056_usize.next_multiple_of(ty.block_elems()));
            let tables = both_of(&device, random, ty, rows, width);
            let tokens = device.upload(&[9_u32, 3, 5, 2, 11, 3]).expect("upload");
            same(&device, 6 * width, &tables, &format!("{ty}"), |out, table| {
                embed(out, tokens.view(), table, 3, 1.5).expect("embeds");
            });
        }
    }
}

/// Whatever its codes and steps are.
#[test]
fn a_scale_that_is_no_finite_number_makes_weights_that_are_none() {
    for device in devices() {
        for ty in WeightType::ALL.into_iter().filter(|ty| WeightKind::of_blocks(*ty).is_some()) {
            let random = &mut Random::new(5);
            let (rows, k) = (3, 256);
            let mut bytes = stored(random, ty, rows, k);
            let (row, at) = (ty.row_bytes(k), if ty == WeightType::Q6_K { 208 } else { 0 });
            for (row, scale) in bytes.chunks_exact_mut(row).zip([f16::NAN, f16::INFINITY, f16::NEG_INFINITY])
            {
                row[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
            let mut packed = Vec::new();
            bytes.chunks_exact(row).for_each(|row| pack_row(ty, row, &mut packed).expect("whole blocks"));
            let kind = WeightKind::of_blocks(ty).expect("has blocks");
            let table = DeviceMatrix::from_rows(&device, kind, rows, k, &packed).expect("matrix");
            let tokens = device.upload(&[0_u32, 1, 2]).expect("upload");
            let mut out: Buffer<f32> = device.alloc(rows * k).expect("alloc");
            embed(out.view_mut(), tokens.view(), &table, 0, 1.0).expect("embeds");
            let found = out.download().expect("download");
            for row in found.chunks_exact(k) {
                assert!(row[..32].iter().all(|weight| !weight.is_finite()), "{ty}: {:?}", &row[..32]);
            }
        }
    }
}

#[test]
fn rows_of_blocks_are_put_where_they_belong() {
    for device in devices() {
        for kind in [WeightKind::Q8_0, WeightKind::Q4_0] {
            let random = &mut Random::new(4);
            // Rows that are padded, of numbers that blocks hold exactly: the largest makes the scale 1.
            let (rows, k) = (5, 32);
            let top = (1 << (kind.bits() - 1)) - 1;
            let values: Vec<f32> = (0..rows * k)
                .map(|i| {
                    if i % k == 0 {
                        -(top as f32) - f32::from(u8::from(kind.bits() == 4))
                    } else {
                        random.below(2 * top) as f32 - top as f32
                    }
                })
                .collect();
            let mut matrix = DeviceMatrix::empty(&device, kind, rows, k).expect("matrix");
            matrix.put_f32(3, &values[3 * k..]).expect("put");
            matrix.put_f32(0, &values[..3 * k]).expect("put");
            let tokens = device.upload(&[0_u32, 1, 2, 3, 4]).expect("upload");
            let mut out: Buffer<f32> = device.alloc(rows * k).expect("alloc");
            embed(out.view_mut(), tokens.view(), &matrix, 0, 1.0).expect("embeds");
            assert_eq!(out.download().expect("download"), values, "{kind:?}");
        }
    }
}
