//! TLS between the processes of a cluster and for their clients: certificates read, checked, read anew and made, connections
//! accepted and opened over them, and errors in words.
//!
//! Servers show certificates; who calls is told by the cluster token, inside TLS. One library, rustls, with one provider, ring.
#![forbid(unsafe_code)]

mod certificate;
mod check;
mod dialer;
mod files;
mod identity;
mod listener;
pub mod making;
mod trust;
mod words;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use certificate::{Life, date, now};
pub use check::{Examined, Trouble, examine};
pub use dialer::{Dialer, Over};
pub use files::{FileError, TlsFiles, together};
pub use identity::Tls;
pub use listener::{Accepted, ServerStream, arrive, incoming};
pub use trust::Trust;
pub use words::{SPEAKS_TLS, cause};

/// What clients of gRPC offer, and what those of HTTP/1 do.
pub const H2: &[u8] = b"h2";
/// See [`H2`].
pub const HTTP_1: &[u8] = b"http/1.1";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The host of HOST:PORT, without the brackets of an IPv6 address.
pub fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_matches(['[', ']'])
}
