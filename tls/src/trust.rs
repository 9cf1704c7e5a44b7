//! Whom a client goes by.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

use super::files::{FileError, roots};
use super::{H2, Tls, provider};

/// The authorities by which servers' certificates are checked.
#[derive(Clone)]
pub struct Trust(Source);

#[derive(Clone)]
enum Source {
    /// Those of a process, as they are at each connection.
    Of(Tls),
    /// Those of a file, as it was.
    File(PathBuf, Arc<ClientConfig>),
    System(Arc<ClientConfig>),
}

impl Trust {
    /// Whom a process of the cluster goes by.
    pub fn of(tls: &Tls) -> Self {
        Self(Source::Of(tls.clone()))
    }

    /// Those of a file; without one, those of the system (`SSL_CERT_FILE` and `SSL_CERT_DIR` say others): an organisation's own
    /// authority is there, where every other program finds it, too.
    ///
    /// # Errors
    /// If there are none.
    pub fn of_client(file: Option<&Path>) -> Result<Self, FileError> {
        if let Some(path) = file {
            return Ok(Self(Source::File(path.into(), Arc::new(config(roots(path)?, &[H2])))));
        }
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if store.is_empty() {
            let reason = "this system has no certificates of authorities; name the cluster's with --tls-ca";
            return Err(FileError { field: "tls_ca", reason: reason.into() });
        }
        Ok(Self(Source::System(Arc::new(config(store, &[H2])))))
    }

    /// Nobody: for clients that are to speak plain text alone.
    pub fn nobody() -> Self {
        Self(Source::System(Arc::new(config(RootCertStore::empty(), &[]))))
    }

    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        match &self.0 {
            Source::Of(tls) => tls.client(),
            Source::File(_, config) | Source::System(config) => Arc::clone(config),
        }
    }

    /// The same for a client that speaks `protocols`: for other libraries, which take it as it is.
    pub fn config_for(&self, protocols: &[&[u8]]) -> ClientConfig {
        let mut config = ClientConfig::clone(&self.config());
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        config
    }

    /// What should have signed, for messages.
    pub(crate) fn signers(&self) -> String {
        match &self.0 {
            Source::Of(tls) => tls.ca().display().to_string(),
            Source::File(path, _) => path.display().to_string(),
            Source::System(_) => "any authority of this system (name the cluster's own with --tls-ca)".into(),
        }
    }
}

pub(crate) fn config(roots: RootCertStore, protocols: &[&[u8]]) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.expect("ring has what TLS 1.2 and 1.3 need");
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config
}
