//! What a GPU allows, measured.

use std::fmt;
use std::time::Instant;

use anyhow::Result;
use foggara_kernels::cuda::op::convert::convert;
use foggara_kernels::cuda::op::matmul::matmul;
use foggara_kernels::cuda::op::random::random_matrix;
use foggara_kernels::cuda::{ActType, Acts, Device, WeightKind};
use serde::Serialize;

/// Bytes of a copy: far more than any cache.
const COPIED: usize = 1 << 30;
const SIZE: usize = 8192;
const ROUNDS: usize = 10;

/// Measured rates.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Limits {
    /// Of a copy on the device, reads and writes together.
    pub(super) copy_bytes_per_second: f64,
    /// Of a product of 8192 × 8192 × 8192 in bf16, by the vendor's library where there is one.
    pub(super) product_flops: f64,
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (copy, product) = (self.copy_bytes_per_second / 1e12, self.product_flops / 1e12);
        write!(f, "copies {copy:.2} TB/s (read and written), multiplies {product:.0} TFLOP/s in bf16")
    }
}

/// Seconds that each of some calls takes.
pub(super) fn seconds_each(
    device: &Device,
    rounds: usize,
    mut call: impl FnMut() -> Result<()>,
) -> Result<f64> {
    call()?;
    device.synchronize()?;
    let started = Instant::now();
    for _ in 0..rounds {
        call()?;
    }
    device.synchronize()?;
    Ok(started.elapsed().as_secs_f64() / rounds as f64)
}

pub(super) fn measure(device: &Device) -> Result<Limits> {
    let from = device.zeros::<u8>(COPIED)?;
    let mut to = device.alloc::<u8>(COPIED)?;
    let copy = seconds_each(device, ROUNDS, || Ok(to.view_mut().copy_from(from.view())?))?;
    drop((from, to));
    let w = random_matrix(device, WeightKind::Bf16, SIZE, SIZE, 1, 1.0)?;
    let x = random_matrix(device, WeightKind::F32, SIZE, SIZE, 2, 1.0)?;
    let mut rows = Acts::alloc(device, ActType::Bf16, SIZE * SIZE)?;
    convert(rows.view_mut(), x.data().as_floats())?;
    drop(x);
    let mut out = device.alloc::<f32>(SIZE * SIZE)?;
    let product = seconds_each(device, ROUNDS, || Ok(matmul(out.view_mut(), SIZE, rows.view(), &w, SIZE)?))?;
    Ok(Limits {
        copy_bytes_per_second: 2.0 * COPIED as f64 / copy,
        product_flops: 2.0 * (SIZE as f64).powi(3) / product,
    })
}
