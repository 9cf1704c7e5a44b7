//! A worker: one rank of a group. It joins a coordinator, is given a slice of a model, and executes step plans.
#![forbid(unsafe_code)]

mod accelerator;
mod adapters;
mod best;
mod capabilities;
pub mod cgroup;
pub mod decoder;
mod draw;
pub mod engine;
mod group;
mod loading;
mod models;
mod rpc;
mod run;
mod session;
#[cfg(test)]
mod testing;
pub mod weights;

pub use accelerator::DeviceChoice;
pub use adapters::Adapters;
pub use run::{WorkerConfig, WorkerError, run};
