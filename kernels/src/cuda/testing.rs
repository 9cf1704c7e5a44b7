//! Devices for tests.

mod losing;
mod watched;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::twin::HostTwin;
use super::{Device, DeviceError, Gpu, gpu};

pub use losing::losing_twin;
pub use watched::{Log, Seen, watched_twin};

/// The devices every op is tested on: the host twin, and the first GPU where there is one. Both are the caller's own: no other
/// test's work is on their streams. `FOGGARA_TEST_DEVICES` (twin or gpu) names one of them, which must be there then.
///
/// # Panics
/// If the twin has not been built, or there is a GPU that cannot be used. With `CUDA_VISIBLE_DEVICES=` there is none.
pub fn devices() -> Vec<Device> {
    match std::env::var("FOGGARA_TEST_DEVICES").as_deref() {
        Ok("gpu") => vec![first_gpu().expect("FOGGARA_TEST_DEVICES=gpu, and there is no GPU")],
        Ok("twin") => vec![host_twin()],
        Ok(other) => panic!("FOGGARA_TEST_DEVICES={other}: twin or gpu"),
        Err(_) => std::iter::once(host_twin()).chain(first_gpu()).collect(),
    }
}

fn first_gpu() -> Option<Device> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    if !gpu::count().is_ok_and(|count| count > 0) {
        return None;
    }
    // The first that opens it may have to compile; the others find what it made.
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    Some(Gpu::open(0).unwrap_or_else(|error| panic!("{error}\nCUDA_VISIBLE_DEVICES= tests without the GPU")))
}

/// A host twin of its own, as `cargo xtask kernels` built it; or from the library that `FOGGARA_TWIN` names.
///
/// # Panics
/// If it has not been built.
pub fn host_twin() -> Device {
    opened(HostTwin::open)
}

/// The same, of a device that does not multiply E4M3 with E4M3.
///
/// # Panics
/// If it has not been built.
pub fn host_twin_without_f8() -> Device {
    opened(HostTwin::open_without_f8)
}

fn opened(open: impl Fn(&Path) -> Result<Device, DeviceError>) -> Device {
    let built =
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/cuda-host/libfoggara_twin.so"));
    let path = std::env::var_os("FOGGARA_TWIN").map_or_else(built, PathBuf::from);
    open(&path).unwrap_or_else(|error| panic!("{error}\nthe host twin is built by `cargo xtask kernels`"))
}

/// Numbers for tests: the same for the same seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Numbers that `seed` determines.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any bits (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// One of `0..below`.
    pub fn below(&mut self, below: usize) -> usize {
        ((u128::from(self.bits()) * below as u128) >> 64) as usize
    }

    /// From -1 to 1.
    pub fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// So many of -1 to 1.
    pub fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }
}

/// The largest difference, where there is one: its place, what was found, and what was expected. NaN counts as infinite.
///
/// # Panics
/// If the lengths differ.
pub fn worst(found: &[f32], expected: &[f64]) -> (f64, usize) {
    assert_eq!(found.len(), expected.len(), "elements");
    let each = found.iter().zip(expected).map(|(found, expected)| {
        let difference = (f64::from(*found) - expected).abs();
        if difference.is_nan() { f64::INFINITY } else { difference }
    });
    each.zip(0..).fold((0.0, 0), |worst, one| if one.0 > worst.0 { one } else { worst })
}

/// Expects every difference to be at most `tolerance`.
///
/// # Panics
/// If one is larger; says which is the largest.
pub fn assert_close(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    let (difference, at) = worst(found, expected);
    assert!(
        difference <= tolerance,
        "{what}: off by {difference:.3e} at {at} of {} ({} in place of {}), allowed {tolerance:.1e}",
        found.len(),
        found[at],
        expected[at]
    );
}
