//! The driver's answers as errors that say what was asked, of which device.

use std::ffi::{CStr, c_char};
use std::ptr;

use cudarc::driver::sys::{self, CUresult};

use crate::cuda::DeviceError;

/// What has a device's name to put into errors.
pub(in crate::cuda) trait Named: Sized {
    /// As [`crate::cuda::Driver::name`] gives it.
    fn device_name(&self) -> &str;

    /// An error unless the driver says that it went well.
    fn check(&self, call: &'static str, answer: CUresult) -> Result<(), DeviceError> {
        self.check_shaped(call, answer, String::new)
    }

    /// The same, for calls that have sizes.
    fn check_shaped(
        &self,
        call: &'static str,
        answer: CUresult,
        shape: impl FnOnce() -> String,
    ) -> Result<(), DeviceError> {
        if answer == CUresult::CUDA_SUCCESS {
            return Ok(());
        }
        Err(DeviceError {
            device: self.device_name().to_owned(),
            call,
            shape: shape(),
            reason: text(answer),
            lost: is_lost(answer),
        })
    }
}

impl Named for &str {
    fn device_name(&self) -> &str {
        self
    }
}

impl Named for String {
    fn device_name(&self) -> &str {
        self
    }
}

/// An error that comes from us, not from the driver.
pub(in crate::cuda) fn refused(device: &str, call: &'static str, shape: String, reason: &str) -> DeviceError {
    DeviceError { device: device.to_owned(), call, shape, reason: reason.to_owned(), lost: false }
}

/// The driver's own words, and its name for the error, which is what can be searched for.
pub(in crate::cuda) fn text(answer: CUresult) -> String {
    let ask = |call: unsafe fn(CUresult, *mut *const c_char) -> CUresult| {
        let mut text: *const c_char = ptr::null();
        // SAFETY: the driver is there, since it has answered; it points the pointer at a text of its own, or at nothing.
        unsafe {
            let answer = call(answer, &raw mut text);
            (answer == CUresult::CUDA_SUCCESS && !text.is_null())
                .then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    };
    let name = ask(sys::cuGetErrorName).unwrap_or_else(|| format!("CUDA error {}", answer as u32));
    ask(sys::cuGetErrorString).map_or_else(|| name.clone(), |words| format!("{words} ({name})"))
}

/// Whether the context is lost: every later call answers the same, and only a new process helps.
fn is_lost(answer: CUresult) -> bool {
    use CUresult as R;
    matches!(
        answer,
        R::CUDA_ERROR_DEINITIALIZED
            | R::CUDA_ERROR_DEVICE_UNAVAILABLE
            | R::CUDA_ERROR_ECC_UNCORRECTABLE
            | R::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | R::CUDA_ERROR_CONTAINED
            | R::CUDA_ERROR_ILLEGAL_ADDRESS
            | R::CUDA_ERROR_LAUNCH_TIMEOUT
            | R::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | R::CUDA_ERROR_ASSERT
            | R::CUDA_ERROR_HARDWARE_STACK_ERROR
            | R::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | R::CUDA_ERROR_MISALIGNED_ADDRESS
            | R::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | R::CUDA_ERROR_INVALID_PC
            | R::CUDA_ERROR_LAUNCH_FAILED
            | R::CUDA_ERROR_TENSOR_MEMORY_LEAK
            | R::CUDA_ERROR_MPS_CLIENT_TERMINATED
            | R::CUDA_ERROR_EXTERNAL_DEVICE
            | R::CUDA_ERROR_UNKNOWN
    )
}
