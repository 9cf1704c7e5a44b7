//! What the Raft leader does beside leading: it keeps the workers' sessions, notices who is lost, and makes the cluster
//! follow its deployments.

mod capabilities;
mod controller;
mod probe;
mod registry;
#[cfg(test)]
mod tests;

pub use controller::run_controller;
pub use registry::{Registry, RegistryService};
