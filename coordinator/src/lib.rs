//! The coordinator: a Raft member, the front door, and the drivers of the groups leased to it.
#![forbid(unsafe_code)]

pub mod cluster;
pub mod front_door;
pub mod metrics;
pub mod router;
pub mod text;
