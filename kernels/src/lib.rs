//! Numbers on devices: kernels for the CPU, and collectives between the processes of a group.
//!
//! Knows no models and no requests. Every op is a contract (`op/`) with one algorithm written over [`cpu::lanes::Lanes`],
//! eight floats wide, and instantiated for AVX2 and for plain Rust; products also for AVX-512 with VNNI, and for AMX tiles. All
//! give the same bits. With the memory-map file of
//! `models/`, this crate is the home of the project's `unsafe`.

pub mod collective;
pub mod cpu;
pub mod cuda;
pub mod dtype;
pub mod error;
pub mod op;

pub use cpu::cores::Cores;
pub use cpu::pool::{ThreadPool, Threads};
pub use dtype::WeightType;
pub use error::KernelError;
