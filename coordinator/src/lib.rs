//! The coordinator: a Raft member, the front door, and the drivers of the groups leased to it.
#![forbid(unsafe_code)]

pub mod batcher;
pub mod cluster;
pub mod control;
pub mod driver;
pub mod front_door;
pub mod library;
pub mod metrics;
pub mod model_facts;
pub mod placement;
pub mod router;
mod run;
pub mod text;
pub mod timeline;
pub mod traces;

pub use run::{CoordinatorConfig, CoordinatorError, run};
