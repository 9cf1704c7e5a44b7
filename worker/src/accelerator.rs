//! What a worker computes on.

use std::str::FromStr;
use std::time::Instant;

use foggara_kernels::cuda::op::matmul::{library_agrees, matmul};
use foggara_kernels::cuda::{ActsView, Device, DeviceError, DeviceMatrix, Gpu, WeightKind};

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first GPU, if there is one; else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU, by CUDA's number of it.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", number)) => {
                number.parse().map(Self::Cuda).map_err(|_| format!("`{number}` is not the number of a GPU"))
            }
            _ => Err("must be auto, cpu, cuda or cuda:NUMBER".into()),
        }
    }
}

/// Bytes that are copied to find out how fast a device's memory is: more than its caches hold.
const COPIED: usize = 512 << 20;
const COPIES: u32 = 10;

impl DeviceChoice {
    /// The device; `None` is the CPU.
    ///
    /// # Errors
    /// If a GPU was asked for and cannot be used.
    pub(crate) fn open(self) -> Result<Option<Device>, DeviceError> {
        let notice = |text: &str| tracing::info!("{text}");
        match self {
            Self::Cpu => Ok(None),
            Self::Cuda(number) => Gpu::open_with(number, &notice).map(Some),
            Self::Auto => match Gpu::open_with(0, &notice) {
                Ok(device) => Ok(Some(device)),
                Err(error) => {
                    tracing::debug!(%error, "no GPU");
                    Ok(None)
                }
            },
        }
    }
}

/// Bytes per second that kernels can read from a device's memory, of which `free` bytes are nobody's: a copy reads and writes as
/// many.
///
/// # Errors
/// If the device fails.
pub(crate) fn read_bandwidth(device: &Device, free: u64) -> Result<u64, DeviceError> {
    // Another worker may have most of it.
    let copied = COPIED.min(usize::try_from(free / 4).unwrap_or(usize::MAX));
    let from = device.zeros::<u8>(copied)?;
    let mut to = device.alloc::<u8>(copied)?;
    to.view_mut().copy_from(from.view())?;
    device.synchronize()?;
    let started = Instant::now();
    for _ in 0..COPIES {
        to.view_mut().copy_from(from.view())?;
    }
    device.synchronize()?;
    let bytes = 2.0 * copied as f64 * f64::from(COPIES);
    Ok((bytes / started.elapsed().as_secs_f64()) as u64)
}

/// Rows, outputs and inputs of a product that is done to find out how fast a device multiplies.
const PRODUCT: (usize, usize, usize) = (4096, 4096, 4096);
const PRODUCTS: u32 = 5;

/// Floating-point operations per second of large products in bf16.
///
/// # Errors
/// If the device fails.
pub(crate) fn product_rate(device: &Device) -> Result<u64, DeviceError> {
    if !library_agrees(device)? {
        tracing::info!(
            "large products are done by our own kernels: cublasLt is not there, or adds up otherwise"
        );
    }
    let (rows, n, k) = PRODUCT;
    let w = DeviceMatrix::empty(device, WeightKind::Bf16, n, k)?;
    let x = device.zeros::<u16>(rows * k)?;
    let mut out = device.alloc::<f32>(rows * n)?;
    let mut once = || matmul(out.view_mut(), n, ActsView::Bf16(x.view()), &w, rows);
    once()?;
    device.synchronize()?;
    let started = Instant::now();
    for _ in 0..PRODUCTS {
        once()?;
    }
    device.synchronize()?;
    let operations = 2.0 * (rows * n * k) as f64 * f64::from(PRODUCTS);
    Ok((operations / started.elapsed().as_secs_f64()) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:3", DeviceChoice::Cuda(3)),
        ] {
            assert_eq!(text.parse(), Ok(choice));
        }
        for text in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }
}
