//! Prints how fast products of each weight format are on one thread: bytes of weights and operations per second. Floats once
//! more as rows that are stored.

#![allow(clippy::print_stdout)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use foggara_kernels::op::activations::Activations;
use foggara_kernels::op::matmul::matmul;
use foggara_kernels::op::panels::WeightMatrix;
use foggara_kernels::op::stored::RowRun;
use foggara_kernels::{ThreadPool, WeightType};

fn main() {
    let pool = ThreadPool::new(1);
    println!(
        "read bandwidth, 1 thread: {:.1} GB/s",
        foggara_kernels::cpu::measure::read_bandwidth(1, 200) as f64 / 1e9
    );
    println!(
        "f32 FMA, 1 thread: {:.1} GFLOP/s",
        foggara_kernels::cpu::measure::fma_rate(1, 200) as f64 / 1e9
    );
    for (rows, cols) in [(1536, 576), (4096, 4096)] {
        for ty in WeightType::ALL {
            if cols % ty.block_elems() != 0 {
                continue;
            }
            let bytes = vec![1; rows * ty.row_bytes(cols)];
            let packed = WeightMatrix::pack(ty, rows, cols, 0, cols, &bytes).expect("sizes agree");
            measure(&pool, &packed, &ty.to_string());
            if !ty.is_quantized() {
                let run = RowRun::new(Arc::new(bytes), 0, ty.row_bytes(cols), rows);
                let stored = WeightMatrix::of_stored(ty, cols, vec![run]).expect("sizes agree");
                measure(&pool, &stored, &format!("{ty} as stored"));
            }
        }
    }
}

fn measure(pool: &ThreadPool, w: &WeightMatrix, what: &str) {
    let (rows, cols) = (w.rows(), w.cols());
    for batch in [1, 8, 16, 64, 256] {
        let mut x = Activations::new(batch, cols);
        x.f32_rows_mut().fill(0.5);
        x.quantize(pool);
        let mut y = vec![0.0; rows * batch];
        let mut best = Duration::MAX;
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(150) {
            let one = Instant::now();
            matmul(pool, w, &x, &mut y, rows);
            best = best.min(one.elapsed());
        }
        let seconds = best.as_secs_f64();
        let (bytes, ops) =
            (w.bytes() as f64 / seconds / 1e9, (2 * rows * cols * batch) as f64 / seconds / 1e9);
        println!("{rows}×{cols} {what:14} {batch:3} rows: {bytes:6.1} GB/s of weights, {ops:6.1} GOP/s");
    }
}
