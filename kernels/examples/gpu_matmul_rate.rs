//! How fast a GPU does the products of one layer of Mixtral 8x7B: of its weights in bf16, in E4M3 and in
//! blocks, for few and many rows.
//!
//! Twenty launches are recorded, over so many different matrices that no cache holds them, and replayed.
//!
//! `cargo run --release --example gpu_matmul_rate [SHAPE …]`, of qkv, o, gate_up and down.

#![allow(clippy::print_stdout)]

use std::time::Instant;

use foggara_kernels::cuda::op::matmul::{grouped_matmul, matmul};
use foggara_kernels::cuda::{
    ActType, Acts, Buffer, Device, DeviceError, DeviceMatrix, Gpu, Groups, MatrixTable, WeightKind,
};

const LAUNCHES: usize = 20;
const REPLAYS: usize = 3;
const ROWS: [usize; 9] = [1, 2, 4, 8, 16, 32, 64, 256, 2048];
const EXPERTS: usize = 8;
const TOP_K: usize = 2;

struct Shape {
    name: &'static str,
    n: usize,
    k: usize,
    experts: bool,
}

const SHAPES: [Shape; 4] = [
    Shape { name: "qkv", n: 6144, k: 4096, experts: false },
    Shape { name: "o", n: 4096, k: 4096, experts: false },
    Shape { name: "gate_up", n: 28672, k: 4096, experts: true },
    Shape { name: "down", n: 4096, k: 14336, experts: true },
];

fn main() -> Result<(), DeviceError> {
    let device = Gpu::open(0)?;
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let noise = device.upload(&noise(1 << 24))?;
    println!("{}", device.name());
    println!("{:<8} {:<5} {:>5} {:>10} {:>8} {:>9}", "product", "kind", "rows", "µs", "GB/s", "TFLOP/s");
    for shape in
        SHAPES.iter().filter(|shape| wanted.is_empty() || wanted.iter().any(|name| name == shape.name))
    {
        for kind in [WeightKind::Bf16, WeightKind::F8, WeightKind::Q8_0, WeightKind::Q4_0] {
            if shape.experts {
                experts(&device, shape, kind, &noise)?;
            } else {
                dense(&device, shape, kind, &noise)?;
            }
        }
    }
    Ok(())
}

fn dense(device: &Device, shape: &Shape, kind: WeightKind, noise: &Buffer<u8>) -> Result<(), DeviceError> {
    let matrices: Vec<DeviceMatrix> =
        (0..LAUNCHES).map(|_| matrix(device, shape, kind, noise)).collect::<Result<_, _>>()?;
    for rows in ROWS {
        let x = activations(device, rows * shape.k, noise)?;
        let mut out = device.alloc(rows * shape.n)?;
        let seconds =
            time(device, |launch| matmul(out.view_mut(), shape.n, x.view(), &matrices[launch], rows))?;
        report(shape, kind, rows, seconds, matrices[0].bytes(), rows);
    }
    Ok(())
}

fn experts(device: &Device, shape: &Shape, kind: WeightKind, noise: &Buffer<u8>) -> Result<(), DeviceError> {
    let matrices = (0..EXPERTS).map(|_| matrix(device, shape, kind, noise)).collect::<Result<_, _>>()?;
    let table = MatrixTable::new(matrices)?;
    for tokens in ROWS {
        let rows = tokens * TOP_K;
        let x = activations(device, rows * shape.k, noise)?;
        let mut out = device.alloc(rows * shape.n)?;
        // Four ways to fall on the experts, evenly.
        let groups: Vec<Groups> =
            (0..4).map(|turn| groups(device, tokens, turn * TOP_K)).collect::<Result<_, _>>()?;
        let seconds = time(device, |launch| {
            let groups = &groups[launch % 4];
            // Rows of gate_up are those of the tokens; rows of down are sorted already.
            let x_rows = (shape.name == "gate_up").then(|| groups.token_of_row.view());
            grouped_matmul(out.view_mut(), shape.n, x.view(), x_rows, &table, groups)
        })?;
        report(shape, kind, tokens, seconds, table.bytes() / EXPERTS * rows.min(EXPERTS), rows);
    }
    Ok(())
}

fn report(shape: &Shape, kind: WeightKind, rows: usize, seconds: f64, bytes: usize, products: usize) {
    let operations = 2.0 * (products * shape.n * shape.k) as f64;
    println!(
        "{:<8} {:<5} {rows:>5} {:>10.1} {:>8.0} {:>9.1}",
        shape.name,
        format!("{kind:?}"),
        seconds * 1e6,
        bytes as f64 / seconds / 1e9,
        operations / seconds / 1e12
    );
}

/// Seconds of one of the launches.
fn time(
    device: &Device,
    mut launch: impl FnMut(usize) -> Result<(), DeviceError>,
) -> Result<f64, DeviceError> {
    let driver = device.driver();
    // Once before, for what is only done the first time.
    launch(0)?;
    device.synchronize()?;
    driver.begin_capture()?;
    for i in 0..LAUNCHES {
        launch(i)?;
    }
    let captured = driver.end_capture()?;
    // SAFETY: every buffer lives until this function has returned.
    unsafe { driver.replay(&captured)? };
    device.synchronize()?;
    let start = Instant::now();
    for _ in 0..REPLAYS {
        // SAFETY: as above.
        unsafe { driver.replay(&captured)? };
    }
    device.synchronize()?;
    Ok(start.elapsed().as_secs_f64() / (REPLAYS * LAUNCHES) as f64)
}

/// Bytes that are small numbers in every type.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let bits = (state >> 56) as u8;
            // Exponents near zero's bias in bf16 (high bytes) and in E4M3 alike.
            (bits & 0x87) | 0x38
        })
        .collect()
}

fn matrix(
    device: &Device,
    shape: &Shape,
    kind: WeightKind,
    noise: &Buffer<u8>,
) -> Result<DeviceMatrix, DeviceError> {
    let matrix = DeviceMatrix::empty(device, kind, shape.n, shape.k)?;
    fill(device, matrix.data().address(), matrix.data().len(), noise)?;
    Ok(matrix)
}

fn activations(device: &Device, len: usize, noise: &Buffer<u8>) -> Result<Acts, DeviceError> {
    let acts = Acts::alloc(device, ActType::Bf16, len)?;
    fill(device, acts.view().address(), len * 2, noise)?;
    Ok(acts)
}

fn fill(device: &Device, to: u64, bytes: usize, noise: &Buffer<u8>) -> Result<(), DeviceError> {
    for at in (0..bytes).step_by(noise.len()) {
        let part = noise.len().min(bytes - at);
        // SAFETY: inside of a buffer of `bytes` bytes, and of the noise.
        unsafe { device.driver().copy(to + at as u64, noise.view().address(), part)? };
    }
    Ok(())
}

/// Tokens' pairs with experts `first + TOP_K · token`, and the next, sorted.
fn groups(device: &Device, tokens: usize, first: usize) -> Result<Groups, DeviceError> {
    let mut sorted: Vec<Vec<u32>> = vec![Vec::new(); EXPERTS];
    for token in 0..tokens {
        for i in 0..TOP_K {
            sorted[(first + TOP_K * token + i) % EXPERTS].push(token as u32);
        }
    }
    let mut offsets = vec![0_u32];
    for rows in &sorted {
        offsets.push(offsets[offsets.len() - 1] + rows.len() as u32);
    }
    let group_of_row = sorted.iter().zip(0_u32..).flat_map(|(rows, group)| vec![group; rows.len()]);
    Ok(Groups {
        count: EXPERTS,
        offsets: device.upload(&offsets)?,
        max_rows: tokens * TOP_K,
        most_of_one: tokens * TOP_K,
        group_of_row: device.upload(&group_of_row.collect::<Vec<u32>>())?,
        token_of_row: device.upload(&sorted.concat())?,
    })
}
