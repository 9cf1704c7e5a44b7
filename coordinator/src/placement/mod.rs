//! Which workers hold what: pure, deterministic.
//!
//! [`facts`] say what is there and what is asked, [`pools`] whose memory is whose; [`layout`] cuts a model for a shape,
//! [`memory`] says what that takes, [`cost`] and [`pace`] how fast it will be; [`assign`] seats ranks on workers; [`mod@choose`] takes the
//! best of all shapes that fit, and [`explain`] says why, or what is missing. [`changes`] compares that with what is in place,
//! [`leases`] says who drives it.

mod assign;
mod changes;
mod choose;
mod cost;
mod explain;
pub mod facts;
mod layout;
mod leases;
mod memory;
mod pace;
mod pools;

pub use changes::{Proposal, Step, Surroundings, idle_workers, plan, propose, propose_on, wish};
pub use choose::{Plan, PlannedRank, choose};
pub use cost::Prediction;
pub use explain::{VERSIONS, bytes, rate};
pub use memory::{BLOCK_SIZE, RankNeeds};

#[cfg(test)]
mod doc_tests;
#[cfg(test)]
mod known;
#[cfg(test)]
mod planner_tests;
#[cfg(test)]
mod tests;
