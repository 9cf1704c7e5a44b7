//! What a cluster promises, proved on clusters of real processes. One module for each promise.
#![allow(clippy::unwrap_used, reason = "the whole binary is tests, and a test fails by panicking")]

mod alarmed;
mod attaching;
mod bad_input;
mod cancelling;
mod clients;
mod collective;
mod context;
mod deployments;
mod documented;
mod failover;
mod golden;
mod growth;
mod load;
mod memory;
mod no_shared_disk;
mod packaged;
mod preflight;
mod probe;
mod raft;
mod reference;
mod replicas;
mod same_tokens;
mod same_tokens_crowded;
mod score;
mod seeing;
mod services;
mod shared;
mod slow_readers;
mod stopping;
mod ten_thousand;
mod terraform;
mod top;
mod traced;
mod two_hosts;
mod watched;
