//! Prints how fast products of each weight format are on one thread: bytes of weights and operations per second. Floats once
//! more as rows that are stored.
//!
//! `cargo run --release -p foggara-kernels --example matmul_rate -- [PART_OF_A_NAME]`, of names such as `576×1536 BF16 as stored`.

#![allow(clippy::print_stdout)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use foggara_kernels::op::activations::Activations;
use foggara_kernels::op::matmul::matmul;
use foggara_kernels::op::panels::WeightMatrix;
use foggara_kernels::op::stored::RowRun;
use foggara_kernels::{ThreadPool, WeightType};

/// Bytes of the matrices that are read in turn.
const TOGETHER: usize = 256 << 20;

fn main() {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let pool = ThreadPool::new(1);
    println!(
        "read bandwidth, 1 thread: {:.1} GB/s",
        foggara_kernels::cpu::measure::read_bandwidth(1, 200) as f64 / 1e9
    );
    println!(
        "f32 FMA, 1 thread: {:.1} GFLOP/s",
        foggara_kernels::cpu::measure::fma_rate(1, 200) as f64 / 1e9
    );
    for ty in [WeightType::Q4_0, WeightType::Q4_1, WeightType::Q8_0, WeightType::BF16] {
        for (rows, cols) in [(1536, 576), (576, 1536), (2048, 2048)] {
            let pack =
                |bytes: Vec<u8>| WeightMatrix::pack(ty, rows, cols, 0, cols, &bytes).expect("sizes agree");
            let name = format!("{rows}×{cols} {ty}");
            if !format!("{name} as stored from memory").contains(&wanted) {
                continue;
            }
            from_memory(&pool, &ty.to_string(), &many(rows, cols, ty, pack));
            if !ty.is_quantized() {
                let stored = |bytes| {
                    let run = RowRun::new(Arc::new(bytes), 0, ty.row_bytes(cols), rows);
                    WeightMatrix::of_stored(ty, cols, vec![run]).expect("sizes agree")
                };
                from_memory(&pool, &format!("{ty} as stored"), &many(rows, cols, ty, stored));
            }
        }
    }
    for (rows, cols) in [(1536, 576), (576, 1536), (4096, 4096)] {
        let measure = |pool: &ThreadPool, w: &WeightMatrix, what: &str| {
            if format!("{rows}×{cols} {what}").contains(&wanted) {
                measure(pool, w, what);
            }
        };
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
                if ty == WeightType::BF16 {
                    measure(&pool, &packed.multiplied_in_bf16(), "in bf16");
                    measure(&pool, &stored.multiplied_in_bf16(), "in bf16 as stored");
                }
            }
        }
    }
}

/// One row with many matrices in turn, which lie in memory and not in the processor's cache.
fn from_memory(pool: &ThreadPool, what: &str, matrices: &[WeightMatrix]) {
    let (rows, cols) = (matrices[0].rows(), matrices[0].cols());
    let mut x = Activations::new(1, cols);
    x.f32_rows_mut().fill(0.5);
    x.prepare(pool, &matrices[0]);
    let mut y = vec![0.0; rows];
    let seconds = (0..5).map(|_| {
        let started = Instant::now();
        for w in matrices {
            matmul(pool, w, &x, &mut y, rows);
        }
        started.elapsed().as_secs_f64()
    });
    let best = seconds.fold(f64::MAX, f64::min);
    let read = matrices.iter().map(WeightMatrix::bytes).sum::<usize>() as f64;
    println!("{rows}×{cols} {what:14} from memory, 1 row: {:6.1} GB/s of weights", read / best / 1e9);
}

/// As many matrices as do not fit a processor's cache.
fn many(
    rows: usize,
    cols: usize,
    ty: WeightType,
    make: impl Fn(Vec<u8>) -> WeightMatrix,
) -> Vec<WeightMatrix> {
    let size = rows * ty.row_bytes(cols);
    (0..TOGETHER.div_ceil(size)).map(|_| make(vec![1; size])).collect()
}

fn measure(pool: &ThreadPool, w: &WeightMatrix, what: &str) {
    let (rows, cols) = (w.rows(), w.cols());
    for batch in [1, 8, 16, 64, 256] {
        let mut x = Activations::new(batch, cols);
        x.f32_rows_mut().fill(0.5);
        x.prepare(pool, w);
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
