//! Bytes that come from the GPU while it goes on with what follows.

use std::ptr;

use cudarc::driver::sys::{self, CUevent, CUresult};

use super::api::Named;
use super::staging::{event, pinned, unpin};
use super::{Gpu, Inner, lock};
use crate::cuda::DeviceError;
use crate::cuda::device::Fetched;

/// Bytes of a place at least: the tokens of a step, many times over.
const LEAST: usize = 4096;

/// Where bytes come to in the host's memory, and the event that says so.
struct Place {
    memory: *mut u8,
    bytes: usize,
    event: CUevent,
}

// SAFETY: the memory is its own, and a handle of the driver may be used by any thread in whose context it is.
unsafe impl Send for Place {}

/// Places that nobody waits for.
#[derive(Default)]
pub(super) struct Places(Vec<Place>);

impl Places {
    /// One of so many bytes. The context is bound.
    fn take(&mut self, gpu: &Inner, bytes: usize) -> Result<Place, DeviceError> {
        if let Some(i) = self.0.iter().position(|place| place.bytes >= bytes) {
            return Ok(self.0.swap_remove(i));
        }
        let bytes = bytes.max(LEAST).next_power_of_two();
        let mut place = Place { memory: pinned(gpu, bytes)?, bytes, event: ptr::null_mut() };
        match event(gpu) {
            Ok(event) => place.event = event,
            Err(error) => {
                unpin(&mut place.memory);
                return Err(error);
            }
        }
        Ok(place)
    }

    /// Gives everything back, after the stream was waited for.
    pub fn close(&mut self) {
        for mut place in self.0.drain(..) {
            // SAFETY: made by `event`, destroyed once.
            unsafe { sys::cuEventDestroy_v2(place.event) };
            unpin(&mut place.memory);
        }
    }
}

/// Bytes on their way.
pub(super) struct Fetch {
    gpu: Gpu,
    /// Absent only while it is dropped.
    place: Option<Place>,
    bytes: usize,
}

impl Fetch {
    /// Asks for them. The context is bound, and `from` has so many.
    pub fn start(gpu: &Gpu, from: u64, bytes: usize) -> Result<Self, DeviceError> {
        let inner = &gpu.0;
        let place = lock(&inner.places).take(inner, bytes)?;
        let (memory, event) = (place.memory, place.event);
        // From here on the place is given back whatever happens.
        let fetch = Self { gpu: gpu.clone(), place: Some(place), bytes };
        let shape = || format!("{bytes} bytes");
        if bytes > 0 {
            // SAFETY: `from` and the place have so many bytes, and nobody else has the place.
            let answer = unsafe { sys::cuMemcpyDtoHAsync_v2(memory.cast(), from, bytes, inner.stream) };
            inner.check_shaped("cuMemcpyDtoHAsync", answer, shape)?;
        }
        // SAFETY: event and stream exist.
        inner.check("cuEventRecord", unsafe { sys::cuEventRecord(event, inner.stream) })?;
        Ok(fetch)
    }

    fn event(&self) -> CUevent {
        self.place.as_ref().map_or(ptr::null_mut(), |place| place.event)
    }
}

impl Fetched for Fetch {
    fn is_here(&self) -> Result<bool, DeviceError> {
        let inner = &self.gpu.0;
        inner.context.bind()?;
        // SAFETY: the event exists and was recorded.
        match unsafe { sys::cuEventQuery(self.event()) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            answer => inner.check("cuEventQuery", answer).map(|()| true),
        }
    }

    fn take(self: Box<Self>, to: &mut [u8]) -> Result<(), DeviceError> {
        assert_eq!(self.bytes, to.len(), "bytes to fetch");
        let inner = &self.gpu.0;
        inner.context.bind()?;
        // SAFETY: the event exists and was recorded.
        inner.check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.event()) })?;
        if let Some(place) = &self.place {
            // SAFETY: the place has so many bytes, all of which have come.
            unsafe { ptr::copy_nonoverlapping(place.memory, to.as_mut_ptr(), to.len()) };
        }
        Ok(())
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        let Some(place) = self.place.take() else { return };
        if self.gpu.0.context.bind().is_ok() {
            // Whoever has the place next must not find these bytes in it. If the GPU has failed, nothing comes any more.
            // SAFETY: the event exists; one that was never recorded is not waited for.
            let _ = unsafe { sys::cuEventSynchronize(place.event) };
        }
        lock(&self.gpu.0.places).0.push(place);
    }
}
