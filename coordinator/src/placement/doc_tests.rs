//! The table of docs/placement.md is what the planner says.

use std::fmt::Write;

use foggara_models::Quantize;
use foggara_proto::shape::Shape;

use super::choose::choose;
use super::explain::rate;
use super::facts::{Bits, Kind, Links, ModelFacts, Speeds, Takes, Wish, WorkerFacts};
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
                version: String::new(),
                takes: Takes::usual(device.kind),
                memory_bytes: device.gigabytes * 1_000_000_000,
                speeds: Speeds::of_memory(device.bytes_per_second, device.flops),
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

/// As stored, or else in fp8. (What GPUs hold in blocks is read slower than is predicted.)
fn row(text: &mut String, cluster: &str, workers: &[WorkerFacts], name: &str, stored: &ModelFacts) {
    let mut refusal = String::new();
    for quantize in [Quantize::None, Quantize::Fp8] {
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
        ("Mixtral 8x7B", &mixtral, Quantize::None, 141.2, 2287.0),
        ("Mixtral 8x7B", &mixtral, Quantize::Fp8, 215.8, 4165.0),
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

/// Tokens per second of the model in this shape on workers of one host, alone and as `sequences` of 96 tokens.
fn on_processors(model: &ModelFacts, shape: Shape, speeds: Speeds, sequences: u64) -> (f64, f64) {
    let mut workers = cluster(&[(&EPYC, shape.ranks() as usize)]);
    workers.iter_mut().for_each(|worker| worker.speeds = speeds);
    let wish = Wish { shape, sequence_tokens: 96, kv_tokens: 96 * sequences, ..Wish::OPEN };
    let p = choose(model, &wish, &workers, &Links::ASSUMED, 1).expect("it fits").prediction;
    (p.one_stream, p.saturated)
}

/// On the processors that it was measured on (docs/placement.md), with the speeds measured there: within three tenths.
#[test]
fn processors_are_predicted_as_they_were_measured() {
    let shape = |tp, dp, pp, ep| Shape { tp, dp, pp, ep };
    let bits = |layers, embedding| Bits { layers, embedding };
    let (q4_1, bf16, q8_0) = (bits(5.0, 8.5), bits(16.0, 16.0), bits(8.5, 8.5));
    // Two threads share 27.5 GB/s of memory; the cache holds no model.
    let zen3 = Speeds {
        cache_bytes: 33_554_432,
        cache_bytes_per_second: 16_000_000_000,
        int8_ops_per_second: 262_000_000_000,
        ..Speeds::of_memory(13_750_000_000, 101_000_000_000)
    };
    // With AVX-512 and AMX, and a large cache.
    let xeon = Speeds {
        cache_bytes: 314_572_800,
        cache_bytes_per_second: 23_500_000_000,
        int8_ops_per_second: 4_500_000_000_000,
        ..Speeds::of_memory(13_000_000_000, 165_000_000_000)
    };
    let dense = |bits| known::smollm2_135m(0, bits);
    let mixture = |bits| known::smollm2_135m(8, bits);
    for (name, model, shape, speeds, one, many) in [
        ("Zen 3, Q4_1", dense(q4_1), shape(2, 1, 1, 1), zen3, 200.0, Some((32, 550.0))),
        ("Xeon, Q4_1", dense(q4_1), shape(1, 1, 1, 1), xeon, 119.0, Some((64, 612.0))),
        ("Xeon, Q4_1", dense(q4_1), shape(1, 1, 2, 1), xeon, 101.0, None),
        ("Xeon, bf16", dense(bf16), shape(2, 1, 1, 1), xeon, 53.0, Some((64, 249.0))),
        ("Xeon, mixture", mixture(bf16), shape(2, 1, 1, 1), xeon, 32.0, Some((64, 155.0))),
        ("Xeon, mixture", mixture(bf16), shape(2, 1, 1, 2), xeon, 27.0, Some((64, 124.0))),
        ("Xeon, mixture", mixture(bf16), shape(1, 2, 1, 2), xeon, 23.0, Some((64, 179.0))),
        ("Xeon, mixture of q8_0", mixture(q8_0), shape(2, 1, 1, 1), xeon, 79.0, Some((64, 482.0))),
    ] {
        let (sequences, measured) = many.unwrap_or((1, one));
        let (alone, together) = on_processors(&model, shape, speeds, sequences);
        assert!((alone / one - 1.0).abs() <= 0.3, "{name}, {shape}: {alone} of {one}");
        assert!(
            (together / measured - 1.0).abs() <= 0.3,
            "{name}, {shape}: {together} of {measured} together"
        );
    }
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
