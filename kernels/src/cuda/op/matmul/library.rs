//! Whether the vendor's library may do products: it does if its bits are those of our own kernels, so that a row's numbers do not
//! depend on who does it.

use super::{Product, Which};
use crate::cuda::op::random::random_matrix;
use crate::cuda::{ActsView, Buffer, Device, DeviceError, WeightKind};

/// Rows, outputs and inputs of products that are compared: of few and of many inputs, few and many tiles.
const SHAPES: [(usize, usize, usize); 4] =
    [(200, 256, 4096), (1000, 512, 1024), (80, 128, 14_336), (65, 1024, 576)];

/// Whether the library is there, and adds up as our kernels do: asked at the first product that it could do, or here.
///
/// # Errors
/// If the device fails.
pub fn agrees(device: &Device) -> Result<bool, DeviceError> {
    device.library_agrees(|| {
        for (rows, n, k) in SHAPES {
            if differs(device, rows, n, k)? != Some(0) {
                return Ok(false);
            }
        }
        Ok(true)
    })
}

/// How many numbers of a product differ; `None` if the library does none like it.
fn differs(device: &Device, rows: usize, n: usize, k: usize) -> Result<Option<usize>, DeviceError> {
    let w = random_matrix(device, WeightKind::Bf16, n, k, 1, 0.02)?;
    let x: Buffer<u16> = device.upload(&numbers(rows * k))?;
    let (mut ours, mut theirs): (Buffer<f32>, Buffer<f32>) =
        (device.zeros(rows * n)?, device.zeros(rows * n)?);
    let (from, to, weights) = (x.view().address(), theirs.view_mut().address(), w.data().address());
    // SAFETY: the buffers have as many elements.
    let done = unsafe { device.driver().dense_product(to, n, from, weights, rows, n, k) };
    let Some(done) = done else { return Ok(None) };
    done?;
    let product = Product {
        out: ours.view_mut().address(),
        device,
        out_stride: n,
        out_batch: 0,
        x: ActsView::Bf16(x.view()),
        x_stride: k,
        x_batch: 0,
        kind: WeightKind::Bf16,
        n,
        k,
        rows,
        which: Which::One(&w),
        known: false,
        gate: None,
        own: false,
    };
    product.launch()?;
    let (ours, theirs) = (ours.download()?, theirs.download()?);
    Ok(Some(ours.iter().zip(&theirs).filter(|(a, b)| a.to_bits() != b.to_bits()).count()))
}

/// Numbers in bf16 of either sign between 2^-6 and 2, as random as matters here.
fn numbers(count: usize) -> Vec<u16> {
    let mut state = 1_u32;
    let mut next = || {
        // Numerical Recipes' generator.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (sign, exponent, rest) = (state >> 31, 121 + (state >> 28) % 7, state >> 16 & 0x7f);
        (sign << 15 | exponent << 7 | rest) as u16
    };
    (0..count).map(|_| next()).collect()
}
