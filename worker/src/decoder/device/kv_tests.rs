//! Keys and values in E4M3: against the CPU, which rounds them in the same place, and what the rounding costs.

use foggara_models::Quantize;

use super::tests::{kinds, off_by};
use super::*;
use crate::decoder::tests::logits_on;
use crate::testing::{Kind, golden, numbers, tokens};

/// What is left between a device and the CPU is the order of addition, and keys and values that were so close to the middle between two
/// codes that they became the other one. (A token between two experts may go to the other one then.)
#[test]
fn keys_and_values_in_fp8_give_the_logits_that_they_give_on_the_cpu() {
    let how = (Shape::default(), Quantize::None);
    for name in ["llama", "gemma2", "mixtral", "deepseek-v3"] {
        let (model, expected) = golden(name);
        let cases = expected["cases"].as_array().expect("cases");
        let sequences: Vec<_> = cases.iter().map(|case| tokens(&case["prompt"])).collect();
        let cpu = logits_on(&model, &sequences, how, (Kind::Shm, KvType::F8), 512, &|_| None);
        for device in kinds() {
            let all = logits_on(&model, &sequences, how, (Kind::Shm, KvType::F8), 512, &device);
            let rows = all.iter().flatten().zip(cpu.iter().flatten());
            let wide = |row: &[f32]| row.iter().copied().map(f64::from).collect::<Vec<_>>();
            let mut off: Vec<f64> = rows.map(|(row, same)| off_by(row, &wide(same))).collect();
            off.sort_by(f64::total_cmp);
            let (most, nearly_all) = (off[off.len() - 1], off[off.len() * 9 / 10 - 1]);
            let exact = |(rows, case): (&Vec<Vec<f32>>, &serde_json::Value)| {
                off_by(rows.last().expect("a prompt"), &numbers(&case["logits_last"]))
            };
            let cost: Vec<f64> = all.iter().zip(cases).map(exact).collect();
            // The host twin adds up in f32 as the CPU does: 2·10^-6 and 2·10^-3 were seen.
            assert!(nearly_all <= 1e-3 && most <= 0.03, "{name}: {off:?}");
            // Of a prompt in which no token goes to another expert.
            let least = cost.iter().copied().fold(1.0, f64::min);
            assert!((0.005..0.15).contains(&least), "{name}: {cost:?} of f32's");
        }
    }
}
