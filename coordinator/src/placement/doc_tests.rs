//! The table of docs/placement.md is what the planner says.

use std::fmt::Write;

use foggara_models::Quantize;

use super::choose::choose;
use super::explain::rate;
use super::facts::{Kind, Links, ModelFacts, Takes, Wish, WorkerFacts};
use super::known;

/// Memory, bandwidth and dense bf16 operations per second.
struct Device {
    kind: Kind,
    gigabytes: u64,
    bytes_per_second: u64,
    flops: u64,
}

/// NVIDIA H200 data sheet.
const H200: Device = Device {
    kind: Kind::Gpu,
    gigabytes: 141,
    bytes_per_second: 4_800_000_000_000,
    flops: 989_000_000_000_000,
};
/// NVIDIA H100 data sheet, SXM.
const H100: Device = Device {
    kind: Kind::Gpu,
    gigabytes: 80,
    bytes_per_second: 3_350_000_000_000,
    flops: 989_000_000_000_000,
};
/// NVIDIA A100 data sheet, 80 GB SXM.
const A100: Device = Device {
    kind: Kind::Gpu,
    gigabytes: 80,
    bytes_per_second: 2_039_000_000_000,
    flops: 312_000_000_000_000,
};
/// NVIDIA L40S data sheet, without sparsity.
const L40S: Device =
    Device { kind: Kind::Gpu, gigabytes: 48, bytes_per_second: 864_000_000_000, flops: 362_000_000_000_000 };
/// AMD EPYC 9654: twelve channels of DDR5-4800; 96 cores at 2.4 GHz, 32 f32 operations a cycle. Memory as one would buy it.
const EPYC: Device =
    Device { kind: Kind::Cpu, gigabytes: 384, bytes_per_second: 460_800_000_000, flops: 7_373_000_000_000 };

/// `count` workers a host.
fn cluster(hosts: &[(&Device, usize)]) -> Vec<WorkerFacts> {
    let mut workers = Vec::new();
    for (host, (device, count)) in hosts.iter().enumerate() {
        for _ in 0..*count {
            workers.push(WorkerFacts {
                id: workers.len() as u64 + 1,
                host: format!("{host:02}"),
                kind: device.kind,
                takes: Takes::usual(device.kind),
                memory_bytes: device.gigabytes * 1_000_000_000,
                bytes_per_second: device.bytes_per_second,
                flops: device.flops,
            });
        }
    }
    workers
}

fn table() -> String {
    let mixed: Vec<(&Device, usize)> =
        [&H100, &A100, &L40S, &EPYC].into_iter().flat_map(|device| [(device, 1); 4]).collect();
    let clusters = [
        ("1×H200", cluster(&[(&H200, 1)])),
        ("1×H100", cluster(&[(&H100, 1)])),
        ("2×H100", cluster(&[(&H100, 2)])),
        ("4×H100", cluster(&[(&H100, 4)])),
        ("8×H100", cluster(&[(&H100, 8)])),
        ("16 mixed", cluster(&mixed)),
        ("4 CPU boxes", cluster(&[(&EPYC, 1); 4])),
    ];
    let models: [(&str, ModelFacts); 4] = [
        ("Mixtral 8x7B", known::mixtral_8x7b()),
        ("Mixtral 8x22B", known::mixtral_8x22b()),
        ("Llama 3 70B", known::llama_3_70b()),
        ("DeepSeek-V3", known::deepseek_v3()),
    ];
    let mut text = String::from(
        "| cluster | model | weights | shape | KV tokens | one stream | together | why |\n|---|---|---|---|---|---|---|---|\n",
    );
    for (name, workers) in &clusters {
        for (model_name, stored) in &models {
            row(&mut text, name, workers, model_name, stored);
        }
    }
    text
}

/// As stored, or else in the most exact quantization that fits.
fn row(text: &mut String, cluster: &str, workers: &[WorkerFacts], name: &str, stored: &ModelFacts) {
    let mut refusal = String::new();
    for quantize in [Quantize::None, Quantize::Fp8, Quantize::Q8_0, Quantize::Q4_0] {
        let (model, wish) = (stored.quantized(quantize), Wish { quantize, ..Wish::OPEN });
        match choose(&model, &wish, workers, &Links::ASSUMED, 1) {
            Ok(plan) => {
                let p = plan.prediction;
                let weights = if quantize == Quantize::None { "bf16" } else { quantize.name() };
                let why = if quantize == Quantize::None {
                    String::new()
                } else {
                    format!("bf16 does not fit ({refusal}); ")
                };
                writeln!(
                    text,
                    "| {cluster} | {name} | {weights} | {} | {} | {} tok/s | {} tok/s of {} | {why}{} |",
                    plan.shape,
                    plan.kv_tokens,
                    rate(p.one_stream),
                    rate(p.saturated),
                    p.sequences,
                    plan.reasons.join("; ")
                )
                .expect("memory");
                return;
            }
            Err(reason) if refusal.is_empty() => refusal = reason,
            Err(_) => {}
        }
    }
    writeln!(text, "| {cluster} | {name} | — | does not fit | | | | {refusal} |").expect("memory");
}

/// Predictions beside what docs/gpu.md measured on an H200, with the bandwidth and the arithmetic rate that were measured there.
fn measured() -> String {
    let h200 = Device { bytes_per_second: 4_260_000_000_000, flops: 783_000_000_000_000, ..H200 };
    let (workers, mixtral) = (cluster(&[(&h200, 1)]), known::mixtral_8x7b());
    let mut text = String::from("| model | weights | one stream | 64 streams |\n|---|---|---|---|\n");
    for (name, model, quantize, one, together) in [
        ("Mixtral 8x7B", &mixtral, Quantize::None, 124.2, 1967.0),
        ("Mixtral 8x7B", &mixtral, Quantize::Fp8, 204.0, 1945.0),
        ("Llama 3 8B", &known::llama_3_8b(), Quantize::None, 203.3, 4139.0),
    ] {
        let wish = Wish { quantize, sequence_tokens: 512, ..Wish::OPEN };
        let plan = choose(&model.quantized(quantize), &wish, &workers, &Links::ASSUMED, 1).expect("it fits");
        let p = plan.prediction;
        let cell = |predicted: f64, measured: f64| {
            let off = (predicted / measured - 1.0) * 100.0;
            format!("{} / {} ({off:+.0} %)", rate(predicted), rate(measured))
        };
        let weights = if quantize == Quantize::None { "bf16" } else { quantize.name() };
        let (one, together) = (cell(p.one_stream, one), cell(p.saturated, together));
        writeln!(text, "| {name} | {weights} | {one} | {together} |").expect("memory");
    }
    text
}

#[test]
fn the_documented_predictions_for_a_gpu_are_what_the_planner_says() {
    let (document, table) = (include_str!("../../../docs/placement.md"), measured());
    assert!(document.contains(&table), "docs/placement.md should hold this table:\n{table}");
}

#[test]
fn the_documented_table_is_what_the_planner_says() {
    let (document, table) = (include_str!("../../../docs/placement.md"), table());
    assert!(document.contains(&table), "docs/placement.md should hold this table:\n{table}");
}
