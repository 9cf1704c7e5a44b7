//! Matrices of random numbers, made on the device: models of any shape without a file.

use half::f16;

use crate::cuda::blocks::Layout;
use crate::cuda::{Arg, Device, DeviceError, DeviceMatrix, Launch, WeightKind, from_f8};

/// A matrix of `rows` × `cols` numbers around 0 with the standard deviation `deviation`, a function of `seed` and sizes only.
///
/// Floats of 16 and 32 bits are nearly normally distributed (no number is beyond 3.5 deviations). Of others every code is as likely
/// as another: in F8 most numbers are much smaller than the few large ones. All blocks have one scale, the f16 nearest to what makes
/// the deviation (steps of it are 1).
///
/// # Errors
/// If there is no such memory, or the device fails.
///
/// # Panics
/// If there are 2^31 rows, or a row has 2^32 elements.
pub fn random_matrix(
    device: &Device,
    kind: WeightKind,
    rows: usize,
    cols: usize,
    seed: u64,
    deviation: f32,
) -> Result<DeviceMatrix, DeviceError> {
    /// Threads of a block, and how many elements each has at most until there are very many.
    const THREADS: usize = 256;
    const EACH: usize = 16;
    let mut matrix = DeviceMatrix::empty(device, kind, rows, cols)?;
    // Of blocks bytes, else elements.
    let unit = if kind.blocks().is_some() { 1 } else { kind.bits() / 8 };
    let pitch = matrix.row_bytes() / unit;
    assert!(rows < 1 << 31 && u32::try_from(pitch).is_ok(), "a matrix of {rows} × {cols}");
    let layout = Layout::of(kind);
    let columns = layout.map_or(cols, |layout| layout.code_bytes(cols));
    let mut args = vec![
        Arg::Ptr(matrix.data().address()),
        Arg::U32(columns as u32),
        Arg::U32(pitch as u32),
        Arg::U64(seed),
        // Four numbers of 16 bits added up have a deviation of 65536 / √3.
        Arg::F32(deviation * 3f32.sqrt() / 65536.0),
    ];
    let kernel = match kind {
        WeightKind::F32 => "random_f32",
        WeightKind::Bf16 => "random_bf16",
        WeightKind::F16 => "random_f16",
        WeightKind::F8 => {
            args.pop();
            matrix.put_scales(0, &vec![deviation / deviation_of_f8(); rows])?;
            "random_f8"
        }
        _ => {
            let scale = f16::from_f32(deviation / deviation_of_codes(kind.bits()));
            let both = |second: f16| u32::from(scale.to_bits()) | u32::from(second.to_bits()) << 16;
            // What is added, or taken away, makes zero of the number in the middle.
            let middle = (1 << (kind.bits() - 1)) as f32 * scale.to_f32();
            let (own, shared) = match kind {
                WeightKind::Q4_1 | WeightKind::Q5_1 => (both(f16::from_f32(-middle)), 0),
                WeightKind::Q4_K | WeightKind::Q5_K => (0x0101_0101, both(f16::from_f32(middle))),
                // Of steps 128 is zero.
                WeightKind::Q6_K => (0x8181_8181, scale.to_f32().to_bits()),
                _ => (both(scale), 0),
            };
            let shared_at = layout.map_or(0, |layout| layout.shared_at(cols));
            args.splice(4.., [Arg::U32(own), Arg::U32(shared_at as u32), Arg::U32(shared)]);
            "random_blocks"
        }
    };
    let parts = cols.div_ceil(THREADS * EACH).min(usize::from(u16::MAX));
    let launch = Launch { kernel, grid: [rows as u32, parts as u32, 1], threads: THREADS as u32, shared: 0 };
    // SAFETY: of the kernel's types; the matrix has so many rows, so far apart, and no one else has it yet.
    unsafe { device.launch(&launch, &args)? };
    // Products ask for weights before the kernels before them have ended.
    device.synchronize()?;
    Ok(matrix)
}

/// The root of the mean square of the numbers of so many bits, half of them below zero, that are all as likely.
fn deviation_of_codes(bits: usize) -> f32 {
    let half = 1_i64 << (bits - 1);
    ((-half..half).map(|number| number * number).sum::<i64>() as f64 / (2 * half) as f64).sqrt() as f32
}

/// The deviation of codes of E4M3 that are all as likely, but for NaN, in whose place the largest number comes.
fn deviation_of_f8() -> f32 {
    let square = |code: u8| f64::from(from_f8(code.min(0x7e))).powi(2);
    ((0..=0x7f).map(square).sum::<f64>() / 128.0).sqrt() as f32
}

#[cfg(test)]
#[path = "random_tests.rs"]
mod tests;
