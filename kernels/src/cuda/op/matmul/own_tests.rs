use super::*;
use crate::cuda::op::random::random_matrix;
use crate::cuda::testing::{Random, devices};
use crate::cuda::{Acts, Buffer, Device, F8Rows};

/// Rows in bf16 of very different sizes.
fn rows_of(device: &Device, rows: usize, k: usize, seed: u64) -> Acts {
    let mut random = Random::new(seed);
    let values: Vec<f32> = (0..rows * k).map(|i| random.float() * 4.0_f32.powi((i / k) as i32 % 9)).collect();
    Acts::upload(device, ActType::Bf16, &values).expect("rows")
}

fn poisoned(device: &Device, len: usize) -> Buffer<f32> {
    let mut out = device.alloc(len).expect("alloc");
    out.view_mut().fill(0xff).expect("fill");
    out
}

fn bits(out: &Buffer<f32>) -> Vec<u32> {
    out.download().expect("download").iter().map(|x| x.to_bits()).collect()
}

/// Codes that nobody has written.
const FILL: u8 = 0x3c;

fn untouched(device: &Device, rows: usize, k: usize) -> F8Rows {
    let mut codes = F8Rows::alloc(device, rows, k).expect("codes");
    codes.view_mut().fill(FILL).expect("fill");
    codes
}

fn is_untouched(codes: &F8Rows) -> bool {
    codes.download_codes().expect("download").0.iter().all(|code| *code == FILL)
}

#[test]
fn a_row_meets_a_matrix_as_if_it_had_been_rounded_before() {
    for device in devices().iter().filter(|device| device.multiplies_f8()) {
        // One tile and several for a block; of one stage, and of more than there is room for; the longest row; and one too long, or
        // not of whole eights.
        for (n, k, own) in [
            (40, 16, true),
            (9000, 24, true),
            (33, 520, true),
            (70, 4096, true),
            (5, 16_384, true),
            (5, 16_392, false),
            (5, 20, false),
        ] {
            let w = random_matrix(device, WeightKind::F8, n, k, 4, 0.3).expect("matrix");
            let x = rows_of(device, 1, k, n as u64);
            let mut expected = poisoned(device, n);
            let mut rounded = F8Rows::alloc(device, 1, k).expect("codes");
            quantize_rows(rounded.view_mut(), x.view(), None).expect("rounds");
            matmul(expected.view_mut(), n, ActsView::F8(rounded.view()), &w, 1).expect("product");

            let (mut found, mut codes) = (poisoned(device, n), untouched(device, 1, k));
            matmul_of_plain(found.view_mut(), n, x.view(), codes.view_mut(), &w, 1).expect("product");
            assert_eq!(bits(&found), bits(&expected), "{n} × {k}");
            assert_eq!(is_untouched(&codes), own, "{n} × {k}: by one launch");
        }
        let w = random_matrix(device, WeightKind::F8, 40, 64, 4, 0.3).expect("matrix");
        let (x, mut codes) = (rows_of(device, 2, 64, 1), untouched(device, 2, 64));
        let mut out = poisoned(device, 80);
        matmul_of_plain(out.view_mut(), 40, x.view(), codes.view_mut(), &w, 2).expect("product");
        assert!(!is_untouched(&codes), "two rows");
        assert!(out.download().expect("download").iter().all(|x| x.is_finite()));
    }
}

#[test]
fn rows_of_groups_are_rounded_by_whoever_meets_them() {
    for device in devices().iter().filter(|device| device.multiplies_f8()) {
        // Of some groups a row, of some none; so many tiles that a block meets several rows.
        for (count, n, k) in [(3, 40, 264), (40, 300, 600), (9, 8600, 16)] {
            let sizes: Vec<u32> = (0..count).map(|group| u32::from(group % 4 != 1)).collect();
            let mut offsets = vec![0];
            sizes.iter().for_each(|size| offsets.push(offsets[offsets.len() - 1] + size));
            let used = offsets[count] as usize;
            let max_rows = used + 2;
            let groups = |most_of_one| Groups {
                count,
                offsets: device.upload(&offsets).expect("upload"),
                max_rows,
                most_of_one,
                group_of_row: device.zeros(max_rows).expect("zeros"),
                token_of_row: device.zeros(max_rows).expect("zeros"),
            };
            let matrix = |group| random_matrix(device, WeightKind::F8, n, k, group, 0.3).expect("matrix");
            let table = MatrixTable::new((0..count as u64).map(matrix).collect()).expect("table");
            let x = rows_of(device, max_rows, k, k as u64);
            let product = |most_of_one| {
                let (mut out, mut codes) = (poisoned(device, max_rows * n), untouched(device, max_rows, k));
                let groups = groups(most_of_one);
                let (to, room) = (out.view_mut(), codes.view_mut());
                grouped_matmul_next_of_plain(to, n, x.view(), room, &table, &groups).expect("product");
                assert_eq!(is_untouched(&codes), most_of_one == 1, "{count} × {n} × {k}: by one launch");
                bits(&out)
            };
            let (found, expected) = (product(1), product(2));
            assert!(found == expected, "{count} × {n} × {k}");
            assert!(expected[..used * n].iter().all(|bits| f32::from_bits(*bits).is_finite()));
        }
    }
}
