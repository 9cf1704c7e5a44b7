//! By whom servers at `https://` addresses are checked: the authorities of the file that `FOGGARA_TLS_CA` names, else those of this
//! system.

use anyhow::Result;
use foggara_tls::{Dialer, HTTP_1, Trust};

fn ca() -> Option<std::path::PathBuf> {
    std::env::var_os("FOGGARA_TLS_CA").map(Into::into)
}

/// How gRPC at `url` is called.
pub(super) fn dialer(url: &str) -> Result<Dialer> {
    Ok(Dialer::for_url(url, ca().as_deref())?)
}

/// A client for HTTP/1 at `url`.
pub(crate) fn http(url: &str) -> Result<reqwest::Client> {
    let trust = match url.starts_with("https://") {
        true => Trust::of_client(ca().as_deref())?,
        false => Trust::nobody(),
    };
    let builder = reqwest::Client::builder().tls_backend_preconfigured(trust.config_for(&[HTTP_1]));
    Ok(builder.tcp_nodelay(true).build()?)
}
