//! Prints how fast one thread quantizes weights, in MB/s of f32, and how much is lost.
//!
//! `cargo run --release -p foggara-kernels --example quantize_rate`

#![allow(clippy::print_stdout)]

use std::time::Instant;

use foggara_kernels::WeightType;
use foggara_kernels::op::dequantize::dequantize;
use foggara_kernels::op::quantize_weights::quantize_row;

const COUNT: usize = 1 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let x: Vec<f32> = (0..COUNT).map(|_| (0..12).map(|_| next()).sum::<f32>() * 0.02).collect();
    let power: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
    for ty in [WeightType::Q8_0, WeightType::Q4_0, WeightType::Q4_K] {
        let mut best = 0.0f64;
        let mut blocks = Vec::new();
        for _ in 0..5 {
            blocks.clear();
            let started = Instant::now();
            quantize_row(ty, &x, &mut blocks)?;
            best = best.max((COUNT * 4) as f64 / started.elapsed().as_secs_f64());
        }
        let mut back = vec![0.0; COUNT];
        dequantize(ty, &blocks, &mut back)?;
        let error: f64 = x.iter().zip(&back).map(|(x, b)| f64::from(x - b).powi(2)).sum();
        println!("{ty}: {:5.0} MB/s, root mean square error {:.5}", best / 1e6, (error / power).sqrt());
    }
    Ok(())
}
