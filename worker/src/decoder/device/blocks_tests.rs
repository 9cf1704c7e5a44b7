//! A model whose weights stay in their blocks gives the bits of the same model with these weights in bf16, and no op is left to
//! kernels that were not made for blocks.

use foggara_kernels::cuda::testing::{Seen, watched_twin};
use foggara_models::testing::tiny_gguf;
use foggara_models::{Checkpoint, DType, Quantize};

use super::tests::kinds;
use super::*;
use crate::decoder::Want;
use crate::decoder::tests::logits_on;
use crate::testing::{BLOCK_SIZE, Kind, golden, group_on, tokens};
use crate::weights::AS_FLOATS;

/// Logits of all rows, `chunk` at a time, as a device of this kind has them; with blocks in bf16 if `as_floats`.
fn logits(
    model: &Checkpoint,
    how: (Shape, Quantize),
    sequences: &[Vec<u32>],
    chunk: usize,
    device: &(impl Fn(usize) -> Option<Device> + Sync),
    as_floats: bool,
) -> Vec<Vec<Vec<f32>>> {
    // Asked for in the thread that loads.
    let device = |rank: usize| {
        AS_FLOATS.set(as_floats);
        device(rank)
    };
    logits_on(model, sequences, how, (Kind::Shm, KvType::F16), chunk, &device)
}

fn same_bits(
    what: &str,
    model: &Checkpoint,
    how: (Shape, Quantize),
    sequences: &[Vec<u32>],
    chunks: &[usize],
) {
    for device in kinds() {
        let expected = logits(model, how, sequences, 512, &device, true);
        assert!(expected.iter().flatten().flatten().all(|logit| logit.is_finite()), "{what}: numbers");
        for chunk in chunks {
            let found = logits(model, how, sequences, *chunk, &device, false);
            assert!(found == expected, "{what} {} {}, {chunk} at a time: other bits", how.0, how.1);
        }
    }
}

#[test]
fn models_in_blocks_give_the_logits_of_their_weights_in_bf16() {
    let cases = [
        ("llama", 1, Quantize::Q8_0),
        ("llama", 2, Quantize::Q4_0),
        ("mixtral", 1, Quantize::Q4_0),
        ("mixtral", 2, Quantize::Q8_0),
        ("deepseek-v3", 1, Quantize::Q4_0),
        ("gpt-oss", 1, Quantize::Q8_0),
    ];
    for (name, tp, quantize) in cases {
        let (model, expected) = golden(name);
        let cases = expected["cases"].as_array().expect("cases");
        let sequences: Vec<_> = cases.iter().take(2).map(|case| tokens(&case["prompt"])).collect();
        // One at a time is recorded where there is one rank.
        let chunks: &[usize] = if name == "mixtral" { &[512, 1] } else { &[512] };
        same_bits(name, &model, (Shape::tensor(tp), quantize), &sequences, chunks);
    }
}

#[test]
fn files_of_blocks_give_the_logits_of_their_weights_in_bf16() {
    let none = Quantize::None;
    let cases = [
        (DType::Q8_0, none, 1, &[512, 3][..]),
        (DType::Q4_0, none, 1, &[512, 3]),
        (DType::Q4_1, none, 1, &[512, 3]),
        (DType::Q5_0, none, 1, &[3]),
        (DType::Q5_1, none, 1, &[3]),
        (DType::Q4_K, none, 1, &[512, 3]),
        (DType::Q5_K, none, 1, &[3]),
        (DType::Q6_K, none, 1, &[512, 3]),
        // Some in bf16, for they are cut inside blocks; and what was floats.
        (DType::Q6_K, none, 2, &[512]),
        (DType::BF16, Quantize::Q4_K, 1, &[1]),
    ];
    for (stored, quantize, tp, chunks) in cases {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tiny.gguf");
        std::fs::write(&path, tiny_gguf(stored).bytes()).expect("written");
        let model = Checkpoint::open(&path).expect("a valid file");
        let sequences: Vec<Vec<u32>> = vec![(0..20).map(|i| i * 7 % 40).collect(), vec![3, 1, 4]];
        let what = format!("tiny {stored}");
        same_bits(&what, &model, (Shape::tensor(tp), quantize), &sequences, chunks);
    }
}

/// Every product of a layer is one launch of a kernel for its blocks, or where an MLP's two are one, of that.
#[test]
fn every_product_with_blocks_is_one_launch() {
    let (model, _) = golden("mixtral");
    let layers = model.spec().layers.len();
    let (device, log) = watched_twin();
    let shape = Shape::tensor(1);
    let device = |_: usize| Some(device.clone());
    group_on(&model, shape, Quantize::Q4_0, Kind::Shm, KvType::F16, &device, |mut engine| {
        for (start, len) in [(0, 20), (20, 1)] {
            let mut input = StepInput { wants: vec![Want::Best(1)], ..StepInput::default() };
            if start == 0 {
                input.grants.push((0, vec![0, 1]));
            }
            input.segments.push(Segment { slot: 0, start, len, logits_from: len - 1 });
            input.tokens.extend((start..start + len).map(|at| at * 7));
            engine.tables.apply(&input).expect("blocks exist");
            input.check(&engine.tables, model.spec().vocab, BLOCK_SIZE, 20).expect("a step that fits");
            log.take();
            engine
                .decoder
                .forward(&input, &engine.tables, &mut engine.comms, &mut |_, _| ())
                .expect("the rank is there");
            let seen = log.take();
            let launched = |of: &dyn Fn(&str) -> bool| {
                seen.iter().filter(|seen| matches!(seen, Seen::Launch(kernel) if of(kernel))).count()
            };
            let with_codes = |kernel: &str| kernel.starts_with("rows_") && kernel.ends_with("_q4_0");
            assert_eq!(launched(&with_codes), 4 * layers, "{len} rows: qkv, o, gates and others, down");
            let head = |kernel: &str| kernel.starts_with("rows_") && kernel.ends_with("_q8_0");
            assert_eq!(launched(&head), 1, "{len} rows: the output");
            let gated = |kernel: &str| kernel.starts_with("rows_gated_");
            assert_eq!(launched(&gated), layers, "{len} rows: with their activation");
            assert_eq!(launched(&|kernel| kernel == "embed_q8_0"), 1, "{len} rows");
            let others = |kernel: &str| kernel.starts_with("plain_") || kernel.starts_with("gated_");
            assert_eq!(launched(&others), 0, "{len} rows: products of other kinds, activations alone");
        }
    });
}
