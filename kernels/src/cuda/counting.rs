//! A device that only counts the bytes that are asked of it: how much something will take is known before it is made.

use std::any::Any;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Captured, Device, DeviceError, Driver, Launch, Memory};

/// What addresses and sizes are multiples of, as with every driver.
const ALIGNED: u64 = 256;

/// Bytes of device memory that `make` takes: what it does to the device it is given is not done, and what it makes is dropped.
///
/// # Errors
/// Those of `make`, which are not the device's: it refuses only what gives an answer (downloads, launches, recordings).
pub fn bytes_of<T>(make: impl FnOnce(&Device) -> Result<T, DeviceError>) -> Result<u64, DeviceError> {
    let next = Arc::new(AtomicU64::new(ALIGNED));
    let device = Device::new(Arc::new(Counting { next: Arc::clone(&next) }));
    drop(make(&device)?);
    Ok(next.load(Ordering::Relaxed) - ALIGNED)
}

struct Counting {
    /// Where the next buffer is.
    next: Arc<AtomicU64>,
}

impl Counting {
    fn refused<T>(&self, call: &'static str) -> Result<T, DeviceError> {
        let reason = "memory is only counted here".to_owned();
        Err(DeviceError { device: self.name(), call, shape: String::new(), reason, lost: false })
    }
}

// SAFETY: nothing is ever done with an address.
unsafe impl Driver for Counting {
    fn name(&self) -> String {
        "memory count".to_owned()
    }

    fn memory(&self) -> Result<Memory, DeviceError> {
        self.refused("memory")
    }

    fn alloc(&self, bytes: usize) -> Result<u64, DeviceError> {
        Ok(self.next.fetch_add((bytes as u64).next_multiple_of(ALIGNED), Ordering::Relaxed))
    }

    unsafe fn free(&self, _: u64) {}

    unsafe fn upload(&self, _: u64, _: &[u8]) -> Result<(), DeviceError> {
        Ok(())
    }

    unsafe fn download(&self, _: u64, _: &mut [u8]) -> Result<(), DeviceError> {
        self.refused("download")
    }

    unsafe fn copy(&self, _: u64, _: u64, _: usize) -> Result<(), DeviceError> {
        Ok(())
    }

    unsafe fn fill(&self, _: u64, _: u8, _: usize) -> Result<(), DeviceError> {
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch, _: &mut [*mut c_void]) -> Result<(), DeviceError> {
        self.refused(launch.kernel)
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn begin_capture(&self) -> Result<(), DeviceError> {
        self.refused("begin_capture")
    }

    fn end_capture(&self) -> Result<Captured, DeviceError> {
        self.refused("end_capture")
    }

    unsafe fn replay(&self, _: &Captured) -> Result<(), DeviceError> {
        self.refused("replay")
    }

    fn launches(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_counted_and_not_done() {
        let make = |device: &Device| {
            device.alloc::<u32>(65)?;
            device.upload(&[1u8; 300])?;
            device.zeros::<f32>(0)
        };
        assert_eq!(bytes_of(make).expect("counted"), 512 + 512 + 256);
        assert!(bytes_of(|device| device.upload(&[1u8])?.download()).is_err(), "there is nothing to be had");
    }
}
