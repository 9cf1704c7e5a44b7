//! What is asked of NCCL (nccl.h), from 2.18 on.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr;
use std::sync::OnceLock;

use cudarc::driver::sys::CUstream;

use crate::cuda::library::{Wanted, table};

/// A communicator.
pub(super) type Comm = *mut c_void;
type In = *const c_void;
type Out = *mut c_void;

// `ncclResult_t`, `ncclDataType_t` and `ncclRedOp_t`.
pub(super) const SUCCESS: c_int = 0;
pub(super) const IN_PROGRESS: c_int = 7;
pub(super) const FLOAT32: c_int = 7;
pub(super) const SUM: c_int = 0;

/// The name of a group.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId {
    pub internal: [u8; 128],
}

/// `ncclConfig_t` as it was in 2.26. Later versions read as much as `size` says and take their defaults for the rest; earlier ones
/// do not look at what came after them.
#[repr(C)]
pub(super) struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cluster_size: c_int,
    min_blocks: c_int,
    max_blocks: c_int,
    network: *const c_char,
    split_share: c_int,
    traffic_class: c_int,
}

/// The version of [`Config`].
const CONFIG_VERSION: c_int = 22600;

table! {
    /// Functions of the library; answers are `ncclResult_t`.
    pub(super) struct Functions {
        version: c"ncclGetVersion" fn(*mut c_int) -> c_int;
        unique_id: c"ncclGetUniqueId" fn(*mut UniqueId) -> c_int;
        init: c"ncclCommInitRankConfig" fn(*mut Comm, c_int, UniqueId, c_int, *mut Config) -> c_int;
        abort: c"ncclCommAbort" fn(Comm) -> c_int;
        async_error: c"ncclCommGetAsyncError" fn(Comm, *mut c_int) -> c_int;
        error_text: c"ncclGetErrorString" fn(c_int) -> *const c_char;
        last_error: c"ncclGetLastError" fn(Comm) -> *const c_char;
        all_reduce: c"ncclAllReduce" fn(In, Out, usize, c_int, c_int, Comm, CUstream) -> c_int;
        all_gather: c"ncclAllGather" fn(In, Out, usize, c_int, Comm, CUstream) -> c_int;
        reduce_scatter: c"ncclReduceScatter" fn(In, Out, usize, c_int, c_int, Comm, CUstream) -> c_int;
        broadcast: c"ncclBroadcast" fn(In, Out, usize, c_int, c_int, Comm, CUstream) -> c_int;
        send: c"ncclSend" fn(In, usize, c_int, c_int, Comm, CUstream) -> c_int;
        receive: c"ncclRecv" fn(Out, usize, c_int, c_int, Comm, CUstream) -> c_int;
        group_start: c"ncclGroupStart" fn() -> c_int;
        group_end: c"ncclGroupEnd" fn() -> c_int;
    }
}

impl Functions {
    /// The library, found once in a process.
    pub(super) fn get() -> Result<&'static Self, String> {
        static FUNCTIONS: OnceLock<Result<Functions, String>> = OnceLock::new();
        let load = || {
            let library = Wanted::Nccl.find()?;
            // SAFETY: the types are those of nccl.h.
            unsafe { Functions::load(library) }
        };
        FUNCTIONS.get_or_init(load).as_ref().map_err(Clone::clone)
    }

    /// What an answer means, and what the library last complained of.
    pub(super) fn text(&self, answer: c_int, comm: Comm) -> String {
        let read = |text: *const c_char| {
            // SAFETY: the library gives texts of its own, or nothing; they are copied at once.
            (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        // SAFETY: any number has a text; without a communicator the last error of the process is meant.
        let (text, last) = unsafe { (read((self.error_text)(answer)), read((self.last_error)(comm))) };
        let text = text.unwrap_or_else(|| format!("answer {answer}"));
        match last {
            Some(last) if !last.trim().is_empty() => format!("{text}: {}", last.trim()),
            _ => text,
        }
    }
}

impl Config {
    /// Calls return at once, and are waited for by [`super::NcclComm`]; all else is the library's choice.
    pub(super) fn never_blocking(functions: &Functions) -> Self {
        let mut version = 0;
        // SAFETY: the pointer is to an integer.
        unsafe { (functions.version)(&raw mut version) };
        let undefined = c_int::MIN;
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: version.min(CONFIG_VERSION).unsigned_abs(),
            blocking: 0,
            cluster_size: undefined,
            min_blocks: undefined,
            max_blocks: undefined,
            network: ptr::null(),
            split_share: undefined,
            traffic_class: undefined,
        }
    }
}
