//! Launch code: one file per op, with what it checks and the kernel of `kernels/cu` it starts.

mod apart;
pub mod attention;
mod attention_forms;
pub mod convert;
pub mod draw;
pub mod elementwise;
#[cfg(test)]
mod invariance_tests;
pub mod kv_cache;
pub mod matmul;
pub mod moe;
pub mod quantize;
pub mod random;
pub mod rank_sum;
pub mod residual;
pub mod rope;
pub mod sample;
pub mod step_rows;
