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
pub mod version;
pub mod wire;
