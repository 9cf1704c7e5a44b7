//! Foggara's wire protocol: the `.proto` files, the code generated from them, and the only conversions between wire and
//! domain types.
//!
//! Everything else in the workspace speaks the domain types ([`sequence`], [`shape`], [`step`]); generated messages ([`wire`]) are
//! met only by the handlers at the edge of each process.
#![forbid(unsafe_code)]

pub mod auth;
pub mod condition;
pub mod convert;
pub mod files;
pub mod sequence;
pub mod shape;
pub mod step;
pub mod trace;
pub mod wire;

/// Settings on which coordinators and workers must agree. Sent when a worker joins and compared as a whole: a worker built
/// from another version is refused with both texts.
pub const PROTOCOL: &str = concat!("foggara ", env!("CARGO_PKG_VERSION"), " protocol 2");
