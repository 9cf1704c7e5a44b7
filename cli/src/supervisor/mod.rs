//! Processes on this machine, kept running: for `foggara up`.

mod backoff;
mod child;

pub(crate) use child::{Child, ChildFailed, Spec};
