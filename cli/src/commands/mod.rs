//! One file for each subcommand.

pub(crate) mod adapter;
pub(crate) mod attach;
pub(crate) mod certificates;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod coordinator;
pub(crate) mod doctor;
pub(crate) mod generate;
pub(crate) mod manual;
pub(crate) mod models;
mod printer;
mod sampling;
pub(crate) mod score;
pub(crate) mod status;
pub(crate) mod supervise;
pub(crate) mod top;
pub(crate) mod trace;
pub(crate) mod up;
pub(crate) mod worker;
