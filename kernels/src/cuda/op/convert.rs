//! Rows in f32, in the type that products take.

use crate::cuda::{ActType, ActsViewMut, Arg, DeviceError, Launch, View};

/// Threads of a block, and blocks at most: each thread goes on until all is done.
const THREADS: u32 = 256;
const MOST_BLOCKS: usize = 2048;

/// `out[i] = x[i]`, rounded to the nearest where `out` is in bf16.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If lengths differ, or `out` is in E4M3.
pub fn convert(out: ActsViewMut<'_>, x: View<'_, f32>) -> Result<(), DeviceError> {
    assert_eq!(out.len(), x.len(), "elements to convert");
    let kernel = match out.ty() {
        ActType::F32 => "convert_f32",
        ActType::Bf16 => "convert_bf16",
        ActType::F8 => panic!("rows in E4M3 have scales"),
    };
    let blocks = x.len().div_ceil(THREADS as usize).min(MOST_BLOCKS);
    let launch = Launch { kernel, grid: [blocks as u32, 1, 1], threads: THREADS, shared: 0 };
    let args = [Arg::Ptr(out.address()), Arg::Ptr(x.address()), Arg::U64(x.len() as u64)];
    // SAFETY: of the kernel's types, and both have so many elements.
    unsafe { out.device().launch(&launch, &args) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::Acts;
    use crate::cuda::testing::devices;

    #[test]
    fn every_element_is_rounded_to_the_nearest() {
        for device in devices() {
            let values: Vec<f32> = (0..1000).map(|i| (i as f32 - 500.0) * 1.001_3).collect();
            let x = device.upload(&values).expect("uploads");
            for ty in [ActType::F32, ActType::Bf16] {
                let mut out = Acts::alloc(&device, ty, values.len()).expect("allocates");
                out.view_mut().fill(0xff).expect("fills");
                convert(out.view_mut(), x.view()).expect("runs");
                let expected = |value: &f32| match ty {
                    ActType::F32 => *value,
                    _ => half::bf16::from_f32(*value).to_f32(),
                };
                let expected: Vec<f32> = values.iter().map(expected).collect();
                assert!(out.download().expect("downloads") == expected, "{ty:?}");
            }
        }
    }
}
