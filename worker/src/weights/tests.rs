//! What each rank holds, put together again, is the model; and nobody reads more than that.

use foggara_models::testing::{FFN, HEAD_DIM, HIDDEN, KV_HEADS, LAYERS, VOCAB, tiny_gguf};
use foggara_models::{Cut, Shape};

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

fn tensor(model: &Checkpoint, tp: usize) -> SlicePlan {
    model.slices(&Cut::even(Shape::tensor(tp)), Quantize::None).expect("can be cut")
}

/// The two halves of a layer of the tiny model.
fn parts(layer: &LayerWeights) -> (&GroupedWeights, &MlpWeights) {
    match (&layer.attention, &layer.mlp) {
        (AttentionWeights::Grouped(attention), MlpKind::Dense(mlp)) => (attention, mlp),
        _ => panic!("a Llama"),
    }
}

/// A rank's weights and the bytes it read.
fn load(model: &Checkpoint, plan: &SlicePlan, rank: usize) -> (RankWeights, u64) {
    let mut read = 0;
    let weights =
        RankWeights::load(model, plan, rank, Quantize::None, &ThreadPool::new(2), &mut |done, total| {
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
        let (whole, _) = load(&model, &tensor(&model, 1), 0);
        for tp in 2..=9 {
            let plan = tensor(&model, tp);
            for (rank, slice) in plan.ranks.iter().enumerate() {
                let (part, _) = load(&model, &plan, rank);
                let what = format!("{dtype} tp {tp} {slice:?}");
                let embedding =
                    |weights: &RankWeights| all(weights.embedding.as_ref().expect("the first stage has it"));
                assert!(embedding(&part) == embedding(&whole)[slice.vocab.clone()], "{what}");
                let heads = |range: &std::ops::Range<usize>| range.start * HEAD_DIM..range.end * HEAD_DIM;
                let (q, kv) = (heads(&slice.q_heads), heads(&slice.kv_heads));
                let (k_at, v_at) = (HIDDEN, HIDDEN + KV_HEADS * HEAD_DIM);
                for (part_layer, whole_layer) in part.layers.iter().zip(&whole.layers) {
                    let ((part, part_mlp), (whole, whole_mlp)) = (parts(part_layer), parts(whole_layer));
                    let qkv = &whole.qkv[0].weights;
                    let expected = [
                        rows(qkv, q.clone()),
                        rows(qkv, k_at + kv.start..k_at + kv.end),
                        rows(qkv, v_at + kv.start..v_at + kv.end),
                    ];
                    assert!(all(&part.qkv[0].weights) == expected.concat(), "{what}: qkv");
                    assert!(all(&part.o) == columns(&all(&whole.o), q.clone()), "{what}: o");
                    let ffn = slice.dense.clone();
                    let (gate, up) = (ffn.clone(), FFN + ffn.start..FFN + ffn.end);
                    let gate_up = &whole_mlp.gate_up[0].weights;
                    let expected = [rows(gate_up, gate), rows(gate_up, up)].concat();
                    assert!(all(&part_mlp.gate_up[0].weights) == expected, "{what}: gate and up");
                    assert!(all(&part_mlp.down) == columns(&all(&whole_mlp.down), ffn), "{what}: down");
                    assert_eq!(part_layer.attn_norm, whole_layer.attn_norm);
                }
            }
        }
    }
}

/// Whether products read it where it lies in its file.
fn in_place(matrix: &WeightMatrix) -> bool {
    let told = format!("{matrix:?}");
    told.contains("storage: Rows") && told.contains("panels: OnceLock(<uninit>)")
}

#[test]
fn what_is_mapped_is_what_would_be_copied() {
    for dtype in TYPES {
        let (_folder, model) = open(dtype);
        for tp in 1..=3 {
            let plan = tensor(&model, tp);
            for rank in 0..tp {
                let load = |residence| {
                    let (store, pool) = (OnCpu(residence), ThreadPool::new(2));
                    let mut told = (0, 0);
                    let mut progress = |done, total| {
                        told = (done, total);
                        true
                    };
                    let weights = RankWeights::load_to(
                        &store,
                        &model,
                        &plan,
                        rank,
                        Quantize::None,
                        &pool,
                        &mut progress,
                    );
                    (weights.expect("loads"), told)
                };
                let ((mapped, told), (copied, told_copied)) =
                    (load(Residence::Mapped), load(Residence::Copied));
                assert_eq!(told, told_copied, "{dtype} tp {tp} rank {rank}: bytes read, and in all");
                let matrices = |weights: &RankWeights| {
                    let mut all: Vec<(bool, Vec<Vec<f32>>)> = Vec::new();
                    let mut take = |matrix: &WeightMatrix| {
                        all.push((in_place(matrix), rows(matrix, 0..matrix.rows())));
                    };
                    weights.embedding.iter().chain(&weights.output).for_each(&mut take);
                    for layer in &weights.layers {
                        let (attention, mlp) = parts(layer);
                        let columns = attention.qkv.iter().chain(&mlp.gate_up);
                        columns
                            .map(|column| &column.weights)
                            .chain([&attention.o, &mlp.down])
                            .for_each(&mut take);
                    }
                    all
                };
                let (lying, weights) = (matrices(&mapped), mapped);
                let pool = ThreadPool::new(1);
                for mapped in &weights.mapped {
                    assert_eq!(mapped.repack(&pool), Ok(true));
                }
                let (repacked, copied) = (matrices(&weights), matrices(&copied));
                // What is only looked up in stays where it is.
                let looked_up = usize::from(weights.output.is_some() && !dtype.is_quantized());
                assert_eq!(repacked.iter().filter(|(placed, _)| *placed).count(), looked_up, "{dtype}");
                assert!(
                    lying.iter().zip(&repacked).all(|((_, before), (_, after))| before == after),
                    "{dtype}"
                );
                let (left, mapped) = (weights.mapped, lying);
                drop((weights.embedding, weights.output, weights.layers));
                for gone in left.iter().filter(|mapped| mapped.bytes() > 0) {
                    assert_eq!(gone.repack(&pool), Ok(false));
                }
                assert_eq!(mapped.len(), copied.len());
                for ((placed, mapped), (copied_placed, copied)) in mapped.iter().zip(&copied) {
                    assert!(mapped == copied, "{dtype} tp {tp} rank {rank}");
                    assert!(!copied_placed && (!placed || !dtype.is_quantized()));
                }
                // The embedding is whole rows.
                assert_eq!(mapped[0].0, !dtype.is_quantized(), "{dtype} tp {tp} rank {rank}");
            }
        }
    }
}

#[test]
fn ranks_read_the_bytes_of_their_slices_and_no_others() {
    for dtype in TYPES {
        let (_folder, model) = open(dtype);
        let (_, whole) = load(&model, &tensor(&model, 1), 0);
        let kv = 2 * KV_HEADS * HEAD_DIM;
        let matrices = VOCAB * HIDDEN + LAYERS * (kv * HIDDEN + 2 * HIDDEN * HIDDEN + 3 * FFN * HIDDEN);
        assert_eq!(whole, dtype.row_bytes(matrices) as u64, "{dtype}");
        for tp in 2..=9 {
            let plan = tensor(&model, tp);
            let read: u64 = (0..tp).map(|rank| load(&model, &plan, rank).1).sum();
            // Key heads that several ranks hold are read by each.
            let held: usize = plan.ranks.iter().map(|slice| slice.kv_heads.len()).sum();
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
fn floats_of_all_types_are_held_in_bf16_and_multiplied_in_it_where_that_was_asked_for() {
    for stored in [DType::BF16, DType::F16, DType::F32] {
        let (_folder, model) = open(stored);
        let plan = tensor(&model, 2);
        for residence in [Residence::Mapped, Residence::Copied] {
            let (store, pool) = (OnCpu(residence), ThreadPool::new(2));
            let at = |quantize| {
                RankWeights::load_to(&store, &model, &plan, 1, quantize, &pool, &mut |_, _| true)
                    .expect("loads")
            };
            let (plain, rounded) = (at(Quantize::None), at(Quantize::Bf16));
            let matrices = |weights: &RankWeights| -> Vec<(bool, bool, Vec<f32>)> {
                let layers = weights.layers.iter().flat_map(|layer| {
                    let (attention, mlp) = parts(layer);
                    let columns = attention.qkv.iter().chain(&mlp.gate_up).map(|column| &column.weights);
                    columns.chain([&attention.o, &mlp.down]).collect::<Vec<_>>()
                });
                let of = |matrix: &WeightMatrix| {
                    let is_bf16 = matrix.weight_type() == WeightType::BF16;
                    (is_bf16, matrix.is_multiplied_in_bf16(), rows(matrix, 0..matrix.rows()).concat())
                };
                weights.embedding.iter().chain(&weights.output).chain(layers).map(of).collect()
            };
            let (plain, rounded) = (matrices(&plain), matrices(&rounded));
            assert_eq!(plain.len(), rounded.len());
            for ((was_bf16, was_in_bf16, exact), (is_bf16, in_bf16, held)) in plain.into_iter().zip(rounded) {
                assert!(!was_in_bf16 && is_bf16 && in_bf16, "{stored} {residence}");
                assert_eq!(was_bf16, stored == DType::BF16);
                let expected: Vec<f32> = exact.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect();
                assert_eq!(held, expected, "{stored} {residence}");
            }
        }
    }
}

#[test]
fn float_matrices_are_held_in_the_type_that_was_asked_for_and_nearly_the_same() {
    use foggara_kernels::WeightType as T;
    let (_folder, model) = open(DType::BF16);
    let plan = tensor(&model, 2);
    let at = |quantize| {
        RankWeights::load(&model, &plan, 0, quantize, &ThreadPool::new(1), &mut |_, _| true).expect("loads")
    };
    let plain = at(Quantize::None);
    for (quantize, layers, within) in
        [(Quantize::Q8_0, T::Q8_0, 0.02), (Quantize::Q4_0, T::Q4_0, 0.2), (Quantize::Q4_K, T::Q4_K, 0.2)]
    {
        let weights = at(quantize);
        assert!(weights.bytes() < plain.bytes(), "{quantize}");
        let embedding = weights.embedding.as_ref().expect("the first stage has it");
        assert_eq!(embedding.weight_type(), T::Q8_0, "{quantize}");
        for (layer, plain) in weights.layers.iter().zip(&plain.layers) {
            let ((attention, mlp), (plain, plain_mlp)) = (parts(layer), parts(plain));
            for (held, exact) in [
                (&attention.qkv[0].weights, &plain.qkv[0].weights),
                (&attention.o, &plain.o),
                (&mlp.gate_up[0].weights, &plain_mlp.gate_up[0].weights),
                (&mlp.down, &plain_mlp.down),
            ] {
                assert_eq!(held.weight_type(), layers, "{quantize}");
                let (held, exact) = (all(held).concat(), all(exact).concat());
                let square = |x: f32| f64::from(x) * f64::from(x);
                let off: f64 = held.iter().zip(&exact).map(|(a, b)| square(a - b)).sum();
                let size: f64 = exact.iter().map(|x| square(*x)).sum();
                let error = (off / size).sqrt();
                assert!(error > 0.0 && error < within, "{quantize}: off by {error}");
            }
        }
    }
}

#[test]
fn loading_stops_when_asked_to() {
    let (_folder, model) = open(DType::Q4_0);
    let mut calls = 0;
    let outcome =
        RankWeights::load(&model, &tensor(&model, 1), 0, Quantize::None, &ThreadPool::new(1), &mut |_, _| {
            calls += 1;
            calls < 3
        });
    assert!(matches!(outcome, Err(LoadError::Cancelled)));
    assert_eq!(calls, 3);
}
