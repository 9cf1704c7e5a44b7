//! Checkpoints as data, for coordinators and workers alike: GGUF files and Hugging Face folders, their tensors by role,
//! their architecture as an [`ArchSpec`], their tokenizer's vocabulary, and which bytes make which slice.
//!
//! Knows no device and no network. Tensor data stays in the file: it is memory-mapped and read slice by slice.
#![deny(unsafe_code)]

mod adapter;
pub mod arch;
mod checkpoint;
pub mod dtype;
mod error;
mod expected;
pub mod footprint;
mod gguf;
mod hf;
mod in_place;
mod kv;
pub mod manifest;
mod mmap;
mod quantize;
mod roles;
mod slice;
pub mod slices;
pub mod spec;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tokenizer;

pub use adapter::{Adapter, LowRank, MAX_ADAPTER_RANK, adapter_row};
pub use checkpoint::Checkpoint;
pub use dtype::DType;
pub use error::ModelError;
pub use in_place::{InPlace, keep_only};
pub use kv::KvFormat;
pub use quantize::{Loaded, Quantize};
pub use roles::{LayerRole, TensorRole};
pub use slice::{TensorInfo, TensorSlice};
pub use slices::{Cut, ExpertMap, RankSlice, Shape, SlicePlan, plan_slices};
pub use spec::{ArchSpec, RopeSpec, RopeStyle};
pub use tokenizer::{SpecialTokens, TokenizerSource};
