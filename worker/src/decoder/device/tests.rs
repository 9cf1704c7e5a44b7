//! The device decoder against transformers: on the host twin, and on a GPU where there is one.

use foggara_kernels::cuda::testing::{devices, worst};
use foggara_models::Quantize;
use foggara_models::testing::{GOLDEN_DENSE, GOLDEN_WITH_EXPERTS};

use super::*;
use crate::decoder::tests::{agrees_on, logits_on};
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

/// Weights in E4M3 are off by at most a sixteenth, each way as often, so that sums are off by a few hundredths: 0.03 of the largest
/// logit was seen. A scale that is applied twice, not at all or to another row changes logits as much as they are large.
#[test]
fn weights_in_fp8_give_nearly_the_logits_of_f32() {
    for device in kinds() {
        for name in ["llama", "mixtral", "deepseek-v3"] {
            let (model, expected) = golden(name);
            for (shape, chunk) in [(shape(1, 1, 1), 512), (shape(2, 1, 1), 512), (shape(1, 1, 1), 1)] {
                let (cases, how) = (expected["cases"].as_array().expect("cases"), (shape, Quantize::Fp8));
                let sequences: Vec<_> = cases.iter().map(|case| tokens(&case["prompt"])).collect();
                let all = logits_on(&model, &sequences, how, (Kind::Shm, KvType::F32), chunk, &device);
                for (case, rows) in cases.iter().zip(all) {
                    let (last, reference) = (rows.last().expect("a prompt"), numbers(&case["logits_last"]));
                    let largest = reference.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
                    let error = worst(last, &reference).0 / largest;
                    assert!(error > 0.0 && error <= 0.15, "{name} {shape}: off by {error:.3} of {largest}");
                }
            }
        }
    }
}
