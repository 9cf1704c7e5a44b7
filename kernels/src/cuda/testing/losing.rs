//! A device that is lost after a while, as a GPU is after a fault.

use std::any::Any;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::host_twin;
use crate::cuda::{Captured, Device, DeviceError, Driver, Launch, Memory};

/// A host twin that is lost once so many calls were answered, and says how many are left.
///
/// # Panics
/// If the twin has not been built.
pub fn losing_twin(calls: u64) -> (Device, Arc<AtomicU64>) {
    let left = Arc::new(AtomicU64::new(calls));
    (Device::new(Arc::new(Losing { twin: host_twin(), left: Arc::clone(&left) })), left)
}

struct Losing {
    twin: Device,
    left: Arc<AtomicU64>,
}

impl Losing {
    fn call(&self) -> Result<&dyn Driver, DeviceError> {
        let less = |left: u64| left.checked_sub(1);
        match self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less) {
            Ok(_) => Ok(self.twin.driver()),
            Err(_) => Err(DeviceError {
                device: self.name(),
                call: "launch",
                shape: String::new(),
                reason: "an illegal memory access was encountered".to_owned(),
                lost: true,
            }),
        }
    }
}

// SAFETY: the twin does what is asked, or nothing is done.
unsafe impl Driver for Losing {
    fn name(&self) -> String {
        "host twin that is lost".to_owned()
    }

    fn memory(&self) -> Result<Memory, DeviceError> {
        self.call()?.memory()
    }

    fn alloc(&self, bytes: usize) -> Result<u64, DeviceError> {
        self.call()?.alloc(bytes)
    }

    unsafe fn free(&self, address: u64) {
        // SAFETY: as the caller says; the twin's memory is its own, lost or not.
        unsafe { self.twin.driver().free(address) }
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        // SAFETY: as the caller says.
        unsafe { self.call()?.upload(to, from) }
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        // SAFETY: as the caller says.
        unsafe { self.call()?.download(from, to) }
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: as the caller says.
        unsafe { self.call()?.copy(to, from, bytes) }
    }

    unsafe fn fill(&self, to: u64, value: u8, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: as the caller says.
        unsafe { self.call()?.fill(to, value, bytes) }
    }

    unsafe fn launch(&self, launch: &Launch, args: &mut [*mut c_void]) -> Result<(), DeviceError> {
        // SAFETY: as the caller says.
        unsafe { self.call()?.launch(launch, args) }
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.call()?.synchronize()
    }

    fn begin_capture(&self) -> Result<(), DeviceError> {
        self.call()?.begin_capture()
    }

    fn end_capture(&self) -> Result<Captured, DeviceError> {
        self.call()?.end_capture()
    }

    unsafe fn replay(&self, captured: &Captured) -> Result<(), DeviceError> {
        // SAFETY: as the caller says.
        unsafe { self.call()?.replay(captured) }
    }

    fn multiplies_f8(&self) -> bool {
        self.twin.driver().multiplies_f8()
    }

    fn launches(&self) -> Vec<(&'static str, u64)> {
        self.twin.driver().launches()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
