//! What comes to a device is what the checkpoint holds, in the type that was asked for.

use foggara_kernels::cuda::from_f8;
use foggara_kernels::cuda::testing::host_twin;
use foggara_models::testing::tiny_gguf;
use foggara_models::{Checkpoint, Cut, DType, Quantize, Shape};

use super::super::{AttentionWeights, MlpKind, MlpWeights, RankWeights};
use super::*;
use crate::testing::golden;
use crate::weights::weight_type;

fn rank(model: &Checkpoint, tp: usize, rank: usize, quantize: Quantize) -> RankWeights<DeviceMatrix> {
    let plan = model.slices(&Cut::even(Shape::tensor(tp)), quantize).expect("can be cut");
    let (store, pool) = (OnDevice(host_twin()), ThreadPool::new(2));
    RankWeights::load_to(&store, model, &plan, rank, quantize, &pool, &mut |_, _| true).expect("loads")
}

/// The matrices that are quantized.
fn matrices(weights: &RankWeights<DeviceMatrix>) -> Vec<&DeviceMatrix> {
    fn of_mlp(mlp: &MlpWeights<DeviceMatrix>) -> Vec<&DeviceMatrix> {
        mlp.gate_up.iter().map(|column| &column.weights).chain([&mlp.down]).collect()
    }
    let mut all = Vec::new();
    for layer in &weights.layers {
        if let AttentionWeights::Grouped(w) = &layer.attention {
            all.extend(w.qkv.iter().map(|column| &column.weights).chain([&w.o]));
        }
        match &layer.mlp {
            MlpKind::Dense(mlp) => all.extend(of_mlp(mlp)),
            MlpKind::Experts(w) => all.extend(w.held.iter().flat_map(|(_, mlp)| of_mlp(mlp))),
        }
    }
    all
}

/// Its numbers, row after row, and how much each may be off that was rounded to it.
fn numbers(matrix: &DeviceMatrix) -> Vec<(f32, f32)> {
    let mut bytes = vec![0_u8; matrix.rows() * matrix.row_bytes()];
    matrix.data().download(&mut bytes).expect("downloads");
    let mut scales = vec![1.0_f32; matrix.rows()];
    if let Some(own) = matrix.scales() {
        own.download(&mut scales).expect("downloads");
    }
    let mut all = Vec::new();
    for (row, scale) in bytes.chunks_exact(matrix.row_bytes()).zip(scales) {
        for element in row.chunks_exact(matrix.kind().bits() / 8).take(matrix.cols()) {
            all.push(match *element {
                [code] => {
                    let value = from_f8(code);
                    // Half the distance to the next number further from zero: 3 bits behind the first one.
                    let step = 2.0_f32.powi((value.abs().log2().floor() as i32).max(-6) - 3);
                    (value * scale, 0.5001 * step * scale)
                }
                [a, b] => (half::bf16::from_le_bytes([a, b]).to_f32(), 0.0),
                [a, b, c, d] => (f32::from_le_bytes([a, b, c, d]), 0.0),
                _ => panic!("elements of 1, 2 or 4 bytes"),
            });
        }
    }
    all
}

#[test]
fn weights_in_fp8_are_within_half_a_step_of_what_is_stored() {
    for name in ["llama", "mixtral"] {
        let (model, _) = golden(name);
        for (tp, number) in [(1, 0), (2, 1)] {
            let (exact, rounded) =
                (rank(&model, tp, number, Quantize::None), rank(&model, tp, number, Quantize::Fp8));
            assert!(rounded.bytes() < exact.bytes(), "{name}");
            for (exact, rounded) in matrices(&exact).into_iter().zip(matrices(&rounded)) {
                assert_eq!((exact.kind(), rounded.kind()), (WeightKind::F32, WeightKind::F8), "{name}");
                assert_eq!((exact.rows(), exact.cols()), (rounded.rows(), rounded.cols()), "{name}");
                for ((exact, _), (rounded, half)) in numbers(exact).into_iter().zip(numbers(rounded)) {
                    let off = (exact - rounded).abs();
                    assert!(off <= half, "{name}: {rounded} for {exact}, off by {off} of {half}");
                }
            }
        }
    }
}

#[test]
fn embedding_output_and_routers_stay_as_they_are_stored() {
    let (model, _) = golden("mixtral");
    let weights = rank(&model, 1, 0, Quantize::Fp8);
    for end in weights.embedding.iter().chain(&weights.output) {
        assert_eq!(end.kind(), WeightKind::F32);
    }
    for layer in &weights.layers {
        let MlpKind::Experts(experts) = &layer.mlp else { continue };
        assert_eq!(experts.router.kind(), WeightKind::F32);
    }
}

/// Also from blocks of 256, of which a rank of two holds a part.
#[test]
fn what_is_quantized_already_becomes_fp8_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tiny.gguf");
    for stored in [DType::BF16, DType::F16, DType::Q4_K, DType::Q8_0] {
        std::fs::write(&path, tiny_gguf(stored).bytes()).expect("written");
        let model = Checkpoint::open(&path).expect("a valid file");
        for number in 0..2 {
            let weights = rank(&model, 2, number, Quantize::Fp8);
            for matrix in matrices(&weights) {
                assert_eq!(matrix.kind(), WeightKind::F8, "{stored}");
                assert!(numbers(matrix).iter().any(|(value, _)| *value != 0.0), "{stored}");
            }
        }
    }
}

#[test]
fn the_cpu_refuses_fp8_by_name() {
    let (model, _) = golden("llama");
    let plan = model.slices(&Cut::even(Shape::default()), Quantize::Fp8).expect("can be cut");
    let loaded =
        RankWeights::load(&model, &plan, 0, Quantize::Fp8, &ThreadPool::new(1), &mut |_, _| true).map(drop);
    let told = loaded.expect_err("refused").to_string();
    assert_eq!(told, "fp8 weights are computed on GPUs only; use q8_0");
}

/// A weight of a row as a device holds it in blocks, from the places that `kernels/cu/blocks.cuh` says.
fn weight(kind: WeightKind, cols: usize, row: &[u8], i: usize) -> f32 {
    let high = match kind {
        WeightKind::Q5_1 | WeightKind::Q5_K => 1,
        WeightKind::Q6_K => 2,
        _ => 0,
    };
    let half = |at: usize| half::f16::from_le_bytes([row[at], row[at + 1]]).to_f32();
    if kind == WeightKind::Q8_0 {
        return half(cols + i / 32 * 2) * (i32::from(row[i]) - 128) as f32;
    }
    let mut code = i32::from(row[i / 32 * 16 + i % 16] >> (i % 32 / 16 * 4) & 15);
    if high > 0 {
        let byte = row[cols / 2 + i * high / 128 * 16 + i % 16] >> (i / 16 * high % 8);
        code |= i32::from(byte & ((1 << high) - 1)) << 4;
    }
    let own = cols / 2 + (cols * high).div_ceil(128) * 16;
    let shared = own + cols / 32 * 2 + i / 256 * 4;
    let step = |at: usize| f32::from(row[own + at]);
    match kind {
        WeightKind::Q4_0 => half(own + i / 32 * 2) * (code - 8) as f32,
        WeightKind::Q4_1 | WeightKind::Q5_1 => {
            half(own + i / 32 * 4) * code as f32 + half(own + i / 32 * 4 + 2)
        }
        WeightKind::Q4_K | WeightKind::Q5_K => {
            let (scale, least) = (half(shared) * step(i / 32 * 2), half(shared + 2) * step(i / 32 * 2 + 1));
            scale * code as f32 - least
        }
        WeightKind::Q6_K => {
            let all = f32::from_le_bytes([row[shared], row[shared + 1], row[shared + 2], row[shared + 3]]);
            all * (step(i / 16) - 128.0) * (code - 32) as f32
        }
        _ => panic!("{kind:?} has no blocks"),
    }
}

/// Also cut: what the CPU's ranks hold is known to be the model's. Columns that are not whole blocks come in bf16.
#[test]
fn blocks_come_to_a_device_as_they_are_stored() {
    let stored = [
        DType::Q8_0,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q4_K,
        DType::Q5_K,
        DType::Q6_K,
    ];
    for stored in stored {
        let kind = WeightKind::of_blocks(weight_type(stored)).expect("has blocks");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tiny.gguf");
        std::fs::write(&path, tiny_gguf(stored).bytes()).expect("written");
        let model = Checkpoint::open(&path).expect("a valid file");
        for (tp, number) in [(1, 0), (2, 1), (3, 2)] {
            let plan = model.slices(&Cut::even(Shape::tensor(tp)), Quantize::None).expect("can be cut");
            let pool = ThreadPool::new(2);
            let cpu = RankWeights::load(&model, &plan, number, Quantize::None, &pool, &mut |_, _| true);
            let cpu = cpu.expect("loads");
            let device = rank(&model, tp, number, Quantize::None);
            let mut expected = Vec::new();
            expected.extend(&cpu.embedding);
            for layer in &cpu.layers {
                let (AttentionWeights::Grouped(a), MlpKind::Dense(mlp)) = (&layer.attention, &layer.mlp)
                else {
                    panic!("a Llama")
                };
                expected.extend(a.qkv.iter().map(|column| &column.weights).chain([&a.o]));
                expected.extend(mlp.gate_up.iter().map(|column| &column.weights).chain([&mlp.down]));
            }
            let found = device.matrices();
            assert_eq!(found.len(), expected.len(), "{stored}");
            for (found, expected) in found.into_iter().zip(expected) {
                // The last rank's columns begin at whole blocks if they are as many.
                let whole = expected.cols().is_multiple_of(kind.block_elems());
                assert_eq!(found.kind(), if whole { kind } else { WeightKind::Bf16 }, "{stored}, tp {tp}");
                assert_eq!((found.rows(), found.cols()), (expected.rows(), expected.cols()), "{stored}");
                let mut bytes = vec![0_u8; found.bytes()];
                found.data().download(&mut bytes).expect("downloads");
                for (r, row) in bytes.chunks_exact(found.row_bytes()).enumerate() {
                    let mut values = vec![f32::NAN; found.cols()];
                    expected.dequantize_row(r, &mut values);
                    let held: Vec<f32> = match whole {
                        true => (0..found.cols()).map(|i| weight(kind, found.cols(), row, i)).collect(),
                        false => {
                            values
                                .iter_mut()
                                .for_each(|value| *value = half::bf16::from_f32(*value).to_f32());
                            let pairs = row.chunks_exact(2).take(found.cols());
                            pairs.map(|pair| half::bf16::from_le_bytes([pair[0], pair[1]]).to_f32()).collect()
                        }
                    };
                    assert_eq!(held, values, "{stored}, tp {tp}, row {r} of {}", found.rows());
                }
            }
        }
    }
}

/// A rank that is cut inside of blocks of 256 makes bf16 of them, of numbers as if it were not cut.
#[test]
fn floats_become_blocks_of_256_where_they_are_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, tiny_gguf(DType::BF16).bytes()).expect("written");
    let model = Checkpoint::open(&path).expect("a valid file");
    for (tp, in_bf16) in [(1, 0), (2, 1)] {
        let weights = rank(&model, tp, tp - 1, Quantize::Q4_K);
        let of = |kind| matrices(&weights).into_iter().filter(|matrix| matrix.kind() == kind).count();
        let layers = weights.layers.len();
        let each = matrices(&weights).len() / layers;
        assert_eq!(of(WeightKind::Bf16), in_bf16 * layers, "tp {tp}: output projections");
        assert_eq!(of(WeightKind::Q4_K), (each - in_bf16) * layers, "tp {tp}");
    }
}

#[test]
fn a_rank_says_what_it_holds() {
    let (model, _) = golden("mixtral");
    let weights = rank(&model, 1, 0, Quantize::Q4_0);
    let of = |kind| weights.matrices().into_iter().filter(move |matrix| matrix.kind() == kind).count();
    let layers = model.spec().layers.len();
    assert_eq!((of(WeightKind::F32), of(WeightKind::Q8_0)), (layers, 2), "routers; embedding and output");
    let told = weights.held();
    assert!(told.starts_with("q4_0 0.00 GB, ") && told.contains("q8_0 0.00 GB"), "{told}");
    let bytes: usize = weights.matrices().into_iter().map(DeviceMatrix::bytes).sum();
    assert_eq!(bytes, weights.bytes(), "each once");
}
