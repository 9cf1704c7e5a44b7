//! The coordinator: a Raft member, the front door, and the drivers of the groups leased to it.
#![forbid(unsafe_code)]

pub mod batcher;
pub mod cluster;
pub mod router;
pub mod text;
