//! Clusters of real processes, and what tests need to start them, talk to them, break them and look inside.
//!
//! The tests are in `tests/cluster/`, one binary with a module for each promise. Everything here panics when it cannot do
//! its work: it is a test that fails then, and the message says what was waited for and what the processes' logs say.
#![forbid(unsafe_code)]

pub mod answer;
pub mod ask;
pub mod certificates;
pub mod choice;
pub mod client;
pub mod cluster;
pub mod collector;
pub mod control_group;
pub mod hosts;
pub mod http;
pub mod machine;
pub mod members;
pub mod metrics;
pub mod netns;
pub mod nodes;
pub mod notify;
pub mod page;
pub mod paths;
pub mod ports;
pub mod process;
pub mod prometheus;
pub mod reference;
pub mod release;
pub mod scratch;
pub mod setup;
pub mod steady;
pub mod terraform;
pub mod wait;
