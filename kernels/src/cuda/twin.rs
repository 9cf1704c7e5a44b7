//! The host twin: kernels compiled by the host's compiler, in a shared library that `cargo xtask kernels` builds.
//!
//! Everything happens at once, on the calling thread. What a GPU forgives is an error here: buffers end at pages that nobody
//! may touch, fresh memory holds NaN, and copies that are not inside one buffer are refused.

mod memory;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::memory::Allocations;
use super::{Captured, Device, DeviceError, Driver, Launch, Memory};

/// Bytes a twin has unless told otherwise.
const BYTES: u64 = 8 << 30;

type Find = unsafe extern "C" fn(*const c_char) -> *const c_void;
type Parameters = unsafe extern "C" fn(*const c_void, *mut *const u32) -> u32;
type Run = unsafe extern "C" fn(*const c_void, *const u32, u32, u32, *const *mut c_void) -> *const c_char;

/// The functions of the library. It is never unloaded.
struct Library {
    find: Find,
    parameters: Parameters,
    run: Run,
}

/// A [`Driver`] on the host.
pub struct HostTwin {
    library: Library,
    state: Mutex<State>,
    /// As Hopper; else as what came before and after.
    multiplies_f8: bool,
}

#[derive(Default)]
struct State {
    allocations: Allocations,
    launches: BTreeMap<&'static str, u64>,
    kernels: BTreeMap<&'static str, Kernel>,
    capture: Option<Capture>,
}

/// What the library says of a kernel.
#[derive(Clone, Copy)]
struct Kernel {
    /// The library's own address of it.
    handle: usize,
    /// Bytes of each argument.
    sizes: &'static [u32],
}

/// What is being recorded.
#[derive(Default)]
struct Capture {
    calls: Vec<Call>,
    /// What was asked for that cannot be recorded.
    refused: Option<&'static str>,
}

/// A recorded call.
enum Call {
    /// The arguments, each in words of its own.
    Launch(Launch, Vec<Vec<u64>>),
    /// To, from, bytes.
    Copy(u64, u64, usize),
    /// To, value, bytes.
    Fill(u64, u8, usize),
}

impl HostTwin {
    /// The twin in the library at `path`, with 8 GiB of memory.
    ///
    /// # Errors
    /// If it cannot be loaded.
    pub fn open(path: &Path) -> Result<Device, DeviceError> {
        Self::open_with_memory(path, BYTES)
    }

    /// As [`open`](Self::open), with so many bytes of memory.
    ///
    /// # Errors
    /// If it cannot be loaded.
    pub fn open_with_memory(path: &Path, bytes: u64) -> Result<Device, DeviceError> {
        Self::open_like(path, bytes, true)
    }

    /// As [`open`](Self::open), of a device that does not multiply E4M3 with E4M3.
    ///
    /// # Errors
    /// If it cannot be loaded.
    pub fn open_without_f8(path: &Path) -> Result<Device, DeviceError> {
        Self::open_like(path, BYTES, false)
    }

    fn open_like(path: &Path, bytes: u64, multiplies_f8: bool) -> Result<Device, DeviceError> {
        let library =
            Library::load(path).map_err(|reason| error("dlopen", path.display().to_string(), reason))?;
        let state = State { allocations: Allocations::new(bytes), ..State::default() };
        Ok(Device::new(Arc::new(Self { library, state: Mutex::new(state), multiplies_f8 })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kernel(&self, launch: &Launch) -> Result<Kernel, DeviceError> {
        if let Some(kernel) = self.state().kernels.get(launch.kernel) {
            return Ok(*kernel);
        }
        let refused = |reason: &str| error(launch.kernel, shape(launch), reason.into());
        let name = CString::new(launch.kernel).map_err(|_| refused("not a name"))?;
        // SAFETY: a string; the answer and the sizes live as long as the library, which is never unloaded.
        let kernel = unsafe {
            let handle = (self.library.find)(name.as_ptr());
            if handle.is_null() {
                return Err(refused(
                    "no such kernel in the host twin's library; `cargo xtask kernels` builds it",
                ));
            }
            let mut sizes = std::ptr::null();
            let count = (self.library.parameters)(handle, &raw mut sizes);
            Kernel { handle: handle as usize, sizes: std::slice::from_raw_parts(sizes, count as usize) }
        };
        self.state().kernels.insert(launch.kernel, kernel);
        Ok(kernel)
    }

    /// # Safety
    /// As [`Driver::launch`].
    unsafe fn run(&self, launch: &Launch, args: &[*mut c_void]) -> Result<(), DeviceError> {
        let kernel = self.kernel(launch)?;
        // SAFETY: as the caller says; there is a pointer for each parameter.
        let refused = unsafe {
            (self.library.run)(
                kernel.handle as *const c_void,
                launch.grid.as_ptr(),
                launch.threads,
                launch.shared,
                args.as_ptr(),
            )
        };
        if !refused.is_null() {
            // SAFETY: a string of the library, which lives for ever.
            let reason = unsafe { CStr::from_ptr(refused) };
            return Err(error(launch.kernel, shape(launch), reason.to_string_lossy().into_owned()));
        }
        *self.state().launches.entry(launch.kernel).or_default() += 1;
        Ok(())
    }

    /// Refuses what cannot be recorded while recording.
    fn not_recording(&self, call: &'static str) -> Result<(), DeviceError> {
        match &mut self.state().capture {
            None => Ok(()),
            Some(capture) => {
                capture.refused.get_or_insert(call);
                Err(error(call, String::new(), "work is being recorded, and this cannot be".into()))
            }
        }
    }

    /// Keeps `call` if work is being recorded.
    fn record(&self, call: impl FnOnce() -> Call) -> bool {
        let mut state = self.state();
        let Some(capture) = &mut state.capture else { return false };
        capture.calls.push(call());
        true
    }

    fn inside(&self, call: &'static str, address: u64, bytes: usize) -> Result<(), DeviceError> {
        match self.state().allocations.has(address, bytes) {
            true => Ok(()),
            false => Err(error(call, format!("{bytes} bytes at {address:#x}"), "not inside a buffer".into())),
        }
    }
}

// SAFETY: addresses are the process's own, and every access to them is checked to be inside of one allocation.
unsafe impl Driver for HostTwin {
    fn name(&self) -> String {
        "host twin".into()
    }

    fn memory(&self) -> Result<Memory, DeviceError> {
        Ok(self.state().allocations.memory())
    }

    fn alloc(&self, bytes: usize) -> Result<u64, DeviceError> {
        let found = self.state().allocations.alloc(bytes);
        found.map_err(|reason| error("alloc", format!("{bytes} bytes"), reason))
    }

    unsafe fn free(&self, address: u64) {
        // SAFETY: as the caller says.
        unsafe { self.state().allocations.free(address) }
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        self.not_recording("upload")?;
        self.inside("upload", to, from.len())?;
        // SAFETY: just checked.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        self.not_recording("download")?;
        self.inside("download", from, to.len())?;
        // SAFETY: just checked.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError> {
        self.inside("copy to", to, bytes)?;
        self.inside("copy from", from, bytes)?;
        if to < from + bytes as u64 && from < to + bytes as u64 {
            return Err(error("copy", format!("{bytes} bytes"), "both places overlap".into()));
        }
        if !self.record(|| Call::Copy(to, from, bytes)) {
            // SAFETY: just checked.
            unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        }
        Ok(())
    }

    unsafe fn fill(&self, to: u64, value: u8, bytes: usize) -> Result<(), DeviceError> {
        self.inside("fill", to, bytes)?;
        if !self.record(|| Call::Fill(to, value, bytes)) {
            // SAFETY: just checked.
            unsafe { std::ptr::write_bytes(to as *mut u8, value, bytes) };
        }
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch, args: &mut [*mut c_void]) -> Result<(), DeviceError> {
        let kernel = self.kernel(launch)?;
        if kernel.sizes.len() != args.len() {
            let reason = format!("{} arguments in place of {}", args.len(), kernel.sizes.len());
            return Err(error(launch.kernel, shape(launch), reason));
        }
        let copied = || {
            let each = kernel.sizes.iter().zip(args.iter()).map(|(&size, arg)| {
                let mut words = vec![0u64; (size as usize).div_ceil(8)];
                // SAFETY: the argument has so many bytes, as the caller says, and so have the words.
                unsafe {
                    std::ptr::copy_nonoverlapping(arg.cast::<u8>(), words.as_mut_ptr().cast(), size as usize)
                };
                words
            });
            Call::Launch(*launch, each.collect())
        };
        match self.record(copied) {
            true => Ok(()),
            // SAFETY: as the caller says.
            false => unsafe { self.run(launch, args) },
        }
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.not_recording("synchronize")
    }

    fn can_capture(&self) -> bool {
        true
    }

    fn begin_capture(&self) -> Result<(), DeviceError> {
        self.not_recording("begin_capture")?;
        self.state().capture = Some(Capture::default());
        Ok(())
    }

    fn end_capture(&self) -> Result<Captured, DeviceError> {
        let refused = |reason: String| error("end_capture", String::new(), reason);
        let capture =
            self.state().capture.take().ok_or_else(|| refused("nothing is being recorded".into()))?;
        match capture.refused {
            Some(call) => Err(refused(format!("{call} cannot be recorded"))),
            None => Ok(Box::new(capture.calls)),
        }
    }

    unsafe fn replay(&self, captured: &Captured) -> Result<(), DeviceError> {
        self.not_recording("replay")?;
        let Some(calls) = captured.downcast_ref::<Vec<Call>>() else {
            return Err(error("replay", String::new(), "recorded by another driver".into()));
        };
        for call in calls {
            // SAFETY: as when it was recorded: what it used is still there, as the caller says.
            unsafe {
                match call {
                    Call::Copy(to, from, bytes) => self.copy(*to, *from, *bytes)?,
                    Call::Fill(to, value, bytes) => self.fill(*to, *value, *bytes)?,
                    Call::Launch(launch, values) => {
                        // Copied again: a kernel may change its parameters.
                        let mut values = values.clone();
                        let args: Vec<*mut c_void> =
                            values.iter_mut().map(|v| v.as_mut_ptr().cast()).collect();
                        self.run(launch, &args)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn multiplies_f8(&self) -> bool {
        self.multiplies_f8
    }

    fn launches(&self) -> Vec<(&'static str, u64)> {
        self.state().launches.iter().map(|(name, count)| (*name, *count)).collect()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Library {
    fn load(path: &Path) -> Result<Self, String> {
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
        // SAFETY: the library is ours: its constructors only set up its own tables and a handler that passes signals on, and
        // the three functions have these types (kernels/cu/host/twin.cpp).
        unsafe {
            let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
            if library.is_null() {
                return Err(last_error());
            }
            let function = |name: &CStr| match libc::dlsym(library, name.as_ptr()) {
                function if function.is_null() => Err(last_error()),
                function => Ok(function),
            };
            Ok(Self {
                find: std::mem::transmute::<*mut c_void, Find>(function(c"foggara_twin_find")?),
                parameters: std::mem::transmute::<*mut c_void, Parameters>(function(
                    c"foggara_twin_parameters",
                )?),
                run: std::mem::transmute::<*mut c_void, Run>(function(c"foggara_twin_launch")?),
            })
        }
    }
}

fn last_error() -> String {
    // SAFETY: null, or a string that is there until this thread's next such call.
    unsafe {
        match libc::dlerror() {
            text if text.is_null() => "it does not say why".into(),
            text => CStr::from_ptr(text).to_string_lossy().into_owned(),
        }
    }
}

fn shape(launch: &Launch) -> String {
    format!("grid {:?}, {} threads, {} bytes shared", launch.grid, launch.threads, launch.shared)
}

fn error(call: &'static str, shape: String, reason: String) -> DeviceError {
    DeviceError { device: "host twin".into(), call, shape, reason, lost: false }
}
