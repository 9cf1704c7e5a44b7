//! The ops: one file each, holding the contract and the kernel.

pub mod activations;
pub mod attention;
pub mod blocks;
pub mod dequantize;
pub mod draw;
pub mod gated;
pub mod kv_cache;
pub mod low_rank;
pub mod matmul;
pub mod pack;
pub mod panels;
mod quantize_k;
pub mod quantize_weights;
pub mod repack;
pub mod rms_norm;
pub mod rope;
pub mod softmax;
pub mod stored;
