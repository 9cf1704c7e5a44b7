//! A device of which every call is written down.

use std::any::Any;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use super::host_twin;
use crate::cuda::{Captured, Device, DeviceError, Driver, Launch, Memory};

/// One call that moves or computes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// A kernel.
    Launch(&'static str),
    /// So many bytes from the host.
    Upload(usize),
    /// So many bytes to the host.
    Download(usize),
}

/// What was seen, in order.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Vec<Seen>>>);

impl Log {
    fn add(&self, seen: Seen) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
    }

    /// What was seen since the last call.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A host twin on which nothing can be recorded, and what it is asked.
///
/// # Panics
/// If the twin has not been built.
pub fn watched_twin() -> (Device, Log) {
    let log = Log::default();
    (Device::new(Arc::new(Watched { twin: host_twin(), log: log.clone() })), log)
}

struct Watched {
    twin: Device,
    log: Log,
}

// SAFETY: the twin does what is asked.
unsafe impl Driver for Watched {
    fn name(&self) -> String {
        "host twin that is watched".to_owned()
    }

    fn memory(&self) -> Result<Memory, DeviceError> {
        self.twin.driver().memory()
    }

    fn alloc(&self, bytes: usize) -> Result<u64, DeviceError> {
        self.twin.driver().alloc(bytes)
    }

    unsafe fn free(&self, address: u64) {
        // SAFETY: as the caller says.
        unsafe { self.twin.driver().free(address) }
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        self.log.add(Seen::Upload(from.len()));
        // SAFETY: as the caller says.
        unsafe { self.twin.driver().upload(to, from) }
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        self.log.add(Seen::Download(to.len()));
        // SAFETY: as the caller says.
        unsafe { self.twin.driver().download(from, to) }
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: as the caller says.
        unsafe { self.twin.driver().copy(to, from, bytes) }
    }

    unsafe fn fill(&self, to: u64, value: u8, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: as the caller says.
        unsafe { self.twin.driver().fill(to, value, bytes) }
    }

    unsafe fn launch(&self, launch: &Launch, args: &mut [*mut c_void]) -> Result<(), DeviceError> {
        self.log.add(Seen::Launch(launch.kernel));
        // SAFETY: as the caller says.
        unsafe { self.twin.driver().launch(launch, args) }
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.twin.driver().synchronize()
    }

    fn begin_capture(&self) -> Result<(), DeviceError> {
        self.twin.driver().begin_capture()
    }

    fn end_capture(&self) -> Result<Captured, DeviceError> {
        self.twin.driver().end_capture()
    }

    unsafe fn replay(&self, captured: &Captured) -> Result<(), DeviceError> {
        // SAFETY: as the caller says.
        unsafe { self.twin.driver().replay(captured) }
    }

    fn multiplies_f8(&self) -> bool {
        self.twin.driver().multiplies_f8()
    }

    fn launches(&self) -> Vec<(&'static str, u64)> {
        self.twin.driver().launches()
    }

    fn as_any(&self) -> &dyn Any {
        self.twin.driver().as_any()
    }
}
