//! A GPU behind the [`Driver`] trait: CUDA's driver API, one stream, and nothing between a call and the driver that could wait
//! by itself.
//!
//! Memory that is given back is kept for the next request of its size: everything happens on one stream, in order, so that it
//! may be used again at once. While work is recorded, what cannot be recorded (bytes that come from or go to the host, waiting)
//! is refused; memory taken then comes as ever, and memory given back then stays with the recording, which goes on using it.

pub(super) mod api;
mod context;
mod fetch;
mod functions;
mod graph;
mod memory;
mod overlap;
mod products;
mod staging;
pub(super) mod trace;

use std::any::Any;
use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{self, CUlaunchConfig, CUstream};

use self::api::{Named, refused};
use self::context::Context;
use self::fetch::{Fetch, Places};
use self::functions::Functions;
use self::graph::{Graph, Recorder};
use self::memory::Memory as Pool;
use self::overlap::Overlap;
use self::products::Products;
use self::staging::{Down, Up};
use super::device::{Captured, Driver, Fetched, Launch, Memory};
use super::{Device, DeviceError, source};

pub use context::Facts;
pub(super) use context::{count, driver_version, facts, free_memory};
pub use trace::{Moment, Stage};

/// The compute capability of Hopper.
const HOPPER: (u32, u32) = (9, 0);

/// One GPU. Cheap to clone.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    context: Context,
    stream: CUstream,
    functions: Functions,
    pool: Pool,
    up: Mutex<Up>,
    down: Mutex<Down>,
    places: Mutex<Places>,
    recorder: Recorder,
    overlap: Overlap,
    products: Mutex<Products>,
}

// SAFETY: handles of the driver may be used by any thread in whose context they are, which every method sees to; what the driver
// does not order itself is behind locks.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Gpu {
    /// The GPU of this number (as CUDA counts, see `CUDA_VISIBLE_DEVICES`), with all kernels loaded.
    ///
    /// # Errors
    /// If there is no driver, no such GPU, or no machine code for it can be had; the reason says what is missing and how to
    /// get it.
    pub fn open(ordinal: usize) -> Result<Device, DeviceError> {
        Self::open_with(ordinal, &|_| {})
    }

    /// The same; `notice` hears of what takes long, for a log.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(ordinal: usize, notice: &(dyn Fn(&str) + Sync)) -> Result<Device, DeviceError> {
        let context = Context::open(ordinal)?;
        let modules = source::modules(context.capability, notice).map_err(|reason| DeviceError {
            device: context.name.clone(),
            call: "open",
            shape: String::new(),
            reason,
            lost: false,
        })?;
        let functions = Functions::load(&context, &modules)?;
        let mut stream: CUstream = ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is current on this thread since it was opened; the pointer is to a handle.
        context.check("cuStreamCreate", unsafe { sys::cuStreamCreate(&raw mut stream, flags) })?;
        let overlap = Overlap::new(context.capability)?;
        let inner = Inner {
            context,
            stream,
            functions,
            pool: Pool::default(),
            up: Mutex::default(),
            down: Mutex::default(),
            places: Mutex::default(),
            recorder: Recorder::default(),
            overlap,
            products: Mutex::default(),
        };
        Ok(Device::new(Arc::new(Self(Arc::new(inner)))))
    }

    /// The GPU behind a device, if there is one.
    pub fn of(device: &Device) -> Option<&Self> {
        device.driver().as_any().downcast_ref()
    }

    /// Its product name.
    pub fn product(&self) -> &str {
        &self.0.context.product
    }

    /// Tells it from every other GPU, whichever process asks; empty if the driver does not say.
    pub fn uuid(&self) -> &str {
        &self.0.context.uuid
    }

    /// Its compute capability.
    pub fn capability(&self) -> (u32, u32) {
        self.0.context.capability
    }

    /// Its multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        self.0.context.multiprocessors
    }

    /// Makes its context that of the calling thread, as libraries expect, and gives the stream, on which they then put something.
    /// What kernels kept of their moments: nothing unless they were compiled with `FOGGARA_CUDA_TRACE`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn moments(&self) -> Result<Vec<Moment>, DeviceError> {
        self.0.context.bind()?;
        self.0.wait()?;
        Ok(self.0.functions.moments())
    }

    pub(super) fn bind(&self) -> Result<CUstream, DeviceError> {
        self.0.context.bind()?;
        self.0.overlap.interrupt();
        Ok(self.0.stream)
    }
}

impl Inner {
    /// Waits for the stream.
    fn wait(&self) -> Result<(), DeviceError> {
        // SAFETY: the stream exists, and the caller has bound the context.
        self.context.check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream) })
    }

    /// Gives memory back to the pool, or to the recording that is under way.
    fn give_back(&self, address: u64) {
        if !self.recorder.keep(address) {
            self.pool.put(self, address);
        }
    }

    /// An error if work is being recorded, which `call` would not be.
    fn not_recording(&self, call: &'static str, bytes: usize) -> Result<(), DeviceError> {
        if !self.recorder.refuses(call) {
            return Ok(());
        }
        let shape = if bytes == 0 { String::new() } else { format!("{bytes} bytes") };
        Err(refused(&self.context.name, call, shape, "cannot be recorded, and work is being recorded"))
    }
}

impl Named for Inner {
    fn device_name(&self) -> &str {
        &self.context.name
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.context.bind().is_err() {
            return;
        }
        // Nothing can be told from here: what fails now is gone with the context.
        let _ = self.wait();
        lock(&self.products).close();
        lock(&self.up).close();
        lock(&self.down).close();
        lock(&self.places).close();
        self.pool.clear();
        self.functions.unload();
        // SAFETY: made by `open`, destroyed once, and nothing uses it any more.
        unsafe { sys::cuStreamDestroy_v2(self.stream) };
        self.context.release();
    }
}

/// A lock whose holder panicked guards nothing that could be half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// SAFETY: addresses go to the driver's calls as they are given, with the sizes that the callers promise.
unsafe impl Driver for Gpu {
    fn name(&self) -> String {
        self.0.context.name.clone()
    }

    fn memory(&self) -> Result<Memory, DeviceError> {
        self.0.context.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the context is bound; both pointers are to sizes.
        let answer = unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) };
        self.0.context.check("cuMemGetInfo", answer)?;
        Ok(Memory { free: (free + self.0.pool.kept()) as u64, total: total as u64 })
    }

    fn alloc(&self, bytes: usize) -> Result<u64, DeviceError> {
        self.0.context.bind()?;
        self.0.pool.take(&self.0, bytes)
    }

    unsafe fn free(&self, address: u64) {
        if self.0.context.bind().is_ok() {
            self.0.give_back(address);
        }
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        self.0.context.bind()?;
        self.0.not_recording("upload", from.len())?;
        self.0.overlap.interrupt();
        lock(&self.0.up).copy(&self.0, to, from)
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        self.0.context.bind()?;
        self.0.not_recording("download", to.len())?;
        self.0.overlap.interrupt();
        lock(&self.0.down).copy(&self.0, from, to)
    }

    unsafe fn fetch(&self, from: u64, bytes: usize) -> Result<Box<dyn Fetched>, DeviceError> {
        self.0.context.bind()?;
        self.0.not_recording("fetch", bytes)?;
        self.0.overlap.interrupt();
        Ok(Box::new(Fetch::start(self, from, bytes)?))
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError> {
        self.0.context.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        self.0.overlap.interrupt();
        // SAFETY: both have so many bytes, as the caller says.
        let answer = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.0.stream) };
        self.0.context.check_shaped("cuMemcpyDtoDAsync", answer, || format!("{bytes} bytes"))
    }

    unsafe fn fill(&self, to: u64, value: u8, bytes: usize) -> Result<(), DeviceError> {
        self.0.context.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        self.0.overlap.interrupt();
        // SAFETY: there is room for so many bytes, as the caller says.
        let answer = unsafe { sys::cuMemsetD8Async(to, value, bytes, self.0.stream) };
        self.0.context.check_shaped("cuMemsetD8Async", answer, || format!("{bytes} bytes"))
    }

    unsafe fn launch(&self, launch: &Launch, args: &mut [*mut c_void]) -> Result<(), DeviceError> {
        self.0.context.bind()?;
        let function = self.0.functions.get(&self.0.context, launch)?;
        let [x, y, z] = launch.grid;
        let mut early = overlap::attribute();
        let config = CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared,
            hStream: self.0.stream,
            attrs: &raw mut early,
            numAttrs: self.0.overlap.next_kernel(launch.kernel, x.saturating_mul(y).saturating_mul(z)).into(),
        };
        let args = args.as_mut_ptr();
        // SAFETY: the arguments are of the kernel's types, as the caller says; the function is of a module that is loaded; there
        // is one attribute at least. A kernel that begins early waits by itself for those before it.
        let answer =
            unsafe { sys::cuLaunchKernelEx(&raw const config, function.handle(), args, ptr::null_mut()) };
        let shape =
            || format!("grid {x}×{y}×{z}, {} threads, {} bytes shared", launch.threads, launch.shared);
        self.0.context.check_shaped(launch.kernel, answer, shape)?;
        if !self.0.recorder.count(&function) {
            function.count(1);
        }
        Ok(())
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.0.context.bind()?;
        self.0.not_recording("synchronize", 0)?;
        self.0.overlap.interrupt();
        self.0.wait()
    }

    fn can_capture(&self) -> bool {
        true
    }

    fn begin_capture(&self) -> Result<(), DeviceError> {
        self.0.context.bind()?;
        self.0.overlap.interrupt();
        self.0.recorder.begin(&self.0)
    }

    fn end_capture(&self) -> Result<Captured, DeviceError> {
        self.0.context.bind()?;
        self.0.overlap.interrupt();
        Ok(Box::new(Graph::end(self)?))
    }

    unsafe fn replay(&self, captured: &Captured) -> Result<(), DeviceError> {
        self.0.context.bind()?;
        let Some(graph) = captured.downcast_ref::<Graph>() else {
            return Err(refused(
                &self.0.context.name,
                "replay",
                String::new(),
                "recorded by another kind of driver",
            ));
        };
        self.0.overlap.interrupt();
        graph.launch(self)
    }

    unsafe fn dense_product(
        &self,
        out: u64,
        out_stride: usize,
        x: u64,
        w: u64,
        rows: usize,
        n: usize,
        k: usize,
    ) -> Option<Result<(), DeviceError>> {
        if let Err(error) = self.0.context.bind() {
            return Some(Err(error));
        }
        self.0.overlap.interrupt();
        let product = products::Product { out, out_stride, x, w, rows, n, k };
        // SAFETY: the addresses have so many elements, as the caller says.
        unsafe { lock(&self.0.products).multiply(&self.0, &product) }
    }

    fn multiplies_f8(&self) -> bool {
        self.capability() == HOPPER
    }

    fn launches(&self) -> Vec<(&'static str, u64)> {
        self.0.functions.counts()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::Gpu;

    #[test]
    fn what_is_not_there_is_told_and_not_panicked_about() {
        let error = Gpu::open(1000).expect_err("there are no thousand GPUs");
        assert!(!error.reason.is_empty() && !error.lost, "{error}");
    }
}
