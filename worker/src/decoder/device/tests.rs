//! The device decoder against transformers: on the host twin, and on a GPU where there is one.

use std::path::Path;

use foggara_kernels::cuda::testing::devices;
use foggara_kernels::cuda::{from_f8, row_to_f8};
use foggara_models::testing::{GOLDEN_DENSE, GOLDEN_WITH_EXPERTS};
use foggara_models::{Checkpoint, Quantize};

use super::*;
use crate::decoder::score::tests::wants_are_met;
use crate::decoder::tests::{agrees_on, logits, logits_on};
use crate::testing::{Kind, golden, numbers, tokens};

/// Each kind of device, as what gives every rank one of its own.
fn kinds() -> Vec<impl Fn(usize) -> Option<Device> + Sync> {
    (0..devices().len()).map(|kind| move |_: usize| Some(devices().remove(kind))).collect()
}

fn shape(tp: usize, pp: usize, ep: usize) -> Shape {
    Shape { tp, dp: 1, pp, ep }
}

#[test]
fn every_golden_model_agrees_with_transformers() {
    for device in kinds() {
        for name in GOLDEN_DENSE.into_iter().chain(GOLDEN_WITH_EXPERTS) {
            let (model, expected) = golden(name);
            for shape in [shape(1, 1, 1), shape(2, 1, 1)] {
                agrees_on(name, &model, &expected, shape, 512, &device);
            }
        }
    }
}

#[test]
fn every_golden_model_with_experts_agrees_however_they_are_spread() {
    for device in kinds() {
        for name in GOLDEN_WITH_EXPERTS {
            let (model, expected) = golden(name);
            for shape in [shape(2, 1, 2), shape(4, 1, 2), shape(2, 2, 2)] {
                agrees_on(name, &model, &expected, shape, 512, &device);
            }
        }
    }
}

/// One position at a time: steps that are recorded and replayed.
#[test]
fn what_is_replayed_agrees_as_well() {
    for device in kinds() {
        for name in ["llama", "mixtral", "deepseek-v3", "gpt-oss", "gemma2"] {
            let (model, expected) = golden(name);
            agrees_on(name, &model, &expected, shape(1, 1, 1), 1, &device);
        }
    }
}

/// The checkpoint at `from`, stored in f32, with what fp8 rounds rounded so; written to `to`.
fn rounded(from: &Path, to: &Path) -> Checkpoint {
    std::fs::copy(from.join("config.json"), to.join("config.json")).expect("copied");
    let mut file = std::fs::read(from.join("model.safetensors")).expect("read");
    // The length of the header, the header, and then the tensors.
    let start = 8 + u64::from_le_bytes(file[..8].try_into().expect("8 bytes")) as usize;
    let header: serde_json::Value = serde_json::from_slice(&file[8..start]).expect("a header");
    for (name, tensor) in header.as_object().expect("tensors") {
        let matrix = ["_proj.", ".experts."].iter().any(|part| name.contains(part));
        if !matrix || !name.ends_with(".weight") {
            continue;
        }
        let (range, shape) = (tokens(&tensor["data_offsets"]), tokens(&tensor["shape"]));
        let bytes = &mut file[start + range[0] as usize..start + range[1] as usize];
        for row in bytes.chunks_exact_mut(4 * shape[1] as usize) {
            let (values, mut codes) =
                (row.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)), Vec::new());
            let scale = row_to_f8(&values.collect::<Vec<_>>(), &mut codes);
            let rounded: Vec<u8> = codes.iter().flat_map(|c| (from_f8(*c) * scale).to_le_bytes()).collect();
            row.copy_from_slice(&rounded);
        }
    }
    std::fs::write(to.join("model.safetensors"), file).expect("written");
    Checkpoint::open(to).expect("a valid checkpoint")
}

/// The root of the mean square of what is off, in parts of that of what is expected.
fn off_by(found: &[f32], expected: &[f64]) -> f64 {
    let off: f64 = found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    (off / expected.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

/// Against the CPU's f32 with the same rounded weights: what is left is that activations are bf16 in products, each off by up to
/// 2^-9. Against the exact ones, in which a weight is off by up to a sixteenth: small random models have nothing that evens that
/// out, so that only what is as large as the logits themselves is a mistake.
#[test]
fn weights_in_fp8_give_the_logits_of_weights_that_are_rounded_so() {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    for device in kinds() {
        for name in ["llama", "mixtral"] {
            let (model, expected) = golden(name);
            let cases = expected["cases"].as_array().expect("cases");
            let sequences: Vec<_> = cases.iter().map(|case| tokens(&case["prompt"])).collect();
            let folder = tempfile::tempdir().expect("a folder");
            let same = rounded(&goldens.join(name), folder.path());
            let same = logits(&same, &sequences, shape(1, 1, 1), Kind::Shm, KvType::F32, 512);
            for (shape, chunk) in [(shape(1, 1, 1), 512), (shape(1, 1, 1), 1), (shape(2, 1, 1), 512)] {
                let how = (shape, Quantize::Fp8);
                let all = logits_on(&model, &sequences, how, (Kind::Shm, KvType::F32), chunk, &device);
                for ((case, rows), same) in cases.iter().zip(all).zip(&same) {
                    let exact = off_by(rows.last().expect("a prompt"), &numbers(&case["logits_last"]));
                    assert!(exact > 0.005 && exact < 0.5, "{name} {shape}: off by {exact:.3} of f32's");
                    if shape.ranks() > 1 {
                        // Rows that are cut have scales of their own.
                        continue;
                    }
                    for (i, (row, same)) in rows.iter().zip(same).enumerate() {
                        let same: Vec<f64> = same.iter().copied().map(f64::from).collect();
                        let off = off_by(row, &same);
                        assert!(
                            off <= 0.03,
                            "{name}, {chunk} at a time, row {i}: off by {off:.4} ({exact:.3})"
                        );
                    }
                }
            }
        }
    }
}

/// One position at a time is recorded where there is one rank.
#[test]
fn every_row_is_given_what_it_wants() {
    for device in kinds() {
        // The second with capped logits.
        for name in ["llama", "gemma2"] {
            for (shape, chunk) in [(shape(1, 1, 1), 1), (shape(2, 1, 1), 4)] {
                wants_are_met(name, shape, Kind::Shm, chunk, &device);
            }
        }
    }
}
