//! The driver itself, its GPUs, and the context in which everything of one GPU lives.

use std::cell::Cell;
use std::ffi::c_int;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::sys::{self, CUcontext, CUdevice, CUdevice_attribute, CUresult};

use super::api::{Named, refused};
use crate::cuda::DeviceError;

/// The primary context of a GPU: shared with every library of the process that uses it.
pub(super) struct Context {
    /// Its number and product, for messages.
    pub name: String,
    pub product: String,
    /// Tells it from every other GPU; empty if the driver does not say.
    pub uuid: String,
    pub capability: (u32, u32),
    pub multiprocessors: u32,
    device: CUdevice,
    context: CUcontext,
    /// Tells this opening from every other: an address may come again, this does not.
    opening: u64,
}

thread_local! {
    /// The opening whose context is current on this thread.
    static BOUND: Cell<u64> = const { Cell::new(0) };
}

/// What a GPU is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// As CUDA counts.
    pub ordinal: usize,
    /// Its product name.
    pub name: String,
    /// Compute capability.
    pub capability: (u32, u32),
    /// Bytes of memory.
    pub memory: u64,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that a block may have.
    pub shared: u32,
    /// Bytes of second-level cache.
    pub cache: u32,
    /// Domain, bus, device, function.
    pub pci: String,
    /// Other GPUs whose memory it reaches directly, and the driver's rank of how well (0 is best).
    pub peers: Vec<(usize, u32)>,
}

/// Loads and initialises the driver, once.
fn driver() -> Result<(), DeviceError> {
    static DRIVER: OnceLock<Result<(), DeviceError>> = OnceLock::new();
    let load = || {
        // SAFETY: loads libcuda, whose initialisers are NVIDIA's.
        if !unsafe { sys::is_culib_present() } {
            let reason = "NVIDIA's driver is not here: the loader finds no libcuda.so.1. It comes with the \
                driver (Debian: apt-get install nvidia-driver; containers: run them with --gpus all)";
            return Err(refused("CUDA", "libcuda", String::new(), reason));
        }
        // SAFETY: the library is present.
        "CUDA".check("cuInit", unsafe { sys::cuInit(0) })
    };
    DRIVER.get_or_init(load).clone()
}

/// The newest version of CUDA that the driver knows: 13000 is 13.0.
///
/// # Errors
/// If there is no driver.
pub fn driver_version() -> Result<u32, DeviceError> {
    driver()?;
    let mut version = 0;
    // SAFETY: the driver is there; the pointer is to an integer.
    "CUDA".check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&raw mut version) })?;
    Ok(u32::try_from(version).unwrap_or_default())
}

/// How many GPUs there are.
///
/// # Errors
/// If there is no driver, or it finds none.
pub fn count() -> Result<usize, DeviceError> {
    driver()?;
    let mut count = 0;
    // SAFETY: the driver is there; the pointer is to an integer.
    "CUDA".check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&raw mut count) })?;
    Ok(usize::try_from(count).unwrap_or_default())
}

fn handle(ordinal: usize) -> Result<CUdevice, DeviceError> {
    let count = count()?;
    if ordinal >= count {
        let reason = format!("there is no such GPU: the driver shows {count} (see CUDA_VISIBLE_DEVICES)");
        return Err(refused(&format!("GPU {ordinal}"), "cuDeviceGet", String::new(), &reason));
    }
    let mut device: CUdevice = 0;
    let number = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
    // SAFETY: the driver is there; the pointer is to a handle.
    "CUDA".check("cuDeviceGet", unsafe { sys::cuDeviceGet(&raw mut device, number) })?;
    Ok(device)
}

fn attribute(device: CUdevice, attribute: CUdevice_attribute) -> Result<u32, DeviceError> {
    let mut value = 0;
    // SAFETY: the device is the driver's; the pointer is to an integer.
    let answer = unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, device) };
    "CUDA".check("cuDeviceGetAttribute", answer)?;
    Ok(u32::try_from(value).unwrap_or_default())
}

fn capability(device: CUdevice) -> Result<(u32, u32), DeviceError> {
    use CUdevice_attribute as A;
    Ok((
        attribute(device, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(device, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    ))
}

/// A text that the driver writes into a buffer.
fn text_of(call: impl FnOnce(*mut std::ffi::c_char, c_int) -> CUresult) -> Option<String> {
    let mut buffer = [0_u8; 256];
    let answer = call(buffer.as_mut_ptr().cast(), 256);
    let end = buffer.iter().position(|byte| *byte == 0).unwrap_or(buffer.len());
    (answer == CUresult::CUDA_SUCCESS).then(|| String::from_utf8_lossy(&buffer[..end]).into_owned())
}

fn product_name(device: CUdevice) -> String {
    // SAFETY: the device is the driver's; the buffer has so many bytes.
    text_of(|buffer, len| unsafe { sys::cuDeviceGetName(buffer, len, device) })
        .unwrap_or_else(|| "GPU".into())
}

/// As `nvidia-smi -L` shows it: a GPU's, or that of its instance.
fn uuid(device: CUdevice) -> Option<String> {
    let mut uuid = sys::CUuuid { bytes: [0; 16] };
    // SAFETY: the device is the driver's; the pointer is to sixteen bytes.
    let answer = unsafe { sys::cuDeviceGetUuid_v2(&raw mut uuid, device) };
    if answer != CUresult::CUDA_SUCCESS {
        return None;
    }
    let hex: Vec<String> = uuid.bytes.iter().map(|byte| format!("{:02x}", byte.to_ne_bytes()[0])).collect();
    let parts = [0..4, 4..6, 6..8, 8..10, 10..16].map(|part| hex[part].concat());
    Some(parts.join("-"))
}

/// What a GPU is; makes no context on it.
///
/// # Errors
/// If there is none of this number.
pub fn facts(ordinal: usize) -> Result<Facts, DeviceError> {
    use CUdevice_attribute as A;
    let device = handle(ordinal)?;
    let mut memory = 0;
    // SAFETY: the device is the driver's; the pointer is to a size.
    "CUDA".check("cuDeviceTotalMem", unsafe { sys::cuDeviceTotalMem_v2(&raw mut memory, device) })?;
    let mut peers = Vec::new();
    for other in (0..count()?).filter(|other| *other != ordinal) {
        let peer = handle(other)?;
        let (mut reaches, mut rank) = (0, 0);
        // SAFETY: both devices are the driver's; the pointers are to integers.
        unsafe {
            use sys::CUdevice_P2PAttribute as P;
            let rank_of = P::CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK;
            let answer = sys::cuDeviceCanAccessPeer(&raw mut reaches, device, peer);
            "CUDA".check("cuDeviceCanAccessPeer", answer)?;
            if sys::cuDeviceGetP2PAttribute(&raw mut rank, rank_of, device, peer) != CUresult::CUDA_SUCCESS {
                rank = 0;
            }
        }
        if reaches != 0 {
            peers.push((other, u32::try_from(rank).unwrap_or_default()));
        }
    }
    // SAFETY: the device is the driver's; the buffer has so many bytes.
    let pci = text_of(|buffer, len| unsafe { sys::cuDeviceGetPCIBusId(buffer, len, device) });
    Ok(Facts {
        ordinal,
        name: product_name(device),
        capability: capability(device)?,
        memory: memory as u64,
        multiprocessors: attribute(device, A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared: attribute(device, A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        cache: attribute(device, A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        pci: pci.unwrap_or_default(),
        peers,
    })
}

/// Bytes of a GPU that nobody has. Opens it for a moment.
///
/// # Errors
/// If it does not answer.
pub fn free_memory(ordinal: usize) -> Result<u64, DeviceError> {
    let context = Context::open(ordinal)?;
    let (mut free, mut total) = (0, 0);
    // SAFETY: the context is current on this thread; both pointers are to sizes.
    let answer = unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) };
    let told = context.check("cuMemGetInfo", answer).map(|()| free as u64);
    context.release();
    told
}

impl Context {
    /// Opens a GPU and makes its context current on this thread.
    pub fn open(ordinal: usize) -> Result<Self, DeviceError> {
        static OPENINGS: AtomicU64 = AtomicU64::new(1);
        let device = handle(ordinal)?;
        let product = product_name(device);
        let name = format!("GPU {ordinal} ({product})");
        let capability = capability(device)?;
        if capability.0 < 8 {
            let reason = format!("compute capability {}.{}; 8.0 is the least", capability.0, capability.1);
            return Err(refused(&name, "open", String::new(), &reason));
        }
        let multiprocessors =
            attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let mut context: CUcontext = ptr::null_mut();
        // SAFETY: the device is the driver's; the pointer is to a handle.
        let answer = unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut context, device) };
        name.check("cuDevicePrimaryCtxRetain", answer)?;
        let opening = OPENINGS.fetch_add(1, Ordering::Relaxed);
        let uuid = uuid(device).unwrap_or_default();
        let context = Self { name, product, uuid, capability, multiprocessors, device, context, opening };
        context.bind()?;
        Ok(context)
    }

    /// Makes the context current on the calling thread, unless it is.
    #[inline]
    pub fn bind(&self) -> Result<(), DeviceError> {
        if BOUND.get() == self.opening {
            return Ok(());
        }
        // SAFETY: the context is retained until `release`.
        self.check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) })?;
        BOUND.set(self.opening);
        Ok(())
    }

    /// Gives the context back; nothing may be asked of it any more.
    pub fn release(&self) {
        BOUND.set(0);
        // SAFETY: retained by `open`, released once.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

impl Named for Context {
    fn device_name(&self) -> &str {
        &self.name
    }
}
