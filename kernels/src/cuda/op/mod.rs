//! Launch code: one file per op, with what it checks and the kernel of `kernels/cu` it starts.

pub mod attention;
pub mod elementwise;
pub mod kv_cache;
pub mod moe;
pub mod residual;
pub mod rope;
pub mod step_rows;
