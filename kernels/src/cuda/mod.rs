//! CUDA: devices, their memory, and the launch code of every op.
//!
//! A [`Device`] is one accelerator and the one stream on which everything of a rank happens, in order. Behind it is a
//! [`Driver`]: a GPU, or the *host twin*, which runs the same CUDA C++ (`kernels/cu`) compiled by the host's compiler, so that
//! all but the machine code can be tested where there is no GPU.

mod buffer;
mod device;
pub mod doctor;
mod error;
mod gpu;
mod library;
pub mod op;
mod source;

pub use buffer::{Buffer, View, ViewMut};
pub use device::{Arg, Captured, Device, Driver, Launch, Memory};
pub use error::DeviceError;
pub use gpu::{Facts, Gpu};
