//! Processes on this machine, kept running: for `foggara up` and `foggara supervise`.

mod backoff;
mod child;

pub(crate) use child::{Child, ChildFailed, Spec};
