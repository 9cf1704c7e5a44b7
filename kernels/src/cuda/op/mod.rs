//! Launch code: one file per op, with what it checks and the kernel of `kernels/cu` it starts.

pub mod moe;
