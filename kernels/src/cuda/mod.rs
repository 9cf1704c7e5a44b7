//! CUDA: devices, their memory, and the launch code of every op.
//!
//! A [`Device`] is one accelerator and the one stream on which everything of a rank happens, in order. Behind it is a
//! [`Driver`]: a GPU, or the *host twin*, which runs the same CUDA C++ (`kernels/cu`) compiled by the host's compiler, so that
//! all but the machine code can be tested where there is no GPU.

mod acts;
mod blocks;
mod buffer;
mod counting;
mod device;
#[cfg(test)]
mod dialect_tests;
pub mod doctor;
mod error;
mod f8_rows;
mod gpu;
mod groups;
mod library;
mod matrix;
pub mod nccl;
pub mod op;
#[cfg(test)]
mod overlap_tests;
pub mod rank_sums;
mod source;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod twin;

pub use acts::{ActType, Acts, ActsView, ActsViewMut};
pub use blocks::pack_row;
pub use buffer::{Buffer, Coming, View, ViewMut};
pub use counting::bytes_of;
pub use device::{Arg, Captured, Device, Driver, Fetched, Launch, Memory, Recording};
pub use error::DeviceError;
pub use f8_rows::{F8Room, F8Rows, F8View, F8ViewMut, activations_to_f8, f8_stride};
pub use gpu::{Facts, Gpu, Moment, Stage};
pub use groups::Groups;
pub use matrix::{DeviceMatrix, MatrixTable, WeightKind, from_f8, row_to_f8, to_f8};
