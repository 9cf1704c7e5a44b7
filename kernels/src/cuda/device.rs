//! A device and its stream.

use std::any::Any;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use super::{Buffer, DeviceError};

/// Bytes of a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Not taken by anyone.
    pub free: u64,
    /// In all.
    pub total: u64,
}

/// How a kernel is to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Its name in `kernels/cu`.
    pub kernel: &'static str,
    /// Blocks, each way.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

/// One argument of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arg {
    /// An address on the device; 0 for none.
    Ptr(u64),
    /// `u32`.
    U32(u32),
    /// `u64`.
    U64(u64),
    /// `float`.
    F32(f32),
}

/// Work that was recorded, to be started again and again with one call.
pub type Captured = Box<dyn Any + Send>;

/// Bytes on their way from a device to the host.
pub trait Fetched: Send {
    /// Whether they have come.
    ///
    /// # Errors
    /// If the device failed meanwhile.
    fn is_here(&self) -> Result<bool, DeviceError>;

    /// Waits for them.
    ///
    /// # Errors
    /// If the device failed meanwhile.
    ///
    /// # Panics
    /// If `to` has another length.
    fn take(self: Box<Self>, to: &mut [u8]) -> Result<(), DeviceError>;
}

/// Bytes that were waited for at once.
struct Here(Vec<u8>);

impl Fetched for Here {
    fn is_here(&self) -> Result<bool, DeviceError> {
        Ok(true)
    }

    fn take(self: Box<Self>, to: &mut [u8]) -> Result<(), DeviceError> {
        to.copy_from_slice(&self.0);
        Ok(())
    }
}

/// What a [`Device`] asks of the machine. Everything happens in the order of the calls; only what gives bytes or an answer back
/// waits for it.
///
/// # Safety
/// Implementors do with an address exactly what is said, and nothing else.
pub unsafe trait Driver: Send + Sync {
    /// The device's name, as error messages and logs give it.
    fn name(&self) -> String;

    /// Its memory.
    ///
    /// # Errors
    /// If the device does not answer.
    fn memory(&self) -> Result<Memory, DeviceError>;

    /// Bytes that no one else has, aligned to 256; what is in them is anything.
    ///
    /// # Errors
    /// If there are not so many.
    fn alloc(&self, bytes: usize) -> Result<u64, DeviceError>;

    /// Gives back what [`alloc`](Self::alloc) gave.
    ///
    /// # Safety
    /// `address` came from `alloc` of this driver, was not given back, and is used by nothing that follows.
    unsafe fn free(&self, address: u64);

    /// Copies to the device. `from` may be changed as soon as the call returns.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Safety
    /// `to` has room for it.
    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<(), DeviceError>;

    /// Waits for everything so far, and copies from the device.
    ///
    /// # Errors
    /// If the device fails, or something before did.
    ///
    /// # Safety
    /// `from` has so many bytes.
    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<(), DeviceError>;

    /// Starts to copy from the device, after everything so far: what follows may change the bytes there. Where a device cannot do
    /// that beside the caller, it waits.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Safety
    /// `from` has so many bytes.
    unsafe fn fetch(&self, from: u64, bytes: usize) -> Result<Box<dyn Fetched>, DeviceError> {
        let mut here = vec![0; bytes];
        // SAFETY: as the caller says.
        unsafe { self.download(from, &mut here)? };
        Ok(Box::new(Here(here)))
    }

    /// Copies on the device.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Safety
    /// Both have so many bytes, and do not overlap.
    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError>;

    /// Sets bytes to `value`.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Safety
    /// `to` has room for them.
    unsafe fn fill(&self, to: u64, value: u8, bytes: usize) -> Result<(), DeviceError>;

    /// Starts a kernel; `args` point at the arguments, in order.
    ///
    /// # Errors
    /// If there is no such kernel, or it cannot be started so.
    ///
    /// # Safety
    /// The arguments are of the kernel's types, and what they point at on the device is as the kernel expects.
    unsafe fn launch(&self, launch: &Launch, args: &mut [*mut c_void]) -> Result<(), DeviceError>;

    /// Waits for everything so far.
    ///
    /// # Errors
    /// If any of it failed.
    fn synchronize(&self) -> Result<(), DeviceError>;

    /// Whether work can be recorded.
    fn can_capture(&self) -> bool {
        false
    }

    /// From here on, launches, copies and fills are recorded and not done.
    ///
    /// # Errors
    /// If that cannot be.
    fn begin_capture(&self) -> Result<(), DeviceError>;

    /// What was recorded.
    ///
    /// # Errors
    /// If something was asked for meanwhile that cannot be recorded.
    fn end_capture(&self) -> Result<Captured, DeviceError>;

    /// Does what was recorded.
    ///
    /// # Errors
    /// If it cannot be started.
    ///
    /// # Safety
    /// Every buffer that was used while recording still is.
    unsafe fn replay(&self, captured: &Captured) -> Result<(), DeviceError>;

    /// A product of dense matrices by the vendor's library; `None` where there is none, and our own kernels are to be used:
    /// `out` (rows × n, f32) = `x` (rows × k, bf16) · `w` (n × k, bf16)ᵀ, with `out_stride` elements between rows of `out`.
    ///
    /// # Safety
    /// The addresses have so many elements.
    #[allow(clippy::too_many_arguments)]
    unsafe fn dense_product(
        &self,
        _out: u64,
        _out_stride: usize,
        _x: u64,
        _w: u64,
        _rows: usize,
        _n: usize,
        _k: usize,
    ) -> Option<Result<(), DeviceError>> {
        None
    }

    /// Whether its tensor cores multiply E4M3 with E4M3 (`wgmma`), so that products with weights in E4M3 take their inputs in it, too.
    fn multiplies_f8(&self) -> bool {
        false
    }

    /// Launches of each kernel so far.
    fn launches(&self) -> Vec<(&'static str, u64)>;

    /// The driver itself, for what only one kind of it has.
    fn as_any(&self) -> &dyn Any;
}

/// One device. Cheap to clone.
#[derive(Clone)]
pub struct Device(Arc<Shared>);

struct Shared {
    driver: Arc<dyn Driver>,
    /// Recordings that are kept: what they use must not be given back.
    recordings: Mutex<Recordings>,
    /// Whether the vendor's library adds up as our own kernels do, once that is known.
    library_agrees: OnceLock<bool>,
}

#[derive(Default)]
struct Recordings {
    kept: usize,
    /// One is being made.
    open: bool,
    /// Memory that would have been given back meanwhile.
    deferred: Vec<u64>,
}

/// Work that was recorded on a device, to be done again and again with one call.
pub struct Recording {
    /// Absent only while it is dropped.
    captured: Option<Captured>,
    device: Device,
}

impl Recording {
    /// Does it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn replay(&self) -> Result<(), DeviceError> {
        let Some(captured) = &self.captured else { return Ok(()) };
        // SAFETY: no memory of the device is given back while a recording is kept.
        unsafe { self.device.driver().replay(captured) }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // What it launched may still be running.
        self.device.synchronize().ok();
        self.captured = None;
        let mut recordings = self.device.recordings();
        recordings.kept -= 1;
        if recordings.kept == 0 {
            for address in recordings.deferred.drain(..) {
                // SAFETY: its buffer was dropped, and nothing recorded uses it any more.
                unsafe { self.device.driver().free(address) };
            }
        }
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Device").field(&self.name()).finish()
    }
}

impl Device {
    /// What a driver drives.
    pub fn new(driver: Arc<dyn Driver>) -> Self {
        Self(Arc::new(Shared { driver, recordings: Mutex::default(), library_agrees: OnceLock::new() }))
    }

    /// Its driver.
    pub fn driver(&self) -> &dyn Driver {
        &*self.0.driver
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.driver().name()
    }

    /// Whether products with weights in E4M3 take their inputs in it, too: [`Driver::multiplies_f8`].
    pub fn multiplies_f8(&self) -> bool {
        self.driver().multiplies_f8()
    }

    /// A buffer of `len` elements; what is in it is anything.
    ///
    /// # Errors
    /// If there is no such memory.
    pub fn alloc<T: bytemuck::Pod>(&self, len: usize) -> Result<Buffer<T>, DeviceError> {
        Buffer::new(self, len)
    }

    /// A buffer that holds `values`.
    ///
    /// # Errors
    /// If there is no memory, or the device fails.
    pub fn upload<T: bytemuck::Pod>(&self, values: &[T]) -> Result<Buffer<T>, DeviceError> {
        let mut buffer = self.alloc(values.len())?;
        buffer.view_mut().upload(values)?;
        Ok(buffer)
    }

    /// A buffer of zeros.
    ///
    /// # Errors
    /// If there is no memory, or the device fails.
    pub fn zeros<T: bytemuck::Pod>(&self, len: usize) -> Result<Buffer<T>, DeviceError> {
        let mut buffer = self.alloc(len)?;
        buffer.view_mut().fill(0)?;
        Ok(buffer)
    }

    /// Starts a kernel.
    ///
    /// # Errors
    /// If it cannot be started.
    ///
    /// # Safety
    /// The arguments are those of the kernel, and the memory they point at is as it expects: what each op's launch code checks.
    pub(crate) unsafe fn launch(&self, launch: &Launch, args: &[Arg]) -> Result<(), DeviceError> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let mut values: Vec<Arg> = args.to_vec();
        let mut pointers: Vec<*mut c_void> = values
            .iter_mut()
            .map(|arg| match arg {
                Arg::Ptr(value) | Arg::U64(value) => std::ptr::from_mut(value).cast(),
                Arg::U32(value) => std::ptr::from_mut(value).cast(),
                Arg::F32(value) => std::ptr::from_mut(value).cast(),
            })
            .collect();
        // SAFETY: as the caller says; the pointers are to values that live as long as the call.
        unsafe { self.driver().launch(launch, &mut pointers) }
    }

    /// Waits for everything so far.
    ///
    /// # Errors
    /// If any of it failed.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        self.driver().synchronize()
    }

    /// Records what `work` asks for, without doing it.
    ///
    /// # Errors
    /// Those of `work`, or if something cannot be recorded. See [`Driver::can_capture`].
    pub fn record<E: From<DeviceError>>(&self, work: impl FnOnce() -> Result<(), E>) -> Result<Recording, E> {
        // From here on, so that nothing that is recorded is given back before the end.
        self.recordings().kept += 1;
        let mut recording = Recording { captured: None, device: self.clone() };
        self.driver().begin_capture()?;
        self.recordings().open = true;
        let worked = work();
        self.recordings().open = false;
        let captured = self.driver().end_capture();
        worked?;
        recording.captured = Some(captured?);
        Ok(recording)
    }

    /// What `compare` says of the vendor's library, asked once and not while something is recorded: false until then.
    ///
    /// # Errors
    /// Those of `compare`.
    pub(super) fn library_agrees(
        &self,
        compare: impl FnOnce() -> Result<bool, DeviceError>,
    ) -> Result<bool, DeviceError> {
        if let Some(agrees) = self.0.library_agrees.get() {
            return Ok(*agrees);
        }
        if self.recordings().open {
            return Ok(false);
        }
        let agrees = compare()?;
        Ok(*self.0.library_agrees.get_or_init(|| agrees))
    }

    fn recordings(&self) -> MutexGuard<'_, Recordings> {
        self.0.recordings.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Gives a buffer's memory back, now or when no recording can use it any more.
    ///
    /// # Safety
    /// As [`Driver::free`], but for recordings.
    pub(super) unsafe fn free(&self, address: u64) {
        let mut recordings = self.recordings();
        if recordings.kept > 0 {
            recordings.deferred.push(address);
            return;
        }
        drop(recordings);
        // SAFETY: as the caller says, and there is no recording.
        unsafe { self.driver().free(address) }
    }
}
