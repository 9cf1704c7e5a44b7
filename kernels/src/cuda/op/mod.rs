//! The ops, a file each: what a kernel of `kernels/cu` is given, and what it gives.

pub mod residual;
