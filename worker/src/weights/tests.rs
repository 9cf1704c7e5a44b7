//! What each rank holds, put together again, is the model; and nobody reads more than that.

use foggara_models::testing::{FFN, HEAD_DIM, HIDDEN, KV_HEADS, LAYERS, VOCAB, tiny_gguf};

use super::*;

const TYPES: [DType; 11] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q8_0,
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
];

fn open(dtype: DType) -> (tempfile::TempDir, Checkpoint) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, tiny_gguf(dtype).bytes()).expect("written");
    let model = Checkpoint::open(&path).expect("a valid file");
    (folder, model)
}

/// A rank's weights and the bytes it read.
fn load(model: &Checkpoint, slice: &RankSlice) -> (RankWeights, u64) {
    let mut read = 0;
    let weights = RankWeights::load(model, slice, &mut |done, total| {
        assert!(done >= read && done <= total, "progress: {done} of {total}");
        read = done;
        true
    });
    (weights.expect("loads"), read)
}

fn rows(matrix: &WeightMatrix, range: std::ops::Range<usize>) -> Vec<Vec<f32>> {
    range
        .map(|row| {
            let mut values = vec![f32::NAN; matrix.cols()];
            matrix.dequantize_row(row, &mut values);
            values
        })
        .collect()
}

fn all(matrix: &WeightMatrix) -> Vec<Vec<f32>> {
    rows(matrix, 0..matrix.rows())
}

/// Columns `range` of the whole.
fn columns(whole: &[Vec<f32>], range: std::ops::Range<usize>) -> Vec<Vec<f32>> {
    whole.iter().map(|row| row[range.clone()].to_vec()).collect()
}

#[test]
fn ranks_hold_the_parts_of_their_slices() {
    for dtype in TYPES {
        let (_folder, model) = open(dtype);
        let (whole, _) = load(&model, &model.slices(1).expect("one rank")[0]);
        for tp in 2..=9 {
            for slice in model.slices(tp).expect("can be cut") {
                let (part, _) = load(&model, &slice);
                let what = format!("{dtype} tp {tp} {slice:?}");
                assert!(all(&part.embedding) == rows(&whole.embedding, slice.vocab.clone()), "{what}");
                let heads = |range: &std::ops::Range<usize>| range.start * HEAD_DIM..range.end * HEAD_DIM;
                let (q, kv) = (heads(&slice.q_heads), heads(&slice.kv_heads));
                let (k_at, v_at) = (HIDDEN, HIDDEN + KV_HEADS * HEAD_DIM);
                for (part, whole) in part.layers.iter().zip(&whole.layers) {
                    let qkv = &whole.qkv[0].weights;
                    let expected = [
                        rows(qkv, q.clone()),
                        rows(qkv, k_at + kv.start..k_at + kv.end),
                        rows(qkv, v_at + kv.start..v_at + kv.end),
                    ];
                    assert!(all(&part.qkv[0].weights) == expected.concat(), "{what}: qkv");
                    assert!(all(&part.o) == columns(&all(&whole.o), q.clone()), "{what}: o");
                    let (gate, up) = (slice.ffn.clone(), FFN + slice.ffn.start..FFN + slice.ffn.end);
                    let gate_up = &whole.gate_up[0].weights;
                    let expected = [rows(gate_up, gate), rows(gate_up, up)].concat();
                    assert!(all(&part.gate_up[0].weights) == expected, "{what}: gate and up");
                    assert!(all(&part.down) == columns(&all(&whole.down), slice.ffn.clone()), "{what}: down");
                    assert_eq!(part.attn_norm, whole.attn_norm);
                }
            }
        }
    }
}

#[test]
fn ranks_read_the_bytes_of_their_slices_and_no_others() {
    for dtype in TYPES {
        let (_folder, model) = open(dtype);
        let (_, whole) = load(&model, &model.slices(1).expect("one rank")[0]);
        let kv = 2 * KV_HEADS * HEAD_DIM;
        let matrices = VOCAB * HIDDEN + LAYERS * (kv * HIDDEN + 2 * HIDDEN * HIDDEN + 3 * FFN * HIDDEN);
        assert_eq!(whole, dtype.row_bytes(matrices) as u64, "{dtype}");
        for tp in 2..=9 {
            let slices = model.slices(tp).expect("can be cut");
            let read: u64 = slices.iter().map(|slice| load(&model, slice).1).sum();
            // Key heads that several ranks hold are read by each.
            let held: usize = slices.iter().map(|slice| slice.kv_heads.len()).sum();
            let again = LAYERS * 2 * (held - KV_HEADS) * HEAD_DIM * HIDDEN;
            let expected = whole + dtype.row_bytes(again) as u64;
            if dtype.block_elems() <= 32 {
                assert_eq!(read, expected, "{dtype} tp {tp}");
            } else {
                // A wide block that is cut in two is read on both sides: at most one more for each row and rank.
                let cut = LAYERS * 2 * HIDDEN * (tp - 1) * dtype.block_bytes();
                assert!((expected..=expected + cut as u64).contains(&read), "{dtype} tp {tp}: {read}");
            }
        }
    }
}

#[test]
fn loading_stops_when_asked_to() {
    let (_folder, model) = open(DType::Q4_0);
    let mut calls = 0;
    let outcome = RankWeights::load(&model, &model.slices(1).expect("one rank")[0], &mut |_, _| {
        calls += 1;
        calls < 3
    });
    assert!(matches!(outcome, Err(LoadError::Cancelled)));
    assert_eq!(calls, 3);
}
