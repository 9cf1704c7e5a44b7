//! Panels made eight rows at a time against panels made row by row.

use super::*;

/// Rows of arbitrary codes; no scale is NaN, whose bits need not survive.
fn stored(ty: WeightType, bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let mut rows: Vec<u8> = std::iter::repeat_with(next).take(bytes).collect();
    if ty.is_quantized() {
        // The high bytes of all f16: at either end of a block.
        let ends = [1, 3, ty.block_bytes() - 1];
        for block in rows.chunks_exact_mut(ty.block_bytes()) {
            ends.into_iter().for_each(|at| block[at] &= 0b1011_1111);
        }
    }
    rows
}

fn empty(ty: WeightType, rows: usize, cols_stored: usize, col_skip: usize, cols: usize) -> WeightPacker {
    WeightMatrix::packer(ty, rows, cols_stored, col_skip, cols).expect("sizes agree")
}

fn panels(matrix: &WeightMatrix) -> Vec<&[u8]> {
    (0..matrix.rows().div_ceil(PANEL_ROWS)).map(|p| matrix.panel(p)).collect()
}

#[test]
fn eight_rows_at_a_time_give_the_bytes_of_single_rows() {
    let pool = ThreadPool::new(3);
    for ty in WeightType::ALL {
        let block = ty.block_elems();
        let widths: &[(usize, usize, usize)] = match block {
            1 => &[(24, 0, 24), (37, 0, 37), (37, 5, 23), (9, 8, 1), (16, 3, 0)],
            32 => &[(32, 0, 32), (160, 0, 160), (160, 32, 96), (64, 32, 0)],
            _ => &[(512, 0, 512), (512, 96, 160), (768, 224, 512), (256, 32, 0)],
        };
        for (cols_stored, col_skip, cols) in widths.iter().copied() {
            for rows in [0, 1, 7, 8, 9, 16, 83] {
                let row_bytes = ty.row_bytes(cols_stored);
                let bytes = stored(ty, rows * row_bytes);
                let row = |r: usize| &bytes[r * row_bytes..][..row_bytes];
                let new = || empty(ty, rows, cols_stored, col_skip, cols);
                let mut expected = new();
                for r in 0..rows {
                    expected.push_rows(row(r)).expect("a row");
                }
                let expected = expected.finish().expect("all rows are there");
                let mut whole = new();
                whole.push_with(&pool, rows, row).expect("as many as there are");
                let mut pieces = new();
                let mut from = 0;
                for count in [3, 17, 0, 8, 5, 50].map(|count: usize| count.min(rows)) {
                    let count = count.min(rows - from);
                    pieces.push_with(&pool, count, |i| row(from + i)).expect("there is room");
                    from += count;
                }
                for (how, packer) in [("whole", whole), ("in pieces", pieces)] {
                    let got = packer.finish().expect("all rows are there");
                    let what = format!("{ty} {rows} × {cols_stored} from {col_skip} {cols}, {how}");
                    assert!(panels(&got) == panels(&expected), "{what}");
                }
            }
        }
    }
}

#[test]
fn rows_of_another_length_and_rows_too_many_are_refused() {
    let pool = ThreadPool::new(1);
    let mut packer = empty(WeightType::BF16, 9, 4, 0, 4);
    let error = packer.push_with(&pool, 9, |i| if i == 7 { &[0; 7] } else { &[0; 8] });
    assert!(error.is_err_and(|e| e.to_string().contains("row 7 has 7 bytes, not 8")));
    assert!(packer.push_with(&pool, 10, |_| &[0; 8]).is_err());
    assert!(packer.push_with(&pool, usize::MAX, |_| &[0; 8]).is_err());
    packer.push_with(&pool, 8, |_| &[0; 8]).expect("what was refused has changed nothing");
    assert!(packer.push_rows(&[0; 16]).is_err());
    packer.push_rows(&[0; 8]).expect("the last row");
    packer.finish().expect("nine rows");
}
