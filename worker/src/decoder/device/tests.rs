//! The device decoder against transformers: on the host twin, and on a GPU where there is one.

use foggara_kernels::cuda::testing::devices;
use foggara_models::testing::{GOLDEN_DENSE, GOLDEN_WITH_EXPERTS};

use super::*;
use crate::decoder::score::tests::wants_are_met;
use crate::decoder::tests::agrees_on;
use crate::testing::{Kind, golden};

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

/// One position at a time is recorded where there is one rank.
#[test]
fn every_row_is_given_what_it_wants() {
    for device in kinds() {
        for name in ["llama", "gemma2", "mixtral"] {
            for (shape, chunk) in [(shape(1, 1, 1), 1), (shape(1, 1, 1), 7), (shape(2, 1, 1), 4)] {
                wants_are_met(name, shape, Kind::Shm, chunk, &device);
            }
        }
    }
}
