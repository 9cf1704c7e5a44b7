//! The device decoder against transformers: on the host twin, and on a GPU where there is one.

use std::path::Path;

use foggara_kernels::ThreadPool;
use foggara_kernels::cuda::testing::{devices, host_twin, host_twin_without_f8};
use foggara_kernels::cuda::{Gpu, from_f8, row_to_f8};
use foggara_models::testing::{GOLDEN_DENSE, GOLDEN_WITH_EXPERTS};
use foggara_models::{Checkpoint, Cut, Quantize};

use super::*;
use crate::decoder::rounding::{Rounding, round};
use crate::decoder::score::tests::wants_are_met;
use crate::decoder::tests::{agrees_on, logits_on};
use crate::testing::{Kind, golden, numbers, tokens};
use crate::weights::OnDevice;

/// Each kind of device, as what gives every rank one of its own.
pub(super) fn kinds() -> Vec<impl Fn(usize) -> Option<Device> + Sync> {
    (0..devices().len()).map(|kind| move |_: usize| Some(devices().remove(kind))).collect()
}

/// Whether everything can be tried: the host twin takes a thousand times as long as a GPU.
fn is_fast(device: &impl Fn(usize) -> Option<Device>) -> bool {
    device(0).is_some_and(|device| Gpu::of(&device).is_some())
}

fn shape(tp: usize, pp: usize, ep: usize) -> Shape {
    Shape { tp, dp: 1, pp, ep }
}

#[test]
fn every_golden_model_agrees_with_transformers() {
    for device in kinds() {
        for name in GOLDEN_DENSE.into_iter().chain(GOLDEN_WITH_EXPERTS) {
            let (model, expected) = golden(name);
            let shapes = [shape(2, 1, 1), shape(1, 1, 1), shape(3, 1, 1)];
            for shape in &shapes[..if is_fast(&device) { 3 } else { 1 }] {
                agrees_on(name, &model, &expected, *shape, 512, &device);
            }
        }
    }
}

#[test]
fn every_golden_model_with_experts_agrees_however_they_are_spread() {
    for device in kinds() {
        for name in GOLDEN_WITH_EXPERTS {
            let (model, expected) = golden(name);
            let shapes = [shape(2, 1, 2), shape(2, 2, 2), shape(4, 1, 2), shape(4, 1, 4)];
            let some = if name == "mixtral" { 2 } else { 1 };
            for shape in &shapes[..if is_fast(&device) { 4 } else { some }] {
                agrees_on(name, &model, &expected, *shape, 512, &device);
            }
        }
    }
}

/// One position at a time: steps that are recorded and replayed.
#[test]
fn what_is_replayed_agrees_as_well() {
    for device in kinds() {
        let names = ["mixtral", "deepseek-v3", "llama", "gpt-oss", "gemma2"];
        for name in &names[..if is_fast(&device) { 5 } else { 2 }] {
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
pub(super) fn off_by(found: &[f32], expected: &[f64]) -> f64 {
    let off: f64 = found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    (off / expected.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

/// What comes of prompts on the CPU, in f32, with inputs of products rounded as a device rounds them that multiplies E4M3, or one
/// that does not.
fn reference(model: &Checkpoint, sequences: &[Vec<u32>], to_f8: bool) -> Vec<Vec<Vec<f32>>> {
    let spec = model.spec();
    let experts = spec.layers.iter().filter_map(|layer| match &layer.mlp {
        Mlp::Experts(e) => Some(e.count),
        Mlp::Dense { .. } => None,
    });
    let except: Vec<usize> = experts.chain([spec.vocab]).collect();
    // Asked for in the thread that computes.
    let cpu = |_: usize| {
        round(Rounding { to_f8, except: except.clone() });
        None
    };
    let how = (shape(1, 1, 1), Quantize::None);
    logits_on(model, sequences, how, (Kind::Shm, KvType::F32), 512, &cpu)
}

/// Of each sequence, the logits of each row.
type Logits = [Vec<Vec<f32>>];

/// All rows of `found` against those of `expected`.
fn all_off_by(found: &Logits, expected: &Logits) -> Vec<f64> {
    let rows = found.iter().flatten().zip(expected.iter().flatten());
    rows.map(|(row, same)| off_by(row, &same.iter().copied().map(f64::from).collect::<Vec<_>>())).collect()
}

/// Tensor cores add up E4M3 with some 13 bits. What is off by so little becomes another code here and there, a step of a sixteenth;
/// that is carried on, more codes change, and after some layers the rounding of two such runs has nothing in common but how much it
/// costs. So that is what is compared, against f32: half of the rows, and all together, as far off as those of the CPU.
fn as_far_off(what: &str, (found, same): (&Logits, &Logits), exact: &Logits) {
    let (mut found, mut same) = (all_off_by(found, exact), all_off_by(same, exact));
    let mean = |off: &[f64]| (off.iter().map(|off| off * off).sum::<f64>() / off.len() as f64).sqrt();
    let means = (mean(&found), mean(&same));
    found.sort_by(f64::total_cmp);
    same.sort_by(f64::total_cmp);
    let medians = (found[found.len() / 2], same[same.len() / 2]);
    for (ours, theirs) in [means, medians] {
        assert!(
            ours > 0.0 && ours <= 1.25 * theirs,
            "{what}: {ours} off, the CPU {theirs}: {found:?} and {same:?}"
        );
    }
}

/// Against the CPU's f32 with the same rounded weights, and with inputs rounded in the same places. What is left is the order of
/// addition (10^-7 was seen), and inputs that were so close to the middle between two codes that they became the other one. (A token
/// between two experts may go to the other one, too, which small random models answer quite differently.)
///
/// Against the exact weights, each off by up to a sixteenth: no more than that is sure where no expert is another one. Where inputs
/// are rounded, too, these are off as much again: errors that know nothing of each other add up to the root of two of one.
fn fp8_agrees(device: &(impl Fn(usize) -> Option<Device> + Sync)) {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    for name in ["llama", "mixtral"] {
        let (model, expected) = golden(name);
        let cases = expected["cases"].as_array().expect("cases");
        let sequences: Vec<_> = cases.iter().map(|case| tokens(&case["prompt"])).collect();
        let folder = tempfile::tempdir().expect("a folder");
        let same = rounded(&goldens.join(name), folder.path());
        let to_f8 = device(0).is_some_and(|device| device.multiplies_f8());
        let same = reference(&same, &sequences, to_f8);
        let plain = (shape(1, 1, 1), Quantize::None);
        let exact = logits_on(&model, &sequences, plain, (Kind::Shm, KvType::F32), 512, &|_| None);
        let most = if to_f8 { 0.15 * 2.0_f64.sqrt() } else { 0.15 };
        for (shape, chunk) in [(shape(1, 1, 1), 512), (shape(1, 1, 1), 1), (shape(2, 1, 1), 512)] {
            let how = (shape, Quantize::Fp8);
            let all = logits_on(&model, &sequences, how, (Kind::Shm, KvType::F32), chunk, device);
            let what = format!("{name}, {chunk} at a time, inputs in E4M3: {to_f8}");
            let last = |rows: &[Vec<f32>], case: &serde_json::Value| {
                off_by(rows.last().expect("a prompt"), &numbers(&case["logits_last"]))
            };
            let least = all.iter().zip(cases).map(|(rows, case)| last(rows, case)).fold(1.0, f64::min);
            assert!(least > 0.005 && least < most, "{name} {shape}: off by {least:.3} of f32's");
            if shape.ranks() > 1 {
                // Rows that are cut have scales of their own.
                continue;
            }
            if to_f8 && is_fast(device) {
                as_far_off(&what, (&all, &same), &exact);
                continue;
            }
            let mut off = all_off_by(&all, &same);
            off.sort_by(f64::total_cmp);
            let nearly_all = off.len() * 9 / 10;
            // The host twin adds up in f32.
            assert!(!to_f8 || off[nearly_all - 1] <= 1e-4, "{what}: off by {off:?}");
            let sure = if name == "mixtral" { nearly_all } else { off.len() };
            assert!(off[sure - 1] <= 0.03, "{what}: off by {off:?}");
        }
    }
}

#[test]
fn weights_in_fp8_give_the_logits_of_weights_that_are_rounded_so() {
    kinds().iter().for_each(fp8_agrees);
}

/// Their inputs are in bf16.
#[test]
fn so_they_do_where_inputs_cannot_be_rounded_so() {
    fp8_agrees(&|_| Some(host_twin_without_f8()));
}

/// One position at a time is recorded where there is one rank.
#[test]
fn every_row_is_given_what_it_wants() {
    for device in kinds() {
        let cases = [
            ("llama", shape(1, 1, 1), 1),
            ("mixtral", shape(2, 1, 1), 4),
            ("mixtral", shape(1, 1, 1), 1),
            ("gemma2", shape(1, 1, 1), 7),
            ("gemma2", shape(2, 1, 1), 4),
        ];
        for (name, shape, chunk) in &cases[..if is_fast(&device) { 5 } else { 2 }] {
            wants_are_met(name, *shape, Kind::Shm, *chunk, &device);
        }
    }
}

#[test]
fn what_a_decoder_works_with_is_known_before_it_is_made() {
    for name in ["mixtral", "deepseek-v3", "gemma2"] {
        let (model, _) = golden(name);
        let plan = model.slices(&Cut::even(Shape::tensor(2)), Quantize::None).expect("can be cut");
        for rows in [1, 100, 300] {
            let device = host_twin();
            let (store, pool) = (OnDevice(device.clone()), ThreadPool::with_spin(1, false));
            let weights =
                RankWeights::load_to(&store, &model, &plan, 1, Quantize::None, &pool, &mut |_, _| true)
                    .expect("loads");
            let (spec, slice) = (model.spec(), &plan.ranks[1]);
            let said = DeviceDecoder::working_bytes(spec, slice, &weights, 16, rows).expect("counted");
            let free = || device.driver().memory().expect("it answers").free;
            let (before, cache) = (free(), CacheConfig { blocks: 9, block_size: 16, ty: KvType::F32 });
            let decoder = DeviceDecoder::new(&device, spec, &plan, 1, weights, cache, rows);
            let decoder = decoder.expect("fits on the device");
            let taken = before - free() - decoder.cache.bytes() as u64;
            // Norms, rotations and lists of heads and experts are not counted; whole units of memory are.
            assert!(said.abs_diff(taken) < 100_000, "{name}, {rows} rows: {said} bytes, {taken} taken");
            assert!(rows == 1 || said > 500_000, "{name}, {rows} rows: {said} bytes");
        }
    }
}
